/* The dense half of a step on nodes: what the ranks of a node have to give is added up, and each of them gets its share of
 * the sum. A reduce-scatter in the order of ranks, whatever the transport. */
#ifndef GTOPK_EXCHANGE_SCATTER_H
#define GTOPK_EXCHANGE_SCATTER_H

#include "exchange/exchange.h"

typedef struct scatter scatter_t;

/* What a rank gives for some entries: scale * x. A span without data gives nothing. */
typedef struct scatter_part {
    device_span_t span; /* offset: in all entries */
    float scale;
    int zero_input;
} scatter_part_t;

/* All memory that a step takes. setup->places: the ranks of the node; setup->config.dim: entries of a share, of which each
 * place has one, in order. dim: all entries, so that the last shares may have fewer. */
gtopk_status_t scatter_create(scatter_t **scatter, const exchange_setup_t *setup, uint64_t dim);
void scatter_destroy(scatter_t *scatter); /* NULL is accepted */

/* Parts are in the order of their entries and do not overlap. *sum, of a whole share, is what the device reaches until the next step: zero where
 * the share has no entries. What was queued is known to have gone well when the verdict says so. */
gtopk_status_t scatter_run(scatter_t *scatter, const exchange_step_t *step, const scatter_part_t *parts, size_t count,
                           float **sum);

#endif
