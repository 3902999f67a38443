/* Ranges of indices: 2^bits ranges share all indices among them, one of every 2^bits neighbours for each. So an index without
 * its low bits is its place in its range: numbers without gaps, in the same order.
 *
 * Which of the neighbours it is changes along the vector, as a mix of their higher bits says, so that no range gets a whole
 * column, channel or layer. Each bit of the mix depends on its own bit and higher ones alone, all in the same way; that
 * is why a range can be halved by the same rule, applied to the places in it. Pure; kernels include it as well. */
#ifndef GTOPK_DEVICE_RANGE_H
#define GTOPK_DEVICE_RANGE_H

#include <stdint.h>

/* The indices whose mix has the low bits `part`, bits < 32. */
typedef struct device_range {
    uint32_t bits, part;
} device_range_t;

/* Bit b is the parity of the bits b, b + 5, b + 10, ... */
static inline uint32_t range_mix(uint32_t index)
{
    index ^= index >> 5;
    index ^= index >> 10;
    return index ^ index >> 20;
}

static inline int range_has(device_range_t range, uint32_t index)
{
    return (range_mix(index) & ((1u << range.bits) - 1)) == range.part;
}

/* The place of an index in its range, and back. */
static inline uint32_t range_inside(device_range_t range, uint32_t index)
{
    return index >> range.bits;
}

static inline uint32_t range_outside(device_range_t range, uint32_t place)
{
    const uint32_t mix = range_mix(place) << range.bits | range.part;
    return mix ^ mix >> 5;
}

/* How many of the indices below `dim`, which is less than 2^32, are in the range. */
static inline uint64_t range_dim(device_range_t range, uint64_t dim)
{
    const uint64_t whole = dim >> range.bits;
    return whole + (whole << range.bits < dim && range_outside(range, (uint32_t)whole) < dim);
}

#endif
