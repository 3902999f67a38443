/* Steps of which everything is done when they return: gtopk's own may leave the commit in the device's queue. */
#ifndef TESTS_SUPPORT_STEP_H
#define TESTS_SUPPORT_STEP_H

#include "gtopk.h"

static inline gtopk_status_t step_reduce(gtopk_reducer_t *reducer, const gtopk_tensor_t *outputs, size_t count,
                                         uint32_t flags, gtopk_stats_t *stats)
{
    const gtopk_status_t status = gtopk_reducer_reduce(reducer, outputs, count, flags, NULL, stats);
    return status == GTOPK_OK ? gtopk_reducer_wait(reducer, NULL) : status;
}

static inline gtopk_status_t step_reduce_sparse(gtopk_reducer_t *reducer, gtopk_set_t *set, uint32_t flags,
                                                gtopk_stats_t *stats)
{
    const gtopk_status_t status = gtopk_reducer_reduce_sparse(reducer, set, flags, NULL, stats);
    return status == GTOPK_OK ? gtopk_reducer_wait(reducer, NULL) : status;
}

/* One stream is behind all of them: who waits for one waits for all. */
static inline gtopk_status_t step_reduce_all(gtopk_reducer_t *const *reducers, const gtopk_tensor_t *const *outputs,
                                             const size_t *counts, size_t count, uint32_t flags,
                                             gtopk_stats_t *const *stats)
{
    const gtopk_status_t status = gtopk_reducers_reduce(reducers, outputs, counts, count, flags, NULL, stats);
    return status == GTOPK_OK ? gtopk_reducer_wait(reducers[0], NULL) : status;
}

#endif
