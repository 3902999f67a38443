/* A link is a transport with what every exchange on it shares: the communicator's epoch, deadline and warning, the
 * first error after which it is broken, and the statistics of the step under way. Knows headers, but no sets. */
#ifndef GTOPK_EXCHANGE_LINK_H
#define GTOPK_EXCHANGE_LINK_H

#include <stdatomic.h>

#include "transport/transport.h"
#include "wire/wire.h"

typedef struct link_stats {
    uint64_t bytes_sent, bytes_received;
    uint32_t rounds;
    int32_t slowest_peer;
    double wait_s, slowest_s;
} link_stats_t;

typedef struct link {
    transport_t *transport;
    uint32_t epoch;
    double timeout, warn_after; /* seconds */
    uint64_t sequence;          /* collectives done */
    int buffers_lost;           /* an abandoned request may still write to its buffers: never free them */
    _Atomic int broken;         /* the first error, GTOPK_OK: none */
    char broken_text[STATUS_TEXT_SIZE];
    link_stats_t stats;
} link_t;

/* What the header of a message that is awaited must say. NULL in link_exchange: any valid header of the peer. */
typedef struct link_expect {
    uint8_t algorithm, value_type;
    uint16_t round;
    uint32_t reducer, config_hash, dim, k;
    uint64_t step;
} link_expect_t;

/* A sealed message to one rank, a message from one rank; TRANSPORT_NONE: no such side. */
typedef struct link_message {
    int32_t to, from;
    const uint8_t *send;
    size_t send_bytes, send_capacity;
    uint8_t *receive;
    size_t receive_capacity;
} link_message_t;

/* The moment on the transport's clock when an exchange that starts now must have ended. */
double link_deadline(const link_t *link);

void link_stats_reset(link_t *link);

/* Carries the messages and checks what came: CORRUPT, DESYNC (naming both values), ABORTED, TIMEOUT, TRANSPORT. The
 * caller breaks the link. *got may be NULL. */
gtopk_status_t link_exchange(link_t *link, const link_message_t *message, double deadline, const link_expect_t *expect,
                             wire_header_t *got);

/* A transport's own collective, counted into wait_s. Only if the transport has it. */
gtopk_status_t link_allgather(link_t *link, const void *in, size_t bytes, void *out, double deadline);
gtopk_status_t link_allreduce(link_t *link, float *buffer, size_t count, double deadline);

/* Checks a header that came by link_allgather from `from`, `received` bytes of which are the message's and padding. */
gtopk_status_t link_check(link_t *link, const uint8_t *message, size_t received, int padded, int32_t from,
                          const link_expect_t *expect, wire_header_t *got);

/* The first error breaks the link: its text is kept, the other ranks are told once. `status` and the thread's error
 * text are that error; returns it. Later calls change nothing. */
gtopk_status_t link_break(link_t *link, gtopk_status_t status, uint64_t step);

/* OK, or the first error again. */
gtopk_status_t link_check_alive(const link_t *link);

#endif
