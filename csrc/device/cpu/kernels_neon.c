/* The kernels for NEON (every AArch64), 16 entries at a time: one branch asks whether any of them passes. Knows no
 * pools, hints or threads. */
#include "device/cpu/kernels_generic.h"

#ifdef __aarch64__
#include <arm_neon.h>

#include "device/cpu/kernels_portable.h"
#include "device/cpu/kernels_bf16.h"
#include "device/cpu/kernels_values.h"

#define LANES 4u
#define GROUP 4u /* vectors for one branch */

GENERIC_INLINE float32x4_t load_input(const kernel_job_t *job, size_t i, int dtype)
{
    if (dtype == GTOPK_F32)
        return vld1q_f32((const float *)job->input + i);
    uint16x4_t half = vld1_u16((const uint16_t *)job->input + i);
    if (dtype == GTOPK_F16)
        return vcvt_f32_f16(vreinterpret_f16_u16(half));
    return vreinterpretq_f32_u32(vshll_n_u16(half, 16));
}

GENERIC_INLINE void clear_input(const kernel_job_t *job, size_t i, int dtype)
{
    if (dtype == GTOPK_F32)
        vst1q_f32((float *)job->input + i, vdupq_n_f32(0.0f));
    else
        vst1_u16((uint16_t *)job->input + i, vdup_n_u16(0));
}

/* Lanes, all ones or zero, whose |value| has greater bits. */
GENERIC_INLINE uint32x4_t passes(float32x4_t value, uint32x4_t above)
{
    return vcgtq_u32(vandq_u32(vreinterpretq_u32_f32(value), vdupq_n_u32(GENERIC_MAGNITUDE)), above);
}

GENERIC_INLINE uint32x4_t not_finite(float32x4_t value)
{
    return passes(value, vdupq_n_u32(GENERIC_INFINITY - 1u));
}

GENERIC_INLINE int any_lane(uint32x4_t mask)
{
    return vmaxvq_u32(mask) != 0;
}

/* Returns the new count. */
GENERIC_INLINE uint32_t append(const kernel_job_t *job, size_t i, float32x4_t value, kernel_found_t *found,
                               uint32_t count)
{
    uint32_t bits[LANES];
    vst1q_u32(bits, vreinterpretq_u32_f32(value));
    for (size_t lane = 0; lane < LANES; lane++)
        count = generic_offer(job, i + lane, bits[lane], found, count);
    return count;
}

/* Some sum of the group is above the bound, or not finite: puts the old values back where it is not, and appends.
 * Returns the lanes that were put back. */
GENERIC_INLINE uint32x4_t settle(const kernel_job_t *job, size_t i, float32x4_t old, float32x4_t sum,
                                 kernel_found_t *found, uint32_t *count)
{
    uint32x4_t bad = not_finite(sum);
    if (any_lane(bad)) {
        sum = vbslq_f32(bad, old, sum);
        vst1q_f32(job->to + i, sum);
    }
    *count = append(job, i, sum, found, *count);
    return bad;
}

GENERIC_INLINE int accumulate(const kernel_job_t *job, kernel_found_t *found, int dtype, int streams)
{
    (void)streams;
    const float32x4_t scale = vdupq_n_f32(job->scale);
    const uint32x4_t above = vdupq_n_u32(job->above);
    uint32x4_t bad = vdupq_n_u32(0);
    uint32_t count = found->count;
    size_t i = 0;
    for (; i + GROUP * LANES <= job->length; i += GROUP * LANES) {
        float32x4_t old[GROUP], sum[GROUP];
        uint32x4_t any = vdupq_n_u32(0);
        for (size_t v = 0; v < GROUP; v++) {
            old[v] = vld1q_f32(job->residual + i + v * LANES);
            sum[v] = vfmaq_f32(old[v], scale, load_input(job, i + v * LANES, dtype));
            vst1q_f32(job->to + i + v * LANES, sum[v]);
            any = vorrq_u32(any, passes(sum[v], above));
        }
        if (job->zero_input)
            for (size_t v = 0; v < GROUP; v++)
                clear_input(job, i + v * LANES, dtype);
        if (any_lane(any))
            for (size_t v = 0; v < GROUP; v++)
                bad = vorrq_u32(bad, settle(job, i + v * LANES, old[v], sum[v], found, &count));
    }
    found->count = count;
    return generic_accumulate(job, i, found, dtype) | any_lane(bad);
}

GENERIC_INLINE int momentum(const kernel_job_t *job, kernel_found_t *found, int dtype, int streams)
{
    (void)streams;
    const float32x4_t scale = vdupq_n_f32(job->scale), factor = vdupq_n_f32(job->momentum);
    const uint32x4_t above = vdupq_n_u32(job->above);
    uint32x4_t bad = vdupq_n_u32(0);
    uint32_t count = found->count;
    size_t i = 0;
    for (; i + LANES <= job->length; i += LANES) {
        float32x4_t old = vld1q_f32(job->residual + i), before = vld1q_f32(job->velocity + i);
        float32x4_t t = vmulq_f32(scale, load_input(job, i, dtype));
        float32x4_t velocity = vfmaq_f32(t, factor, before);
        float32x4_t sum = vaddq_f32(old, job->nesterov ? vfmaq_f32(t, factor, velocity) : velocity);
        vst1q_f32(job->to + i, sum);
        vst1q_f32(job->velocity_to + i, velocity);
        if (job->zero_input)
            clear_input(job, i, dtype);
        if (any_lane(passes(sum, above))) {
            uint32x4_t wrong = settle(job, i, old, sum, found, &count);
            vst1q_f32(job->velocity_to + i, vbslq_f32(wrong, before, velocity));
            bad = vorrq_u32(bad, wrong);
        }
    }
    found->count = count;
    return generic_momentum(job, i, found, dtype) | any_lane(bad);
}

GENERIC_INLINE void scan_block(const kernel_job_t *job, kernel_found_t *found)
{
    const uint32x4_t above = vdupq_n_u32(job->above);
    uint32_t count = found->count;
    size_t i = 0;
    for (; i + GROUP * LANES <= job->length; i += GROUP * LANES) {
        float32x4_t value[GROUP];
        uint32x4_t any = vdupq_n_u32(0);
        for (size_t v = 0; v < GROUP; v++) {
            value[v] = vld1q_f32(job->residual + i + v * LANES);
            any = vorrq_u32(any, passes(value[v], above));
        }
        if (any_lane(any))
            for (size_t v = 0; v < GROUP; v++)
                count = append(job, i + v * LANES, value[v], found, count);
    }
    found->count = count;
    generic_scan(job, i, found);
}

#include "device/cpu/kernels_entries.h"

const kernels_t kernels_neon = {
    .name = "neon",
    .accumulate = {accumulate_f32, accumulate_f16, accumulate_bf16},
    .momentum = {momentum_f32, momentum_f16, momentum_bf16},
    .scan = scan,
    .widen = widen,
    .narrow = narrow,
    .join = join,
    .within = within,
    .keep = keep,
    .encode_values = encode_values,
    .decode_values = decode_values,
};
#endif
