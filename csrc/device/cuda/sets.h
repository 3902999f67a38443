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

/* The value that a set, of which the indices from `begin` to `end` are looked at, has at an index; 0 where it has none. */
static inline float value_at(const device_set_t *set, uint32_t begin, uint32_t end, uint32_t index)
{
    const uint32_t at = lower_bound(set->index, begin, end, index);
    return at < end && set->index[at] == index ? set->value[at] : 0.0f;
}

#endif
