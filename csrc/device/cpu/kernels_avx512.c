/* The kernels for AVX-512 (F, BW, VL, DQ), 64 entries at a time: one branch asks whether any of them passes, and only
 * then are they compressed, in a register (compressing stores are slow on Zen 4). Knows no pools, hints or threads. */
#include "device/cpu/kernels_generic.h"

#ifdef __AVX512F__
#include <immintrin.h>

#include "device/cpu/kernels_bf16.h"
#include "device/cpu/kernels_values.h"

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

GENERIC_INLINE void store(float *to, __m512 value, int streams)
{
    if (streams)
        _mm512_stream_ps(to, value);
    else
        _mm512_storeu_ps(to, value);
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

/* Through the conversion, because GCC 12 spills a mask as 16 bits and counts in the 32 there: seen with -fsanitize=thread. */
GENERIC_INLINE uint32_t mask_count(__mmask16 mask)
{
    return (uint32_t)__builtin_popcount(_cvtmask16_u32(mask));
}

/* Returns the new count. */
GENERIC_INLINE uint32_t append(kernel_found_t *found, uint32_t count, uint32_t first, __m512 value, __mmask16 mask)
{
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i index = _mm512_add_epi32(_mm512_set1_epi32((int)first), lanes);
    _mm512_storeu_si512(found->index + count, _mm512_maskz_compress_epi32(mask, index));
    _mm512_storeu_si512(found->bits + count, _mm512_maskz_compress_epi32(mask, _mm512_castps_si512(value)));
    return count + mask_count(mask);
}

/* Some sum of the vector is above the bound, or not finite: puts the old values back where it is not, and appends.
 * Returns the mask of those. */
GENERIC_INLINE __mmask16 settle(const kernel_job_t *job, size_t i, __m512 old, __m512 sum, __m512i above,
                                kernel_found_t *found, uint32_t *count)
{
    __mmask16 bad = not_finite(sum);
    if (__builtin_expect(bad != 0, 0)) {
        sum = _mm512_mask_mov_ps(sum, bad, old);
        _mm512_storeu_ps(job->to + i, sum);
    }
    *count = append(found, *count, job->first + (uint32_t)i, sum, passes(sum, above));
    return bad;
}

GENERIC_INLINE int accumulate(const kernel_job_t *job, kernel_found_t *found, int dtype, int streams)
{
    const __m512 scale = _mm512_set1_ps(job->scale);
    const __m512i above = _mm512_set1_epi32((int)job->above);
    unsigned bad = 0;
    uint32_t count = found->count;
    size_t i = 0;
    for (; i + GROUP * LANES <= job->length; i += GROUP * LANES) {
        __m512 old[GROUP], sum[GROUP];
        unsigned any = 0;
        for (size_t v = 0; v < GROUP; v++) {
            old[v] = _mm512_loadu_ps(job->residual + i + v * LANES);
            sum[v] = _mm512_fmadd_ps(scale, load_input(job, i + v * LANES, dtype), old[v]);
            store(job->to + i + v * LANES, sum[v], streams);
            any |= passes(sum[v], above);
        }
        if (job->zero_input)
            for (size_t v = 0; v < GROUP; v++)
                clear_input(job, i + v * LANES, dtype);
        if (any)
            for (size_t v = 0; v < GROUP; v++)
                bad |= settle(job, i + v * LANES, old[v], sum[v], above, found, &count);
    }
    found->count = count;
    if (streams)
        _mm_sfence(); /* before any other thread reads it */
    return generic_accumulate(job, i, found, dtype) | (bad != 0);
}

GENERIC_INLINE int momentum(const kernel_job_t *job, kernel_found_t *found, int dtype, int streams)
{
    const __m512 scale = _mm512_set1_ps(job->scale), factor = _mm512_set1_ps(job->momentum);
    const __m512i above = _mm512_set1_epi32((int)job->above);
    unsigned bad = 0;
    uint32_t count = found->count;
    size_t i = 0;
    for (; i + LANES <= job->length; i += LANES) {
        __m512 old = _mm512_loadu_ps(job->residual + i), before = _mm512_loadu_ps(job->velocity + i);
        __m512 t = _mm512_mul_ps(scale, load_input(job, i, dtype));
        __m512 velocity = _mm512_fmadd_ps(factor, before, t);
        __m512 sum = _mm512_add_ps(old, job->nesterov ? _mm512_fmadd_ps(factor, velocity, t) : velocity);
        store(job->to + i, sum, streams);
        store(job->velocity_to + i, velocity, streams);
        if (job->zero_input)
            clear_input(job, i, dtype);
        if (passes(sum, above)) {
            __mmask16 wrong = settle(job, i, old, sum, above, found, &count);
            _mm512_mask_storeu_ps(job->velocity_to + i, wrong, before);
            bad |= wrong;
        }
    }
    found->count = count;
    if (streams)
        _mm_sfence(); /* before any other thread reads it */
    return generic_momentum(job, i, found, dtype) | (bad != 0);
}

GENERIC_INLINE void scan_block(const kernel_job_t *job, kernel_found_t *found)
{
    const __m512i above = _mm512_set1_epi32((int)job->above);
    uint32_t count = found->count;
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
                count = append(found, count, job->first + (uint32_t)(i + v * LANES), value[v], passes(value[v], above));
    }
    found->count = count;
    generic_scan(job, i, found);
}

#include "device/cpu/kernels_entries.h"

/* Writes the entries of the mask behind `at`, and returns their number. */
GENERIC_INLINE size_t put(uint32_t *index, float *value, size_t at, __m512i i, __m512 v, __mmask16 mask)
{
    _mm512_storeu_si512(index + at, _mm512_maskz_compress_epi32(mask, i));
    _mm512_storeu_ps(value + at, _mm512_maskz_compress_ps(mask, v));
    return mask_count(mask);
}

static size_t join(uint32_t *index, float *value, size_t count, int *nonfinite)
{
    /* No index is all ones: it is below a dim of 32 bits. */
    __m512i before = _mm512_set1_epi32(-1);
    unsigned bad = 0;
    size_t i = 0, out = 0;
    for (; i + LANES + 1 <= count; i += LANES) {
        __m512i here = _mm512_loadu_si512(index + i), next = _mm512_loadu_si512(index + i + 1);
        __m512 v = _mm512_loadu_ps(value + i), w = _mm512_loadu_ps(value + i + 1);
        __mmask16 second = _mm512_cmpeq_epi32_mask(here, _mm512_alignr_epi32(here, before, LANES - 1));
        __m512 sum = _mm512_mask_add_ps(v, _mm512_cmpeq_epi32_mask(here, next), v, w);
        __mmask16 infinite = not_finite(sum), zero = _mm512_testn_epi32_mask(magnitude(sum), magnitude(sum));
        bad |= infinite & ~(unsigned)second;
        /* Stores reach no further than what is loaded already: out <= i. */
        out += put(index, value, out, here, sum, (__mmask16) ~(second | infinite | zero));
        before = here;
    }
    *nonfinite |= bad != 0;
    uint32_t last = (uint32_t)_mm_extract_epi32(_mm512_extracti32x4_epi32(before, 3), 3);
    return generic_join(index, value, count, i, out, last, nonfinite);
}

/* The lowest `count` bits of those that are set. */
GENERIC_INLINE __mmask16 lowest_bits(__mmask16 mask, size_t count)
{
    return count >= LANES ? mask : (__mmask16)_pdep_u32((1u << count) - 1, mask);
}

static void keep(const uint32_t *index, const float *value, size_t count, uint32_t least, size_t ties,
                 kernel_entries_t out)
{
    const __m512i bound = _mm512_set1_epi32((int)least);
    size_t i = 0, kept = 0;
    for (; i + LANES <= count && kept + LANES <= out.capacity; i += LANES) {
        __m512 v = _mm512_loadu_ps(value + i);
        __mmask16 equal = lowest_bits(_mm512_cmpeq_epi32_mask(magnitude(v), bound), ties);
        ties -= mask_count(equal);
        kept += put(out.index, out.value, kept, _mm512_loadu_si512(index + i), v, passes(v, bound) | equal);
    }
    generic_keep(index, value, count, i, least, ties, kept, out);
}

static size_t within(const float *value, size_t count, uint32_t low, uint32_t high, float *out, size_t capacity,
                     size_t *above)
{
    const __m512i bottom = _mm512_set1_epi32((int)low), top = _mm512_set1_epi32((int)high);
    size_t i = 0, found = 0, greater = 0;
    for (; i + LANES <= count && found + KERNEL_SLACK <= capacity; i += LANES) {
        __m512 v = _mm512_loadu_ps(value + i);
        __mmask16 beyond = passes(v, top),
                  inside = (__mmask16)(_mm512_cmpge_epi32_mask(magnitude(v), bottom) & ~beyond);
        greater += mask_count(beyond);
        _mm512_storeu_ps(out + found, _mm512_maskz_compress_ps(inside, v));
        found += mask_count(inside);
    }
    *above = greater;
    return generic_within(value, count, i, low, high, out, capacity, found, above);
}

const kernels_t kernels_avx512 = {
    .name = "avx512",
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
