/* The first half of a step: gradients are added to the residual, segment by segment. */
#include <math.h>

#include "core/step.h"
#include "util/clock.h"

/* Roundings of a residual in bf16 draw other numbers on each rank and in each step, the same when training is resumed. */
static gtopk_status_t seed(const gtopk_reducer_t *reducer, void *stream)
{
    const uint64_t rank = (uint64_t)comm_rank(reducer->comm), step = reducer->steps_before + reducer->step;
    if (reducer->record.residual_dtype != GTOPK_BF16)
        return GTOPK_OK;
    return reducer->device->ops->store_seed(reducer->store, (rank << 40) + step, stream);
}

gtopk_status_t step_begin(gtopk_reducer_t *reducer, void *stream)
{
    if (reducer->in_step)
        return GTOPK_OK;
    reducer->stats = (gtopk_stats_t){
        .struct_size = sizeof reducer->stats,
        .step = reducer->step,
        .k = reducer_selects(reducer) ? reducer->k : reducer->record.dim,
        .slowest_peer = -1,
    };
    gtopk_status_t status = seed(reducer, stream);
    if (status == GTOPK_OK)
        status = reducer->device->ops->step_begin(reducer->store, reducer->words, stream);
    reducer->in_step = status == GTOPK_OK;
    reducer->settled = 0;
    return status;
}

gtopk_status_t step_end(gtopk_reducer_t *reducer)
{
    gtopk_status_t status = GTOPK_OK;
    if (reducer->in_step && reducer->record.rollback)
        status = step_settle(reducer, reducer->stream);
    reducer->in_step = 0;
    if (reducer->shares)
        shares_end(reducer);
    segments_forget(&reducer->segments);
    return status;
}

static gtopk_status_t check_call(const gtopk_reducer_t *reducer, double scale, uint32_t flags)
{
    gtopk_status_t status = link_check_alive(&reducer->comm->link);
    if (status == GTOPK_OK)
        status = reducer_check_device(reducer);
    if (status == GTOPK_OK && !(isfinite(scale) && isfinite((float)scale)))
        status = status_set(GTOPK_ERR_INVALID, "scale %g is not a finite float", scale);
    if (status == GTOPK_OK && (flags & ~(uint32_t)(GTOPK_ZERO_INPUT | GTOPK_FOUND_INF | GTOPK_INPUT_STAYS)))
        status = status_set(GTOPK_ERR_INVALID, "accumulate does not know flags %#x", flags);
    return status;
}

/* The first `count` spans, as if nothing had arrived for them. */
static gtopk_status_t carry_over(gtopk_reducer_t *reducer, size_t count, void *stream)
{
    const device_accumulate_t params = {.scale = 1.0f};
    for (size_t i = 0; i < count; i++)
        reducer->segments.spans[i].data = NULL;
    return reducer->device->ops->accumulate(reducer->store, reducer->segments.spans, count, &params, reducer->words,
                                            stream);
}

static gtopk_status_t accumulate(gtopk_reducer_t *reducer, const uint32_t *segments, size_t count, double scale,
                                 uint32_t flags, void *stream)
{
    const device_accumulate_t params = {
        .scale = (float)scale,
        .zero_input = (flags & GTOPK_ZERO_INPUT) != 0,
        .found_inf = (flags & GTOPK_FOUND_INF) != 0,
        .momentum = reducer->momentum,
        .nesterov = reducer->nesterov,
    };
    reducer->stream = stream;
    gtopk_status_t status = step_begin(reducer, stream);
    if (status != GTOPK_OK)
        return status;
    if (reducer->shares)
        return shares_give(reducer, segments, count, &params, (flags & GTOPK_INPUT_STAYS) != 0, stream);
    status = reducer->device->ops->accumulate(reducer->store, reducer->segments.spans, count, &params, reducer->words,
                                              stream);
    if (status == GTOPK_OK && params.found_inf && reducer->record.rollback)
        status = carry_over(reducer, count, stream);
    return status;
}

gtopk_status_t gtopk_reducer_accumulate(gtopk_reducer_t *reducer, const uint32_t *segments,
                                        const gtopk_tensor_t *tensors, size_t count, double scale, uint32_t flags,
                                        void *stream)
{
    gtopk_status_t status = reducer_enter(reducer);
    if (status != GTOPK_OK)
        return status;
    const double start = clock_now();
    status = check_call(reducer, scale, flags);
    if (status == GTOPK_OK)
        status = segments_claim(&reducer->segments, segments, tensors, count, reducer->step);
    if (status == GTOPK_OK) {
        status = accumulate(reducer, segments, count, scale, flags, stream);
        if (status != GTOPK_OK) {
            status = reducer_lose(reducer, status);
            segments_disclaim(&reducer->segments, segments, count);
        }
    }
    reducer->stats.accumulate_s += clock_now() - start;
    reducer_leave(reducer);
    return status;
}

static gtopk_status_t accumulate_missing(gtopk_reducer_t *reducer, void *stream)
{
    const size_t missing = segments_missing(&reducer->segments);
    if (missing == 0)
        return GTOPK_OK;
    const double start = clock_now();
    const gtopk_status_t status = carry_over(reducer, missing, stream);
    reducer->stats.accumulate_s += clock_now() - start;
    return status;
}

gtopk_status_t step_settle(gtopk_reducer_t *reducer, void *stream)
{
    const int rollback = reducer->record.rollback;
    gtopk_status_t status = GTOPK_OK;
    if (reducer->settled || reducer->shares) /* shares_take settles */
        return GTOPK_OK;
    if (rollback || reducer_selects(reducer))
        status = accumulate_missing(reducer, stream);
    if (status == GTOPK_OK && rollback)
        status = reducer->device->ops->swap(reducer->store, stream);
    reducer->settled = status == GTOPK_OK;
    return status;
}

gtopk_status_t step_undo(gtopk_reducer_t *reducer, void *stream)
{
    return reducer->record.rollback ? reducer->device->ops->swap(reducer->store, stream) : GTOPK_OK;
}
