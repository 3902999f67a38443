/* Four entries in registers: what a lane moves at a time in a pass over spans. */
#ifndef GTOPK_DEVICE_CUDA_FOURS_H
#define GTOPK_DEVICE_CUDA_FOURS_H

#include "device/cuda/spans.h"

/* Entries that a warp moves so; and how many of such groups a lane reads before it writes the first. */
#define GROUP 128u
#define GROUPS_AT_ONCE 2u

/* Where a lane's four entries lie from `at` on: next to each other, for vectors, or a warp apart, where a span begins
 * elsewhere in a vector than the residual does. */
enum { NEXT = 1, APART = CUDA_WARP };

static inline void unpack(uint4 vector, float *values)
{
    values[0] = convert_float(vector.x);
    values[1] = convert_float(vector.y);
    values[2] = convert_float(vector.z);
    values[3] = convert_float(vector.w);
}

static inline uint4 pack(const float *values)
{
    uint4 vector;
    vector.x = convert_bits(values[0]);
    vector.y = convert_bits(values[1]);
    vector.z = convert_bits(values[2]);
    vector.w = convert_bits(values[3]);
    return vector;
}

static inline float half_to_float(uint32_t dtype, uint32_t bits)
{
    return dtype == GTOPK_F16 ? float_from_half((uint16_t)bits) : convert_float_from_bf16((uint16_t)bits);
}

/* Of the gradient. */
static inline void read_four(const void *data, uint32_t dtype, int apart, int64_t at, float *values)
{
    if (apart == APART) {
        UNROLL
        for (int j = 0; j < 4; j++)
            values[j] = dtype == GTOPK_F32
                            ? __ldcs((const float *)data + at + j * APART)
                            : half_to_float(dtype, __ldcs((const unsigned short *)data + at + j * APART));
    } else if (dtype == GTOPK_F32) {
        unpack(__ldcs((const uint4 *)((const float *)data + at)), values);
    } else {
        const uint2 halves = __ldcs((const uint2 *)((const uint16_t *)data + at));
        values[0] = half_to_float(dtype, halves.x & 0xffffu);
        values[1] = half_to_float(dtype, halves.x >> 16);
        values[2] = half_to_float(dtype, halves.y & 0xffffu);
        values[3] = half_to_float(dtype, halves.y >> 16);
    }
}

static inline void zero_four(void *data, uint32_t dtype, int apart, int64_t at)
{
    if (apart == APART) {
        UNROLL
        for (int j = 0; j < 4; j++) {
            if (dtype == GTOPK_F32)
                __stcs((float *)data + at + j * APART, 0.0f);
            else
                __stcs((unsigned short *)data + at + j * APART, (unsigned short)0);
        }
    } else if (dtype == GTOPK_F32) {
        const float zeros[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        __stcs((uint4 *)((float *)data + at), pack(zeros));
    } else {
        uint2 zero;
        zero.x = zero.y = 0;
        __stcs((uint2 *)((uint16_t *)data + at), zero);
    }
}

/* Of floats that are used again: the residual, the velocity. */
static inline void get_four(const float *from, int apart, float *values)
{
    if (apart == NEXT)
        unpack(*(const uint4 *)from, values);
    UNROLL
    for (int j = 0; apart == APART && j < 4; j++)
        values[j] = from[j * APART];
}

static inline void put_four(float *to, int apart, const float *values)
{
    if (apart == NEXT)
        *(uint4 *)to = pack(values);
    UNROLL
    for (int j = 0; apart == APART && j < 4; j++)
        to[j * APART] = values[j];
}

#endif
