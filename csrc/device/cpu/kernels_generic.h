/* One entry at a time: the whole of the scalar kernels, and the last entries of a block in the vector ones. Every
 * kernel works on a copy of its job and of found->count: stores to the residual could change the originals, for all
 * that the compiler knows, and they would be loaded again and again. */
#ifndef GTOPK_DEVICE_CPU_KERNELS_GENERIC_H
#define GTOPK_DEVICE_CPU_KERNELS_GENERIC_H

#include <math.h>
#include <string.h>

#include "device/cpu/kernels.h"
#include "gtopk.h"
#include "wire/convert.h"

#define GENERIC_INLINE static inline __attribute__((always_inline))

#define GENERIC_MAGNITUDE 0x7fffffffu
#define GENERIC_INFINITY 0x7f800000u

GENERIC_INLINE uint32_t generic_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

GENERIC_INLINE float generic_load(const kernel_job_t *job, size_t i, int dtype)
{
    if (dtype == GTOPK_F32)
        return ((const float *)job->input)[i];
    uint16_t bits = ((const uint16_t *)job->input)[i];
    return dtype == GTOPK_F16 ? convert_float_from_fp16(bits) : convert_float_from_bf16(bits);
}

GENERIC_INLINE void generic_clear(const kernel_job_t *job, size_t i, int dtype)
{
    if (dtype == GTOPK_F32)
        ((float *)job->input)[i] = 0.0f;
    else
        ((uint16_t *)job->input)[i] = 0;
}

/* Branchless: the entry is always written, and counts if it passes. Returns the new count. */
GENERIC_INLINE uint32_t generic_offer(const kernel_job_t *job, size_t i, uint32_t bits, kernel_found_t *found,
                                      uint32_t count)
{
    found->index[count] = job->first + (uint32_t)i;
    found->bits[count] = bits;
    return count + ((bits & GENERIC_MAGNITUDE) > job->above);
}

GENERIC_INLINE int generic_accumulate(const kernel_job_t *job, size_t from, kernel_found_t *found, int dtype)
{
    int bad = 0, plain = job->scale == 1.0f;
    uint32_t count = found->count;
    for (size_t i = from; i < job->length; i++) {
        float x = generic_load(job, i, dtype), r = job->residual[i];
        float sum = plain ? x + r : fmaf(job->scale, x, r);
        if (job->zero_input)
            generic_clear(job, i, dtype);
        uint32_t bits = generic_bits(sum);
        if ((bits & GENERIC_MAGNITUDE) >= GENERIC_INFINITY) {
            bad = 1;
            sum = r;
            bits = generic_bits(r);
        }
        job->to[i] = sum;
        count = generic_offer(job, i, bits, found, count);
    }
    found->count = count;
    return bad;
}

GENERIC_INLINE int generic_momentum(const kernel_job_t *job, size_t from, kernel_found_t *found, int dtype)
{
    int bad = 0;
    uint32_t count = found->count;
    for (size_t i = from; i < job->length; i++) {
        float t = job->scale * generic_load(job, i, dtype), r = job->residual[i], u = job->velocity[i];
        float v = fmaf(job->momentum, u, t);
        float sum = r + (job->nesterov ? fmaf(job->momentum, v, t) : v);
        if (job->zero_input)
            generic_clear(job, i, dtype);
        uint32_t bits = generic_bits(sum);
        if ((bits & GENERIC_MAGNITUDE) >= GENERIC_INFINITY) {
            bad = 1;
            sum = r;
            v = u;
            bits = generic_bits(r);
        }
        job->to[i] = sum;
        job->velocity_to[i] = v;
        count = generic_offer(job, i, bits, found, count);
    }
    found->count = count;
    return bad;
}

GENERIC_INLINE void generic_scan(const kernel_job_t *job, size_t from, kernel_found_t *found)
{
    uint32_t count = found->count;
    for (size_t i = from; i < job->length; i++)
        count = generic_offer(job, i, generic_bits(job->residual[i]), found, count);
    found->count = count;
}

/* From entry `from` on; `out` entries are written, and `before` is the index in front of `from`, where there is one. */
GENERIC_INLINE size_t generic_join(uint32_t *index, float *value, size_t count, size_t from, size_t out,
                                   uint32_t before, int *nonfinite)
{
    uint32_t largest = 0;
    for (size_t i = from; i < count; i++) {
        uint32_t here = index[i], twice = i + 1 < count && index[i + 1] == here;
        float sum = value[i] + (twice ? value[i + 1] : 0.0f);
        uint32_t magnitude = generic_bits(sum) & GENERIC_MAGNITUDE, first = i == 0 || before != here;
        index[out] = here;
        value[out] = sum;
        largest = first && magnitude > largest ? magnitude : largest;
        out += first & (magnitude - 1 < GENERIC_INFINITY - 1); /* neither zero nor beyond the finite */
        before = here;
    }
    *nonfinite |= largest >= GENERIC_INFINITY;
    return out;
}

/* From entry `from` on; `kept` are written. */
GENERIC_INLINE void generic_keep(const uint32_t *index, const float *value, size_t count, size_t from, uint32_t least,
                                 size_t ties, size_t kept, kernel_entries_t out)
{
    for (size_t i = from; i < count && kept < out.capacity; i++) {
        uint32_t magnitude = generic_bits(value[i]) & GENERIC_MAGNITUDE, tie = magnitude == least && ties > 0;
        out.index[kept] = index[i];
        out.value[kept] = value[i];
        kept += (magnitude > least) | tie;
        ties -= tie;
    }
}

/* From entry `from` on; `found` are copied, and *above are counted. */
GENERIC_INLINE size_t generic_within(const float *value, size_t count, size_t from, uint32_t low, uint32_t high,
                                     float *out, size_t capacity, size_t found, size_t *above)
{
    size_t greater = 0;
    for (size_t i = from; i < count && found + KERNEL_SLACK <= capacity; i++) {
        uint32_t magnitude = generic_bits(value[i]) & GENERIC_MAGNITUDE;
        out[found] = value[i];
        found += magnitude - low <= high - low;
        greater += magnitude > high;
    }
    *above += greater;
    return found;
}

#endif
