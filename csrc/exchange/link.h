/* A link is how the ranks of one communicator talk: two transports with what every exchange on them shares, namely epoch,
 * deadline and warning, the first error after which it is broken, and the statistics of the step under way. Knows
 * headers, but no sets and no device.
 *
 * `control` moves host memory: agreements, collectives of bytes, last words. `data` moves the messages of exchanges; it
 * may be the same one. Both have one clock. */
#ifndef GTOPK_EXCHANGE_LINK_H
#define GTOPK_EXCHANGE_LINK_H

#include <stdatomic.h>

#include "transport/places.h"
#include "transport/transport.h"
#include "wire/wire.h"

/* Bytes of a collective's message, behind its header. */
#define LINK_PIECE ((size_t)1 << 20)

typedef struct link_stats {
    uint64_t bytes_sent, bytes_received;
    uint64_t network_bytes_sent; /* those to ranks on other nodes */
    uint32_t rounds;
    int32_t slowest_peer;
    double wait_s, slowest_s;
} link_stats_t;

typedef struct link {
    transport_t *control, *data;
    const places_map_t *map; /* names of hosts, NULL: not known yet */
    uint32_t epoch;
    double timeout, warn_after; /* seconds */
    uint64_t sequence;          /* collectives done */
    uint8_t *box_out, *box_in;  /* messages of collectives: a header and up to LINK_PIECE bytes each */
    size_t box_bytes;           /* behind the header */
    int buffers_lost;           /* an abandoned request may still write to its buffers: never free them */
    int stream_lost;            /* nor anything else on the device, whose stream may never pass */
    _Atomic int broken;         /* the first error, GTOPK_OK: none */
    char broken_text[STATUS_TEXT_SIZE];
    link_stats_t stats;
} link_t;

/* Sets up a link whose transports, timeout and warn_after are given. */
gtopk_status_t link_open(link_t *link);
void link_close(link_t *link);

/* Room for `bytes` bytes in each box. */
gtopk_status_t link_reserve(link_t *link, size_t bytes);

/* A message to one rank, a message from one rank; TRANSPORT_NONE: no such side. The one to be sent has its header, but
 * its checksum is the link's to write. */
typedef struct link_message {
    int32_t to, from;
    uint8_t *send;
    size_t send_capacity;
    uint8_t *receive;
    size_t receive_capacity;
} link_message_t;

/* The transport that moves the messages of exchanges on a device, by its full name: the data transport, unless that one
 * queues on the streams of another device. */
transport_t *link_transport(const link_t *link, const char *device);

/* The moment when an exchange that starts now must have ended. */
double link_deadline(const link_t *link);

void link_stats_reset(link_t *link);

/* Carries the messages over one of the link's transports. On one that is stream-ordered they are queued, *got stays as it
 * is, and decode judges what comes. On the others they are sealed, waited for and checked: CORRUPT, DESYNC (naming both
 * values), ABORTED, TIMEOUT, TRANSPORT. The caller breaks the link. got may be NULL; so may expect: any valid header of the
 * peer. */
gtopk_status_t link_exchange(link_t *link, transport_t *transport, const link_message_t *message, double deadline,
                             const wire_expect_t *expect, wire_header_t *got, void *stream);

/* Waits for what was queued on a stream-ordered data transport. */
gtopk_status_t link_finish(link_t *link, double deadline);

/* Gives up what is queued on a stream-ordered data transport, so that the stream passes. 0: it may not pass. */
int link_give_up(link_t *link);

/* A transport's own collectives, where it has them, counted into the statistics. */
gtopk_status_t link_allgather(link_t *link, transport_t *transport, uint8_t *message, size_t capacity,
                              uint8_t *gathered, double deadline, void *stream);
gtopk_status_t link_allreduce(link_t *link, transport_t *transport, float *buffer, size_t count, double deadline,
                              void *stream);

/* Checks one message that link_allgather brought, where the host can. */
gtopk_status_t link_check_gathered(link_t *link, const transport_t *transport, const uint8_t *message, size_t capacity,
                                   const wire_expect_t *expect);

/* The first error breaks the link: its text is kept, the other ranks are told once. `status` and the thread's error
 * text are that error; returns it. Later calls change nothing. */
gtopk_status_t link_break(link_t *link, gtopk_status_t status, uint64_t step);

/* OK, or the first error again. */
gtopk_status_t link_check_alive(const link_t *link);

/* "rank 3 (host-b)", in `text`; without the host where all ranks share one. */
const char *link_peer_name(const link_t *link, int32_t rank, char *text, size_t size);

#endif
