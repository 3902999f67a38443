/* Exchanges of messages, as the table of functions in transport.h has them. */
#ifndef GTOPK_TRANSPORT_MPI_MESSAGES_H
#define GTOPK_TRANSPORT_MPI_MESSAGES_H

#include "transport/transport.h"

gtopk_status_t messages_post(transport_t *transport, const transport_exchange_t *exchange, double deadline,
                             void *stream);
gtopk_status_t messages_wait(transport_t *transport, double deadline, size_t *received);
int messages_abandon(transport_t *transport);

#endif
