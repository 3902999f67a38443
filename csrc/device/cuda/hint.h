/* How the threshold of the next step is predicted: as cpu/hint.c does. */
#ifndef GTOPK_DEVICE_CUDA_HINT_H
#define GTOPK_DEVICE_CUDA_HINT_H

#include "device/cuda/kernel.h"

#define HINT_MARGIN 0.95f
#define HINT_WINDOW 16u
#define HINT_LARGEST 0x7f7fffffu /* the largest finite float */

static inline float minimum(float a, float b)
{
    return a < b ? a : b;
}

static inline void hint_reset(cuda_hint_t *hint, uint32_t unwanted)
{
    hint->last = 0.0f;
    hint->recent = hint->before = 1.0f;
    hint->age = 0;
    hint->unwanted = unwanted;
}

/* A step selected what it was asked for, the smallest with this magnitude; 0: there were fewer. */
static inline void hint_learn(cuda_hint_t *hint, uint32_t smallest)
{
    const float value = convert_float(smallest);
    if (hint->last > 0.0f && value > 0.0f)
        hint->recent = minimum(hint->recent, value / hint->last);
    hint->last = value;
    hint->unwanted = 0;
    if (++hint->age >= HINT_WINDOW) {
        hint->before = hint->recent;
        hint->recent = 1.0f;
        hint->age = 0;
    }
}

/* With nothing learnt, or learnt that nobody will ask, the pass looks for nothing, unless the pool has room for all: should
 * select come, it reads the residual once more with a threshold that a sample suggests, which is cheaper than a pool that
 * overflows. */
static inline uint32_t hint_floor(const cuda_hint_t *hint, uint32_t fits)
{
    const uint32_t bits = convert_bits(HINT_MARGIN * minimum(hint->recent, hint->before) * hint->last);
    if (hint->unwanted)
        return HINT_LARGEST;
    return bits != 0 ? bits : fits ? 1 : HINT_LARGEST;
}

#endif
