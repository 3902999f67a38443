/* See faulty.h. A spoilt message is a copy: the sender's own buffer is its to use again. */
#include "support/faulty.h"

#include <stdlib.h>
#include <string.h>

#include "support/ordered.h"
#include "support/random.h"
#include "wire/wire.h"

#define MESSAGE_MAX 65536
#define PEERS_MAX 64

typedef struct kept {
    size_t bytes;
    uint8_t message[MESSAGE_MAX];
} kept_t;

typedef struct faulty {
    transport_t base;
    transport_t *inner;
    transport_ops_t ops;
    int recording, armed, at, sent, calls;
    fault_kind_t kind;
    random_state_t random;
    kept_t spoilt;
    kept_t *held; /* reorder: waits for the next message to held_to */
    int32_t held_to;
    kept_t *last[PEERS_MAX]; /* late: what was sent to each rank while recording */
} faulty_t;

static const char *const names[] = {
#define FAULT_TEXT(name, text) text,
    FAULT_LIST(FAULT_TEXT)
#undef FAULT_TEXT
};

const char *fault_name(fault_kind_t kind)
{
    return names[kind];
}

static kept_t *keep(const void *message, size_t bytes)
{
    kept_t *kept = malloc(sizeof *kept);
    if (!kept || bytes > MESSAGE_MAX)
        abort();
    kept->bytes = bytes;
    memcpy(kept->message, message, bytes);
    return kept;
}

/* Sends beside what is under way. */
static void send_extra(faulty_t *self, int32_t to, const kept_t *kept)
{
    if (self->inner->ops->stream_ordered)
        ordered_send(self->inner, to, kept->message, kept->bytes);
    else
        self->inner->ops->notify(self->inner, to, kept->message, kept->bytes); /* of thread: any length */
}

static void change_byte(kept_t *kept, size_t at)
{
    kept->message[at] ^= 0x5a;
    wire_seal(kept->message, kept->bytes - WIRE_HEADER_SIZE);
}

/* Spoils a copy of a message. Returns how often it goes out: 0 where it is lost or held back. */
static int spoil(faulty_t *self, int32_t to, kept_t *copy)
{
    switch (self->kind) {
    case FAULT_STALL: return 0;
    case FAULT_TRUNCATE: copy->bytes = random_below(&self->random, copy->bytes); break;
    case FAULT_FLIP:
        copy->message[random_below(&self->random, copy->bytes)] ^= (uint8_t)(1u << random_below(&self->random, 8));
        break;
    case FAULT_DUPLICATE: return 2;
    case FAULT_REORDER:
        self->held = keep(copy->message, copy->bytes);
        self->held_to = to;
        return 0;
    case FAULT_LATE:
        if (self->last[to])
            send_extra(self, to, self->last[to]);
        break;
    case FAULT_EPOCH: change_byte(copy, 20); break;
    case FAULT_FOREIGN: change_byte(copy, 56); break;
    case FAULT_ROUND: change_byte(copy, 8); break;
    case FAULT_ERROR:
    case FAULT_KINDS: abort();
    }
    return 1;
}

/* What becomes of a message on its way out. Returns how often it goes out. */
static int pass(faulty_t *self, int32_t to, kept_t *copy)
{
    if (self->recording) {
        free(self->last[to]);
        self->last[to] = keep(copy->message, copy->bytes);
    }
    if (self->armed && self->sent++ == self->at && self->kind != FAULT_ERROR)
        return spoil(self, to, copy);
    if (self->held && self->held_to == to) {
        send_extra(self, to, copy); /* it overtakes the held one */
        *copy = *self->held;
        free(self->held);
        self->held = NULL;
    }
    return 1;
}

/* An error is the one fault that the sender is told of, and the one that collectives have. */
static int is_error(faulty_t *self)
{
    const int at = self->calls++;
    return self->armed && self->kind == FAULT_ERROR && at == self->at;
}

static gtopk_status_t pull_the_cable(void)
{
    return status_set(GTOPK_ERR_TRANSPORT, "the cable was pulled");
}

static gtopk_status_t faulty_post(transport_t *transport, const transport_exchange_t *exchange, double deadline,
                                  void *stream)
{
    faulty_t *self = (faulty_t *)transport;
    transport_exchange_t given = *exchange;
    if (given.to != TRANSPORT_NONE && is_error(self))
        return pull_the_cable();
    if (given.to != TRANSPORT_NONE && !self->inner->ops->stream_ordered) {
        kept_t *copy = &self->spoilt;
        const int32_t to = given.to;
        copy->bytes = given.send_bytes;
        memcpy(copy->message, given.send, given.send_bytes);
        const int times = pass(self, to, copy);
        if (times == 0)
            given.to = TRANSPORT_NONE;
        if (times == 2)
            send_extra(self, to, copy);
        given.send = copy->message;
        given.send_bytes = copy->bytes;
    }
    return self->inner->ops->post(self->inner, &given, deadline, stream);
}

/* The same for messages that are sent when the stream gets there. What is cut off arrives as it was in the buffer. */
static int faulty_tap(void *context, int32_t to, uint8_t *message, size_t bytes)
{
    faulty_t *self = context;
    kept_t *copy = &self->spoilt;
    copy->bytes = bytes;
    memcpy(copy->message, message, bytes);
    const int times = pass(self, to, copy);
    memcpy(message, copy->message, bytes);
    return times;
}

static gtopk_status_t faulty_allgather(transport_t *transport, const void *in, size_t bytes, void *out, double deadline,
                                       void *stream)
{
    faulty_t *self = (faulty_t *)transport;
    if (is_error(self))
        return pull_the_cable();
    return self->inner->ops->allgather(self->inner, in, bytes, out, deadline, stream);
}

static gtopk_status_t faulty_allreduce(transport_t *transport, float *buffer, size_t count, double deadline,
                                       void *stream)
{
    faulty_t *self = (faulty_t *)transport;
    if (is_error(self))
        return pull_the_cable();
    return self->inner->ops->allreduce(self->inner, buffer, count, deadline, stream);
}

static gtopk_status_t faulty_wait(transport_t *transport, double deadline, size_t *received)
{
    transport_t *inner = ((faulty_t *)transport)->inner;
    return inner->ops->wait(inner, deadline, received);
}

static double faulty_now(transport_t *transport)
{
    transport_t *inner = ((faulty_t *)transport)->inner;
    return inner->ops->now(inner);
}

static int faulty_abandon(transport_t *transport)
{
    transport_t *inner = ((faulty_t *)transport)->inner;
    return inner->ops->abandon(inner);
}

static void faulty_notify(transport_t *transport, int32_t to, const void *message, size_t bytes)
{
    transport_t *inner = ((faulty_t *)transport)->inner;
    inner->ops->notify(inner, to, message, bytes);
}

static void faulty_abort(transport_t *transport)
{
    transport_t *inner = ((faulty_t *)transport)->inner;
    inner->ops->abort(inner);
}

static void faulty_close(transport_t *transport)
{
    faulty_t *self = (faulty_t *)transport;
    self->inner->ops->close(self->inner);
    free(self->held);
    for (int i = 0; i < PEERS_MAX; i++)
        free(self->last[i]);
    free(self);
}

transport_t *faulty_create(transport_t *inner)
{
    faulty_t *self = calloc(1, sizeof *self);
    if (!self)
        return NULL;
    self->base = *inner;
    self->inner = inner;
    self->ops = (transport_ops_t){
        .name = "faulty",
        .device_memory = inner->ops->device_memory,
        .stream_ordered = inner->ops->stream_ordered,
        .padded = inner->ops->padded,
        .close = faulty_close,
        .now = faulty_now,
        .post = faulty_post,
        .wait = faulty_wait,
        .abandon = faulty_abandon,
        .notify = inner->ops->notify ? faulty_notify : NULL,
        .abort = inner->ops->abort ? faulty_abort : NULL,
        .allgather = inner->ops->allgather ? faulty_allgather : NULL,
        .allreduce = inner->ops->allreduce ? faulty_allreduce : NULL,
    };
    self->base.ops = &self->ops;
    if (inner->ops->stream_ordered)
        ordered_tap(inner, faulty_tap, self);
    return &self->base;
}

transport_t *faulty_inner(transport_t *faulty)
{
    return ((faulty_t *)faulty)->inner;
}

void faulty_record(transport_t *faulty)
{
    ((faulty_t *)faulty)->recording = 1;
}

void faulty_arm(transport_t *faulty, fault_kind_t kind, int at, uint64_t seed)
{
    faulty_t *self = (faulty_t *)faulty;
    self->recording = 0;
    self->armed = 1;
    self->kind = kind;
    self->at = at;
    self->sent = self->calls = 0;
    self->random.state = seed;
}

int faulty_sent(const transport_t *faulty)
{
    return ((const faulty_t *)faulty)->sent;
}

int faulty_calls(const transport_t *faulty)
{
    return ((const faulty_t *)faulty)->calls;
}
