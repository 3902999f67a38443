/* Candidates as 64-bit keys in the order of selection: bits of |v|, then the inverted index. The k-th largest of many is
 * found digit by digit, by histograms of the whole grid. */
#ifndef GTOPK_DEVICE_CUDA_KEYS_H
#define GTOPK_DEVICE_CUDA_KEYS_H

#include "device/cuda/block.h"

static inline uint64_t key_make(uint32_t index, uint32_t magnitude)
{
    return (uint64_t)magnitude << 32 | (uint32_t)~index;
}

static inline uint32_t key_index(uint64_t key)
{
    return ~(uint32_t)key;
}

static inline uint32_t key_magnitude(uint64_t key)
{
    return (uint32_t)(key >> 32);
}

/* ---- digits: 12, 10 and 9 bits of the magnitude, 12, 10 and 10 of the index ---- */

static inline uint32_t digit_bits(uint32_t level)
{
    return level == 0 || level == 3 ? 12u : level == 2 ? 9u : 10u;
}

static inline uint32_t digit_shift(uint32_t level)
{
    return level == 0 ? 51u : level == 1 ? 41u : level == 2 ? 32u : level == 3 ? 20u : level == 4 ? 10u : 0u;
}

static inline uint32_t digit_of(uint64_t key, uint32_t level)
{
    return (uint32_t)(key >> digit_shift(level)) & ((1u << digit_bits(level)) - 1);
}

/* ---- the search ---- */

/* What is known of the key of rank k: its digits above `level`. One a block, in shared memory. */
typedef struct radix {
    uint64_t prefix;
    uint32_t level;
    uint32_t wanted; /* its rank among the keys with that prefix */
    uint32_t inside; /* how many these are */
    int found;       /* 0: there are fewer than k */
} radix_t;

/* All threads of the block. */
FUNCTION radix_t *radix_begin(uint32_t k)
{
    __shared__ radix_t radix;
    __syncthreads();
    if (threadIdx.x == 0) {
        radix.prefix = 0;
        radix.level = 0;
        radix.wanted = k;
        radix.inside = 0;
        radix.found = 1;
    }
    __syncthreads();
    return &radix;
}

/* Keys of this or a higher one are wanted, or may be. */
static inline uint64_t radix_bound(const radix_t *radix)
{
    return radix->level == 0 ? 0 : radix->prefix << digit_shift(radix->level - 1);
}

/* Words of the block that serve one thing after another. */
FUNCTION uint32_t *block_words(void)
{
    __shared__ uint32_t words[CUDA_BINS];
    return words;
}

/* A histogram of the block. */
FUNCTION uint32_t *radix_bins_begin(uint32_t level)
{
    uint32_t *bins = block_words();
    __syncthreads();
    ROLLED
    for (uint32_t b = threadIdx.x; b < 1u << digit_bits(level); b += CUDA_THREADS)
        bins[b] = 0;
    __syncthreads();
    return bins;
}

static inline void radix_count(const radix_t *radix, uint32_t *bins, uint64_t key)
{
    if (radix->level == 0 || key >> digit_shift(radix->level - 1) == radix->prefix)
        (void)atomicAdd(&bins[digit_of(key, radix->level)], 1u);
}

/* Adds the block's histogram to the grid's. */
FUNCTION void radix_bins_end(uint32_t level, const uint32_t *bins, uint32_t *sum)
{
    __syncthreads();
    ROLLED
    for (uint32_t b = threadIdx.x; b < 1u << digit_bits(level); b += CUDA_THREADS)
        if (bins[b] != 0)
            (void)atomicAdd(&sum[b], bins[b]);
}

/* Takes a digit of so many bits from the grid's histogram. All threads of the block: each has up to 16 neighbouring bins in
 * its registers, because loads that wait for one another would take longer than all the rest. */
FUNCTION void radix_take(radix_t *radix, const uint32_t *sum, uint32_t bits)
{
    enum { FOURS = CUDA_BINS / CUDA_THREADS / 4 };
    const uint32_t count = 1u << bits, rank = radix->wanted;
    const uint32_t each = count / CUDA_THREADS > 4 ? count / CUDA_THREADS : 4, skipped = threadIdx.x * each;
    uint32_t mine = 0, own[4 * FOURS];
    UNROLL
    for (uint32_t f = 0; f < FOURS; f++) {
        uint4 four;
        four.x = four.y = four.z = four.w = 0;
        if (skipped < count && 4 * f < each) /* highest first */
            four = *(const uint4 *)(sum + (count - skipped - 4 * (f + 1)));
        own[4 * f] = four.w;
        own[4 * f + 1] = four.z;
        own[4 * f + 2] = four.y;
        own[4 * f + 3] = four.x;
        mine += four.x + four.y + four.z + four.w;
    }
    const scan_t scan = block_scan(mine);
    const uint32_t above = scan_before(scan);
    if (above < rank && rank - above <= mine) {
        uint32_t rest = rank - above, found = 0, digit = 0, inside = 0;
        UNROLL
        for (uint32_t b = 0; b < 4 * FOURS; b++) {
            if (!found && rest <= own[b]) {
                found = 1;
                digit = count - 1 - skipped - b;
                inside = own[b];
            }
            rest -= found ? 0 : own[b];
        }
        radix->prefix = radix->prefix << bits | digit;
        radix->wanted = rest;
        radix->inside = inside;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        radix->found = rank <= scan_total(scan);
        radix->level++;
    }
    __syncthreads();
}

static inline void radix_descend(radix_t *radix, const uint32_t *sum)
{
    radix_take(radix, sum, digit_bits(radix->level));
}

/* ---- keys near a floor ---- */

/* Where a magnitude is known that the wanted one is seldom below, and seldom four times as large as, two digits counted from
 * there are enough, one less than in general. Both have NEAR_BITS; the first and the last bin of the first one stand for
 * all that is not near. */
enum { NEAR_BITS = 12, NEAR_LAST = (1 << NEAR_BITS) - 1 };

static inline uint32_t near_first(uint32_t magnitude, uint32_t floor)
{
    const uint32_t offset = magnitude < floor ? 0 : (magnitude - floor) >> NEAR_BITS;
    return offset < NEAR_LAST ? offset : NEAR_LAST;
}

/* Counts a magnitude for radix's level, 0 or 1. */
static inline void near_count(const radix_t *radix, uint32_t *bins, uint32_t magnitude, uint32_t floor)
{
    const uint32_t first = near_first(magnitude, floor);
    if (radix->level == 0)
        (void)atomicAdd(&bins[first], 1u);
    else if (first == radix->prefix)
        (void)atomicAdd(&bins[(magnitude - floor) & NEAR_LAST], 1u);
}

/* Takes digit `level` from the grid's histogram; all threads of the block. 0: the wanted key is not near, and radix is as it
 * was at its beginning, for k. After the second digit the magnitude is known, and digits of the index follow. */
FUNCTION int near_take(radix_t *radix, const uint32_t *sum, uint32_t level, uint32_t floor, uint32_t k)
{
    radix_take(radix, sum, NEAR_BITS);
    if (level == 0) {
        if (radix->prefix != 0 && radix->prefix != NEAR_LAST)
            return 1;
        (void)radix_begin(k);
        return 0;
    }
    if (threadIdx.x == 0) {
        radix->prefix += floor;
        radix->level = 3;
    }
    __syncthreads();
    return 1;
}

/* The grid leaves a histogram as it found it. */
FUNCTION void bins_clear(uint32_t *bins, uint32_t count)
{
    ROLLED
    for (uint64_t b = grid_thread(); b < count; b += grid_threads())
        bins[b] = 0;
}

#endif
