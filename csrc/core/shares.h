/* A reducer whose residual lies in shares: each rank of a node has that of 1/L of the entries, for all ranks of the node.
 *
 * What this rank has accumulated is not in its residual, then, before the next reduce. Tensors that stay as they are are
 * remembered; all else is added up in memory of its own, pending, which is there when it is needed. */
#ifndef GTOPK_CORE_SHARES_H
#define GTOPK_CORE_SHARES_H

#include "device/device.h"
#include "exchange/exchange.h"
#include "exchange/scatter.h"

typedef struct shares {
    int32_t *ranks;       /* memory of both places */
    places_t node, peers; /* ranks of this node; ranks with the same share */
    uint64_t dim, length; /* all entries; those of a share */
    uint64_t begin, end;  /* this rank's */
    scatter_t *scatter;
    size_t segments;
    scatter_part_t *parts; /* one a segment: tensors of this step that stay as they are */
    uint8_t *given;        /* one bit a segment: this rank gave something for it. Momentum has to know */
    uint8_t *anywhere;     /* the same of all ranks of the node, in the step under way */
    float *pending;        /* dim floats of the device; NULL: none */
    int pending_holds;     /* something that was not sent */
    int copied;            /* in this step, what was accumulated was added up there */
} shares_t;

/* For `dim` entries in `segments` segments. */
gtopk_status_t shares_create(shares_t **shares, const places_map_t *map, int32_t rank, uint64_t dim, size_t segments);

/* What was queued has passed. NULL is accepted. */
void shares_destroy(shares_t *shares, device_t *device);

/* ---- one step ---- */

/* Of accumulate: the claimed spans of the segments which[i] (NULL: i). stays: tensors are what and where they are until the
 * step ends, and need not be copied. */
gtopk_status_t shares_give(gtopk_reducer_t *reducer, const uint32_t *which, size_t count,
                           const device_accumulate_t *params, int stays, void *stream);

/* The node's sum of this rank's share, of what its ranks gave and have pending. Nothing else changes. */
gtopk_status_t shares_sum(gtopk_reducer_t *reducer, const exchange_step_t *step, float **sum);

/* Adds the sum to the residual: nothing is pending then. */
gtopk_status_t shares_take(gtopk_reducer_t *reducer, const exchange_step_t *step, float *sum);

/* What was given goes to what is pending: there will be no reduce. With rollback it is dropped. */
gtopk_status_t shares_keep(gtopk_reducer_t *reducer);

/* The step is over. */
void shares_end(gtopk_reducer_t *reducer);

/* ---- arrays, as if they were of all entries: zero where another rank has the share, but for what is pending ---- */

gtopk_status_t shares_read(gtopk_reducer_t *reducer, int which, uint64_t at, uint64_t length, float *out);

/* What is in another rank's share is left out. */
gtopk_status_t shares_write(gtopk_reducer_t *reducer, int which, uint64_t at, uint64_t length, const float *in);

#endif
