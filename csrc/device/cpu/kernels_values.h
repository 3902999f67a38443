/* Values of a message to and from floats: the kernels encode_values and decode_values. The loops are plain enough for
 * the compiler to vectorise, so each kernels_<isa>.c includes them and compiles them for its own instruction set. */
#ifndef GTOPK_DEVICE_CPU_KERNELS_VALUES_H
#define GTOPK_DEVICE_CPU_KERNELS_VALUES_H

#include <stddef.h>
#include <stdint.h>

#include "gtopk.h"
#include "wire/bytes.h"
#include "wire/convert.h"

/* Each writes the codes, and what they decode to. `value` and `decoded` may be the same. */

static void encode_f32(const float *value, size_t count, uint8_t *codes, float *decoded)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = convert_bits(value[i]);
        bytes_store32(codes + 4 * i, bits);
        decoded[i] = value[i];
    }
}

static void encode_bf16(const float *value, size_t count, uint8_t *codes, float *decoded)
{
    for (size_t i = 0; i < count; i++) {
        uint16_t code = convert_bf16_from_float(value[i]);
        bytes_store16(codes + 2 * i, code);
        decoded[i] = convert_float_from_bf16(code);
    }
}

static void encode_fp16(const float *value, size_t count, float scale, uint8_t *codes, float *decoded)
{
    const float inverse = 1.0f / scale, limit = convert_fp16_limit(scale);
    for (size_t i = 0; i < count; i++) {
        uint16_t code = convert_fp16_scaled(value[i], inverse, limit);
        bytes_store16(codes + 2 * i, code);
        decoded[i] = convert_float_from_fp16_scaled(code, scale);
    }
}

static void encode_i8(const float *value, size_t count, float scale, uint8_t *codes, float *decoded)
{
    const float inverse = 1.0f / scale, limit = convert_i8_limit(scale);
    for (size_t i = 0; i < count; i++) {
        int8_t code = convert_i8_scaled(value[i], inverse, limit);
        codes[i] = (uint8_t)code;
        decoded[i] = convert_float_from_i8_scaled(code, scale);
    }
}

static void encode_values(int type, const float *value, size_t count, float scale, uint8_t *codes, float *decoded)
{
    switch (type) {
    case GTOPK_VALUE_F32: encode_f32(value, count, codes, decoded); break;
    case GTOPK_VALUE_BF16: encode_bf16(value, count, codes, decoded); break;
    case GTOPK_VALUE_F16: encode_fp16(value, count, scale, codes, decoded); break;
    default: encode_i8(value, count, scale, codes, decoded); break;
    }
}

static void decode_values(int type, const uint8_t *codes, size_t count, float scale, float *value)
{
    switch (type) {
    case GTOPK_VALUE_F32:
        for (size_t i = 0; i < count; i++)
            value[i] = convert_float(bytes_load32(codes + 4 * i));
        break;
    case GTOPK_VALUE_BF16:
        for (size_t i = 0; i < count; i++)
            value[i] = convert_float_from_bf16(bytes_load16(codes + 2 * i));
        break;
    case GTOPK_VALUE_F16:
        for (size_t i = 0; i < count; i++)
            value[i] = convert_float_from_fp16_scaled(bytes_load16(codes + 2 * i), scale);
        break;
    default:
        for (size_t i = 0; i < count; i++)
            value[i] = convert_float_from_i8_scaled((int8_t)codes[i], scale);
        break;
    }
}

#endif
