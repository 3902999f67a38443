/* Ranks that are threads of one process, for tests and simulation.
 *
 * Each ordered pair of ranks has a queue. A send copies its message into the queue and is done, so giving up frees all
 * buffers. One mutex guards the group; each rank sleeps on a condition variable of its own. */
#include "transport/thread.h"

#include <stdio.h>
#include <string.h>

#include "transport/thread_group.h"
#include "util/memory.h"

typedef struct thread_transport {
    transport_t base;
    gtopk_thread_group_t *group;
    transport_exchange_t exchange;
    int under_way;
} thread_transport_t;

/* ---- messages ---- */

static gtopk_status_t send_copy(thread_transport_t *self, int32_t to, const void *data, size_t bytes)
{
    gtopk_thread_group_t *group = self->group;
    thread_message_t *message;
    gtopk_status_t status = memory_alloc(&message, 1, sizeof *message + bytes, "a message between threads");
    if (status != GTOPK_OK)
        return status;
    message->bytes = bytes;
    if (bytes > 0)
        memcpy(message->payload, data, bytes);

    (void)pthread_mutex_lock(&group->mutex);
    message->life = group->ranks[self->base.rank].life;
    thread_queue_push(&group->queues[(size_t)to * (size_t)group->size + (size_t)self->base.rank], message);
    thread_rank_wake(&group->ranks[to]);
    (void)pthread_mutex_unlock(&group->mutex);
    return GTOPK_OK;
}

/* The next message for this life from `from`; NULL: none yet. Those for an earlier life are dropped. */
static thread_message_t *take(thread_transport_t *self, int32_t from)
{
    gtopk_thread_group_t *group = self->group;
    const uint64_t life = group->ranks[self->base.rank].life;
    thread_queue_t *queue = &group->queues[(size_t)self->base.rank * (size_t)group->size + (size_t)from];
    while (queue->first && queue->first->life < life)
        memory_free(thread_queue_pop(queue));
    return queue->first && queue->first->life == life ? thread_queue_pop(queue) : NULL;
}

static int has_left(const thread_transport_t *self, int32_t peer)
{
    const thread_rank_t *theirs = &self->group->ranks[peer];
    const uint64_t life = self->group->ranks[self->base.rank].life;
    return theirs->life > life || (theirs->life == life && theirs->state == RANK_CLOSED);
}

static gtopk_status_t deliver(const transport_exchange_t *exchange, thread_message_t *message, size_t *received)
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
    const double now = thread_group_now(group);
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
    thread_message_t *message = NULL;
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
        if (thread_group_now(group) >= deadline) {
            status = status_set(GTOPK_ERR_TIMEOUT, "no message of rank %d yet", (int)exchange->from);
            break;
        }
        thread_group_sleep(group, &group->ranks[transport->rank], deadline);
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
    thread_rank_t *rank = &self->group->ranks[transport->rank];
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
    thread_group_advance(group);
    (void)pthread_mutex_unlock(&group->mutex);
}

int transport_thread_wait(transport_t *transport, int (*ready)(void *arg), void *arg, double deadline)
{
    gtopk_thread_group_t *group = ((thread_transport_t *)transport)->group;
    int is_ready;
    (void)pthread_mutex_lock(&group->mutex);
    while (!(is_ready = ready(arg)) && thread_group_now(group) < deadline)
        thread_group_sleep(group, &group->ranks[transport->rank], deadline);
    (void)pthread_mutex_unlock(&group->mutex);
    return is_ready;
}

void transport_thread_wake(transport_t *transport, int32_t rank)
{
    gtopk_thread_group_t *group = ((thread_transport_t *)transport)->group;
    (void)pthread_mutex_lock(&group->mutex);
    thread_rank_wake(&group->ranks[rank]);
    (void)pthread_mutex_unlock(&group->mutex);
}

static void thread_close(transport_t *transport)
{
    thread_transport_t *self = (thread_transport_t *)transport;
    gtopk_thread_group_t *group = self->group;
    (void)pthread_mutex_lock(&group->mutex);
    group->ranks[transport->rank].state = RANK_CLOSED;
    for (int32_t r = 0; r < group->size; r++)
        thread_rank_wake(&group->ranks[r]); /* it may wait for this rank */
    thread_group_advance(group);
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
    thread_rank_t *rank = &group->ranks[config->rank];
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
