/* The kernels widen and narrow, for a residual in bf16. The loops are plain enough for the compiler to vectorise, so each
 * kernels_<isa>.c includes them and compiles them for its own instruction set. */
#ifndef GTOPK_DEVICE_CPU_KERNELS_BF16_H
#define GTOPK_DEVICE_CPU_KERNELS_BF16_H

#include <stddef.h>
#include <stdint.h>

#include "device/dither.h"

static void widen(const uint16_t *from, size_t count, float *to)
{
    for (size_t i = 0; i < count; i++)
        to[i] = convert_float_from_bf16(from[i]);
}

static void narrow(float *value, size_t count, uint32_t first, uint32_t key, uint16_t *to)
{
    for (size_t i = 0; i < count; i++) {
        const uint16_t bits = dither_bf16(value[i], first + (uint32_t)i, key);
        to[i] = bits;
        value[i] = convert_float_from_bf16(bits);
    }
}

#endif
