/* See ordered.h. Each ordered pair of ranks has a queue of messages, as in transport/thread.c. */
#include "support/ordered.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/guarded.h"
#include "transport/thread.h"
#include "util/memory.h"

#define GARBAGE 0xa5
#define ENDLESS_SECONDS \
    10.0 /* a stream that has not passed by then never does: its waits are over when it is waited for */

typedef struct message {
    struct message *next;
    uint64_t life; /* of the sender */
    size_t bytes;
    uint8_t payload[];
} message_t;

typedef struct queue {
    message_t *first, *last;
} queue_t;

typedef struct member {
    uint64_t life; /* times opened */
    int is_open, has_aborted;
} member_t;

struct ordered_group {
    int32_t size;
    pthread_mutex_t mutex; /* taken after the thread group's, or alone */
    member_t *members;
    queue_t *queues; /* [(channel * size + to) * size + from] */
};

/* Exchanges and collectives do not take each other's messages. */
typedef enum channel { CHANNEL_EXCHANGE, CHANNEL_COLLECTIVE, CHANNELS } channel_t;

typedef struct ordered {
    transport_t base;
    ordered_group_t *group;
    transport_t *thread;
    uint64_t life, given_up; /* given_up: works queued before the last abandon have a number below it */
    uint64_t works;          /* queued so far */
    int pending;             /* of them */
    int closed;
    void *stream; /* of the pending ones */
    size_t received;
    gtopk_status_t status; /* the first failure */
    char text[STATUS_TEXT_SIZE];
    ordered_tap_fn tap;
    void *tap_context;
} ordered_t;

typedef enum work_kind { WORK_EXCHANGE, WORK_ALLGATHER, WORK_ALLREDUCE } work_kind_t;

typedef struct work {
    ordered_t *self;
    work_kind_t kind;
    uint64_t number;
    transport_exchange_t exchange; /* of an all-gather: what is sent and where it goes; of an all-reduce: the buffer */
    size_t bytes;                  /* of one rank's part */
    int sent;
    int32_t next; /* the rank whose part is awaited */
} work_t;

int ordered_wanted(void)
{
    const char *name = getenv("GTOPK_TEST_TRANSPORT");
    return name && strcmp(name, "ordered") == 0;
}

/* ---- messages ---- */

static queue_t *queue_of(const ordered_t *self, channel_t channel, int32_t to, int32_t from)
{
    const size_t size = (size_t)self->group->size;
    return &self->group->queues[((size_t)channel * size + (size_t)to) * size + (size_t)from];
}

static gtopk_status_t push(ordered_t *self, channel_t channel, int32_t to, const void *data, size_t bytes)
{
    message_t *message;
    const gtopk_status_t status = memory_alloc(&message, 1, sizeof *message + bytes, "a message between threads");
    if (status != GTOPK_OK)
        return status;
    message->life = self->life;
    message->bytes = bytes;
    memcpy(message->payload, data, bytes);
    (void)pthread_mutex_lock(&self->group->mutex);
    queue_t *queue = queue_of(self, channel, to, self->base.rank);
    if (queue->last)
        queue->last->next = message;
    else
        queue->first = message;
    queue->last = message;
    (void)pthread_mutex_unlock(&self->group->mutex);
    transport_thread_wake(self->thread, to);
    return GTOPK_OK;
}

void ordered_send(transport_t *ordered, int32_t to, const void *message, size_t bytes)
{
    (void)push((ordered_t *)ordered, CHANNEL_EXCHANGE, to, message, bytes);
}

static message_t *pop(queue_t *queue)
{
    message_t *message = queue->first;
    queue->first = message->next;
    if (!queue->first)
        queue->last = NULL;
    return message;
}

typedef struct awaited {
    ordered_t *self;
    channel_t channel;
    int32_t from;
    message_t *message;
    int has_left, has_aborted;
} awaited_t;

/* A message for this life, or the certainty that none will come. */
static int look(void *argument)
{
    awaited_t *awaited = argument;
    ordered_t *self = awaited->self;
    (void)pthread_mutex_lock(&self->group->mutex);
    queue_t *queue = queue_of(self, awaited->channel, self->base.rank, awaited->from);
    while (queue->first && queue->first->life < self->life)
        memory_free(pop(queue));
    if (queue->first && queue->first->life == self->life)
        awaited->message = pop(queue);
    const member_t *sender = &self->group->members[awaited->from];
    awaited->has_left = sender->life > self->life || (sender->life == self->life && !sender->is_open);
    for (int32_t r = 0; r < self->group->size; r++)
        awaited->has_aborted |= self->group->members[r].life == self->life && self->group->members[r].has_aborted;
    (void)pthread_mutex_unlock(&self->group->mutex);
    return awaited->message || awaited->has_left || awaited->has_aborted;
}

/* OK with a message, TIMEOUT, or what it is that no message will come for. */
static gtopk_status_t take(ordered_t *self, channel_t channel, int32_t from, double deadline, message_t **message)
{
    awaited_t awaited = {.self = self, .channel = channel, .from = from};
    (void)transport_thread_wait(self->thread, look, &awaited, deadline);
    *message = awaited.message;
    if (awaited.message)
        return GTOPK_OK;
    if (awaited.has_aborted)
        return status_set(GTOPK_ERR_TRANSPORT, "the group was ended by one of its ranks");
    if (awaited.has_left)
        return status_set(GTOPK_ERR_TRANSPORT, "rank %d has left: it closed its communicator", (int)from);
    return status_set(GTOPK_ERR_TIMEOUT, "no message of rank %d yet", (int)from);
}

/* What came; where lengths differ, as between ranks that are in different calls, the rest is anything. */
static void deliver(message_t *message, void *to, size_t bytes)
{
    const size_t came = message->bytes < bytes ? message->bytes : bytes;
    memcpy(to, message->payload, came);
    memset((uint8_t *)to + came, GARBAGE, bytes - came);
    memory_free(message);
}

/* ---- works ---- */

static gtopk_status_t send_exchange(ordered_t *self, const transport_exchange_t *exchange)
{
    const void *from = guarded_reach(exchange->send);
    if (!self->tap)
        return push(self, CHANNEL_EXCHANGE, exchange->to, from, exchange->send_capacity);
    uint8_t *copy;
    gtopk_status_t status = memory_alloc(&copy, exchange->send_capacity, 1, "a message on its way");
    if (status != GTOPK_OK)
        return status;
    memcpy(copy, from, exchange->send_capacity);
    for (int times = self->tap(self->tap_context, exchange->to, copy, exchange->send_capacity);
         times > 0 && status == GTOPK_OK; times--)
        status = push(self, CHANNEL_EXCHANGE, exchange->to, copy, exchange->send_capacity);
    memory_free(copy);
    return status;
}

static gtopk_status_t run_exchange(ordered_t *self, work_t *work, double deadline)
{
    const transport_exchange_t *exchange = &work->exchange;
    message_t *message;
    gtopk_status_t status = GTOPK_OK;
    if (exchange->to != TRANSPORT_NONE && !work->sent)
        status = send_exchange(self, exchange);
    work->sent = 1;
    if (status != GTOPK_OK || exchange->from == TRANSPORT_NONE)
        return status;
    status = take(self, CHANNEL_EXCHANGE, exchange->from, deadline, &message);
    if (status == GTOPK_OK)
        deliver(message, guarded_reach(exchange->receive), exchange->receive_capacity);
    return status;
}

static gtopk_status_t send_to_all(ordered_t *self, work_t *work, const void *part)
{
    gtopk_status_t status = GTOPK_OK;
    for (int32_t r = 0; r < self->group->size && status == GTOPK_OK && !work->sent; r++)
        status = push(self, CHANNEL_COLLECTIVE, r, part, work->bytes);
    work->sent = 1;
    return status;
}

static void add(float *sum, const message_t *message, size_t bytes)
{
    for (size_t i = 0; i < bytes / sizeof *sum && (i + 1) * sizeof *sum <= message->bytes; i++) {
        float value;
        memcpy(&value, message->payload + i * sizeof value, sizeof value);
        sum[i] += value;
    }
}

/* Every rank's part in the order of ranks, this one's included: gathered, or added up. */
static gtopk_status_t run_collective(ordered_t *self, work_t *work, double deadline)
{
    uint8_t *out = guarded_reach(work->exchange.receive);
    gtopk_status_t status = send_to_all(self, work, guarded_reach(work->exchange.send));
    while (status == GTOPK_OK && work->next < self->group->size) {
        message_t *message;
        status = take(self, CHANNEL_COLLECTIVE, work->next, deadline, &message);
        if (status != GTOPK_OK)
            break;
        if (work->kind == WORK_ALLREDUCE && work->next > 0) {
            add((float *)(void *)out, message, work->bytes);
            memory_free(message);
        } else {
            deliver(message, work->kind == WORK_ALLREDUCE ? out : out + (size_t)work->next * work->bytes, work->bytes);
        }
        work->next++;
    }
    return status;
}

/* The buffers of a work that was given up: some of it came, the rest is anything. */
static void spoil(ordered_t *self, work_t *work)
{
    const transport_exchange_t *exchange = &work->exchange;
    uint8_t *out = guarded_reach(exchange->receive);
    size_t bytes = exchange->receive_capacity;
    message_t *message = NULL;
    if (work->kind == WORK_EXCHANGE && exchange->from == TRANSPORT_NONE)
        return;
    if (work->kind == WORK_EXCHANGE && take(self, CHANNEL_EXCHANGE, exchange->from, -INFINITY, &message) == GTOPK_OK)
        deliver(message, out, bytes);
    bytes = bytes > 1 ? bytes / 2 : bytes;
    memset(out + exchange->receive_capacity - bytes, GARBAGE, bytes);
}

static void finish(work_t *work)
{
    ordered_t *self = work->self;
    self->pending--;
    memory_free(work);
    if (self->closed && self->pending == 0)
        memory_free(self);
}

static void fail(ordered_t *self, gtopk_status_t status)
{
    if (self->status != GTOPK_OK)
        return;
    self->status = status;
    status_keep(self->text);
}

/* Another rank has said its last word, or this one's caller asked to stop: for calls that block here. */
static gtopk_status_t look_around(ordered_t *self)
{
    const int32_t gone = self->thread->ops->gone ? self->thread->ops->gone(self->thread) : TRANSPORT_NONE;
    if (transport_interrupted(&self->base))
        return status_set(GTOPK_ERR_INTERRUPTED, "the wait was interrupted");
    return gone == TRANSPORT_NONE ? GTOPK_OK : status_set(GTOPK_ERR_ABORTED, "rank %d gave up", (int)gone);
}

/* A failure of the transport is its own: the stream stands still until the works are given up. */
static gtopk_status_t run_work(void *argument, double deadline)
{
    work_t *work = argument;
    ordered_t *self = work->self;
    gtopk_status_t status = self->status;
    if (work->number < self->given_up) {
        if (!self->closed)
            spoil(self, work);
        finish(work);
        return GTOPK_OK;
    }
    const double limit = isinf(deadline) ? self->thread->ops->now(self->thread) + ENDLESS_SECONDS : deadline;
    if (status == GTOPK_OK)
        status = work->kind == WORK_EXCHANGE ? run_exchange(self, work, limit) : run_collective(self, work, limit);
    if (status != GTOPK_OK && isinf(deadline)) {
        (void)fprintf(stderr, "ordered: rank %d waits without a deadline for a stream that does not pass: %s\n",
                      (int)self->base.rank, gtopk_last_error());
        abort();
    }
    if (status == GTOPK_OK) {
        self->received = work->kind == WORK_EXCHANGE ? work->exchange.receive_capacity : 0;
        finish(work);
        return GTOPK_OK;
    }
    if (status != GTOPK_ERR_TIMEOUT)
        fail(self, status);
    return GTOPK_ERR_TIMEOUT;
}

static void drop_work(void *argument)
{
    finish(argument);
}

/* ---- the transport ---- */

/* Whether tests run on the guarded device; single reducers may all the same be on another one, or the other way round. */
static int is_guarded(void)
{
    const char *device = getenv("GTOPK_DEVICE");
    return device && strcmp(device, "guarded") == 0;
}

/* The device of host memory has no queue: until it is done, in pieces. */
static gtopk_status_t run_now(ordered_t *self, work_t *work, double deadline)
{
    gtopk_status_t status;
    for (;;) {
        const double now = self->thread->ops->now(self->thread);
        status = run_work(work, fmin(deadline, now + TRANSPORT_INTERRUPT_SECONDS));
        if (status == GTOPK_OK)
            return status;
        const gtopk_status_t around = look_around(self);
        if (around != GTOPK_OK) { /* the better reason */
            self->status = around;
            status_keep(self->text);
        } else if (now >= deadline) {
            fail(self, status);
        }
        if (self->status != GTOPK_OK)
            break;
    }
    finish(work);
    return status_set(self->status, "%s", self->text);
}

static gtopk_status_t start(ordered_t *self, const work_t *given, double deadline, void *stream)
{
    const void *buffer = given->exchange.receive ? given->exchange.receive : given->exchange.send;
    work_t *work;
    if (self->status != GTOPK_OK)
        return status_set(self->status, "%s", self->text);
    gtopk_status_t status = memory_alloc(&work, 1, sizeof *work, "a message to be queued");
    if (status != GTOPK_OK)
        return status;
    *work = *given;
    work->self = self;
    work->number = self->works++;
    self->pending++;
    if (!guarded_owns(buffer) && !is_guarded())
        return run_now(self, work, deadline);
    if (!guarded_owns(buffer) || (self->pending > 1 && self->stream != stream)) {
        (void)fprintf(stderr, "ordered: a buffer that is no memory of the device, or work in two streams at once\n");
        abort();
    }
    self->stream = stream;
    status = guarded_enqueue(stream, run_work, drop_work, work);
    if (status != GTOPK_OK)
        finish(work);
    return status;
}

static gtopk_status_t ordered_post(transport_t *transport, const transport_exchange_t *exchange, double deadline,
                                   void *stream)
{
    work_t work = {.kind = WORK_EXCHANGE, .exchange = *exchange};
    if (exchange->to == TRANSPORT_NONE)
        work.exchange.send = NULL;
    if (exchange->from == TRANSPORT_NONE)
        work.exchange.receive = NULL;
    return start((ordered_t *)transport, &work, deadline, stream);
}

static gtopk_status_t ordered_allgather(transport_t *transport, const void *in, size_t bytes, void *out,
                                        double deadline, void *stream)
{
    const work_t work = {
        .kind = WORK_ALLGATHER,
        .exchange = {.send = in, .receive = out, .receive_capacity = bytes * (size_t)transport->size},
        .bytes = bytes,
    };
    return start((ordered_t *)transport, &work, deadline, stream);
}

static gtopk_status_t ordered_allreduce(transport_t *transport, float *buffer, size_t count, double deadline,
                                        void *stream)
{
    const work_t work = {
        .kind = WORK_ALLREDUCE,
        .exchange = {.send = buffer, .receive = buffer, .receive_capacity = count * sizeof *buffer},
        .bytes = count * sizeof *buffer,
    };
    return start((ordered_t *)transport, &work, deadline, stream);
}

static gtopk_status_t ordered_wait(transport_t *transport, double deadline, size_t *received)
{
    ordered_t *self = (ordered_t *)transport;
    *received = self->received;
    const gtopk_status_t status = self->pending > 0 ? guarded_run(self->stream, deadline, &self->pending) : GTOPK_OK;
    return self->status != GTOPK_OK ? status_set(self->status, "%s", self->text) : status;
}

static int ordered_abandon(transport_t *transport)
{
    ordered_t *self = (ordered_t *)transport;
    self->given_up = self->works;
    if (self->status == GTOPK_OK) {
        self->status = GTOPK_ERR_TRANSPORT;
        (void)snprintf(self->text, sizeof self->text, "an exchange was given up");
    }
    return 1;
}

/* Whoever waits for any rank is to look again. */
static void wake_all(const ordered_t *self)
{
    for (int32_t r = 0; r < self->group->size; r++)
        if (r != self->base.rank)
            transport_thread_wake(self->thread, r);
}

static void ordered_abort(transport_t *transport)
{
    ordered_t *self = (ordered_t *)transport;
    (void)pthread_mutex_lock(&self->group->mutex);
    self->group->members[transport->rank].has_aborted = 1;
    (void)pthread_mutex_unlock(&self->group->mutex);
    wake_all(self);
}

static double ordered_now(transport_t *transport)
{
    transport_t *thread = ((ordered_t *)transport)->thread;
    return thread->ops->now(thread);
}

static void ordered_close(transport_t *transport)
{
    ordered_t *self = (ordered_t *)transport;
    (void)pthread_mutex_lock(&self->group->mutex);
    self->group->members[transport->rank].is_open = 0;
    (void)pthread_mutex_unlock(&self->group->mutex);
    wake_all(self);
    self->given_up = self->works;
    self->closed = 1;
    if (self->pending == 0)
        memory_free(self);
}

static const transport_ops_t ORDERED_OPS = {
    .name = "ordered",
    .device_memory = 1,
    .stream_ordered = 1,
    .padded = 1,
    .close = ordered_close,
    .now = ordered_now,
    .post = ordered_post,
    .wait = ordered_wait,
    .abandon = ordered_abandon,
    .abort = ordered_abort,
    .allgather = ordered_allgather,
    .allreduce = ordered_allreduce,
};

gtopk_status_t ordered_create(ordered_group_t *group, transport_t *thread, transport_t **out)
{
    ordered_t *self;
    const gtopk_status_t status = memory_alloc(&self, 1, sizeof *self, "transport ordered");
    if (status != GTOPK_OK)
        return status;
    self->base = *thread;
    self->base.ops = &ORDERED_OPS;
    (void)snprintf(self->base.description, sizeof self->base.description, "ordered");
    self->group = group;
    self->thread = thread;
    (void)pthread_mutex_lock(&group->mutex);
    member_t *member = &group->members[thread->rank];
    *member = (member_t){.life = member->life + 1, .is_open = 1};
    self->life = member->life;
    (void)pthread_mutex_unlock(&group->mutex);
    *out = &self->base;
    return GTOPK_OK;
}

void ordered_tap(transport_t *ordered, ordered_tap_fn tap, void *context)
{
    ordered_t *self = (ordered_t *)ordered;
    self->tap = tap;
    self->tap_context = context;
}

ordered_group_t *ordered_group_create(int32_t size)
{
    const size_t ranks = (size_t)size;
    ordered_group_t *group = calloc(1, sizeof *group);
    if (!group)
        return NULL;
    group->size = size;
    group->members = calloc(ranks, sizeof *group->members);
    group->queues = calloc(CHANNELS * ranks * ranks, sizeof *group->queues);
    if (!group->members || !group->queues || pthread_mutex_init(&group->mutex, NULL) != 0)
        abort();
    return group;
}

void ordered_group_destroy(ordered_group_t *group)
{
    if (!group)
        return;
    for (size_t i = 0; i < CHANNELS * (size_t)group->size * (size_t)group->size; i++)
        while (group->queues[i].first)
            memory_free(pop(&group->queues[i]));
    (void)pthread_mutex_destroy(&group->mutex);
    free(group->queues);
    free(group->members);
    free(group);
}
