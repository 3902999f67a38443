/* Random numbers and random sets for tests: the same on every machine and in every run. */
#ifndef GTOPK_TESTS_RANDOM_H
#define GTOPK_TESTS_RANDOM_H

#include <stdint.h>
#include <string.h>

typedef struct random_state {
    uint64_t state;
} random_state_t;

/* splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014). */
static inline uint64_t random_u64(random_state_t *random)
{
    uint64_t z = random->state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* 0 <= result < below. */
static inline uint64_t random_below(random_state_t *random, uint64_t below)
{
    return random_u64(random) % below;
}

/* Every kind of float: zeros, denormals, Inf and NaN too. */
static inline float random_float_bits(random_state_t *random)
{
    const uint32_t bits = (uint32_t)random_u64(random);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* `count` strictly increasing indices below dim: each gap is drawn from what is left, evenly on average. */
static inline void random_indices(random_state_t *random, uint32_t *index, uint32_t count, uint64_t dim)
{
    uint64_t next = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint64_t spare = dim - next - (count - i);
        const uint64_t mean = spare / (count - i);
        uint64_t gap = random_below(random, 2 * mean + 2);
        if (gap > spare)
            gap = spare;
        index[i] = (uint32_t)(next + gap);
        next = (uint64_t)index[i] + 1;
    }
}

#endif
