/* Ranks that are threads of one process, for tests and simulation.
 *
 * Each ordered pair of ranks has a queue. A send copies its message into the queue and is done, so giving up frees all
 * buffers. One mutex guards the group; each rank sleeps on a condition variable of its own.
 *
 * Lives. A rank may close its transport and open it again, as a program does that creates communicators in a loop. Its
 * n-th opening talks to the n-th openings of the others: messages carry the life of their sender, so that a fast rank's
 * next life is not mixed up with a slow rank's present one.
 *
 * Virtual clock. Time stands still as long as some rank can do anything: it runs, or it has not yet opened a life that
 * another rank is in. When all ranks wait, are idle or have left, time jumps to the earliest deadline, and those whose
 * deadline it is go on. So what happens does not depend on how fast the threads run. */
#include "transport/thread.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "transport/condition.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/memory.h"

typedef struct message {
    struct message *next;
    uint64_t life; /* of the sender */
    size_t bytes;
    unsigned char payload[];
} message_t;

typedef struct queue {
    message_t *first, *last;
} queue_t;

typedef enum rank_state { RANK_CLOSED, RANK_RUNS, RANK_WAITS, RANK_IDLE } rank_state_t;

typedef struct rank {
    rank_state_t state;
    uint64_t life;   /* times opened */
    double deadline; /* while it waits */
    uint64_t gone;   /* the life in which it said its last word, 0: none */
    pthread_cond_t wake;
} rank_t;

struct gtopk_thread_group {
    int32_t size;
    int virtual_clock;
    pthread_mutex_t mutex;
    double now;    /* virtual clock */
    uint64_t life; /* the highest of any rank */
    rank_t *ranks;
    queue_t *queues; /* [to * size + from] */
};

typedef struct thread_transport {
    transport_t base;
    gtopk_thread_group_t *group;
    transport_exchange_t exchange;
    int under_way;
} thread_transport_t;

static void push(queue_t *queue, message_t *message)
{
    if (queue->last)
        queue->last->next = message;
    else
        queue->first = message;
    queue->last = message;
}

static message_t *pop(queue_t *queue)
{
    message_t *message = queue->first;
    queue->first = message->next;
    if (!queue->first)
        queue->last = NULL;
    return message;
}

/* ---- the clock ---- */

static double group_now(const gtopk_thread_group_t *group)
{
    return group->virtual_clock ? group->now : clock_now();
}

static int may_act(const gtopk_thread_group_t *group, const rank_t *rank)
{
    return rank->state == RANK_RUNS || (rank->state == RANK_CLOSED && rank->life < group->life);
}

/* To be called whenever a rank stops running. */
static void advance_clock(gtopk_thread_group_t *group)
{
    double earliest = INFINITY;
    if (!group->virtual_clock)
        return;
    for (int32_t r = 0; r < group->size; r++) {
        if (may_act(group, &group->ranks[r]))
            return;
        if (group->ranks[r].state == RANK_WAITS)
            earliest = fmin(earliest, group->ranks[r].deadline);
    }
    if (isinf(earliest))
        return;
    group->now = fmax(group->now, earliest);
    for (int32_t r = 0; r < group->size; r++)
        if (group->ranks[r].state == RANK_WAITS && group->ranks[r].deadline <= group->now) {
            group->ranks[r].state = RANK_RUNS;
            (void)pthread_cond_signal(&group->ranks[r].wake);
        }
}

/* Sleeps until somebody wakes this rank or the deadline passes. The one who wakes it sets its state, so that the clock
 * cannot pass over a rank that is about to run. */
static void sleep_until(gtopk_thread_group_t *group, rank_t *rank, double deadline)
{
    rank->state = RANK_WAITS;
    rank->deadline = deadline;
    advance_clock(group);
    if (group->virtual_clock)
        while (rank->state == RANK_WAITS)
            (void)pthread_cond_wait(&rank->wake, &group->mutex);
    else
        while (rank->state == RANK_WAITS && condition_wait(&rank->wake, &group->mutex, deadline))
            continue;
    rank->state = RANK_RUNS;
}

static void wake(rank_t *rank)
{
    if (rank->state == RANK_WAITS) {
        rank->state = RANK_RUNS;
        (void)pthread_cond_signal(&rank->wake);
    }
}

/* ---- messages ---- */

static gtopk_status_t send_copy(thread_transport_t *self, int32_t to, const void *data, size_t bytes)
{
    gtopk_thread_group_t *group = self->group;
    message_t *message;
    gtopk_status_t status = memory_alloc(&message, 1, sizeof *message + bytes, "a message between threads");
    if (status != GTOPK_OK)
        return status;
    message->bytes = bytes;
    if (bytes > 0)
        memcpy(message->payload, data, bytes);

    (void)pthread_mutex_lock(&group->mutex);
    message->life = group->ranks[self->base.rank].life;
    push(&group->queues[(size_t)to * (size_t)group->size + (size_t)self->base.rank], message);
    wake(&group->ranks[to]);
    (void)pthread_mutex_unlock(&group->mutex);
    return GTOPK_OK;
}

/* The next message for this life from `from`; NULL: none yet. Those for an earlier life are dropped. */
static message_t *take(thread_transport_t *self, int32_t from)
{
    gtopk_thread_group_t *group = self->group;
    const uint64_t life = group->ranks[self->base.rank].life;
    queue_t *queue = &group->queues[(size_t)self->base.rank * (size_t)group->size + (size_t)from];
    while (queue->first && queue->first->life < life)
        memory_free(pop(queue));
    return queue->first && queue->first->life == life ? pop(queue) : NULL;
}

static int has_left(const thread_transport_t *self, int32_t peer)
{
    const rank_t *theirs = &self->group->ranks[peer];
    const uint64_t life = self->group->ranks[self->base.rank].life;
    return theirs->life > life || (theirs->life == life && theirs->state == RANK_CLOSED);
}

static gtopk_status_t deliver(const transport_exchange_t *exchange, message_t *message, size_t *received)
{
    gtopk_status_t status = GTOPK_OK;
    const int fits = message->bytes <= exchange->receive_capacity;
    const size_t bytes = fits ? message->bytes : exchange->receive_capacity;
    if (bytes > 0)
        memcpy(exchange->receive, message->payload, bytes);
    if (!fits)
        status = status_set(GTOPK_ERR_CORRUPT, "rank %d sent %zu bytes where %zu fit: " TRANSPORT_TOO_LONG,
                            (int)exchange->from, message->bytes, exchange->receive_capacity);
    *received = message->bytes;
    memory_free(message);
    return status;
}

/* ---- the transport ---- */

static double thread_now(transport_t *transport)
{
    gtopk_thread_group_t *group = ((thread_transport_t *)transport)->group;
    (void)pthread_mutex_lock(&group->mutex);
    const double now = group_now(group);
    (void)pthread_mutex_unlock(&group->mutex);
    return now;
}

static gtopk_status_t thread_post(transport_t *transport, const transport_exchange_t *exchange, double deadline,
                                  void *stream)
{
    thread_transport_t *self = (thread_transport_t *)transport;
    (void)deadline;
    (void)stream;
    if (exchange->to != TRANSPORT_NONE) {
        const gtopk_status_t status = send_copy(self, exchange->to, exchange->send, exchange->send_bytes);
        if (status != GTOPK_OK)
            return status;
    }
    self->exchange = *exchange;
    self->under_way = 1;
    return GTOPK_OK;
}

static gtopk_status_t thread_wait(transport_t *transport, double deadline, size_t *received)
{
    thread_transport_t *self = (thread_transport_t *)transport;
    gtopk_thread_group_t *group = self->group;
    const transport_exchange_t *exchange = &self->exchange;
    message_t *message = NULL;
    gtopk_status_t status = GTOPK_OK;
    *received = 0;
    if (!self->under_way || exchange->from == TRANSPORT_NONE) {
        self->under_way = 0;
        return GTOPK_OK;
    }

    (void)pthread_mutex_lock(&group->mutex);
    while (!(message = take(self, exchange->from))) {
        if (has_left(self, exchange->from)) {
            status = status_set(GTOPK_ERR_TRANSPORT, "rank %d has left: it closed its communicator",
                                (int)exchange->from);
            break;
        }
        if (group_now(group) >= deadline) {
            status = status_set(GTOPK_ERR_TIMEOUT, "no message of rank %d yet", (int)exchange->from);
            break;
        }
        sleep_until(group, &group->ranks[transport->rank], deadline);
    }
    (void)pthread_mutex_unlock(&group->mutex);

    if (message)
        status = deliver(exchange, message, received);
    if (status != GTOPK_ERR_TIMEOUT)
        self->under_way = 0;
    return status;
}

static int thread_abandon(transport_t *transport)
{
    ((thread_transport_t *)transport)->under_way = 0;
    return 1;
}

static void thread_notify(transport_t *transport, int32_t to, const void *message, size_t bytes)
{
    thread_transport_t *self = (thread_transport_t *)transport;
    (void)send_copy(self, to, message, bytes);
    (void)pthread_mutex_lock(&self->group->mutex);
    rank_t *rank = &self->group->ranks[transport->rank];
    rank->gone = rank->life;
    (void)pthread_mutex_unlock(&self->group->mutex);
}

static int32_t thread_gone(transport_t *transport)
{
    gtopk_thread_group_t *group = ((thread_transport_t *)transport)->group;
    int32_t gone = TRANSPORT_NONE;
    (void)pthread_mutex_lock(&group->mutex);
    const uint64_t life = group->ranks[transport->rank].life;
    for (int32_t r = 0; r < group->size && gone == TRANSPORT_NONE; r++)
        if (r != transport->rank && group->ranks[r].gone == life)
            gone = r;
    (void)pthread_mutex_unlock(&group->mutex);
    return gone;
}

void transport_thread_idle(transport_t *transport, int on)
{
    gtopk_thread_group_t *group = ((thread_transport_t *)transport)->group;
    (void)pthread_mutex_lock(&group->mutex);
    group->ranks[transport->rank].state = on ? RANK_IDLE : RANK_RUNS;
    advance_clock(group);
    (void)pthread_mutex_unlock(&group->mutex);
}

int transport_thread_wait(transport_t *transport, int (*ready)(void *arg), void *arg, double deadline)
{
    gtopk_thread_group_t *group = ((thread_transport_t *)transport)->group;
    int is_ready;
    (void)pthread_mutex_lock(&group->mutex);
    while (!(is_ready = ready(arg)) && group_now(group) < deadline)
        sleep_until(group, &group->ranks[transport->rank], deadline);
    (void)pthread_mutex_unlock(&group->mutex);
    return is_ready;
}

void transport_thread_wake(transport_t *transport, int32_t rank)
{
    gtopk_thread_group_t *group = ((thread_transport_t *)transport)->group;
    (void)pthread_mutex_lock(&group->mutex);
    wake(&group->ranks[rank]);
    (void)pthread_mutex_unlock(&group->mutex);
}

static void thread_close(transport_t *transport)
{
    thread_transport_t *self = (thread_transport_t *)transport;
    gtopk_thread_group_t *group = self->group;
    (void)pthread_mutex_lock(&group->mutex);
    group->ranks[transport->rank].state = RANK_CLOSED;
    for (int32_t r = 0; r < group->size; r++)
        wake(&group->ranks[r]); /* it may wait for this rank */
    advance_clock(group);
    (void)pthread_mutex_unlock(&group->mutex);
    memory_free(self);
}

static const transport_ops_t THREAD_OPS = {
    .name = "thread",
    .close = thread_close,
    .now = thread_now,
    .post = thread_post,
    .wait = thread_wait,
    .abandon = thread_abandon,
    .notify = thread_notify,
    .gone = thread_gone,
};

gtopk_status_t transport_thread_open(const gtopk_comm_config_t *config, transport_t **transport)
{
    gtopk_thread_group_t *group = config->group;
    if (!group)
        return status_set(GTOPK_ERR_INVALID,
                          "transport thread needs a group: make one with gtopk_thread_group_create for all ranks");
    if (config->size != -1 && config->size != group->size)
        return status_set(GTOPK_ERR_INVALID, "transport thread: size %d was asked for in a group of %d",
                          (int)config->size, (int)group->size);
    if (config->rank < 0 || config->rank >= group->size)
        return status_set(GTOPK_ERR_INVALID,
                          "transport thread: rank %d is not in [0, %d): give each thread its own rank",
                          (int)config->rank, (int)group->size);
    thread_transport_t *self;
    gtopk_status_t status = memory_alloc(&self, 1, sizeof *self, "transport thread");
    if (status != GTOPK_OK)
        return status;

    (void)pthread_mutex_lock(&group->mutex);
    rank_t *rank = &group->ranks[config->rank];
    if (rank->state == RANK_CLOSED) {
        rank->state = RANK_RUNS;
        rank->life++;
        if (group->life < rank->life)
            group->life = rank->life;
    } else {
        status = status_set(GTOPK_ERR_INVALID,
                            "transport thread: rank %d of this group is open already: close it, or make another group",
                            (int)config->rank);
    }
    (void)pthread_mutex_unlock(&group->mutex);
    if (status != GTOPK_OK) {
        memory_free(self);
        return status;
    }

    self->group = group;
    self->base.ops = &THREAD_OPS;
    self->base.rank = config->rank;
    self->base.size = group->size;
    (void)snprintf(self->base.description, sizeof self->base.description, "thread");
    *transport = &self->base;
    return GTOPK_OK;
}

/* ---- the group ---- */

gtopk_status_t gtopk_thread_group_create(gtopk_thread_group_t **out, int32_t size, uint32_t flags)
{
    gtopk_thread_group_t *group = NULL;
    int32_t ready = 0;
    if (!out)
        return status_set(GTOPK_ERR_INVALID, "gtopk_thread_group_create needs a place for the handle");
    *out = NULL;
    if (size < 1)
        return status_set(GTOPK_ERR_INVALID, "a thread group of %d ranks: it needs at least one", (int)size);
    if (flags & ~(uint32_t)GTOPK_THREAD_VIRTUAL_CLOCK)
        return status_set(GTOPK_ERR_INVALID, "unknown thread group flags 0x%x", (unsigned)flags);
    gtopk_status_t status = memory_alloc(&group, 1, sizeof *group, "a thread group");
    if (status == GTOPK_OK)
        status = memory_alloc(&group->ranks, (size_t)size, sizeof *group->ranks, "the ranks of a thread group");
    if (status == GTOPK_OK)
        status = memory_alloc(&group->queues, (size_t)size, (size_t)size * sizeof *group->queues,
                              "the queues of a thread group");
    if (status != GTOPK_OK)
        goto cleanup;
    while (ready < size && condition_init(&group->ranks[ready].wake))
        ready++;
    if (ready < size || pthread_mutex_init(&group->mutex, NULL) != 0) {
        status = status_set(GTOPK_ERR_NOMEM, "a thread group of %d ranks: no more condition variables", (int)size);
        goto cleanup;
    }
    group->size = size;
    group->virtual_clock = (flags & GTOPK_THREAD_VIRTUAL_CLOCK) != 0;
    *out = group;
    return GTOPK_OK;

cleanup:
    for (int32_t r = 0; r < ready; r++)
        (void)pthread_cond_destroy(&group->ranks[r].wake);
    if (group) {
        memory_free(group->queues);
        memory_free(group->ranks);
    }
    memory_free(group);
    return status;
}

void gtopk_thread_group_destroy(gtopk_thread_group_t *group)
{
    if (!group)
        return;
    for (int32_t r = 0; r < group->size; r++)
        if (group->ranks[r].state != RANK_CLOSED) {
            LOG(GTOPK_LOG_ERROR,
                "a thread group is destroyed while rank %d is open: its memory is left behind; destroy the "
                "communicators first",
                (int)r);
            return;
        }
    for (size_t i = 0; i < (size_t)group->size * (size_t)group->size; i++)
        while (group->queues[i].first)
            memory_free(pop(&group->queues[i]));
    for (int32_t r = 0; r < group->size; r++)
        (void)pthread_cond_destroy(&group->ranks[r].wake);
    (void)pthread_mutex_destroy(&group->mutex);
    memory_free(group->queues);
    memory_free(group->ranks);
    memory_free(group);
}
