/* What the device property test feeds to devices: values of every awkward kind. */
#ifndef GTOPK_TESTS_DEVICE_RANDOM_H
#define GTOPK_TESTS_DEVICE_RANDOM_H

#include <math.h>
#include <stdint.h>

#include "gtopk.h"
#include "support/random.h"
#include "wire/wire.h"

typedef enum style {
    STYLE_NORMAL,
    STYLE_CONSTANT,    /* one magnitude: the widest tie */
    STYLE_TIES,        /* seven values, zero among them */
    STYLE_ALTERNATING, /* 1e6 and 1e-6 by turns */
    STYLE_SPARSE,      /* most are zero */
    STYLE_ZEROS,       /* +0 and -0 */
    STYLE_HEAVY,       /* magnitudes over 40 binary orders */
    STYLE_RISING,      /* every entry larger than all before it */
    STYLE_DENORMAL,
    STYLE_HUGE, /* sums of two overflow */
    STYLE_BITS, /* NaN and Inf as well */
    STYLE_COUNT
} style_t;

/* -1 <= result < 1. */
static inline float random_unit(random_state_t *random)
{
    return (float)(random_u64(random) >> 40) * 0x1p-23f - 1.0f;
}

static inline int random_chance(random_state_t *random, uint64_t one_in)
{
    return random_below(random, one_in) == 0;
}

/* Mostly the tame ones: a step that is not finite ends early. */
static inline style_t random_style(random_state_t *random)
{
    return (style_t)random_below(random, random_chance(random, 4) ? STYLE_COUNT : STYLE_DENORMAL);
}

static inline float random_denormal(random_state_t *random)
{
    const uint32_t mantissa = 0x7fffffu >> random_below(random, 23);
    const uint32_t bits = (uint32_t)random_u64(random) & (0x80000000u | mantissa);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* One draw a statement: compilers evaluate operands and arguments in any order. */
static inline float random_heavy(random_state_t *random)
{
    const float unit = random_unit(random);
    return ldexpf(unit, (int)random_below(random, 40) - 20);
}

static inline float random_bell(random_state_t *random)
{
    float sum = random_unit(random);
    sum += random_unit(random);
    return sum + random_unit(random);
}

/* The value of entry `at`. */
static inline float random_value(random_state_t *random, style_t style, uint64_t at)
{
    switch (style) {
    case STYLE_CONSTANT: return random_chance(random, 2) ? 0.75f : -0.75f;
    case STYLE_TIES: return (float)random_below(random, 7) - 3.0f;
    case STYLE_ALTERNATING: return random_unit(random) * (at % 2 ? 1e6f : 1e-6f);
    case STYLE_SPARSE: return random_chance(random, 50) ? random_unit(random) : 0.0f;
    case STYLE_ZEROS: return random_chance(random, 2) ? 0.0f : -0.0f;
    case STYLE_HEAVY: return random_heavy(random);
    case STYLE_RISING: return (float)(at + 1) * (random_chance(random, 2) ? 1e-3f : -1e-3f);
    case STYLE_DENORMAL: return random_denormal(random);
    case STYLE_HUGE: return 3e38f * random_unit(random);
    case STYLE_BITS: return random_float_bits(random);
    default: return random_bell(random);
    }
}

/* As a set or a residual may hold it. */
static inline float random_finite(random_state_t *random, style_t style, uint64_t at)
{
    const float value = random_value(random, style, at);
    return isfinite(value) ? value : 1.0f;
}

static inline float random_nonzero(random_state_t *random, style_t style, uint64_t at)
{
    const float value = random_finite(random, style, at);
    return value != 0.0f ? value : 1.0f;
}

static inline size_t dtype_size(int32_t dtype)
{
    return dtype == GTOPK_F32 ? 4 : 2;
}

/* Stores value as a gradient's type. */
static inline void dtype_store(void *at, int32_t dtype, float value)
{
    const uint16_t half = dtype == GTOPK_F16 ? wire_fp16_from_float(value) : wire_bf16_from_float(value);
    if (dtype == GTOPK_F32)
        memcpy(at, &value, sizeof value);
    else
        memcpy(at, &half, sizeof half);
}

#endif
