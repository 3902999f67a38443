/* Ranges of indices: those that have a given number in some of their bits. With these bits taken out, the indices of a
 * range are numbers without gaps, in the same order. Pure; kernels include it as well. */
#ifndef GTOPK_DEVICE_RANGE_H
#define GTOPK_DEVICE_RANGE_H

#include <stdint.h>

/* The indices with `part` in `bits` bits from bit `at` up; at + bits < 64. */
typedef struct device_range {
    uint32_t at, bits, part;
} device_range_t;

static inline int range_has(device_range_t range, uint32_t index)
{
    return (((uint64_t)index >> range.at) & (((uint64_t)1 << range.bits) - 1)) == range.part;
}

/* The place of an index in its range, and back. */
static inline uint32_t range_inside(device_range_t range, uint32_t index)
{
    const uint32_t low = index & (uint32_t)(((uint64_t)1 << range.at) - 1);
    return (uint32_t)((uint64_t)index >> (range.at + range.bits) << range.at) | low;
}

static inline uint32_t range_outside(device_range_t range, uint32_t inside)
{
    const uint32_t low = inside & (uint32_t)(((uint64_t)1 << range.at) - 1);
    const uint64_t high = (uint64_t)inside >> range.at;
    return (uint32_t)(high << (range.at + range.bits) | (uint64_t)range.part << range.at | low);
}

/* How many of the indices below `dim` are in the range. */
static inline uint64_t range_dim(device_range_t range, uint64_t dim)
{
    const uint64_t chunk = (uint64_t)1 << range.at, period = chunk << range.bits;
    const uint64_t before = (uint64_t)range.part << range.at, rest = dim % period;
    const uint64_t more = rest < before ? 0 : rest - before;
    return dim / period * chunk + (more < chunk ? more : chunk);
}

#endif
