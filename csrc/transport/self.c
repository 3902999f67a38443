/* One rank and no network. A message to oneself is copied; collectives leave everything as it is. */
#include <stdio.h>
#include <string.h>

#include "transport/transport.h"
#include "util/clock.h"
#include "util/memory.h"

static void self_close(transport_t *transport)
{
    memory_free(transport);
}

static double self_now(transport_t *transport)
{
    (void)transport;
    return clock_now();
}

typedef struct self_transport {
    transport_t base;
    size_t received; /* of the latest exchange */
} self_transport_t;

static gtopk_status_t self_post(transport_t *transport, const transport_exchange_t *exchange, double deadline,
                                void *stream)
{
    self_transport_t *self = (self_transport_t *)transport;
    (void)deadline;
    (void)stream;
    self->received = 0;
    if (exchange->to == TRANSPORT_NONE && exchange->from == TRANSPORT_NONE)
        return GTOPK_OK;
    if (exchange->to != 0 || exchange->from != 0)
        return status_set(GTOPK_ERR_TRANSPORT,
                          "transport self: a message to rank %d and from rank %d, but there is rank 0 alone, and it "
                          "receives what it sends in the same exchange",
                          (int)exchange->to, (int)exchange->from);
    if (exchange->send_bytes > exchange->receive_capacity)
        return status_set(GTOPK_ERR_CORRUPT, "rank 0 sent itself %zu bytes where %zu fit", exchange->send_bytes,
                          exchange->receive_capacity);
    if (exchange->send_bytes > 0)
        memmove(exchange->receive, exchange->send, exchange->send_bytes);
    self->received = exchange->send_bytes;
    return GTOPK_OK;
}

static gtopk_status_t self_wait(transport_t *transport, double deadline, size_t *received)
{
    (void)deadline;
    *received = ((self_transport_t *)transport)->received;
    return GTOPK_OK;
}

static int self_abandon(transport_t *transport)
{
    (void)transport;
    return 1;
}

static void self_notify(transport_t *transport, int32_t to, const void *message, size_t bytes)
{
    (void)transport;
    (void)to;
    (void)message;
    (void)bytes;
}

static gtopk_status_t self_allgather(transport_t *transport, const void *in, size_t bytes, void *out, double deadline,
                                     void *stream)
{
    (void)transport;
    (void)deadline;
    (void)stream;
    if (bytes > 0)
        memmove(out, in, bytes);
    return GTOPK_OK;
}

static gtopk_status_t self_allreduce(transport_t *transport, float *buffer, size_t count, double deadline, void *stream)
{
    (void)transport;
    (void)stream;
    (void)buffer;
    (void)count;
    (void)deadline;
    return GTOPK_OK;
}

static const transport_ops_t SELF_OPS = {
    .name = "self",
    .close = self_close,
    .now = self_now,
    .post = self_post,
    .wait = self_wait,
    .abandon = self_abandon,
    .notify = self_notify,
    .allgather = self_allgather,
    .allreduce = self_allreduce,
};

gtopk_status_t transport_self_open(const gtopk_comm_config_t *config, transport_t **transport)
{
    if ((config->size != -1 && config->size != 1) || (config->rank != -1 && config->rank != 0))
        return status_set(
            GTOPK_ERR_INVALID,
            "transport self is one rank, but rank %d of %d was asked for: use mpi, callback or thread, or "
            "leave size and rank at -1",
            (int)config->rank, (int)config->size);
    self_transport_t *self;
    const gtopk_status_t status = memory_alloc(&self, 1, sizeof *self, "transport self");
    if (status != GTOPK_OK)
        return status;
    self->base.ops = &SELF_OPS;
    self->base.size = 1;
    (void)snprintf(self->base.description, sizeof self->base.description, "self");
    *transport = &self->base;
    return GTOPK_OK;
}
