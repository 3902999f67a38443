#include "transport/mpi/messages.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "transport/mpi/counts.h"
#include "transport/mpi/last_words.h"
#include "transport/mpi/module.h"
#include "transport/mpi/wait.h"
#include "util/clock.h"

/* A message that does not fit is received all the same, for what its head says. Not a longer one: memory may be short. */
#define OVERLONG_MAX ((MPI_Count)64 << 20)

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
        return module_failed(code, what);
    if (!there)
        return GTOPK_OK;
    (void)MPI_Get_elements_x(&found, MPI_BYTE, &bytes);
    void *into = exchange->receive;
    if (bytes < 0 || (size_t)bytes > exchange->receive_capacity) {
        into = self->overlong = bytes > 0 && bytes <= OVERLONG_MAX ? malloc((size_t)bytes) : NULL;
        if (!into)
            return too_long(exchange, (size_t)bytes);
    }
    code = counts_describe((size_t)bytes, &count, &type);
    if (code == MPI_SUCCESS)
        code = MPI_Imrecv(into, count, type, &message, &self->receive);
    counts_forget(&type);
    self->awaited = 0;
    self->received = (size_t)bytes;
    return code == MPI_SUCCESS ? GTOPK_OK : module_failed(code, what);
}

static int start_send(mpi_transport_t *self, const transport_exchange_t *exchange)
{
    int count, code;
    MPI_Datatype type;
    code = counts_describe(exchange->send_bytes, &count, &type);
    if (code == MPI_SUCCESS)
        code = MPI_Isend(exchange->send, count, type, exchange->to, MESSAGE_TAG, self->comm, &self->send);
    counts_forget(&type);
    return code;
}

gtopk_status_t messages_post(transport_t *transport, const transport_exchange_t *exchange, double deadline,
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
    return code == MPI_SUCCESS ? GTOPK_OK : module_failed(code, "starting an exchange");
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
            return module_failed(code, what);
        }
        if (done && self->overlong)
            return keep_head(self);
    }
    if (self->send != MPI_REQUEST_NULL) {
        char what[64];
        code = MPI_Test(&self->send, &done, MPI_STATUS_IGNORE);
        if (code != MPI_SUCCESS) {
            (void)snprintf(what, sizeof what, "sending to rank %d", (int)self->exchange.to);
            return module_failed(code, what);
        }
    }
    return GTOPK_OK;
}

/* What the rank that this one waits for has said last. Under mpi_mutex. */
static farewell_t farewell_of_partner(mpi_transport_t *self, int32_t *which)
{
    farewell_t found = FAREWELL_NONE;
    if (self->awaited || self->receive != MPI_REQUEST_NULL)
        found = last_words_of(self, self->exchange.from, which);
    if (found == FAREWELL_NONE && self->send != MPI_REQUEST_NULL)
        found = last_words_of(self, self->exchange.to, which);
    return found;
}

gtopk_status_t messages_wait(transport_t *transport, double deadline, size_t *received)
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
            status = last_words_end_wait(self, farewell, rank, now, GOODBYE_GRACE);
            if (status != GTOPK_OK)
                return status;
        }
        if (now >= deadline)
            return library->status_set(GTOPK_ERR_TIMEOUT, "rank %d has not %s yet",
                                       (int)(receiving ? self->exchange.from : self->exchange.to),
                                       receiving ? "sent its message" : "taken this rank's message");
        wait_pause(now - start, YIELD_SECONDS);
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
int messages_abandon(transport_t *transport)
{
    mpi_transport_t *self = (mpi_transport_t *)transport;
    int received = 0, sent = 0;
    communicator_mark_broken(self);
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
