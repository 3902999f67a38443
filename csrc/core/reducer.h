/* The reducer's insides, for the files of core/. */
#ifndef GTOPK_CORE_REDUCER_H
#define GTOPK_CORE_REDUCER_H

#include "core/config.h"
#include "device/device.h"
#include "exchange/sparse.h"
#include "util/fpenv.h"

struct gtopk_reducer {
    gtopk_comm_t *comm;
    device_t *device;
    device_store_t *store;
    device_words_t *words; /* device memory */
    sparse_t *sparse;      /* for algorithm dense: the headers */
    float *dense;          /* dense: dim floats of device memory, else NULL */
    config_record_t record;
    uint32_t hash; /* of the record */
    uint64_t k;
    uint64_t *lengths, *offsets;
    device_span_t *spans;     /* scratch: one a segment */
    device_journal_t journal; /* of the exchange under way, until its commit */
    uint8_t *seen;            /* segments that were accumulated in this step */
    int in_step;
    uint64_t step;
    float momentum;
    int nesterov;
    gtopk_stats_t stats; /* of the step under way, then of the latest */
    atomic_flag busy;
    fpenv_t environment; /* the caller's, while in a call */
};

static inline int reducer_is_dense(const gtopk_reducer_t *reducer)
{
    return reducer->record.algorithm == GTOPK_ALGORITHM_DENSE;
}

/* Takes the reducer for one call: INVALID, or STATE in a forked child or when another thread is in it. Until
 * reducer_leave the call computes in the exact floating-point environment: means, conversions and sums of the core too. */
gtopk_status_t reducer_enter(gtopk_reducer_t *reducer);
void reducer_leave(gtopk_reducer_t *reducer);

/* STATE between accumulate and reduce. */
gtopk_status_t reducer_check_between_steps(const gtopk_reducer_t *reducer, const char *call);

#endif
