/* The first half of a step: gradients are added to the residual, segment by segment. */
#include <math.h>
#include <string.h>

#include "core/step.h"
#include "util/clock.h"

void step_begin(gtopk_reducer_t *reducer)
{
    if (reducer->in_step)
        return;
    reducer->in_step = 1;
    reducer->words->ok = 1;
    reducer->words->nonfinite = 0;
    reducer->device->ops->step_begin(reducer->store);
    reducer->stats = (gtopk_stats_t){
        .struct_size = sizeof reducer->stats,
        .step = reducer->step,
        .k = reducer_is_dense(reducer) ? reducer->record.dim : reducer->k,
        .slowest_peer = -1,
    };
}

void step_end(gtopk_reducer_t *reducer)
{
    reducer->in_step = 0;
    memset(reducer->seen, 0, reducer->record.segments);
}

static size_t dtype_size(int32_t dtype)
{
    return dtype == GTOPK_F32 ? 4 : dtype == GTOPK_F16 || dtype == GTOPK_BF16 ? 2 : 0;
}

gtopk_status_t step_check_tensor(const gtopk_reducer_t *reducer, const char *what, size_t s,
                                 const gtopk_tensor_t *tensor)
{
    const size_t item = dtype_size(tensor->dtype);
    if (item == 0)
        return status_set(GTOPK_ERR_INVALID,
                          "%s of segment %zu has dtype %d: GTOPK_F32, GTOPK_F16 or GTOPK_BF16 is possible", what, s,
                          (int)tensor->dtype);
    if (tensor->length != reducer->lengths[s])
        return status_set(GTOPK_ERR_INVALID, "%s of segment %zu has %llu entries, the segment has %llu", what, s,
                          (unsigned long long)tensor->length, (unsigned long long)reducer->lengths[s]);
    if (tensor->length > 0 && !tensor->data)
        return status_set(GTOPK_ERR_INVALID, "%s of segment %zu is NULL", what, s);
    if ((uintptr_t)tensor->data % item != 0)
        return status_set(GTOPK_ERR_INVALID, "%s of segment %zu is not aligned to its %zu bytes an entry", what, s,
                          item);
    return GTOPK_OK;
}

void step_set_span(gtopk_reducer_t *reducer, size_t at, size_t segment, const gtopk_tensor_t *tensor)
{
    reducer->spans[at] = (device_span_t){
        .offset = reducer->offsets[segment],
        .length = reducer->lengths[segment],
        .data = tensor ? tensor->data : NULL,
        .dtype = tensor ? tensor->dtype : GTOPK_F32,
    };
}

/* Checks all tensors and marks their segments as seen; on an error no mark is left behind. */
static gtopk_status_t claim_segments(gtopk_reducer_t *reducer, const uint32_t *segments, const gtopk_tensor_t *tensors,
                                     size_t count)
{
    gtopk_status_t status = GTOPK_OK;
    size_t claimed = 0;
    if (count > reducer->record.segments)
        return status_set(GTOPK_ERR_INVALID, "accumulate got %zu tensors, the reducer has %llu segments", count,
                          (unsigned long long)reducer->record.segments);
    if (count > 0 && !tensors)
        return status_set(GTOPK_ERR_INVALID, "accumulate of %zu tensors got none", count);
    for (size_t i = 0; i < count && status == GTOPK_OK; i++) {
        const size_t s = segments ? segments[i] : i;
        if (s >= reducer->record.segments)
            status = status_set(GTOPK_ERR_INVALID, "segment %zu does not exist: the reducer has %llu", s,
                                (unsigned long long)reducer->record.segments);
        else if (reducer->seen[s])
            status = status_set(GTOPK_ERR_STATE,
                                "segment %zu was accumulated already in step %llu: each segment once a step; add up "
                                "gradients before, or call reduce",
                                s, (unsigned long long)reducer->step);
        else
            status = step_check_tensor(reducer, "the gradient", s, &tensors[i]);
        if (status != GTOPK_OK)
            break;
        reducer->seen[s] = 1;
        claimed++;
        step_set_span(reducer, i, s, &tensors[i]);
    }
    for (size_t i = 0; i < claimed && status != GTOPK_OK; i++)
        reducer->seen[segments ? segments[i] : i] = 0;
    return status;
}

static gtopk_status_t accumulate_checked(gtopk_reducer_t *reducer, size_t count, float scale, uint32_t flags,
                                         void *stream)
{
    if (flags & GTOPK_FOUND_INF) {
        reducer->words->nonfinite = 1;
        return GTOPK_OK;
    }
    const device_accumulate_t params = {
        .scale = scale,
        .zero_input = (flags & GTOPK_ZERO_INPUT) != 0,
        .momentum = reducer->momentum,
        .nesterov = reducer->nesterov,
    };
    return reducer->device->ops->accumulate(reducer->store, reducer->spans, count, &params, reducer->words, stream);
}

gtopk_status_t gtopk_reducer_accumulate(gtopk_reducer_t *reducer, const uint32_t *segments,
                                        const gtopk_tensor_t *tensors, size_t count, double scale, uint32_t flags,
                                        void *stream)
{
    gtopk_status_t status = reducer_enter(reducer);
    if (status != GTOPK_OK)
        return status;
    const double start = clock_now();
    status = link_check_alive(&reducer->comm->link);
    if (status == GTOPK_OK && !(isfinite(scale) && isfinite((float)scale)))
        status = status_set(GTOPK_ERR_INVALID, "scale %g is not a finite float", scale);
    if (status == GTOPK_OK && (flags & ~(uint32_t)(GTOPK_ZERO_INPUT | GTOPK_FOUND_INF)))
        status = status_set(GTOPK_ERR_INVALID, "accumulate does not know flags %#x", flags);
    if (status == GTOPK_OK)
        status = claim_segments(reducer, segments, tensors, count);
    if (status == GTOPK_OK) {
        step_begin(reducer);
        status = accumulate_checked(reducer, count, (float)scale, flags, stream);
    }
    reducer->stats.accumulate_s += clock_now() - start;
    reducer_leave(reducer);
    return status;
}

gtopk_status_t step_accumulate_missing(gtopk_reducer_t *reducer, void *stream)
{
    size_t missing = 0;
    for (size_t s = 0; s < reducer->record.segments; s++)
        if (!reducer->seen[s])
            step_set_span(reducer, missing++, s, NULL);
    const device_accumulate_t params = {.scale = 1.0f};
    return missing == 0 ? GTOPK_OK
                        : reducer->device->ops->accumulate(reducer->store, reducer->spans, missing, &params,
                                                           reducer->words, stream);
}
