/* The kernels for AVX2 with FMA and F16C, 32 entries at a time: one branch asks whether any of them passes. Knows no
 * pools, hints or threads. */
#include "device/cpu/kernels_generic.h"

#ifdef __AVX2__
#include <immintrin.h>

#define LANES 8u
#define GROUP 4u /* vectors for one branch */

GENERIC_INLINE __m256 load_input(const kernel_job_t *job, size_t i, int dtype)
{
    if (dtype == GTOPK_F32)
        return _mm256_loadu_ps((const float *)job->input + i);
    __m128i half = _mm_loadu_si128((const __m128i *)(const void *)((const uint16_t *)job->input + i));
    if (dtype == GTOPK_F16)
        return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

GENERIC_INLINE void clear_input(const kernel_job_t *job, size_t i, int dtype)
{
    if (dtype == GTOPK_F32)
        _mm256_storeu_ps((float *)job->input + i, _mm256_setzero_ps());
    else
        _mm_storeu_si128((__m128i *)(void *)((uint16_t *)job->input + i), _mm_setzero_si128());
}

/* Lanes, all ones or zero, whose |value| has greater bits. */
GENERIC_INLINE __m256 passes(__m256 value, __m256i above)
{
    __m256i bits = _mm256_and_si256(_mm256_castps_si256(value), _mm256_set1_epi32((int)GENERIC_MAGNITUDE));
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(bits, above));
}

GENERIC_INLINE __m256 not_finite(__m256 value)
{
    return passes(value, _mm256_set1_epi32((int)GENERIC_INFINITY - 1));
}

/* There is no compress before AVX-512. Few vectors come here at usual densities: bit by bit. */
GENERIC_INLINE void append(const kernel_job_t *job, size_t i, __m256 value, __m256 mask, kernel_found_t *found)
{
    uint32_t bits[LANES];
    _mm256_storeu_si256((__m256i *)(void *)bits, _mm256_castps_si256(value));
    for (unsigned left = (unsigned)_mm256_movemask_ps(mask); left != 0; left &= left - 1) {
        unsigned lane = (unsigned)__builtin_ctz(left);
        found->index[found->count] = job->first + (uint32_t)i + lane;
        found->bits[found->count++] = bits[lane];
    }
}

/* Some sum of the group is above the bound, or not finite: puts the old values back where it is not, and appends.
 * Returns the lanes that were put back. */
GENERIC_INLINE __m256 settle(const kernel_job_t *job, size_t i, __m256 old, __m256 sum, __m256i above,
                             kernel_found_t *found)
{
    __m256 bad = not_finite(sum);
    if (__builtin_expect(_mm256_movemask_ps(bad) != 0, 0)) {
        sum = _mm256_blendv_ps(sum, old, bad);
        _mm256_storeu_ps(job->residual + i, sum);
    }
    append(job, i, sum, passes(sum, above), found);
    return bad;
}

GENERIC_INLINE int accumulate(const kernel_job_t *job, kernel_found_t *found, int dtype)
{
    const __m256 scale = _mm256_set1_ps(job->scale);
    const __m256i above = _mm256_set1_epi32((int)job->above);
    const int zero = job->zero_input;
    int bad = 0;
    size_t i = 0;
    for (; i + GROUP * LANES <= job->length; i += GROUP * LANES) {
        __m256 old[GROUP], sum[GROUP], any = _mm256_setzero_ps();
        for (size_t v = 0; v < GROUP; v++) {
            old[v] = _mm256_loadu_ps(job->residual + i + v * LANES);
            sum[v] = _mm256_fmadd_ps(scale, load_input(job, i + v * LANES, dtype), old[v]);
            _mm256_storeu_ps(job->residual + i + v * LANES, sum[v]);
            any = _mm256_or_ps(any, passes(sum[v], above));
        }
        if (zero)
            for (size_t v = 0; v < GROUP; v++)
                clear_input(job, i + v * LANES, dtype);
        if (_mm256_movemask_ps(any))
            for (size_t v = 0; v < GROUP; v++)
                bad |= _mm256_movemask_ps(settle(job, i + v * LANES, old[v], sum[v], above, found));
    }
    return generic_accumulate(job, i, found, dtype) | (bad != 0);
}

GENERIC_INLINE int momentum(const kernel_job_t *job, kernel_found_t *found, int dtype)
{
    const __m256 scale = _mm256_set1_ps(job->scale), factor = _mm256_set1_ps(job->momentum);
    const __m256i above = _mm256_set1_epi32((int)job->above);
    int bad = 0;
    size_t i = 0;
    for (; i + LANES <= job->length; i += LANES) {
        __m256 old = _mm256_loadu_ps(job->residual + i), before = _mm256_loadu_ps(job->velocity + i);
        __m256 t = _mm256_mul_ps(scale, load_input(job, i, dtype));
        __m256 velocity = _mm256_fmadd_ps(factor, before, t);
        __m256 sum = _mm256_add_ps(old, job->nesterov ? _mm256_fmadd_ps(factor, velocity, t) : velocity);
        _mm256_storeu_ps(job->residual + i, sum);
        _mm256_storeu_ps(job->velocity + i, velocity);
        if (job->zero_input)
            clear_input(job, i, dtype);
        if (_mm256_movemask_ps(passes(sum, above))) {
            __m256 wrong = settle(job, i, old, sum, above, found);
            _mm256_storeu_ps(job->velocity + i, _mm256_blendv_ps(velocity, before, wrong));
            bad |= _mm256_movemask_ps(wrong);
        }
    }
    return generic_momentum(job, i, found, dtype) | (bad != 0);
}

static void scan(const kernel_job_t *job, kernel_found_t *found)
{
    const __m256i above = _mm256_set1_epi32((int)job->above);
    size_t i = 0;
    for (; i + GROUP * LANES <= job->length; i += GROUP * LANES) {
        __m256 value[GROUP], any = _mm256_setzero_ps();
        for (size_t v = 0; v < GROUP; v++) {
            value[v] = _mm256_loadu_ps(job->residual + i + v * LANES);
            any = _mm256_or_ps(any, passes(value[v], above));
        }
        if (_mm256_movemask_ps(any))
            for (size_t v = 0; v < GROUP; v++)
                append(job, i + v * LANES, value[v], passes(value[v], above), found);
    }
    generic_scan(job, i, found);
}

static int accumulate_f32(const kernel_job_t *job, kernel_found_t *found)
{
    return accumulate(job, found, GTOPK_F32);
}

static int accumulate_f16(const kernel_job_t *job, kernel_found_t *found)
{
    return accumulate(job, found, GTOPK_F16);
}

static int accumulate_bf16(const kernel_job_t *job, kernel_found_t *found)
{
    return accumulate(job, found, GTOPK_BF16);
}

static int momentum_f32(const kernel_job_t *job, kernel_found_t *found)
{
    return momentum(job, found, GTOPK_F32);
}

static int momentum_f16(const kernel_job_t *job, kernel_found_t *found)
{
    return momentum(job, found, GTOPK_F16);
}

static int momentum_bf16(const kernel_job_t *job, kernel_found_t *found)
{
    return momentum(job, found, GTOPK_BF16);
}

const kernels_t kernels_avx2 = {
    .name = "avx2",
    .accumulate = {accumulate_f32, accumulate_f16, accumulate_bf16},
    .momentum = {momentum_f32, momentum_f16, momentum_bf16},
    .scan = scan,
};
#endif
