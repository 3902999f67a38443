/* Conversions and scales, against formulas in double, where all of it is exact, and against the CPU's own conversions. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gtopk.h"
#include "support/random.h"
#include "wire/convert.h"
#include "wire/wire.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

/* A 16-bit format with `mantissa` bits after the point and exponents biased by `bias`; the largest exponent is Inf and
 * NaN. */
typedef struct format {
    const char *name;
    int mantissa, bias;
    uint16_t (*from_float)(float);
    float (*to_float)(uint16_t);
} format_t;

static const format_t formats[2] = {
    {"bf16", 7, 127, wire_bf16_from_float, wire_float_from_bf16},
    {"fp16", 10, 15, wire_fp16_from_float, wire_float_from_fp16},
};

/* The value of a finite magnitude, by the definition of the format. */
static double value_of(const format_t *format, uint16_t magnitude)
{
    const int exponent = magnitude >> format->mantissa, mantissa = magnitude & ((1 << format->mantissa) - 1);
    if (exponent == 0)
        return ldexp(mantissa, 1 - format->bias - format->mantissa);
    return ldexp(mantissa + (1 << format->mantissa), exponent - format->bias - format->mantissa);
}

static uint16_t infinity_of(const format_t *format)
{
    return (uint16_t)(0x7fffu >> format->mantissa << format->mantissa);
}

/* The nearest finite magnitude, by search; of two as near the even one. */
static uint16_t nearest(const format_t *format, double magnitude)
{
    uint16_t below = 0, above = (uint16_t)(infinity_of(format) - 1);
    if (magnitude >= value_of(format, above))
        return above;
    while (above - below > 1) {
        const uint16_t middle = (uint16_t)((below + above) / 2);
        if (value_of(format, middle) <= magnitude)
            below = middle;
        else
            above = middle;
    }
    const double down = magnitude - value_of(format, below), up = value_of(format, above) - magnitude;
    return down < up || (down == up && below % 2 == 0) ? below : above;
}

static void check_from_float(const format_t *format, float value)
{
    const uint16_t bits = format->from_float(value);
    const uint16_t sign = signbit(value) ? 0x8000 : 0, magnitude = bits & 0x7fff;
    if ((bits & 0x8000) != sign)
        fail_msg("%s of %a: %04x has another sign", format->name, (double)value, bits);
    if (isnan(value)) {
        if (magnitude <= infinity_of(format))
            fail_msg("%s of a NaN (%08x) is %04x", format->name, convert_bits(value), bits);
        return;
    }
    const uint16_t expected = isinf(value) ? infinity_of(format) : nearest(format, fabs((double)value));
    if (magnitude != expected)
        fail_msg("%s of %a: %04x, expected %04x", format->name, (double)value, magnitude, expected);
}

/* ---- 16 bits and float ---- */

static void every_value_comes_back(void **state)
{
    (void)state;
    for (int f = 0; f < 2; f++)
        for (uint32_t bits = 0; bits < 0x10000; bits++) {
            const format_t *format = &formats[f];
            const uint16_t magnitude = bits & 0x7fff;
            const float value = format->to_float((uint16_t)bits);
            assert_int_equal(signbit(value) != 0, bits >> 15);
            if (magnitude > infinity_of(format)) {
                assert_true(isnan(value));
                /* A signalling NaN becomes a quiet one, the rest of its payload stays. */
                assert_int_equal(format->from_float(value), bits | 1u << (format->mantissa - 1));
                continue;
            }
            if (magnitude == infinity_of(format))
                assert_true(isinf(value));
            else
                assert_true(fabs((double)value) == value_of(format, magnitude));
            assert_int_equal(format->from_float(value), bits);
        }
}

static void rounds_to_nearest_even(void **state)
{
    (void)state;
    /* All upper halves with those lower halves at which something may change: ties of both formats, and beside them. */
    static const uint16_t lower[] = {0,      1,      0x0fff, 0x1000, 0x1001, 0x1fff, 0x2fff, 0x3000, 0x3001,
                                     0x6fff, 0x7000, 0x7fff, 0x8000, 0x8001, 0xefff, 0xf000, 0xf001, 0xffff};
    for (int f = 0; f < 2; f++)
        for (uint32_t upper = 0; upper < 0x10000; upper++)
            for (size_t i = 0; i < sizeof lower / sizeof *lower; i++)
                check_from_float(&formats[f], convert_float(upper << 16 | lower[i]));
}

static void random_floats_round_to_nearest_even(void **state)
{
    (void)state;
    random_state_t random = {6};
    for (int i = 0; i < 1000000; i++) {
        const float any = random_float_bits(&random);
        check_from_float(&formats[0], any);
        /* Half of them where fp16 has normal and denormal values. */
        const uint32_t exponent = 127 - 26 + (uint32_t)random_below(&random, 44);
        check_from_float(&formats[1], i % 2 ? any : convert_float((convert_bits(any) & 0x807fffffu) | exponent << 23));
    }
}

static void overflow_becomes_the_largest_finite_value(void **state)
{
    (void)state;
    assert_int_equal(wire_fp16_from_float(65504.0f), 0x7bff);
    assert_int_equal(wire_fp16_from_float(65519.996f), 0x7bff);
    assert_int_equal(wire_fp16_from_float(65520.0f), 0x7bff);
    assert_int_equal(wire_fp16_from_float(-1e30f), 0xfbff);
    assert_int_equal(wire_bf16_from_float(0x1.fffffep127f), 0x7f7f);
    assert_int_equal(wire_bf16_from_float(-0x1.fffffep127f), 0xff7f);
    assert_int_equal(wire_bf16_from_float(INFINITY), 0x7f80);
    assert_int_equal(wire_fp16_from_float(-INFINITY), 0xfc00);
}

#if defined(__x86_64__)
__attribute__((target("f16c"))) static uint16_t f16c_from_float(float value)
{
    return (uint16_t)_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

__attribute__((target("f16c"))) static float f16c_to_float(uint16_t bits)
{
    return _cvtsh_ss(bits);
}

static void fp16_has_the_bits_of_f16c(void **state)
{
    unsigned int a, b, c = 0, d;
    (void)state;
    if (!__builtin_cpu_supports("avx") || !__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_F16C))
        skip();
    random_state_t random = {7};
    for (uint32_t bits = 0; bits < 0x10000; bits++)
        assert_int_equal(convert_bits(wire_float_from_fp16((uint16_t)bits)),
                         convert_bits(f16c_to_float((uint16_t)bits)));
    for (int i = 0; i < 4000000; i++) {
        const float value = random_float_bits(&random);
        const uint16_t theirs = f16c_from_float(value);
        /* The one difference: they overflow to Inf. */
        const uint16_t expected = (theirs & 0x7fff) == 0x7c00 && !isinf(value) ? (uint16_t)(theirs - 1) : theirs;
        assert_int_equal(wire_fp16_from_float(value), expected);
    }
}

static void conversions_ignore_flush_to_zero(void **state)
{
    (void)state;
    const unsigned mxcsr = _mm_getcsr();
    for (uint32_t i = 0; i < 0x10000; i++) {
        const float value = convert_float(i << 15); /* denormals of both formats are among them */
        const uint16_t bf16 = wire_bf16_from_float(value), fp16 = wire_fp16_from_float(value);
        const uint32_t from_bf16 = convert_bits(wire_float_from_bf16((uint16_t)i));
        const uint32_t from_fp16 = convert_bits(wire_float_from_fp16((uint16_t)i));
        _mm_setcsr(mxcsr | 0x8040); /* flush to zero, denormals are zero */
        const int same = wire_bf16_from_float(value) == bf16 && wire_fp16_from_float(value) == fp16 &&
                         convert_bits(wire_float_from_bf16((uint16_t)i)) == from_bf16 &&
                         convert_bits(wire_float_from_fp16((uint16_t)i)) == from_fp16 &&
                         wire_scale(GTOPK_VALUE_I8, 0x1p-140f) == 0x1p-126f;
        _mm_setcsr(mxcsr);
        assert_true(same);
    }
}
#endif

/* ---- scales ---- */

static double limit_of(int type)
{
    return type == GTOPK_VALUE_F16 ? 32768.0 : 127.0;
}

static void check_scale(int type, float max)
{
    const double scale = (double)wire_scale(type, max), limit = limit_of(type);
    int exponent;
    assert_true(frexp(scale, &exponent) == 0.5);
    assert_true((double)max <= limit * scale);
    assert_true(scale == 0x1p-126 || (double)max > limit * (scale / 2));
    assert_true(wire_scale_valid(type, (float)scale));
}

static void scale_is_the_smallest_that_fits(void **state)
{
    (void)state;
    random_state_t random = {8};
    const float special[] = {0x1p-149f,  0x1p-126f, 0x1.fffffep-127f, 1.0f,        126.99999f,      127.0f,
                             127.00001f, 127.5f,    128.0f,           254.0f,      32767.998f,      32768.0f,
                             32768.004f, 65504.0f,  0x1p127f,         0x1.fcp127f, 0x1.fc0002p127f, 0x1.fffffep127f};
    const int types[] = {GTOPK_VALUE_F16, GTOPK_VALUE_I8};
    for (int t = 0; t < 2; t++) {
        for (size_t i = 0; i < sizeof special / sizeof *special; i++)
            check_scale(types[t], special[i]);
        for (int i = 0; i < 200000; i++) {
            const float max = convert_float((uint32_t)random_below(&random, 0x7f800000u));
            if (max > 0)
                check_scale(types[t], max);
        }
        assert_true(wire_scale(types[t], 0.0f) == 1.0f);
    }
    assert_true(wire_scale(GTOPK_VALUE_BF16, 1e9f) == 1.0f);
    assert_true(wire_scale(GTOPK_VALUE_F32, 1e-9f) == 1.0f);
}

static void only_usable_scales_are_valid(void **state)
{
    (void)state;
    for (uint32_t upper = 0; upper < 0x10000; upper++)
        for (uint32_t lower = 0; lower < 2; lower++) {
            const float scale = convert_float(upper << 16 | lower);
            int exponent = 0;
            const int power = isfinite(scale) && frexp((double)scale, &exponent) == 0.5 && scale >= 0x1p-126f;
            assert_int_equal(wire_scale_valid(GTOPK_VALUE_F16, scale), power && scale <= 0x1p113f);
            assert_int_equal(wire_scale_valid(GTOPK_VALUE_I8, scale), power && scale <= 0x1p122f);
            assert_int_equal(wire_scale_valid(GTOPK_VALUE_F32, scale), scale == 1.0f);
            assert_int_equal(wire_scale_valid(GTOPK_VALUE_BF16, scale), scale == 1.0f);
            assert_int_equal(wire_scale_valid(WIRE_VALUE_BYTES, scale), scale == 1.0f);
        }
}

/* ---- values under a scale ---- */

/* Encoded and decoded: finite, no further off than half a unit in the last place, of the same sign. */
static void check_scaled(float value, float max)
{
    const float fp16_scale = wire_scale(GTOPK_VALUE_F16, max), i8_scale = wire_scale(GTOPK_VALUE_I8, max);
    const float as_fp16 = convert_float_from_fp16_scaled(
        convert_fp16_scaled(value, 1.0f / fp16_scale, convert_fp16_limit(fp16_scale)), fp16_scale);
    const float as_i8 = convert_float_from_i8_scaled(
        convert_i8_scaled(value, 1.0f / i8_scale, convert_i8_limit(i8_scale)), i8_scale);

    assert_true(isfinite(as_fp16) && isfinite(as_i8));
    /* Clamped only where the next step would be 2^128. */
    const double bound = max >= 0x1p127f ? 1.0 : 0.5;
    assert_true(fabs((double)as_i8 - (double)value) <= bound * (double)i8_scale);
    assert_true(fabs((double)as_fp16 - (double)value) <=
                fmax(2 * bound * fabs((double)value) * 0x1p-11, 0x1p-25 * (double)fp16_scale));
    assert_true((double)as_i8 * (double)value >= 0 && (double)as_fp16 * (double)value >= 0);
    if (max < 0x1p127f)
        assert_true((double)as_i8 == nearbyint((double)value / (double)i8_scale) * (double)i8_scale);
}

static void scaled_values_come_back_near(void **state)
{
    (void)state;
    random_state_t random = {9};
    for (int i = 0; i < 300000; i++) {
        const float max = convert_float((uint32_t)random_below(&random, 0x7f800000u));
        if (!(max > 0))
            continue;
        const double part = (double)random_below(&random, 1u << 24) * 0x1p-24;
        const float value = (float)((double)max * (i % 2 ? part : ldexp(part, -(int)random_below(&random, 30))));
        check_scaled(value, max);
        check_scaled(-value, max);
        check_scaled(max, max);
        check_scaled(-max, max);
    }
    check_scaled(0x1.fffffep127f, 0x1.fffffep127f);
    check_scaled(0x1p-149f, 0x1p-149f);
    check_scaled(2.5f, 127.0f); /* a tie */
    check_scaled(3.5f, 127.0f);
    for (int code = -127; code <= 127; code++)
        assert_true(convert_float_from_i8_scaled((int8_t)code, 0.5f) == (float)code / 2);
    assert_true(convert_float_from_i8_scaled(-128, 1.0f) == 0.0f);
    assert_int_equal(convert_i8_scaled(-127.0f, 1.0f, convert_i8_limit(1.0f)), -127);
    assert_int_equal(convert_i8_scaled(1e9f, 1.0f, convert_i8_limit(1.0f)), 127);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_value_comes_back),
        cmocka_unit_test(rounds_to_nearest_even),
        cmocka_unit_test(random_floats_round_to_nearest_even),
        cmocka_unit_test(overflow_becomes_the_largest_finite_value),
#if defined(__x86_64__)
        cmocka_unit_test(fp16_has_the_bits_of_f16c),
        cmocka_unit_test(conversions_ignore_flush_to_zero),
#endif
        cmocka_unit_test(scale_is_the_smallest_that_fits),
        cmocka_unit_test(only_usable_scales_are_valid),
        cmocka_unit_test(scaled_values_come_back_near),
    };
    return cmocka_run_group_tests_name("wire conversions", tests, NULL, NULL);
}
