/* The kernels for AVX-512 (F, BW, VL, DQ), 64 entries at a time: one branch asks whether any of them passes, and only
 * then are they compressed, in a register (compressing stores are slow on Zen 4). Knows no pools, hints or threads. */
#include "device/cpu/kernels_generic.h"

#ifdef __AVX512F__
#include <immintrin.h>

#define LANES 16u
#define GROUP 4u /* vectors for one branch */

GENERIC_INLINE __m512 load_input(const kernel_job_t *job, size_t i, int dtype)
{
    if (dtype == GTOPK_F32)
        return _mm512_loadu_ps((const float *)job->input + i);
    __m256i half = _mm256_loadu_si256((const __m256i *)(const void *)((const uint16_t *)job->input + i));
    if (dtype == GTOPK_F16)
        return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

GENERIC_INLINE void clear_input(const kernel_job_t *job, size_t i, int dtype)
{
    if (dtype == GTOPK_F32)
        _mm512_storeu_ps((float *)job->input + i, _mm512_setzero_ps());
    else
        _mm256_storeu_si256((__m256i *)(void *)((uint16_t *)job->input + i), _mm256_setzero_si256());
}

GENERIC_INLINE __m512i magnitude(__m512 value)
{
    return _mm512_and_si512(_mm512_castps_si512(value), _mm512_set1_epi32((int)GENERIC_MAGNITUDE));
}

GENERIC_INLINE __mmask16 passes(__m512 value, __m512i above)
{
    return _mm512_cmpgt_epi32_mask(magnitude(value), above);
}

GENERIC_INLINE __mmask16 not_finite(__m512 value)
{
    return _mm512_cmpge_epi32_mask(magnitude(value), _mm512_set1_epi32((int)GENERIC_INFINITY));
}

GENERIC_INLINE void append(kernel_found_t *found, uint32_t first, __m512 value, __mmask16 mask)
{
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i index = _mm512_add_epi32(_mm512_set1_epi32((int)first), lanes);
    _mm512_storeu_si512(found->index + found->count, _mm512_maskz_compress_epi32(mask, index));
    _mm512_storeu_si512(found->bits + found->count, _mm512_maskz_compress_epi32(mask, _mm512_castps_si512(value)));
    found->count += (uint32_t)__builtin_popcount(mask);
}

/* Some sum of the vector is above the bound, or not finite: puts the old values back where it is not, and appends.
 * Returns the mask of those. */
GENERIC_INLINE __mmask16 settle(const kernel_job_t *job, size_t i, __m512 old, __m512 sum, __m512i above,
                                kernel_found_t *found)
{
    __mmask16 bad = not_finite(sum);
    if (__builtin_expect(bad != 0, 0)) {
        sum = _mm512_mask_mov_ps(sum, bad, old);
        _mm512_storeu_ps(job->residual + i, sum);
    }
    append(found, job->first + (uint32_t)i, sum, passes(sum, above));
    return bad;
}

GENERIC_INLINE int accumulate(const kernel_job_t *job, kernel_found_t *found, int dtype)
{
    const __m512 scale = _mm512_set1_ps(job->scale);
    const __m512i above = _mm512_set1_epi32((int)job->above);
    const int zero = job->zero_input;
    unsigned bad = 0;
    size_t i = 0;
    for (; i + GROUP * LANES <= job->length; i += GROUP * LANES) {
        __m512 old[GROUP], sum[GROUP];
        unsigned any = 0;
        for (size_t v = 0; v < GROUP; v++) {
            old[v] = _mm512_loadu_ps(job->residual + i + v * LANES);
            sum[v] = _mm512_fmadd_ps(scale, load_input(job, i + v * LANES, dtype), old[v]);
            _mm512_storeu_ps(job->residual + i + v * LANES, sum[v]);
            any |= passes(sum[v], above);
        }
        if (zero)
            for (size_t v = 0; v < GROUP; v++)
                clear_input(job, i + v * LANES, dtype);
        if (any)
            for (size_t v = 0; v < GROUP; v++)
                bad |= settle(job, i + v * LANES, old[v], sum[v], above, found);
    }
    return generic_accumulate(job, i, found, dtype) | (bad != 0);
}

GENERIC_INLINE int momentum(const kernel_job_t *job, kernel_found_t *found, int dtype)
{
    const __m512 scale = _mm512_set1_ps(job->scale), factor = _mm512_set1_ps(job->momentum);
    const __m512i above = _mm512_set1_epi32((int)job->above);
    unsigned bad = 0;
    size_t i = 0;
    for (; i + LANES <= job->length; i += LANES) {
        __m512 old = _mm512_loadu_ps(job->residual + i), before = _mm512_loadu_ps(job->velocity + i);
        __m512 t = _mm512_mul_ps(scale, load_input(job, i, dtype));
        __m512 velocity = _mm512_fmadd_ps(factor, before, t);
        __m512 sum = _mm512_add_ps(old, job->nesterov ? _mm512_fmadd_ps(factor, velocity, t) : velocity);
        _mm512_storeu_ps(job->residual + i, sum);
        _mm512_storeu_ps(job->velocity + i, velocity);
        if (job->zero_input)
            clear_input(job, i, dtype);
        if (passes(sum, above)) {
            __mmask16 wrong = settle(job, i, old, sum, above, found);
            _mm512_mask_storeu_ps(job->velocity + i, wrong, before);
            bad |= wrong;
        }
    }
    return generic_momentum(job, i, found, dtype) | (bad != 0);
}

static void scan(const kernel_job_t *job, kernel_found_t *found)
{
    const __m512i above = _mm512_set1_epi32((int)job->above);
    size_t i = 0;
    for (; i + GROUP * LANES <= job->length; i += GROUP * LANES) {
        __m512 value[GROUP];
        unsigned any = 0;
        for (size_t v = 0; v < GROUP; v++) {
            value[v] = _mm512_loadu_ps(job->residual + i + v * LANES);
            any |= passes(value[v], above);
        }
        if (any)
            for (size_t v = 0; v < GROUP; v++)
                append(found, job->first + (uint32_t)(i + v * LANES), value[v], passes(value[v], above));
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

const kernels_t kernels_avx512 = {
    .name = "avx512",
    .accumulate = {accumulate_f32, accumulate_f16, accumulate_bf16},
    .momentum = {momentum_f32, momentum_f16, momentum_bf16},
    .scan = scan,
};
#endif
