/* A float and its wire values: the arithmetic of wire.h's conversions and of a value under a scale, as inline functions
 * without a branch, so that a loop over them compiles to SIMD code. Every device must give these bits.
 *
 * Works on bits where a float operation could meet a denormal, so that the FTZ and DAZ flags change nothing. Only values
 * under a scale need these flags off. */
#ifndef GTOPK_WIRE_CONVERT_H
#define GTOPK_WIRE_CONVERT_H

#include <stdint.h>
#include <string.h>

static inline uint32_t convert_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float convert_float(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#define CONVERT_INF 0x7f800000u /* bits of +Inf; above: NaN */

/* a < b ? yes : no, for a and b below 2^31. By mask: a conditional expression lets the compiler move what only one side
 * needs behind a branch, which a loop with float operations does not come back from; signed: SSE2 has no other compare. */
static inline uint32_t convert_if_less(uint32_t a, uint32_t b, uint32_t yes, uint32_t no)
{
    const uint32_t mask = 0u - (uint32_t)((int32_t)a < (int32_t)b);
    return (yes & mask) | (no & ~mask);
}

/* ---- bf16: the upper half of a float ---- */

static inline uint16_t convert_bf16_from_float(float value)
{
    const uint32_t bits = convert_bits(value), magnitude = bits & 0x7fffffffu;
    uint32_t result = (magnitude + 0x7fffu + (magnitude >> 16 & 1)) >> 16;
    result = convert_if_less(result, 0x7f80u, result, 0x7f7fu); /* finite, but rounds to Inf */
    result = convert_if_less(magnitude, CONVERT_INF, result, magnitude >> 16);
    result |= convert_if_less(CONVERT_INF, magnitude, 0x40u, 0); /* a quiet NaN, also one whose payload was all below */
    return (uint16_t)((bits >> 16 & 0x8000u) | result);
}

static inline float convert_float_from_bf16(uint16_t bits)
{
    return convert_float((uint32_t)bits << 16);
}

/* ---- fp16: 5 bits of exponent, 10 of mantissa ---- */

static inline uint16_t convert_fp16_from_float(float value)
{
    const uint32_t bits = convert_bits(value), magnitude = bits & 0x7fffffffu;

    /* From 2^-14 up: rebias the exponent, round the 13 bits that fall away to nearest even. */
    const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1)) >> 13;

    /* Below: adding 1/2 puts the unit in the last place at 2^-24, that of an fp16 denormal; the adder rounds. */
    const uint32_t denormal = convert_bits(convert_float(magnitude) + 0.5f) - convert_bits(0.5f);

    uint32_t result = convert_if_less(magnitude, 113u << 23, denormal, normal);
    result = convert_if_less(magnitude, 0x477ff000u, result, 0x7bffu); /* 65520 and more: the largest finite value */
    result = convert_if_less(magnitude, CONVERT_INF, result, 0x7c00u);
    result |= convert_if_less(CONVERT_INF, magnitude, 0x200u | (magnitude >> 13 & 0x3ffu), 0);
    return (uint16_t)((bits >> 16 & 0x8000u) | result);
}

static inline float convert_float_from_fp16(uint16_t bits)
{
    const uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, shifted = (uint32_t)(bits & 0x7fffu) << 13;
    const uint32_t normal = shifted + (112u << 23);

    /* Exponent 0: the mantissa becomes that of 2^-14 * 1.m, less 2^-14. */
    const uint32_t denormal = convert_bits(convert_float(shifted + (113u << 23)) - convert_float(113u << 23));

    const uint32_t special = shifted + (224u << 23);
    uint32_t result = convert_if_less(shifted, 1u << 23, denormal, normal);
    result = convert_if_less(shifted, 31u << 23, result, special);
    result |= convert_if_less(31u << 23, shifted, 0x400000u, 0);
    return convert_float(sign | result);
}

/* ---- values under a scale ---- */

/* The largest magnitude that fp16 and int8 values under `scale` may stand for: the type's own limit, but so that it
 * decodes to a finite float (the largest floats, rounded, would be 2^128). */
static inline float convert_fp16_limit(float scale)
{
    return scale > 0x1p112f ? 32752.0f * scale : 65504.0f * scale;
}

static inline float convert_i8_limit(float scale)
{
    return scale > 0x1p121f ? 63.0f * scale : 127.0f * scale;
}

static inline float convert_clamp(float value, float limit)
{
    const uint32_t bits = convert_bits(value), magnitude = bits & 0x7fffffffu, most = convert_bits(limit);
    return convert_float((bits & 0x80000000u) | convert_if_less(magnitude, most, magnitude, most));
}

/* `inverse` is 1 / scale, which is exact; `limit` is that of the scale. Dividing is exact too, but for results so small
 * that they become zero in either type. */
static inline uint16_t convert_fp16_scaled(float value, float inverse, float limit)
{
    return convert_fp16_from_float(convert_clamp(value, limit) * inverse);
}

static inline float convert_float_from_fp16_scaled(uint16_t bits, float scale)
{
    return convert_float_from_fp16(bits) * scale;
}

/* Rounds to nearest even, as rintf does, by an addition that leaves no bit below 1. */
static inline int8_t convert_i8_scaled(float value, float inverse, float limit)
{
    const float scaled = convert_clamp(value, limit) * inverse;
    return (int8_t)((int32_t)convert_bits(scaled + 0x1.8p23f) - (int32_t)convert_bits(0x1.8p23f));
}

/* -128 is no code. It reads as zero, which every decoder refuses. */
static inline float convert_float_from_i8_scaled(int8_t code, float scale)
{
    const int32_t wide = code;
    return (float)(wide & -(int32_t)(wide != INT8_MIN)) * scale;
}

#endif
