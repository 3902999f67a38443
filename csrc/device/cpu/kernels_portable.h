/* join, keep and within for instruction sets that have no version of their own. */
#ifndef GTOPK_DEVICE_CPU_KERNELS_PORTABLE_H
#define GTOPK_DEVICE_CPU_KERNELS_PORTABLE_H

#include "device/cpu/kernels_generic.h"

static size_t join(uint32_t *index, float *value, size_t count, int *nonfinite)
{
    return generic_join(index, value, count, 0, 0, 0, nonfinite);
}

static void keep(const uint32_t *index, const float *value, size_t count, uint32_t least, size_t ties,
                 kernel_entries_t out)
{
    generic_keep(index, value, count, 0, least, ties, 0, out);
}

static size_t within(const float *value, size_t count, uint32_t low, uint32_t high, float *out, size_t capacity,
                     size_t *above)
{
    *above = 0;
    return generic_within(value, count, 0, low, high, out, capacity, 0, above);
}

#endif
