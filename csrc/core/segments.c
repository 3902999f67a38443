/* Segments of a reducer. */
#include "core/segments.h"

#include <string.h>

#include "util/memory.h"

gtopk_status_t segments_create(segments_t *segments, const uint64_t *lengths, size_t count)
{
    *segments = (segments_t){.count = count};
    gtopk_status_t status = memory_alloc(&segments->lengths, count, sizeof *segments->lengths, "the segments' lengths");
    if (status == GTOPK_OK)
        status = memory_alloc(&segments->offsets, count, sizeof *segments->offsets, "the segments' offsets");
    if (status == GTOPK_OK)
        status = memory_alloc(&segments->spans, count, sizeof *segments->spans, "the segments' spans");
    if (status == GTOPK_OK)
        status = memory_alloc(&segments->seen, count, sizeof *segments->seen, "the segments' marks");
    uint64_t offset = 0;
    for (size_t i = 0; i < count && status == GTOPK_OK; i++) {
        segments->lengths[i] = lengths[i];
        segments->offsets[i] = offset;
        offset += lengths[i];
    }
    return status;
}

void segments_destroy(segments_t *segments)
{
    memory_free(segments->lengths);
    memory_free(segments->offsets);
    memory_free(segments->spans);
    memory_free(segments->seen);
    *segments = (segments_t){.count = 0};
}

static size_t dtype_size(int32_t dtype)
{
    return dtype == GTOPK_F32 ? 4 : dtype == GTOPK_F16 || dtype == GTOPK_BF16 ? 2 : 0;
}

gtopk_status_t segments_check_tensor(const segments_t *segments, const char *what, size_t s,
                                     const gtopk_tensor_t *tensor)
{
    const size_t item = dtype_size(tensor->dtype);
    if (item == 0)
        return status_set(GTOPK_ERR_INVALID,
                          "%s of segment %zu has dtype %d: GTOPK_F32, GTOPK_F16 or GTOPK_BF16 is possible", what, s,
                          (int)tensor->dtype);
    if (tensor->length != segments->lengths[s])
        return status_set(GTOPK_ERR_INVALID, "%s of segment %zu has %llu entries, the segment has %llu", what, s,
                          (unsigned long long)tensor->length, (unsigned long long)segments->lengths[s]);
    if (tensor->length > 0 && !tensor->data)
        return status_set(GTOPK_ERR_INVALID, "%s of segment %zu is NULL", what, s);
    if ((uintptr_t)tensor->data % item != 0)
        return status_set(GTOPK_ERR_INVALID, "%s of segment %zu is not aligned to its %zu bytes an entry", what, s,
                          item);
    return GTOPK_OK;
}

static void set_span(segments_t *segments, size_t at, size_t s, const gtopk_tensor_t *tensor)
{
    segments->spans[at] = (device_span_t){
        .offset = segments->offsets[s],
        .length = segments->lengths[s],
        .data = tensor ? tensor->data : NULL,
        .dtype = tensor ? tensor->dtype : GTOPK_F32,
    };
}

void segments_disclaim(segments_t *segments, const uint32_t *which, size_t count)
{
    for (size_t i = 0; i < count; i++)
        segments->seen[which ? which[i] : i] = 0;
}

gtopk_status_t segments_claim(segments_t *segments, const uint32_t *which, const gtopk_tensor_t *tensors, size_t count,
                              uint64_t step)
{
    gtopk_status_t status = GTOPK_OK;
    size_t claimed = 0;
    if (count > segments->count)
        return status_set(GTOPK_ERR_INVALID, "accumulate got %zu tensors, the reducer has %zu segments", count,
                          segments->count);
    if (count > 0 && !tensors)
        return status_set(GTOPK_ERR_INVALID, "accumulate of %zu tensors got none", count);
    for (size_t i = 0; i < count && status == GTOPK_OK; i++) {
        const size_t s = which ? which[i] : i;
        if (s >= segments->count)
            status = status_set(GTOPK_ERR_INVALID, "segment %zu does not exist: the reducer has %zu", s,
                                segments->count);
        else if (segments->seen[s])
            status = status_set(GTOPK_ERR_STATE,
                                "segment %zu was accumulated already in step %llu: each segment once a step; add up "
                                "gradients before, or call reduce",
                                s, (unsigned long long)step);
        else
            status = segments_check_tensor(segments, "the gradient", s, &tensors[i]);
        if (status != GTOPK_OK)
            break;
        segments->seen[s] = 1;
        claimed++;
        set_span(segments, i, s, &tensors[i]);
    }
    if (status != GTOPK_OK)
        segments_disclaim(segments, which, claimed);
    return status;
}

size_t segments_missing(segments_t *segments)
{
    size_t missing = 0;
    for (size_t s = 0; s < segments->count; s++)
        if (!segments->seen[s])
            set_span(segments, missing++, s, NULL);
    return missing;
}

void segments_fill(segments_t *segments, const gtopk_tensor_t *tensors)
{
    for (size_t s = 0; s < segments->count; s++)
        set_span(segments, s, s, &tensors[s]);
}

void segments_forget(segments_t *segments)
{
    memset(segments->seen, 0, segments->count);
}
