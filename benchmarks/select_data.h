/* What select_bench feeds to a device: gradients with heavy tails, vectors in huge pages, random sets. */
#ifndef GTOPK_BENCHMARKS_SELECT_DATA_H
#define GTOPK_BENCHMARKS_SELECT_DATA_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "device/device.h"
#include "util/memory.h"

static inline void bench_fail(const char *what, const char *why)
{
    (void)fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static inline void bench_check(gtopk_status_t status)
{
    if (status != GTOPK_OK)
        bench_fail(gtopk_status_name(status), gtopk_last_error());
}

static inline uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Laplace: the tails of gradients are heavier than a normal distribution's. */
static inline float random_laplace(uint64_t *state)
{
    double u = ((double)(random_next(state) >> 11) + 0.5) / 9007199254740992.0;
    return (float)(u < 0.5 ? log(2.0 * u) : -log(2.0 * (1.0 - u)));
}

/* As the store allocates: with huge pages where the system has them, so that the comparison is one of loops. */
static inline float *vector_new(size_t n)
{
    float *vector;
    bench_check(memory_alloc(&vector, n, sizeof *vector, "a vector"));
#ifdef MADV_HUGEPAGE
    uintptr_t page = 2u << 20, begin = ((uintptr_t)vector + page - 1) & ~(page - 1);
    uintptr_t end = ((uintptr_t)vector + n * sizeof *vector) & ~(page - 1);
    if (begin < end)
        (void)madvise((void *)begin, end - begin, MADV_HUGEPAGE);
#endif
    memset(vector, 0, n * sizeof *vector);
    return vector;
}

/* Another gradient each step: the same values, rotated. */
static inline void gradient_fill(float *gradient, const float *base, size_t n, uint64_t step)
{
    size_t shift = (size_t)(step * 7919 % n);
    memcpy(gradient, base + shift, (n - shift) * sizeof *gradient);
    memcpy(gradient + (n - shift), base, shift * sizeof *gradient);
}

static inline device_set_t set_new(uint64_t capacity)
{
    device_set_t set = {.capacity = (uint32_t)capacity};
    bench_check(memory_alloc(&set.index, capacity, sizeof *set.index, "a set"));
    bench_check(memory_alloc(&set.value, capacity, sizeof *set.value, "a set"));
    bench_check(memory_alloc(&set.count, 1, sizeof *set.count, "a set"));
    return set;
}

static inline void set_free(device_set_t *set)
{
    memory_free(set->index);
    memory_free(set->value);
    memory_free(set->count);
}

/* About a quarter of the entries of both sets are common. */
static inline void set_fill(device_set_t *set, uint64_t n, uint64_t k, uint64_t seed)
{
    uint64_t common = 12345, own = seed;
    uint32_t count = 0;
    double stride = (double)n / (double)k;
    for (uint64_t i = 0; i < k; i++) {
        uint64_t state = i % 4 == 0 ? random_next(&common) : random_next(&own);
        uint64_t low = (uint64_t)((double)i * stride), high = (uint64_t)((double)(i + 1) * stride);
        set->index[count] = (uint32_t)(low + (high > low ? state % (high - low) : 0));
        float value = random_laplace(&own);
        set->value[count] = value + (value < 0 ? -6.0f : 6.0f);
        count++;
    }
    *set->count = count;
}

#endif
