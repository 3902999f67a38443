/* Searching sets. */
#ifndef GTOPK_DEVICE_CUDA_SETS_H
#define GTOPK_DEVICE_CUDA_SETS_H

#include "device/cuda/kernel.h"

/* The place of the first of indices[begin..end) that is not below `index`. */
FUNCTION uint32_t lower_bound(const uint32_t *indices, uint32_t begin, uint32_t end, uint64_t index)
{
    while (begin < end) {
        const uint32_t middle = begin + (end - begin) / 2;
        if (indices[middle] < index)
            begin = middle + 1;
        else
            end = middle;
    }
    return begin;
}

/* The same by all lanes of a warp, 32 places at a time: three reads that wait for each other in place of fifteen. */
FUNCTION uint32_t warp_lower_bound(const uint32_t *indices, uint32_t begin, uint32_t end, uint64_t index)
{
    ROLLED
    while (begin < end) {
        const uint32_t stride = (end - begin + CUDA_WARP - 1) / CUDA_WARP;
        const uint64_t probe = begin + (uint64_t)(lane_id() + 1) * stride - 1;
        const uint32_t below = (uint32_t)__popc(__ballot_sync(ALL_LANES, probe < end && indices[probe] < index));
        const uint64_t from = begin + (uint64_t)below * stride, to = from + stride - 1;
        begin = from < end ? (uint32_t)from : end;
        end = to < end ? (uint32_t)to : end;
    }
    return begin;
}

/* Of the first `diagonal` entries of the merge of two sets, how many are a's; a goes first where indices are equal. Where
 * the path of the merge crosses a diagonal of the grid of both (merge path: Odeh, Green, Mwassi, Shmueli, Birk, 2012). */
static inline uint32_t path_search(const uint32_t *a, uint32_t a_count, const uint32_t *b, uint32_t b_count,
                                   uint32_t diagonal)
{
    uint32_t low = diagonal > b_count ? diagonal - b_count : 0, high = diagonal < a_count ? diagonal : a_count;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (a[middle] <= b[diagonal - 1 - middle])
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The same by all lanes of a warp. */
FUNCTION uint32_t warp_path_search(const uint32_t *a, uint32_t a_count, const uint32_t *b, uint32_t b_count,
                                   uint32_t diagonal)
{
    uint32_t low = diagonal > b_count ? diagonal - b_count : 0, high = diagonal < a_count ? diagonal : a_count;
    ROLLED
    while (low < high) {
        const uint32_t stride = (high - low + CUDA_WARP - 1) / CUDA_WARP;
        const uint64_t probe = low + (uint64_t)(lane_id() + 1) * stride - 1;
        const uint32_t passed = (uint32_t)__popc(
            __ballot_sync(ALL_LANES, probe < high && a[probe] <= b[diagonal - 1 - probe]));
        const uint64_t from = low + (uint64_t)passed * stride, to = from + stride - 1;
        low = from < high ? (uint32_t)from : high;
        high = to < high ? (uint32_t)to : high;
    }
    return low;
}

/* The value that a set, of which the indices from `begin` to `end` are looked at, has at an index; 0 where it has none. */
static inline float value_at(const device_set_t *set, uint32_t begin, uint32_t end, uint32_t index)
{
    const uint32_t at = lower_bound(set->index, begin, end, index);
    return at < end && set->index[at] == index ? set->value[at] : 0.0f;
}

#endif
