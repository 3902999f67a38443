/* Stochastic rounding of a float to bf16: up with the probability that makes the mean right, so that many small additions to
 * a large value are not lost. What it draws depends on (seed, place, index) alone: every device, thread and instruction set
 * rounds alike. Works on bits, whatever the FTZ and DAZ flags say. */
#ifndef GTOPK_DEVICE_DITHER_H
#define GTOPK_DEVICE_DITHER_H

#include <stdint.h>

#include "wire/convert.h"

/* Where in a step a residual is rounded: each place draws for itself. */
enum {
    DITHER_ACCUMULATE,
    DITHER_CLEAR,
    DITHER_MEAN,
    DITHER_WRITE,
    DITHER_DEPOSIT /* and those that follow: one a deposit */
};

/* The finalizer of SplitMix64 (Steele, Lea, Flood 2014). */
static inline uint32_t dither_key(uint64_t seed, uint32_t place)
{
    uint64_t x = seed + (place + 1) * 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)((x ^ x >> 31) >> 32);
}

/* 16 bits for an index, by the finalizer of MurmurHash3. */
static inline uint32_t dither_draw(uint32_t index, uint32_t key)
{
    uint32_t x = index * 0x9e3779b1u ^ key;
    x = (x ^ x >> 16) * 0x85ebca6bu;
    x = (x ^ x >> 13) * 0xc2b2ae35u;
    return x >> 16;
}

/* Of a finite value; what would become Inf stays the largest finite one. */
static inline uint16_t dither_bf16(float value, uint32_t index, uint32_t key)
{
    const uint32_t bits = convert_bits(value), magnitude = bits & 0x7fffffffu;
    uint32_t result = (magnitude + dither_draw(index, key)) >> 16;
    result = convert_if_less(result, 0x7f80u, result, 0x7f7fu);
    return (uint16_t)((bits >> 16 & 0x8000u) | result);
}

#endif
