/* Messages on their way out: where their memory is, what their headers say, and how they are carried.
 *
 * A message is written by the device and lies where the data transport takes it: in the device's memory, or in host
 * memory that the device reaches. In the latter case whoever carries it waits for the device first; that is the only
 * place where an exchange does so. */
#ifndef GTOPK_EXCHANGE_MESSAGE_H
#define GTOPK_EXCHANGE_MESSAGE_H

#include "exchange/exchange.h"

/* The transport that moves this exchange's messages: see link_transport. */
transport_t *message_transport(const exchange_setup_t *setup);

/* Memory that the data transport takes, and the device reaches. */
gtopk_status_t message_allocate(const exchange_setup_t *setup, size_t bytes, const char *what, void *out);

/* What a request that was given up may still write to stays. NULL is accepted. */
void message_release(const exchange_setup_t *setup, void *block);

/* What both sides know of a message: it has at most k entries of a vector of dim entries. */
typedef struct message_bounds {
    uint64_t dim;
    uint32_t k;
} message_bounds_t;

/* Bytes that are enough for any such message. */
size_t message_capacity(const exchange_setup_t *setup, message_bounds_t bounds);

/* The header of a message of this rank. */
wire_header_t message_header(const exchange_setup_t *setup, const exchange_step_t *step, uint16_t round,
                             message_bounds_t bounds);

/* What the message of another place must say. */
wire_expect_t message_expect(const exchange_setup_t *setup, const exchange_step_t *step, int32_t from, uint16_t round,
                             message_bounds_t bounds);

/* A message to one place, a message from one place; TRANSPORT_NONE: no such side. */
typedef struct message_route {
    int32_t to, from;
    uint16_t round;
    message_bounds_t out, in;
    uint8_t *send, *receive;
} message_route_t;

/* Carries both. What was received is checked as far as the host sees it, and by decode in any case. */
gtopk_status_t message_carry(const exchange_setup_t *setup, const exchange_step_t *step, const message_route_t *route);

/* Carries the message `send` to every other place and theirs to `gathered`, each `capacity` bytes behind the one before. */
gtopk_status_t message_gather(const exchange_setup_t *setup, const exchange_step_t *step, uint16_t round,
                              message_bounds_t bounds, uint8_t *send, uint8_t *gathered, size_t capacity);

/* Everything queued has been written: for collectives of a transport that takes host memory. */
gtopk_status_t message_flush(const exchange_setup_t *setup, const exchange_step_t *step);

#endif
