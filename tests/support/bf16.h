/* What a reducer whose residual is in bf16 stores of a sum, in accumulate. */
#ifndef TESTS_SUPPORT_BF16_H
#define TESTS_SUPPORT_BF16_H

#include "device/dither.h"

/* index: in the residual of the rank, which is a share of it on nodes. */
static inline float bf16_accumulated(float sum, int rank, int step, uint32_t index)
{
    const uint64_t seed = ((uint64_t)rank << 40) + (uint64_t)step;
    return convert_float_from_bf16(dither_bf16(sum, index, dither_key(seed, DITHER_ACCUMULATE)));
}

#endif
