/* What it would cost to leave the residual as it was before a step that turns out to be non-finite, against the pass over
 * memory that accumulate is: r += g, g = 0, and a comparison of |r| with a threshold. One thread, plain loops.
 *
 *   skip_bench [N] [REPEATS]       25000000 entries, 15 repeats; the smallest time of each
 *
 *   check          read g once more before, to know whether it is finite
 *   swap           the pass leaves the old r in g in place of zero, and zeros are written when the step is done
 *   second buffer  the pass writes the sum to other memory, around the cache: 4 bytes an entry more
 *
 * The last is what reducers with `rollback` do. For them: a whole accumulate and a whole step with it, against those without,
 * for a gradient in one segment and in segments of 10007 entries; and with momentum correction. The same for a residual in bf16. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "gtopk.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

static double now_ms(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

static uint32_t magnitude(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits & 0x7fffffffu;
}

/* Each returns whether a sum was above the threshold, so that none of it is left out by the compiler. */

static uint32_t pass(float *restrict r, float *restrict g, size_t n, uint32_t above)
{
    uint32_t any = 0;
    for (size_t i = 0; i < n; i++) {
        const float sum = r[i] + g[i];
        r[i] = sum;
        g[i] = 0.0f;
        any |= magnitude(sum) > above;
    }
    return any;
}

static uint32_t pass_swap(float *restrict r, float *restrict g, size_t n, uint32_t above)
{
    uint32_t any = 0;
    for (size_t i = 0; i < n; i++) {
        const float old = r[i], sum = old + g[i];
        r[i] = sum;
        g[i] = old;
        any |= magnitude(sum) > above;
    }
    return any;
}

static uint32_t check(const float *g, size_t n)
{
    uint32_t any = 0;
    for (size_t i = 0; i < n; i++)
        any |= magnitude(g[i]) >= 0x7f800000u;
    return any;
}

#ifdef __SSE2__
static uint32_t pass_second(const float *r, float *restrict g, float *restrict to, size_t n, uint32_t above)
{
    const __m128i limit = _mm_set1_epi32((int)above), mask = _mm_set1_epi32(0x7fffffff);
    __m128i any = _mm_setzero_si128();
    for (size_t i = 0; i + 4 <= n; i += 4) {
        const __m128 sum = _mm_add_ps(_mm_loadu_ps(r + i), _mm_loadu_ps(g + i));
        _mm_stream_ps(to + i, sum);
        _mm_storeu_ps(g + i, _mm_setzero_ps());
        any = _mm_or_si128(any, _mm_cmpgt_epi32(_mm_and_si128(_mm_castps_si128(sum), mask), limit));
    }
    return (uint32_t)_mm_movemask_epi8(any);
}

static void clear(float *g, size_t n)
{
    for (size_t i = 0; i + 4 <= n; i += 4)
        _mm_stream_ps(g + i, _mm_setzero_ps());
}
#else
static uint32_t pass_second(const float *r, float *restrict g, float *restrict to, size_t n, uint32_t above)
{
    uint32_t any = 0;
    for (size_t i = 0; i < n; i++) {
        to[i] = r[i] + g[i];
        g[i] = 0.0f;
        any |= magnitude(to[i]) > above;
    }
    return any;
}

static void clear(float *g, size_t n)
{
    memset(g, 0, n * sizeof *g);
}
#endif

static float *vector(size_t n)
{
    float *values = aligned_alloc(64, (n * sizeof *values + 63) / 64 * 64);
    if (!values)
        exit(1);
    for (size_t i = 0; i < n; i++)
        values[i] = (float)(i % 1000) * 1e-3f;
    return values;
}

/* ---- the library ---- */

static void check_status(gtopk_status_t status)
{
    if (status == GTOPK_OK)
        return;
    (void)fprintf(stderr, "skip_bench: %s\n", gtopk_last_error());
    exit(1);
}

enum { PLAIN, ROLLBACK, BF16, OPTIONS };

static gtopk_reducer_t *reducer(gtopk_comm_t *comm, const uint64_t *lengths, size_t count, int momentum, int which)
{
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *made;
    config.momentum_correction = momentum;
    config.rollback = which == ROLLBACK;
    config.residual_dtype = which == BF16 ? GTOPK_BF16 : GTOPK_F32;
    check_status(gtopk_reducer_create(&made, comm, &config, lengths, count));
    if (momentum)
        check_status(gtopk_reducer_set_momentum(made, 0.9, 0));
    return made;
}

/* The smallest time of accumulate, and of a step, with an option over that without; the steps take turns. */
static void measure(gtopk_comm_t *comm, const char *name, float *gradient, size_t n, size_t length, int momentum,
                    int repeats)
{
    const size_t count = (n + length - 1) / length;
    uint64_t *lengths = malloc(count * sizeof *lengths);
    gtopk_tensor_t *tensors = malloc(count * sizeof *tensors);
    double best[OPTIONS][2] = {{1e30, 1e30}, {1e30, 1e30}, {1e30, 1e30}};
    gtopk_reducer_t *all[OPTIONS];
    if (!lengths || !tensors)
        exit(1);
    for (size_t s = 0; s < count; s++) {
        lengths[s] = s + 1 < count ? length : n - s * length;
        tensors[s] = (gtopk_tensor_t){gradient + s * length, lengths[s], GTOPK_F32, 0};
    }
    for (int which = 0; which < OPTIONS; which++)
        all[which] = reducer(comm, lengths, count, momentum, which);
    for (int repeat = 0; repeat < OPTIONS * repeats; repeat++) {
        const int which = repeat % OPTIONS;
        for (size_t i = 0; i < n; i++)
            gradient[i] = (float)(i * 2654435761u % 10007) * 1e-3f - 5.0f;
        const double start = now_ms();
        check_status(gtopk_reducer_accumulate(all[which], NULL, tensors, count, 1.0, GTOPK_ZERO_INPUT, NULL));
        const double accumulated = now_ms();
        check_status(gtopk_reducer_reduce(all[which], tensors, count, GTOPK_OUTPUT_IS_ZERO, NULL, NULL));
        const double taken[2] = {accumulated - start, now_ms() - start};
        for (int i = 0; i < 2 && repeat >= OPTIONS; i++)
            best[which][i] = taken[i] < best[which][i] ? taken[i] : best[which][i];
    }
    (void)printf(
        "{\"%s\": {\"accumulate_ms\": %.3f, \"accumulate_with_rollback\": %.3f, \"accumulate_with_bf16\": %.3f, "
        "\"step_ms\": %.3f, \"step_with_rollback\": %.3f, \"step_with_bf16\": %.3f}}\n",
        name, best[PLAIN][0], best[ROLLBACK][0] / best[PLAIN][0], best[BF16][0] / best[PLAIN][0], best[PLAIN][1],
        best[ROLLBACK][1] / best[PLAIN][1], best[BF16][1] / best[PLAIN][1]);
    for (int which = 0; which < OPTIONS; which++)
        gtopk_reducer_destroy(all[which]);
    free(lengths);
    free(tensors);
}

int main(int count, char **arguments)
{
    const size_t n = count > 1 ? strtoull(arguments[1], NULL, 10) : 25000000;
    const int repeats = count > 2 ? atoi(arguments[2]) : 15;
    const uint32_t above = 0x7f000000u;
    float *r = vector(n), *g = vector(n), *other = vector(n);
    double best[5] = {1e30, 1e30, 1e30, 1e30, 1e30};
    uint32_t any = 0;
    for (int repeat = 0; repeat < repeats; repeat++)
        for (int which = 0; which < 5; which++) {
            const double start = now_ms();
            switch (which) {
            case 0: any |= pass(r, g, n, above); break;
            case 1: any |= check(g, n); break;
            case 2: any |= pass_swap(r, g, n, above); break;
            case 3: clear(g, n); break;
            default: any |= pass_second(r, g, other, n, above); break;
            }
            const double taken = now_ms() - start;
            best[which] = taken < best[which] ? taken : best[which];
        }
    (void)printf(
        "{\"n\": %zu, \"pass_ms\": %.3f, \"check\": %.3f, \"swap\": %.3f, \"second_buffer\": %.3f, \"any\": %u}\n", n,
        best[0], (best[0] + best[1]) / best[0], (best[2] + best[3]) / best[0], best[4] / best[0], any);
    free(r);
    free(other);
    gtopk_comm_t *comm;
    check_status(gtopk_comm_create(&comm, NULL));
    measure(comm, "one segment", g, n, n, 0, repeats);
    measure(comm, "many segments", g, n, 10007, 0, repeats);
    measure(comm, "momentum correction", g, n, n, 1, repeats);
    gtopk_comm_destroy(comm);
    free(g);
    return 0;
}
