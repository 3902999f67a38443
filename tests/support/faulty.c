/* See faulty.h. A spoilt message is a copy: the sender's own buffer is its to use again. */
#include "support/faulty.h"

#include <stdlib.h>
#include <string.h>

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
    int recording, armed, at, sent;
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

/* Sends beside the exchange under way: the thread transport's notify takes any length. */
static void send_extra(faulty_t *self, int32_t to, const kept_t *kept)
{
    self->inner->ops->notify(self->inner, to, kept->message, kept->bytes);
}

static void change_byte(kept_t *kept, size_t at)
{
    kept->message[at] ^= 0x5a;
    wire_seal(kept->message, kept->bytes - WIRE_HEADER_SIZE);
}

/* Spoils *exchange, whose send side points to a copy afterwards. */
static gtopk_status_t spoil(faulty_t *self, transport_exchange_t *exchange)
{
    kept_t *copy = &self->spoilt;
    copy->bytes = exchange->send_bytes;
    memcpy(copy->message, exchange->send, exchange->send_bytes);
    switch (self->kind) {
    case FAULT_ERROR: return status_set(GTOPK_ERR_TRANSPORT, "the cable was pulled");
    case FAULT_STALL: exchange->to = TRANSPORT_NONE; break;
    case FAULT_TRUNCATE: copy->bytes = random_below(&self->random, copy->bytes); break;
    case FAULT_FLIP:
        copy->message[random_below(&self->random, copy->bytes)] ^= (uint8_t)(1u << random_below(&self->random, 8));
        break;
    case FAULT_DUPLICATE: send_extra(self, exchange->to, copy); break;
    case FAULT_REORDER:
        self->held = keep(copy->message, copy->bytes);
        self->held_to = exchange->to;
        exchange->to = TRANSPORT_NONE;
        break;
    case FAULT_LATE:
        if (self->last[exchange->to])
            send_extra(self, exchange->to, self->last[exchange->to]);
        break;
    case FAULT_EPOCH: change_byte(copy, 20); break;
    case FAULT_FOREIGN: change_byte(copy, 56); break;
    case FAULT_ROUND: change_byte(copy, 8); break;
    case FAULT_KINDS: abort();
    }
    exchange->send = copy->message;
    exchange->send_bytes = copy->bytes;
    return GTOPK_OK;
}

static gtopk_status_t faulty_post(transport_t *transport, const transport_exchange_t *given, double deadline,
                                  void *stream)
{
    transport_exchange_t copy = *given, *exchange = &copy;
    faulty_t *self = (faulty_t *)transport;
    gtopk_status_t status = GTOPK_OK;
    const int32_t to = exchange->to;
    if (to != TRANSPORT_NONE && self->recording) {
        free(self->last[to]);
        self->last[to] = keep(exchange->send, exchange->send_bytes);
    }
    if (to != TRANSPORT_NONE && self->armed && self->sent++ == self->at)
        status = spoil(self, exchange);
    else if (to != TRANSPORT_NONE && self->held && self->held_to == to) {
        /* The present message overtakes the held one. */
        kept_t *present = keep(exchange->send, exchange->send_bytes);
        send_extra(self, to, present);
        free(present);
        self->spoilt = *self->held;
        free(self->held);
        self->held = NULL;
        exchange->send = self->spoilt.message;
        exchange->send_bytes = self->spoilt.bytes;
    }
    return status == GTOPK_OK ? self->inner->ops->post(self->inner, exchange, deadline, stream) : status;
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
        .close = faulty_close,
        .now = faulty_now,
        .post = faulty_post,
        .wait = faulty_wait,
        .abandon = faulty_abandon,
        .notify = faulty_notify,
    };
    self->base.ops = &self->ops;
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
    self->sent = 0;
    self->random.state = seed;
}

int faulty_sent(const transport_t *faulty)
{
    return ((const faulty_t *)faulty)->sent;
}
