/* The mpi transport, compiled by mpicc into libgtopk_mpi.so and opened on demand by mpi.c. It is linked with MPI and
 * nothing else: error texts and log lines go back to the library through transport_host_t.
 *
 * Everything is non-blocking and polled, so that each wait has a deadline. One mutex is held around all calls, so that
 * MPI_THREAD_SERIALIZED is enough when communicators are used from several threads. */
#include <limits.h>
#include <math.h>
#include <mpi.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "transport/mpi_losses.h"
#include "transport/mpi_ring.h"
#include "transport/transport.h"
#include "util/clock.h"

#define MESSAGE_TAG 7
#define LAST_WORD_TAG 8

/* A rank that waits longer than this looks for last words: messages that were under way before them come first. */
#define LAST_WORD_AFTER 1.0 /* seconds */

/* After the goodbye of a rank that ended in order, what it sent before may still be under way for this long: its messages,
 * and the other ranks' parts of a collective of MPI's that it is through with. */
#define GOODBYE_GRACE 0.5 /* seconds */
#define GOODBYE_GRACE_COLLECTIVE 30.0

#define NOTICE_SIZE 64

/* Waiting: test without a pause for as long as a message between cores takes, then give the processor away after each
 * test, then sleep, so that ranks which share a core get on. A ring has more under way than a nap takes, and sleeps at once:
 * its own processor time is what limits it. */
#define SPIN_SECONDS 20e-6
#define YIELD_SECONDS 1e-3
#define SLEEP_NANOSECONDS 50000

/* Counts in MPI are int: longer messages travel as one item of a derived type. Tests set a small limit. */
#ifndef MPI_MODULE_COUNT_MAX
#define MPI_MODULE_COUNT_MAX INT_MAX
#endif
#define TYPE_BLOCK ((size_t)1 << 20)

/* A message that does not fit is received all the same, for what its head says. Not a longer one: memory may be short. */
#define OVERLONG_MAX ((MPI_Count)64 << 20)

/* An all-reduce is a ring when each rank's share of it is this many floats or more. Of shorter ones latency is what counts, and
 * MPI's own takes log2 P of it. Tests set a small limit. */
#ifndef MPI_MODULE_RING_SHARE
#define MPI_MODULE_RING_SHARE 8192
#endif

/* How long what is under way is given the chance to end, and how long MPI is when a process ends after a failure. */
#define FINAL_SECONDS 0.05
#define FINALIZE_SECONDS 5

/* A last word and its memory, which is kept until it was sent. */
typedef struct notice {
    struct notice *next;
    MPI_Request request;
    unsigned char bytes[NOTICE_SIZE];
} notice_t;

/* What a rank says last, and whether it gave up or has just ended. The number is the communicator's: MPI may deliver what
 * was under way in one that was freed to the next one. */
typedef enum farewell { FAREWELL_NONE, FAREWELL_ENDED, FAREWELL_GAVE_UP } farewell_t;

typedef struct last_word {
    uint64_t number;
    int32_t farewell;
} last_word_t;

typedef struct mpi_transport {
    transport_t base;
    MPI_Comm comm;
    transport_exchange_t exchange;
    size_t received;  /* length of the message that came */
    double posted_at; /* when the exchange under way was started */
    int awaited;      /* the message to be received has not shown itself yet */
    MPI_Request receive, send;
    unsigned char *overlong; /* where a message goes that does not fit, else NULL */
    notice_t *notices;
    int broken;               /* a request may never end: leave the communicator and MPI alone */
    uint64_t number;          /* tells this communicator from others */
    unsigned char *farewells; /* [size] what each rank has said last */
    struct mpi_transport *next_closed;
    double ended_at; /* when a rank that is waited for was first seen to have ended, 0: none was */
    int complete;    /* all ranks have it, and know its number */
    ring_t ring;     /* the all-reduce under way */
    float *arrived;  /* its memory, which stays when it is given up */
    MPI_Comm left;   /* of ranks that are left, until they have agreed that all of them have this */
} mpi_transport_t;

/* MPI is one for the process, and so is this. Under mpi_mutex. */
static pthread_mutex_t mpi_mutex = PTHREAD_MUTEX_INITIALIZER;
static int mpi_started_here, mpi_open, mpi_broken;
static int mpi_lost;            /* ranks were, and others went on: MPI_Finalize would wait for them */
static mpi_transport_t *closed; /* in order, but other ranks may still send their goodbyes */
static const transport_host_t *library;

#define LOCKED(statement)                       \
    do {                                        \
        (void)pthread_mutex_lock(&mpi_mutex);   \
        statement;                              \
        (void)pthread_mutex_unlock(&mpi_mutex); \
    } while (0)

/* ---- errors ---- */

static gtopk_status_t failed(int code, const char *what)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    (void)MPI_Error_string(code, text, &length);
    return library->status_set(GTOPK_ERR_TRANSPORT, "MPI failed in %s: %s; look at the output of the other ranks", what,
                               text);
}

static void mark_broken(mpi_transport_t *self)
{
    self->broken = 1;
    LOCKED(mpi_broken = 1);
}

/* ---- waiting ---- */

static void pause_after(double waited, double yield_seconds)
{
    const struct timespec nap = {0, SLEEP_NANOSECONDS};
    if (waited > yield_seconds && waited > SPIN_SECONDS)
        (void)nanosleep(&nap, NULL);
    else if (waited > SPIN_SECONDS)
        (void)sched_yield();
}

/* Takes the last words that came, each once. A last word also goes out as a message, but a rank whose own large message is
 * never taken, or who only sends, or is in a collective of MPI's, would not read it there. Under mpi_mutex. */
static void take_last_words(mpi_transport_t *self)
{
    for (;;) {
        last_word_t word;
        int there = 0, count = 0;
        MPI_Message message;
        MPI_Status found;
        if (MPI_Improbe(MPI_ANY_SOURCE, LAST_WORD_TAG, self->comm, &there, &message, &found) != MPI_SUCCESS || !there)
            return;
        (void)MPI_Get_count(&found, MPI_BYTE, &count);
        const int whole = count == (int)sizeof word;
        if (MPI_Mrecv(&word, whole ? count : 0, MPI_BYTE, &message, MPI_STATUS_IGNORE) != MPI_SUCCESS || !whole)
            continue;
        if (word.number == self->number && found.MPI_SOURCE < self->base.size)
            self->farewells[found.MPI_SOURCE] = (unsigned char)word.farewell;
    }
}

/* What `rank` (MPI_ANY_SOURCE: the first rank that said anything, *which) has said last. Under mpi_mutex. */
static farewell_t farewell_of(mpi_transport_t *self, int32_t rank, int32_t *which)
{
    take_last_words(self);
    const int32_t first = rank == MPI_ANY_SOURCE ? 0 : rank;
    const int32_t end = rank == MPI_ANY_SOURCE ? self->base.size : rank + 1;
    farewell_t found = FAREWELL_NONE;
    for (int32_t r = first; r < end; r++)
        if (self->farewells[r] > found) {
            found = (farewell_t)self->farewells[r];
            *which = r;
        }
    return found;
}

/* GTOPK_OK, or that the wait is over because `rank` said so. One that ended in order has sent all it had to. */
static gtopk_status_t end_by(mpi_transport_t *self, farewell_t farewell, int32_t rank, double now, double grace)
{
    if (farewell == FAREWELL_GAVE_UP)
        return library->status_set(GTOPK_ERR_ABORTED,
                                   "rank %d gave up: its own output says why; restart from a checkpoint", (int)rank);
    if (farewell == FAREWELL_NONE || self->ended_at == 0.0) {
        self->ended_at = farewell == FAREWELL_NONE ? 0.0 : now;
        return GTOPK_OK;
    }
    if (now - self->ended_at < grace)
        return GTOPK_OK;
    return library->status_set(
        GTOPK_ERR_ABORTED,
        "rank %d has ended, or called gtopk.shutdown(), and this rank still waits for it. Its loop was "
        "shorter, or it left by sys.exit or an exception that its own output shows: give every rank the "
        "same number of steps, or call optimizer.join() after a rank's last one",
        (int)rank);
}

/* What a rank that waits for a collective does again and again. */
typedef struct attempt {
    MPI_Request *request; /* one of MPI's, or NULL: */
    ring_t *ring;
    int survives; /* it ends without the ranks that are lost, and what these have said is no matter */
} attempt_t;

/* *ended: it did; *moved: not yet, but some of it was done. Under mpi_mutex. */
static int try_again(const attempt_t *attempt, int *ended, int *moved)
{
    *moved = 0;
    if (attempt->request) {
        const int code = MPI_Test(attempt->request, ended, MPI_STATUS_IGNORE);
        if (!attempt->survives || !losses_are_all(code))
            return code;
        *ended = 1;
        return MPI_SUCCESS;
    }
    const int code = ring_advance(attempt->ring, moved);
    *ended = ring_ended(attempt->ring);
    return code;
}

/* Until a collective ends. */
static gtopk_status_t wait_for(mpi_transport_t *self, const attempt_t *attempt, double deadline, const char *what)
{
    const double start = clock_now();
    double ask_at = start + TRANSPORT_INTERRUPT_SECONDS, moved_at = start;
    self->ended_at = 0.0;
    for (;;) {
        int ended = 0, moved = 0, code;
        LOCKED(code = try_again(attempt, &ended, &moved));
        if (code != MPI_SUCCESS)
            return failed(code, what);
        if (ended)
            return GTOPK_OK;
        const double now = clock_now();
        if (now >= deadline)
            return library->status_set(GTOPK_ERR_TIMEOUT,
                                       "%s did not end in time: a rank died, is stuck, or did not call it; look at the "
                                       "output of the others, or raise the timeout",
                                       what);
        if (now >= ask_at) {
            if (now - start > LAST_WORD_AFTER && self->complete && !attempt->survives) {
                int32_t rank = TRANSPORT_NONE;
                farewell_t farewell;
                LOCKED(farewell = farewell_of(self, MPI_ANY_SOURCE, &rank));
                const gtopk_status_t status = end_by(self, farewell, rank, now, GOODBYE_GRACE_COLLECTIVE);
                if (status != GTOPK_OK)
                    return status;
            }
            if (transport_interrupted(&self->base))
                return library->status_set(GTOPK_ERR_INTERRUPTED, "the wait for %s was interrupted", what);
            ask_at = now + TRANSPORT_INTERRUPT_SECONDS;
        }
        if (moved)
            moved_at = now;
        else
            pause_after(now - moved_at, attempt->ring ? 0.0 : YIELD_SECONDS);
    }
}

static gtopk_status_t wait_for_request(mpi_transport_t *self, MPI_Request *request, double deadline, const char *what)
{
    return wait_for(self, &(attempt_t){.request = request}, deadline, what);
}

/* ---- messages ---- */

/* How `bytes` bytes are described to MPI: as that many MPI_BYTE, or as one item of a type to be freed. */
static int describe_bytes(size_t bytes, int *count, MPI_Datatype *type)
{
    *type = MPI_BYTE;
    *count = (int)bytes;
    if (bytes <= (size_t)MPI_MODULE_COUNT_MAX)
        return MPI_SUCCESS;
    MPI_Datatype block;
    int code = MPI_Type_contiguous((int)TYPE_BLOCK, MPI_BYTE, &block);
    if (code != MPI_SUCCESS)
        return code;
    const size_t blocks = bytes / TYPE_BLOCK;
    int lengths[2] = {(int)blocks, (int)(bytes % TYPE_BLOCK)};
    MPI_Aint places[2] = {0, (MPI_Aint)(blocks * TYPE_BLOCK)};
    MPI_Datatype types[2] = {block, MPI_BYTE};
    *count = 1;
    code = MPI_Type_create_struct(2, lengths, places, types, type);
    if (code == MPI_SUCCESS)
        code = MPI_Type_commit(type);
    (void)MPI_Type_free(&block);
    return code;
}

static void forget_type(MPI_Datatype *type)
{
    if (*type != MPI_BYTE)
        (void)MPI_Type_free(type);
}

static gtopk_status_t too_long(const transport_exchange_t *exchange, size_t bytes)
{
    return library->status_set(GTOPK_ERR_CORRUPT, "rank %d sent %zu bytes where %zu fit: " TRANSPORT_TOO_LONG,
                               (int)exchange->from, bytes, exchange->receive_capacity);
}

/* Takes the awaited message if it is there, into memory where it fits. A receive posted ahead would be told too late: a
 * message that is too long was seen to be written past the end of the buffer before MPI reports the truncation. Under
 * mpi_mutex. */
static gtopk_status_t look_for_message(mpi_transport_t *self)
{
    const transport_exchange_t *exchange = &self->exchange;
    char what[64];
    int there = 0, count;
    MPI_Message message;
    MPI_Status found;
    MPI_Count bytes = 0;
    MPI_Datatype type;
    (void)snprintf(what, sizeof what, "receiving from rank %d", (int)exchange->from);
    int code = MPI_Improbe(exchange->from, MESSAGE_TAG, self->comm, &there, &message, &found);
    if (code != MPI_SUCCESS)
        return failed(code, what);
    if (!there)
        return GTOPK_OK;
    (void)MPI_Get_elements_x(&found, MPI_BYTE, &bytes);
    void *into = exchange->receive;
    if (bytes < 0 || (size_t)bytes > exchange->receive_capacity) {
        into = self->overlong = bytes > 0 && bytes <= OVERLONG_MAX ? malloc((size_t)bytes) : NULL;
        if (!into)
            return too_long(exchange, (size_t)bytes);
    }
    code = describe_bytes((size_t)bytes, &count, &type);
    if (code == MPI_SUCCESS)
        code = MPI_Imrecv(into, count, type, &message, &self->receive);
    forget_type(&type);
    self->awaited = 0;
    self->received = (size_t)bytes;
    return code == MPI_SUCCESS ? GTOPK_OK : failed(code, what);
}

static int start_send(mpi_transport_t *self, const transport_exchange_t *exchange)
{
    int count, code;
    MPI_Datatype type;
    code = describe_bytes(exchange->send_bytes, &count, &type);
    if (code == MPI_SUCCESS)
        code = MPI_Isend(exchange->send, count, type, exchange->to, MESSAGE_TAG, self->comm, &self->send);
    forget_type(&type);
    return code;
}

static gtopk_status_t mpi_post(transport_t *transport, const transport_exchange_t *exchange, double deadline,
                               void *stream)
{
    mpi_transport_t *self = (mpi_transport_t *)transport;
    int code = MPI_SUCCESS;
    (void)deadline;
    (void)stream;
    self->received = 0;
    self->exchange = *exchange;
    self->posted_at = clock_now();
    self->ended_at = 0.0;
    (void)pthread_mutex_lock(&mpi_mutex);
    self->awaited = exchange->from != TRANSPORT_NONE;
    if (exchange->to != TRANSPORT_NONE)
        code = start_send(self, exchange);
    (void)pthread_mutex_unlock(&mpi_mutex);
    return code == MPI_SUCCESS ? GTOPK_OK : failed(code, "starting an exchange");
}

/* The head of a message that does not fit, now that it came. */
static gtopk_status_t keep_head(mpi_transport_t *self)
{
    const transport_exchange_t *exchange = &self->exchange;
    if (exchange->receive_capacity > 0)
        memcpy(exchange->receive, self->overlong, exchange->receive_capacity);
    free(self->overlong);
    self->overlong = NULL;
    return too_long(exchange, self->received);
}

/* Tests what is still under way. Under mpi_mutex. */
static gtopk_status_t test_both(mpi_transport_t *self)
{
    int done = 0, code;
    if (self->awaited) {
        const gtopk_status_t status = look_for_message(self);
        if (status != GTOPK_OK)
            return status;
    }
    if (self->receive != MPI_REQUEST_NULL) {
        char what[64];
        code = MPI_Test(&self->receive, &done, MPI_STATUS_IGNORE);
        if (code != MPI_SUCCESS) {
            (void)snprintf(what, sizeof what, "receiving from rank %d", (int)self->exchange.from);
            return failed(code, what);
        }
        if (done && self->overlong)
            return keep_head(self);
    }
    if (self->send != MPI_REQUEST_NULL) {
        char what[64];
        code = MPI_Test(&self->send, &done, MPI_STATUS_IGNORE);
        if (code != MPI_SUCCESS) {
            (void)snprintf(what, sizeof what, "sending to rank %d", (int)self->exchange.to);
            return failed(code, what);
        }
    }
    return GTOPK_OK;
}

/* What the rank that this one waits for has said last. Under mpi_mutex. */
static farewell_t farewell_of_partner(mpi_transport_t *self, int32_t *which)
{
    farewell_t found = FAREWELL_NONE;
    if (self->awaited || self->receive != MPI_REQUEST_NULL)
        found = farewell_of(self, self->exchange.from, which);
    if (found == FAREWELL_NONE && self->send != MPI_REQUEST_NULL)
        found = farewell_of(self, self->exchange.to, which);
    return found;
}

static gtopk_status_t mpi_wait(transport_t *transport, double deadline, size_t *received)
{
    mpi_transport_t *self = (mpi_transport_t *)transport;
    const double start = clock_now();
    for (;;) {
        gtopk_status_t status;
        LOCKED(status = test_both(self));
        *received = self->received;
        if (status != GTOPK_OK)
            return status;
        const int receiving = self->awaited || self->receive != MPI_REQUEST_NULL;
        if (!receiving && self->send == MPI_REQUEST_NULL)
            return GTOPK_OK;
        const double now = clock_now();
        if (now - self->posted_at > LAST_WORD_AFTER) {
            int32_t rank = TRANSPORT_NONE;
            farewell_t farewell;
            LOCKED(farewell = farewell_of_partner(self, &rank));
            status = end_by(self, farewell, rank, now, GOODBYE_GRACE);
            if (status != GTOPK_OK)
                return status;
        }
        if (now >= deadline)
            return library->status_set(GTOPK_ERR_TIMEOUT, "rank %d has not %s yet",
                                       (int)(receiving ? self->exchange.from : self->exchange.to),
                                       receiving ? "sent its message" : "taken this rank's message");
        pause_after(now - start, YIELD_SECONDS);
    }
}

/* With or without an error. */
static int has_ended(MPI_Request *request)
{
    int done = 0;
    (void)MPI_Test(request, &done, MPI_STATUS_IGNORE);
    return *request == MPI_REQUEST_NULL;
}

/* A message that has not shown itself has touched nothing; what is under way cannot be called back. */
static int mpi_abandon(transport_t *transport)
{
    mpi_transport_t *self = (mpi_transport_t *)transport;
    int received = 0, sent = 0;
    mark_broken(self);
    self->awaited = 0;
    (void)pthread_mutex_lock(&mpi_mutex);
    for (const double end = clock_now() + FINAL_SECONDS; !(received && sent) && clock_now() < end;) {
        received = has_ended(&self->receive);
        sent = has_ended(&self->send);
    }
    (void)pthread_mutex_unlock(&mpi_mutex);
    if (received)
        free(self->overlong);
    self->overlong = NULL;
    return received && sent;
}

/* ---- last words ---- */

static void test_notices(mpi_transport_t *self)
{
    for (notice_t **place = &self->notices; *place;) {
        notice_t *notice = *place;
        int sent = 0;
        if (MPI_Test(&notice->request, &sent, MPI_STATUS_IGNORE) != MPI_SUCCESS || !sent) {
            place = &notice->next;
            continue;
        }
        *place = notice->next;
        free(notice);
    }
}

/* Under mpi_mutex. */
static void send_notice(mpi_transport_t *self, int32_t to, const void *message, size_t bytes, int tag)
{
    notice_t *notice = calloc(1, sizeof *notice);
    if (!notice)
        return;
    memcpy(notice->bytes, message, bytes);
    if (MPI_Isend(notice->bytes, (int)bytes, MPI_BYTE, to, tag, self->comm, &notice->request) != MPI_SUCCESS) {
        free(notice);
        return;
    }
    notice->next = self->notices;
    self->notices = notice;
}

/* Under mpi_mutex. */
static void send_last_word(mpi_transport_t *self, int32_t to, farewell_t farewell)
{
    last_word_t word;
    memset(&word, 0, sizeof word);
    word.number = self->number;
    word.farewell = (int32_t)farewell;
    send_notice(self, to, &word, sizeof word, LAST_WORD_TAG);
}

static void mpi_notify(transport_t *transport, int32_t to, const void *message, size_t bytes)
{
    mpi_transport_t *self = (mpi_transport_t *)transport;
    mark_broken(self);
    if (bytes > NOTICE_SIZE)
        return;
    (void)pthread_mutex_lock(&mpi_mutex);
    send_notice(self, to, message, bytes, MESSAGE_TAG);
    send_last_word(self, to, FAREWELL_GAVE_UP);
    test_notices(self);
    (void)pthread_mutex_unlock(&mpi_mutex);
}

static int32_t mpi_gone(transport_t *transport)
{
    int32_t rank = TRANSPORT_NONE;
    farewell_t farewell;
    LOCKED(farewell = farewell_of((mpi_transport_t *)transport, MPI_ANY_SOURCE, &rank));
    return farewell == FAREWELL_GAVE_UP ? rank : TRANSPORT_NONE;
}

/* ---- collectives ---- */

static gtopk_status_t mpi_allgather(transport_t *transport, const void *in, size_t bytes, void *out, double deadline,
                                    void *stream)
{
    (void)stream;
    mpi_transport_t *self = (mpi_transport_t *)transport;
    MPI_Request request = MPI_REQUEST_NULL;
    MPI_Datatype type;
    int count, code;
    (void)pthread_mutex_lock(&mpi_mutex);
    code = describe_bytes(bytes, &count, &type);
    if (code == MPI_SUCCESS)
        code = MPI_Iallgather(in, count, type, out, count, type, self->comm, &request);
    forget_type(&type);
    (void)pthread_mutex_unlock(&mpi_mutex);
    const gtopk_status_t status = code == MPI_SUCCESS ? wait_for_request(self, &request, deadline, "an all-gather")
                                                      : failed(code, "an all-gather");
    if (status != GTOPK_OK)
        mark_broken(self);
    return status;
}

static gtopk_status_t reduce_short(mpi_transport_t *self, float *buffer, size_t count, double deadline)
{
    MPI_Request request = MPI_REQUEST_NULL;
    int code;
    LOCKED(code = MPI_Iallreduce(MPI_IN_PLACE, buffer, (int)count, MPI_FLOAT, MPI_SUM, self->comm, &request));
    return code == MPI_SUCCESS ? wait_for_request(self, &request, deadline, "an all-reduce")
                               : failed(code, "an all-reduce");
}

static gtopk_status_t mpi_allreduce(transport_t *transport, float *buffer, size_t count, double deadline, void *stream)
{
    mpi_transport_t *self = (mpi_transport_t *)transport;
    gtopk_status_t status = GTOPK_OK;
    (void)stream;
    if (transport->size > 1 && count / (size_t)transport->size < MPI_MODULE_RING_SHARE) {
        status = reduce_short(self, buffer, count, deadline);
    } else if (transport->size > 1) {
        ring_open(&self->ring, self->comm, transport->rank, transport->size, buffer, count, self->arrived);
        status = wait_for(self, &(attempt_t){.ring = &self->ring}, deadline, "an all-reduce");
    }
    if (status != GTOPK_OK)
        mark_broken(self);
    return status;
}

/* ---- opening and closing ---- */

static double mpi_now(transport_t *transport)
{
    (void)transport;
    return clock_now();
}

/* Whether all others have said that they ended, so that nothing more can come. Under mpi_mutex. */
static int all_ended(mpi_transport_t *self)
{
    take_last_words(self);
    for (int32_t r = 0; r < self->base.size; r++)
        if (r != self->base.rank && self->farewells[r] != FAREWELL_ENDED)
            return 0;
    return 1;
}

/* Frees what was closed and is done with. A goodbye that came after MPI_Comm_free would be delivered to the communicator
 * that gets the number next. Under mpi_mutex. */
static void free_closed(void)
{
    for (mpi_transport_t **place = &closed; *place;) {
        mpi_transport_t *self = *place;
        test_notices(self);
        if (self->notices || !all_ended(self)) {
            place = &self->next_closed;
            continue;
        }
        *place = self->next_closed;
        (void)MPI_Comm_free(&self->comm);
        free(self->arrived);
        free(self->farewells);
        free(self);
    }
}

/* Who ends in order says so, so that a rank which goes on does not wait for it until its deadline. Under mpi_mutex. */
static void say_goodbye(mpi_transport_t *self)
{
    for (int32_t r = 0; r < self->base.size; r++)
        if (r != self->base.rank)
            send_last_word(self, r, FAREWELL_ENDED);
    self->next_closed = closed;
    closed = self;
    free_closed();
}

static void mpi_close(transport_t *transport)
{
    mpi_transport_t *self = (mpi_transport_t *)transport;
    int finalized = 0;
    (void)pthread_mutex_lock(&mpi_mutex);
    mpi_open--;
    (void)MPI_Finalized(&finalized);
    if (!self->broken && !finalized) {
        say_goodbye(self);
        (void)pthread_mutex_unlock(&mpi_mutex);
        return;
    }
    /* A communicator with requests that never end stays, and so do they; what they refer to is not freed here. */
    for (const double end = clock_now() + FINAL_SECONDS; self->notices && !finalized && clock_now() < end;)
        test_notices(self);
    (void)pthread_mutex_unlock(&mpi_mutex);
    if (ring_ended(&self->ring))
        free(self->arrived);
    free(self->farewells);
    free(self);
}

static gtopk_status_t mpi_survivors(transport_t *transport, const gtopk_comm_config_t *config, transport_t **left);
static gtopk_status_t mpi_agree(transport_t *transport, gtopk_status_t mine, double deadline);

static const transport_ops_t MPI_OPS = {
    .name = "mpi",
    .close = mpi_close,
    .now = mpi_now,
    .post = mpi_post,
    .wait = mpi_wait,
    .abandon = mpi_abandon,
    .notify = mpi_notify,
    .gone = mpi_gone,
    .allgather = mpi_allgather,
    .allreduce = mpi_allreduce,
    .survivors = mpi_survivors,
    .agree = mpi_agree,
};

/* MPI that is initialised, by whomever, and may be called from this thread. */
static gtopk_status_t start_mpi(const gtopk_comm_config_t *config)
{
    int finalized = 0, initialized = 0, level = MPI_THREAD_SINGLE, is_main = 0;
    (void)MPI_Finalized(&finalized);
    if (finalized)
        return library->status_set(GTOPK_ERR_STATE,
                                   "MPI was finalized in this process and cannot be started again: create all "
                                   "communicators before gtopk_finalize or MPI_Finalize");
    (void)MPI_Initialized(&initialized);
    if (!initialized) {
        watch_t *watch = library->watch_begin("MPI_Init: every process that mpirun started must call gtopk.init(). It",
                                              config->warn_after, transport_setup_seconds(config));
        const int code = MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &level);
        library->watch_end(watch);
        if (code != MPI_SUCCESS)
            return failed(code, "MPI_Init_thread");
        mpi_started_here = 1;
    }
    (void)MPI_Query_thread(&level);
    (void)MPI_Is_thread_main(&is_main);
    if (level < MPI_THREAD_SERIALIZED && !is_main)
        return library->status_set(GTOPK_ERR_UNSUPPORTED,
                                   "MPI was initialised for its main thread alone, and this is another: "
                                   "use MPI_Init_thread with MPI_THREAD_SERIALIZED");
    return GTOPK_OK;
}

/* Ranks of the caller's communicator must agree with what the config expects. */
static gtopk_status_t check_parent(const gtopk_comm_config_t *config, MPI_Comm parent, transport_t *base)
{
    int inter = 0, size = 0, rank = 0;
    if (parent == MPI_COMM_NULL)
        return library->status_set(GTOPK_ERR_INVALID, "mpi_comm is MPI_COMM_NULL: this rank is in no communicator");
    (void)MPI_Comm_test_inter(parent, &inter);
    if (inter)
        return library->status_set(GTOPK_ERR_INVALID,
                                   "mpi_comm is an inter-communicator: merge it with MPI_Intercomm_merge");
    (void)MPI_Comm_size(parent, &size);
    (void)MPI_Comm_rank(parent, &rank);
    if ((config->size != -1 && config->size != size) || (config->rank != -1 && config->rank != rank))
        return library->status_set(
            GTOPK_ERR_INVALID,
            "MPI has this process as rank %d of %d, but rank %d of %d was asked for: start it with "
            "mpirun -n %d, or leave size and rank at -1",
            rank, size, (int)config->rank, (int)config->size, (int)config->size);
    base->size = size;
    base->rank = rank;
    return GTOPK_OK;
}

/* A communicator of our own: no tag of the caller's can meet ours. Errors come back in place of ending the job. */
static gtopk_status_t duplicate(mpi_transport_t *self, MPI_Comm parent, double deadline)
{
    MPI_Request request = MPI_REQUEST_NULL;
    MPI_Errhandler handler;
    int code;
    /* One at a time, so that what is put back in the end is the caller's handler and not another thread's. */
    static pthread_mutex_t handler_mutex = PTHREAD_MUTEX_INITIALIZER;
    (void)pthread_mutex_lock(&handler_mutex);
    LOCKED((void)MPI_Comm_get_errhandler(parent, &handler); (void)MPI_Comm_set_errhandler(parent, MPI_ERRORS_RETURN);
           code = MPI_Comm_idup(parent, &self->comm, &request));
    const gtopk_status_t status = code == MPI_SUCCESS
                                      ? wait_for_request(self, &request, deadline, "duplicating the communicator")
                                      : failed(code, "duplicating the communicator");
    if (status == GTOPK_OK)
        LOCKED((void)MPI_Comm_set_errhandler(self->comm, MPI_ERRORS_RETURN));
    LOCKED((void)MPI_Comm_set_errhandler(parent, handler); (void)MPI_Errhandler_free(&handler));
    (void)pthread_mutex_unlock(&handler_mutex);
    return status;
}

/* A number that tells this communicator from others of this job: rank 0's. */
static gtopk_status_t agree_on_number(mpi_transport_t *self, double deadline)
{
    static uint64_t opened; /* under mpi_mutex */
    uint64_t *all = calloc((size_t)self->base.size + 1, sizeof *all), *mine = all + self->base.size;
    self->farewells = calloc((size_t)self->base.size, 1);
    self->arrived = calloc((size_t)RING_WINDOW * RING_SEGMENT, sizeof *self->arrived); /* no memory until it is used */
    if (!all || !self->farewells || !self->arrived) {
        free(all);
        return library->status_set(GTOPK_ERR_NOMEM, "out of memory: transport mpi with %d ranks", (int)self->base.size);
    }
    LOCKED(*mine = ++opened);
    *mine += (uint64_t)(clock_now() * 1e9);
    const gtopk_status_t status = mpi_allgather(&self->base, mine, sizeof *mine, all, deadline, NULL);
    if (status != GTOPK_OK)
        return status; /* MPI may go on writing to `all`, so it stays */
    self->number = all[0];
    self->complete = 1;
    free(all);
    return GTOPK_OK;
}

/* "mpi (Open MPI 5.0.11)" out of "Open MPI v5.0.11, package: ...", the same for others. */
static void describe(transport_t *base)
{
    char version[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int length = 0;
    LOCKED((void)MPI_Get_library_version(version, &length));
    version[strcspn(version, ",\r\n")] = 0;
    char *v = strstr(version, " v");
    if (v && v[2] >= '0' && v[2] <= '9')
        memmove(v + 1, v + 2, strlen(v + 2) + 1);
    (void)snprintf(base->description, sizeof base->description, "mpi (%.100s)", version);
}

/* A transport among the ranks of `parent`. */
static gtopk_status_t open_among(const gtopk_comm_config_t *config, MPI_Comm parent, double deadline,
                                 transport_t **transport)
{
    gtopk_status_t status;
    mpi_transport_t *self = calloc(1, sizeof *self);
    if (!self)
        return library->status_set(GTOPK_ERR_NOMEM, "out of memory: transport mpi");
    self->base.ops = &MPI_OPS;
    self->base.interrupt = config->interrupt; /* opening waits too */
    self->base.interrupt_context = config->interrupt_context;
    self->receive = self->send = MPI_REQUEST_NULL;
    self->left = MPI_COMM_NULL;
    LOCKED(status = check_parent(config, parent, &self->base));
    if (status != GTOPK_OK) {
        free(self);
        return status;
    }
    /* When one of these fails MPI may go on writing to *self, so it stays. */
    status = duplicate(self, parent, deadline);
    if (status == GTOPK_OK)
        status = agree_on_number(self, deadline);
    if (status != GTOPK_OK) {
        mark_broken(self);
        return status;
    }
    describe(&self->base);
    LOCKED(self->base.survives = losses_are_survived(); mpi_open++);
    *transport = &self->base;
    return GTOPK_OK;
}

static gtopk_status_t module_open(const gtopk_comm_config_t *config, const transport_host_t *host,
                                  transport_t **transport)
{
    const double deadline = clock_now() + transport_setup_seconds(config);
    gtopk_status_t status;
    LOCKED(library = host; status = start_mpi(config); if (status == GTOPK_OK) free_closed());
    if (status != GTOPK_OK)
        return status;
    const MPI_Comm parent = config->mpi_comm ? *(const MPI_Comm *)config->mpi_comm : MPI_COMM_WORLD;
    return open_among(config, parent, deadline, transport);
}

/* ---- going on without ranks that are lost ---- */

/* *yes: 1 if it is 1 on all ranks of `comm` that are left. */
static gtopk_status_t agree_among(mpi_transport_t *self, MPI_Comm comm, int *yes, double deadline)
{
    static const char what[] = "the agreement of the ranks that are left";
    MPI_Request request = MPI_REQUEST_NULL;
    int code;
    LOCKED(code = losses_agree(comm, yes, &request));
    return code == MPI_SUCCESS ? wait_for(self, &(attempt_t){.request = &request, .survives = 1}, deadline, what)
                               : failed(code, what);
}

static gtopk_status_t mpi_agree(transport_t *transport, gtopk_status_t mine, double deadline)
{
    mpi_transport_t *self = (mpi_transport_t *)transport;
    static _Thread_local int yes; /* MPI may go on writing to it */
    yes = mine == GTOPK_OK;
    const gtopk_status_t status = agree_among(self, self->left, &yes, deadline);
    LOCKED((void)MPI_Comm_free(&self->left));
    if (status != GTOPK_OK || mine != GTOPK_OK)
        return mine != GTOPK_OK ? mine : status;
    return yes ? GTOPK_OK
               : library->status_set(GTOPK_ERR_TRANSPORT,
                                     "another of the ranks that are left failed while they made a communicator: one "
                                     "more is lost, or its own output says why");
}

/* Those who are left have all come when they agree. Only then do they shrink, a call of MPI's that knows no deadline. */
static gtopk_status_t shrink(mpi_transport_t *before, MPI_Comm *left, double deadline)
{
    static _Thread_local int yes;
    int code;
    yes = 1;
    mark_broken(before);
    LOCKED((void)losses_revoke(before->comm));
    const gtopk_status_t status = agree_among(before, before->comm, &yes, deadline);
    if (status != GTOPK_OK)
        return status;
    LOCKED(code = losses_shrink(before->comm, left));
    return code == MPI_SUCCESS ? GTOPK_OK : failed(code, "MPIX_Comm_shrink");
}

static gtopk_status_t mpi_survivors(transport_t *transport, const gtopk_comm_config_t *config, transport_t **left)
{
    mpi_transport_t *before = (mpi_transport_t *)transport;
    const double deadline = clock_now() + transport_setup_seconds(config);
    MPI_Comm shrunk = MPI_COMM_NULL;
    if (!transport->survives)
        return library->status_set(
            GTOPK_ERR_UNSUPPORTED,
            "this MPI, as it was started, cannot go on when a rank is lost: use Open MPI 5 or newer, "
            "and start with mpirun --with-ft ulfm");
    gtopk_status_t status = shrink(before, &shrunk, deadline);
    if (status != GTOPK_OK)
        return status;
    LOCKED((void)MPI_Comm_set_errhandler(shrunk, MPI_ERRORS_RETURN));
    status = open_among(config, shrunk, deadline, left);
    if (status == GTOPK_OK) {
        ((mpi_transport_t *)*left)->left = shrunk;
        LOCKED(mpi_lost = 1);
        return GTOPK_OK;
    }
    static _Thread_local int no;
    no = 0;
    LOCKED((void)losses_revoke(shrunk)); /* for those who still wait */
    (void)agree_among(before, shrunk, &no, clock_now() + transport_setup_seconds(config)); /* for those who have it */
    return status;
}

/* Ends a process whose MPI_Finalize waits for a rank that does not come: after a failure, nobody can tell beforehand. */
static void *end_at_last(void *status)
{
    const struct timespec limit = {FINALIZE_SECONDS, 0};
    (void)nanosleep(&limit, NULL);
    (void)fflush(NULL);
    _exit((int)(intptr_t)status);
}

static gtopk_status_t finalize_mpi(void)
{
    const int code = MPI_Finalize();
    return code == MPI_SUCCESS ? GTOPK_OK : failed(code, "MPI_Finalize");
}

static void module_end_process(int status)
{
    pthread_t watchdog;
    int finalized = 0;
    (void)pthread_mutex_lock(&mpi_mutex);
    (void)MPI_Finalized(&finalized);
    if (mpi_started_here && !finalized && mpi_open == 0 && !mpi_lost &&
        (!mpi_broken || pthread_create(&watchdog, NULL, end_at_last, (void *)(intptr_t)status) == 0))
        (void)finalize_mpi();
    (void)pthread_mutex_unlock(&mpi_mutex);
}

static gtopk_status_t module_finalize(void)
{
    int finalized = 0;
    gtopk_status_t status = GTOPK_OK;
    (void)pthread_mutex_lock(&mpi_mutex);
    (void)MPI_Finalized(&finalized);
    if (mpi_started_here && !finalized && mpi_open > 0) {
        status = library->status_set(
            GTOPK_ERR_STATE, "MPI cannot be finalized: %d communicators are open, destroy them first", mpi_open);
    } else if (mpi_started_here && !finalized && mpi_broken) {
        library->log_write(GTOPK_LOG_INFO, "MPI is not finalized: after a failure that might wait for ever");
    } else if (mpi_started_here && !finalized) {
        status = finalize_mpi();
    }
    (void)pthread_mutex_unlock(&mpi_mutex);
    return status;
}

__attribute__((visibility("default"))) extern const transport_module_t gtopk_mpi_module;
const transport_module_t gtopk_mpi_module = {TRANSPORT_ABI, module_open, module_finalize, module_end_process};
