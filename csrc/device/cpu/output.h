/* Dense outputs, float or 16-bit: reading and writing one entry, the remainder of a conversion, filling. */
#ifndef GTOPK_DEVICE_CPU_OUTPUT_H
#define GTOPK_DEVICE_CPU_OUTPUT_H

#include "device/device.h"
#include "gtopk.h"
#include "wire/convert.h"

/* Stores a finite value, the largest finite one where it does not fit, and returns what was stored. */
static inline float output_store(void *data, uint64_t at, int dtype, float value)
{
    if (dtype == GTOPK_F32) {
        ((float *)data)[at] = value;
        return value;
    }
    uint16_t *to = (uint16_t *)data + at;
    if (dtype == GTOPK_F16) {
        *to = convert_fp16_from_float(value);
        return convert_float_from_fp16(*to);
    }
    *to = convert_bf16_from_float(value);
    return convert_float_from_bf16(*to);
}

static inline int output_is_finite(float value)
{
    return (convert_bits(value) & 0x7fffffffu) < CONVERT_INF;
}

/* 1 when the words forbid a commit; the spans are then what such a step leaves: NaN, zero, or untouched. Otherwise they
 * are cleared unless they are zero. */
int outputs_drop(const device_words_t *words, const device_target_t *target);

gtopk_status_t target_write(device_t *device, const device_set_t *final, uint32_t divisor,
                            const device_target_t *target, const device_words_t *words, void *stream);

#endif
