/* The conversions of wire.h, and the scale that goes with a message of fp16 or int8 values. */
#include "wire/convert.h"

#include "gtopk.h"
#include "wire/wire.h"

uint16_t wire_bf16_from_float(float value)
{
    return convert_bf16_from_float(value);
}

float wire_float_from_bf16(uint16_t bits)
{
    return convert_float_from_bf16(bits);
}

uint16_t wire_fp16_from_float(float value)
{
    return convert_fp16_from_float(value);
}

float wire_float_from_fp16(uint16_t bits)
{
    return convert_float_from_fp16(bits);
}

/* ---- scales ---- */

/* Exponents of the smallest scale, and of the one that the largest float needs. */
#define SCALE_EXPONENT_MIN (-126)
#define SCALE_EXPONENT_MAX_FP16 113
#define SCALE_EXPONENT_MAX_I8 122

static float power_of_two(int exponent)
{
    return convert_float((uint32_t)(exponent + 127) << 23);
}

float wire_scale(int value_type, float max)
{
    if (convert_bits(max) == 0 || (value_type != GTOPK_VALUE_F16 && value_type != GTOPK_VALUE_I8))
        return 1.0f;

    /* max = 1.mantissa * 2^exponent. Denormals count as less than 2^-126 and take the smallest scale. */
    const int exponent = (int)(convert_bits(max) >> 23) - 127;
    const uint32_t mantissa = convert_bits(max) & 0x7fffffu;
    int scale;
    if (value_type == GTOPK_VALUE_F16)
        scale = exponent - 15 + (mantissa != 0); /* 32768 is 1.0 * 2^15 */
    else
        scale = exponent - 6 + (mantissa > 0x7e0000u); /* 127 is 1.984375 * 2^6 */
    return power_of_two(scale < SCALE_EXPONENT_MIN ? SCALE_EXPONENT_MIN : scale);
}

int wire_scale_valid(int value_type, float scale)
{
    const uint32_t bits = convert_bits(scale);
    if (value_type != GTOPK_VALUE_F16 && value_type != GTOPK_VALUE_I8)
        return bits == convert_bits(1.0f);
    const int exponent = (int)(bits >> 23) - 127,
              max = value_type == GTOPK_VALUE_F16 ? SCALE_EXPONENT_MAX_FP16 : SCALE_EXPONENT_MAX_I8;
    return (bits & 0x807fffffu) == 0 && exponent >= SCALE_EXPONENT_MIN && exponent <= max;
}
