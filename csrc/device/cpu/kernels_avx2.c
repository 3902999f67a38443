/* The kernels for AVX2 with FMA and F16C, 32 entries at a time: one branch asks whether any of them passes. Knows no
 * pools, hints or threads. */
#include "device/cpu/kernels_generic.h"

#ifdef __AVX2__
#include <immintrin.h>

#include "device/cpu/kernels_bf16.h"
#include "device/cpu/kernels_values.h"

#define LANES 8u
#define GROUP 4u /* vectors for one branch */
#define LINE 2u  /* vectors of a cache line: its halves must follow each other when they go around the cache */

GENERIC_INLINE __m256 load_input(const kernel_job_t *job, size_t i, int dtype)
{
    if (dtype == GTOPK_F32)
        return _mm256_loadu_ps((const float *)job->input + i);
    __m128i half = _mm_loadu_si128((const __m128i *)(const void *)((const uint16_t *)job->input + i));
    if (dtype == GTOPK_F16)
        return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

GENERIC_INLINE void store(float *to, __m256 value, int streams)
{
    if (streams)
        _mm256_stream_ps(to, value);
    else
        _mm256_storeu_ps(to, value);
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

/* There is no compress before AVX-512, but a permutation of four lanes by a table: its row m begins with the lanes
 * that are set in m. */
static const uint32_t compress_table[16][4] = {
    {0, 0, 0, 0}, {0, 0, 0, 0}, {1, 0, 0, 0}, {0, 1, 0, 0}, {2, 0, 0, 0}, {0, 2, 0, 0}, {1, 2, 0, 0}, {0, 1, 2, 0},
    {3, 0, 0, 0}, {0, 3, 0, 0}, {1, 3, 0, 0}, {0, 1, 3, 0}, {2, 3, 0, 0}, {0, 2, 3, 0}, {1, 2, 3, 0}, {0, 1, 2, 3},
};

GENERIC_INLINE __m128i compress_order(unsigned mask)
{
    return _mm_loadu_si128((const __m128i *)(const void *)compress_table[mask]);
}

GENERIC_INLINE uint32_t put_half(uint32_t *index, uint32_t *bits, __m128i i, __m128 v, unsigned mask)
{
    __m128i order = compress_order(mask);
    _mm_storeu_ps((float *)(void *)index, _mm_permutevar_ps(_mm_castsi128_ps(i), order));
    _mm_storeu_ps((float *)(void *)bits, _mm_permutevar_ps(v, order));
    return (uint32_t)__builtin_popcount(mask);
}

/* Writes the entries of the mask, up to LANES of them, and returns their number. */
GENERIC_INLINE uint32_t put(uint32_t *index, uint32_t *bits, __m256i i, __m256 v, unsigned mask)
{
    uint32_t low = put_half(index, bits, _mm256_castsi256_si128(i), _mm256_castps256_ps128(v), mask & 15u);
    return low +
           put_half(index + low, bits + low, _mm256_extracti128_si256(i, 1), _mm256_extractf128_ps(v, 1), mask >> 4);
}

/* Returns the new count. */
GENERIC_INLINE uint32_t append(const kernel_job_t *job, size_t i, __m256 value, __m256 mask, kernel_found_t *found,
                               uint32_t count)
{
    __m256i index = _mm256_add_epi32(_mm256_set1_epi32((int)(job->first + (uint32_t)i)),
                                     _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return count + put(found->index + count, found->bits + count, index, value, (unsigned)_mm256_movemask_ps(mask));
}

/* Some sum of the group is above the bound, or not finite: puts the old values back where it is not, and appends.
 * Returns the lanes that were put back. */
GENERIC_INLINE __m256 settle(const kernel_job_t *job, size_t i, __m256 old, __m256 sum, __m256i above,
                             kernel_found_t *found, uint32_t *count)
{
    __m256 bad = not_finite(sum);
    if (__builtin_expect(_mm256_movemask_ps(bad) != 0, 0)) {
        sum = _mm256_blendv_ps(sum, old, bad);
        _mm256_storeu_ps(job->to + i, sum);
    }
    *count = append(job, i, sum, passes(sum, above), found, *count);
    return bad;
}

GENERIC_INLINE int accumulate(const kernel_job_t *job, kernel_found_t *found, int dtype, int streams)
{
    const __m256 scale = _mm256_set1_ps(job->scale);
    const __m256i above = _mm256_set1_epi32((int)job->above);
    int bad = 0;
    uint32_t count = found->count;
    size_t i = 0;
    for (; i + GROUP * LANES <= job->length; i += GROUP * LANES) {
        __m256 old[GROUP], sum[GROUP], any = _mm256_setzero_ps();
        for (size_t v = 0; v < GROUP; v++) {
            old[v] = _mm256_loadu_ps(job->residual + i + v * LANES);
            sum[v] = _mm256_fmadd_ps(scale, load_input(job, i + v * LANES, dtype), old[v]);
            any = _mm256_or_ps(any, passes(sum[v], above));
        }
        for (size_t v = 0; v < GROUP; v++)
            store(job->to + i + v * LANES, sum[v], streams);
        if (job->zero_input)
            for (size_t v = 0; v < GROUP; v++)
                clear_input(job, i + v * LANES, dtype);
        if (_mm256_movemask_ps(any))
            for (size_t v = 0; v < GROUP; v++)
                bad |= _mm256_movemask_ps(settle(job, i + v * LANES, old[v], sum[v], above, found, &count));
    }
    found->count = count;
    if (streams)
        _mm_sfence(); /* before any other thread reads it */
    return generic_accumulate(job, i, found, dtype) | (bad != 0);
}

GENERIC_INLINE int momentum(const kernel_job_t *job, kernel_found_t *found, int dtype, int streams)
{
    const __m256 scale = _mm256_set1_ps(job->scale), factor = _mm256_set1_ps(job->momentum);
    const __m256i above = _mm256_set1_epi32((int)job->above);
    int bad = 0;
    uint32_t count = found->count;
    size_t i = 0;
    for (; i + LINE * LANES <= job->length; i += LINE * LANES) {
        __m256 old[LINE], before[LINE], sum[LINE], velocity[LINE], any = _mm256_setzero_ps();
        for (size_t v = 0; v < LINE; v++) {
            old[v] = _mm256_loadu_ps(job->residual + i + v * LANES);
            before[v] = _mm256_loadu_ps(job->velocity + i + v * LANES);
            __m256 t = _mm256_mul_ps(scale, load_input(job, i + v * LANES, dtype));
            velocity[v] = _mm256_fmadd_ps(factor, before[v], t);
            sum[v] = _mm256_add_ps(old[v], job->nesterov ? _mm256_fmadd_ps(factor, velocity[v], t) : velocity[v]);
            any = _mm256_or_ps(any, passes(sum[v], above));
        }
        for (size_t v = 0; v < LINE; v++)
            store(job->to + i + v * LANES, sum[v], streams);
        for (size_t v = 0; v < LINE; v++)
            store(job->velocity_to + i + v * LANES, velocity[v], streams);
        if (job->zero_input)
            for (size_t v = 0; v < LINE; v++)
                clear_input(job, i + v * LANES, dtype);
        if (!_mm256_movemask_ps(any))
            continue;
        for (size_t v = 0; v < LINE; v++) {
            __m256 wrong = settle(job, i + v * LANES, old[v], sum[v], above, found, &count);
            if (!_mm256_movemask_ps(wrong))
                continue;
            _mm256_storeu_ps(job->velocity_to + i + v * LANES, _mm256_blendv_ps(velocity[v], before[v], wrong));
            bad = 1;
        }
    }
    found->count = count;
    if (streams)
        _mm_sfence(); /* before any other thread reads it */
    return generic_momentum(job, i, found, dtype) | (bad != 0);
}

GENERIC_INLINE void scan_block(const kernel_job_t *job, kernel_found_t *found)
{
    const __m256i above = _mm256_set1_epi32((int)job->above);
    uint32_t count = found->count;
    size_t i = 0;
    for (; i + GROUP * LANES <= job->length; i += GROUP * LANES) {
        __m256 value[GROUP], any = _mm256_setzero_ps();
        for (size_t v = 0; v < GROUP; v++) {
            value[v] = _mm256_loadu_ps(job->residual + i + v * LANES);
            any = _mm256_or_ps(any, passes(value[v], above));
        }
        if (_mm256_movemask_ps(any))
            for (size_t v = 0; v < GROUP; v++)
                count = append(job, i + v * LANES, value[v], passes(value[v], above), found, count);
    }
    found->count = count;
    generic_scan(job, i, found);
}

#include "device/cpu/kernels_entries.h"

static size_t join(uint32_t *index, float *value, size_t count, int *nonfinite)
{
    const __m256i back = _mm256_setr_epi32(7, 0, 1, 2, 3, 4, 5, 6);
    /* No index is all ones: it is below a dim of 32 bits. */
    uint32_t last = UINT32_MAX;
    unsigned bad = 0;
    size_t i = 0, out = 0;
    for (; i + LANES + 1 <= count; i += LANES) {
        __m256i here = _mm256_loadu_si256((const __m256i *)(const void *)(index + i));
        __m256i next = _mm256_loadu_si256((const __m256i *)(const void *)(index + i + 1));
        __m256i before = _mm256_permutevar8x32_epi32(here, back);
        before = _mm256_blend_epi32(before, _mm256_set1_epi32((int)last), 1);
        last = index[i + LANES - 1];
        __m256 v = _mm256_loadu_ps(value + i), w = _mm256_loadu_ps(value + i + 1);
        __m256 sum = _mm256_add_ps(v, _mm256_and_ps(w, _mm256_castsi256_ps(_mm256_cmpeq_epi32(here, next))));
        unsigned second = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(here, before)));
        unsigned infinite = (unsigned)_mm256_movemask_ps(not_finite(sum));
        unsigned some = (unsigned)_mm256_movemask_ps(passes(sum, _mm256_setzero_si256()));
        bad |= infinite & ~second;
        /* Stores reach no further than what is loaded already: out <= i. */
        out += put(index + out, (uint32_t *)(void *)(value + out), here, sum, some & ~second & ~infinite);
    }
    *nonfinite |= bad != 0;
    return generic_join(index, value, count, i, out, last, nonfinite);
}

static void keep(const uint32_t *index, const float *value, size_t count, uint32_t least, size_t ties,
                 kernel_entries_t out)
{
    const __m256i bound = _mm256_set1_epi32((int)least);
    size_t i = 0, kept = 0;
    for (; i + LANES <= count && kept + LANES <= out.capacity; i += LANES) {
        __m256 v = _mm256_loadu_ps(value + i);
        __m256i bits = _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32((int)GENERIC_MAGNITUDE));
        unsigned equal = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(bits, bound)));
        while ((size_t)__builtin_popcount(equal) > ties)
            equal &= ~(1u << (31 - __builtin_clz(equal)));
        ties -= (size_t)__builtin_popcount(equal);
        kept += put(out.index + kept, (uint32_t *)(void *)(out.value + kept),
                    _mm256_loadu_si256((const __m256i *)(const void *)(index + i)), v,
                    (unsigned)_mm256_movemask_ps(passes(v, bound)) | equal);
    }
    generic_keep(index, value, count, i, least, ties, kept, out);
}

static size_t within(const float *value, size_t count, uint32_t low, uint32_t high, float *out, size_t capacity,
                     size_t *above)
{
    const __m256i below = _mm256_set1_epi32((int)low - 1), top = _mm256_set1_epi32((int)high);
    size_t i = 0, found = 0, greater = 0;
    for (; i + LANES <= count && found + KERNEL_SLACK <= capacity; i += LANES) {
        __m256 v = _mm256_loadu_ps(value + i);
        unsigned beyond = (unsigned)_mm256_movemask_ps(passes(v, top));
        unsigned inside = (unsigned)_mm256_movemask_ps(passes(v, below)) & ~beyond;
        greater += (size_t)__builtin_popcount(beyond);
        _mm_storeu_ps(out + found, _mm_permutevar_ps(_mm256_castps256_ps128(v), compress_order(inside & 15u)));
        found += (size_t)__builtin_popcount(inside & 15u);
        _mm_storeu_ps(out + found, _mm_permutevar_ps(_mm256_extractf128_ps(v, 1), compress_order(inside >> 4)));
        found += (size_t)__builtin_popcount(inside >> 4);
    }
    *above = greater;
    return generic_within(value, count, i, low, high, out, capacity, found, above);
}

const kernels_t kernels_avx2 = {
    .name = "avx2",
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
