/* An exchange between nodes, of one share of the entries, and the update of all shares for each rank of the node. */
#ifndef GTOPK_EXCHANGE_NODE_H
#define GTOPK_EXCHANGE_NODE_H

#include "exchange/exchange.h"

/* Rounds inside a node, beyond those of any schedule. */
#define NODE_PIECE(number) ((uint16_t)(0x8000u + (number))) /* of the sum: 2^32 entries in pieces of 2^18 */
#define NODE_UPDATE ((uint16_t)0x7fffu)

typedef struct node_setup {
    exchange_setup_t share; /* of the exchange between nodes: its places, and the entries of a share as its dim */
    places_t node;          /* ranks of this node; each has the share of its place */
    uint64_t dim;           /* all entries */
    size_t segments;        /* spans that a target has at most */
} node_setup_t;

/* An exchange of all entries, by one of the share that config.algorithm names. Its update has the indices of all. */
gtopk_status_t node_create(exchange_t **exchange, const node_setup_t *setup);

#endif
