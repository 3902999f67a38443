/* Runs a schedule of pairwise rounds: gtopk and gtopk-tree, and the bare headers of dense. This is the protocol of
 * docs/architecture.md: whatever is sent is quantised first, and its owner goes on with what the others decode. */
#ifndef GTOPK_EXCHANGE_ROUNDS_H
#define GTOPK_EXCHANGE_ROUNDS_H

#include "exchange/exchange.h"

/* The butterfly with empty sets: it brings every rank's flags to every rank. setup->config.k is 0. Only run and destroy
 * are used. */
gtopk_status_t rounds_create_headers(exchange_t **exchange, const exchange_setup_t *setup);

#endif
