/* The exact k largest, in the order of their indices, without the host in between.
 *
 * 1  Is the answer in the pool? Otherwise x is read once more: from a threshold that a sample of x suggests, and should
 *    that mislead, from one that is found exactly.
 * 2  The key of rank k among those in the pool, digit by digit.
 * 3  Chosen keys are put into buckets of neighbouring indices (count, scatter), and a warp sorts a bucket by a bitmap of
 *    its indices. So it does not matter in which order candidates came. There are so few buckets that each block finds for
 *    itself where they begin: the grid meets once less. */
#include "device/cuda/hint.h"
#include "device/cuda/pool.h"

#define SCAN_FOURS 4u
#define SCAN_AT_ONCE (4 * SCAN_FOURS)
#define SCAN_GROUP (SCAN_AT_ONCE * CUDA_WARP)
#define SAMPLE_ONE_IN 16u
#define SAMPLE_RANK_MIN 64u

static inline uint32_t select_magnitude(const select_args_t *args, uint32_t bits)
{
    const uint32_t magnitude = bits & MAGNITUDE;
    return args->whole && magnitude > CONVERT_INF ? CONVERT_INF : magnitude; /* NaN: as Inf, the lower index first */
}

/* ---- reading x ---- */

/* Entry j of this lane, of the group from `begin` on: fours of neighbours. */
static inline uint64_t scan_place(uint64_t begin, uint32_t j)
{
    return begin + (j / 4 * CUDA_WARP + lane_id()) * 4 + j % 4;
}

/* The bits of entry `at`. */
static inline uint32_t scan_bits(const select_args_t *args, uint64_t at)
{
    return args->narrow ? (uint32_t)args->narrow[at] << 16 : convert_bits(args->x[at]);
}

/* Magnitudes of a group that a warp takes; 0 beyond the end. */
static inline void scan_read(const select_args_t *args, uint64_t begin, uint32_t *magnitude)
{
    if (!args->narrow && (uintptr_t)args->x % 16 == 0 && begin + SCAN_GROUP <= args->n) {
        UNROLL
        for (uint32_t f = 0; f < SCAN_FOURS; f++) {
            const uint4 four = *(const uint4 *)(args->x + scan_place(begin, 4 * f));
            magnitude[4 * f] = select_magnitude(args, four.x);
            magnitude[4 * f + 1] = select_magnitude(args, four.y);
            magnitude[4 * f + 2] = select_magnitude(args, four.z);
            magnitude[4 * f + 3] = select_magnitude(args, four.w);
        }
        return;
    }
    UNROLL
    for (uint32_t j = 0; j < SCAN_AT_ONCE; j++) {
        const uint64_t at = scan_place(begin, j);
        magnitude[j] = at < args->n ? select_magnitude(args, scan_bits(args, at)) : 0;
    }
}

/* Adds the magnitudes that are not zero to the histogram for radix's level; of one group in `one_in`. */
FUNCTION void scan_count(const select_args_t *args, const radix_t *radix, uint32_t one_in, uint32_t *sum)
{
    uint32_t *bins = radix_bins_begin(radix->level);
    const uint64_t step = (uint64_t)SCAN_GROUP * one_in;
    ROLLED
    for (uint64_t begin = grid_warp() * step; begin < args->n; begin += grid_warps() * step) {
        uint32_t magnitude[SCAN_AT_ONCE];
        scan_read(args, begin, magnitude);
        UNROLL
        for (uint32_t j = 0; j < SCAN_AT_ONCE; j++)
            if (magnitude[j] != 0)
                radix_count(radix, bins, key_make((uint32_t)scan_place(begin, j), magnitude[j]));
    }
    radix_bins_end(radix->level, bins, sum);
}

/* Offers all keys from `bound` up. */
FUNCTION void scan_offer(const select_args_t *args, uint64_t bound, uint32_t pass)
{
    pool_writer_t writer = pool_writer();
    ROLLED
    for (uint64_t begin = (uint64_t)grid_warp() * SCAN_GROUP; begin < args->n;
         begin += (uint64_t)grid_warps() * SCAN_GROUP) {
        uint32_t magnitude[SCAN_AT_ONCE];
        scan_read(args, begin, magnitude);
        UNROLL
        for (uint32_t f = 0; f < SCAN_FOURS; f++) {
            uint32_t any = 0;
            UNROLL
            for (uint32_t j = 4 * f; j < 4 * f + 4; j++)
                any |= magnitude[j] != 0 && magnitude[j] >= key_magnitude(bound);
            if (!__any_sync(ALL_LANES, any))
                continue;
            pool_make_room(&writer, &args->pool, pass);
            UNROLL
            for (uint32_t j = 4 * f; j < 4 * f + 4; j++) {
                const uint64_t key = key_make((uint32_t)scan_place(begin, j), magnitude[j]);
                pool_offer(&writer, magnitude[j] != 0 && key >= bound, key);
            }
        }
    }
    pool_finish(&writer, &args->pool, pass);
}

/* ---- 1: into the pool ---- */

/* The magnitude that somewhat more than k entries have, if the sample does not mislead; 1: all that are not zero. */
static inline uint32_t sample_floor(const select_args_t *args)
{
    cuda_scratch_t *scratch = args->scratch;
    const uint32_t expected = args->k / SAMPLE_ONE_IN;
    radix_t *radix = radix_begin(expected + expected / 8 + SAMPLE_RANK_MIN);
    scan_count(args, radix, SAMPLE_ONE_IN, scratch->sample_bins);
    grid_sync(scratch);
    radix_descend(radix, scratch->sample_bins);
    const uint32_t floor = radix->found ? key_magnitude(radix_bound(radix)) : 1;
    return floor > 1 ? floor : 1;
}

/* A bound that k keys, or all, are not below, and not more than the pool can take. */
static inline uint64_t exact_bound(const select_args_t *args)
{
    radix_t *radix = radix_begin(args->k);
    while (radix->level < CUDA_LEVELS) {
        uint32_t *sum = args->scratch->scan_bins[radix->level];
        scan_count(args, radix, 1, sum);
        grid_sync(args->scratch);
        radix_descend(radix, sum);
        if (!radix->found)
            return 0;
        if ((uint64_t)(args->k - radix->wanted) + radix->inside <= args->pool.capacity)
            break;
    }
    return radix_bound(radix);
}

/* Returns how many keys are in the pool. *candidates: how many were offered in all; *floor: no magnitude is below. */
static inline uint32_t pool_fill(const select_args_t *args, uint64_t *candidates, int *missed, uint32_t *floor)
{
    const cuda_pool_t *pool = &args->pool;
    const uint32_t offered = pool->state->offered[CUDA_PASS_ACCUMULATE];
    *candidates = args->whole ? 0 : offered;
    *floor = pool->state->floor;
    *missed = args->whole || !pool_is_complete(offered, *floor, pool->capacity, args->k);
    if (!*missed)
        return offered;
    if (args->k >= SAMPLE_ONE_IN * SAMPLE_RANK_MIN) {
        *floor = sample_floor(args);
        scan_offer(args, key_make(UINT32_MAX, *floor), CUDA_PASS_SAMPLED);
        grid_sync(args->scratch);
        const uint32_t sampled = pool->state->offered[CUDA_PASS_SAMPLED];
        *candidates += sampled;
        if (pool_is_complete(sampled, *floor, pool->capacity, args->k))
            return sampled;
    }
    const uint64_t bound = exact_bound(args);
    *floor = key_magnitude(bound);
    scan_offer(args, bound, CUDA_PASS_EXACT);
    grid_sync(args->scratch);
    *candidates += pool->state->offered[CUDA_PASS_EXACT];
    return pool->state->offered[CUDA_PASS_EXACT];
}

/* ---- 2: the key of rank k ---- */

/* The magnitude of the wanted key, if it is near the floor; else nothing. */
static inline void near_descend(const select_args_t *args, radix_t *radix, uint32_t held, uint32_t floor)
{
    ROLLED
    for (uint32_t level = 0; level < 2; level++) {
        uint32_t *bins = radix_bins_begin(0), *sum = args->scratch->near_bins[level];
        ROLLED
        for (uint64_t i = grid_thread(); i < held; i += grid_threads())
            near_count(radix, bins, key_magnitude(args->pool.keys[i]), floor);
        radix_bins_end(0, bins, sum);
        grid_sync(args->scratch);
        if (!near_take(radix, sum, level, floor, args->k))
            return;
    }
}

/* floor: no key in the pool has a smaller magnitude. */
static inline uint64_t pool_bound(const select_args_t *args, uint32_t held, uint32_t floor)
{
    radix_t *radix = radix_begin(args->k);
    if (held <= args->k)
        return 0;
    if (floor > 1)
        near_descend(args, radix, held, floor);
    if (radix->wanted == radix->inside)
        return radix_bound(radix);
    while (radix->level < CUDA_LEVELS) {
        uint32_t *bins = radix_bins_begin(radix->level), *sum = args->scratch->pool_bins[radix->level];
        for (uint64_t i = grid_thread(); i < held; i += grid_threads())
            radix_count(radix, bins, args->pool.keys[i]);
        radix_bins_end(radix->level, bins, sum);
        grid_sync(args->scratch);
        radix_descend(radix, sum);
        if (radix->wanted == radix->inside)
            break;
    }
    return radix_bound(radix);
}

/* ---- 3: by index ---- */

/* Where each bucket begins: the sums of `counts` before it, in words of the block. */
FUNCTION uint32_t *buckets_begin(const uint32_t *counts)
{
    enum { EACH = CUDA_BUCKETS / CUDA_THREADS };
    uint32_t *begins = block_words(), own[EACH], sum = 0;
    UNROLL
    for (uint32_t b = 0; b < EACH; b += 4) {
        const uint4 four = *(const uint4 *)(counts + threadIdx.x * EACH + b);
        own[b] = four.x;
        own[b + 1] = four.y;
        own[b + 2] = four.z;
        own[b + 3] = four.w;
        sum += four.x + four.y + four.z + four.w;
    }
    uint32_t at = scan_before(block_scan(sum));
    UNROLL
    for (uint32_t b = 0; b < EACH; b++) {
        begins[threadIdx.x * EACH + b] = at;
        at += own[b];
    }
    __syncthreads();
    return begins;
}

/* The warp writes entries of one part of a bucket, whose keys are chosen[begin..end), from place `to` on, in the order of
 * their indices. Returns how many there were. */
FUNCTION uint32_t part_write(const select_args_t *args, uint32_t begin, uint32_t end, uint32_t part, uint32_t to)
{
    enum { WORDS = CUDA_PART / 32, EACH = WORDS / CUDA_WARP };
    __shared__ uint32_t bitmaps[CUDA_WARPS][WORDS];
    __shared__ uint32_t below[CUDA_WARPS][CUDA_WARP]; /* ones in the words of the lanes before */
    uint32_t *bitmap = bitmaps[warp_id()], ones = 0;
    const uint32_t lane = lane_id();
    for (uint32_t w = 0; w < EACH; w++)
        bitmap[lane + w * CUDA_WARP] = 0;
    __syncwarp();
    ROLLED
    for (uint32_t i = begin + lane; i < end; i += CUDA_WARP) {
        const uint32_t index = key_index(args->chosen[i]), bit = index % CUDA_PART;
        if (index / CUDA_PART == part)
            (void)atomicOr(&bitmap[bit / 32], 1u << bit % 32);
    }
    __syncwarp();
    for (uint32_t w = 0; w < EACH; w++)
        ones += (uint32_t)__popc(bitmap[lane * EACH + w]);
    uint32_t inclusive = ones;
    UNROLL
    for (uint32_t by = 1; by < CUDA_WARP; by *= 2) {
        const uint32_t other = __shfl_up_sync(ALL_LANES, inclusive, by);
        inclusive += lane >= by ? other : 0;
    }
    below[warp_id()][lane] = inclusive - ones;
    __syncwarp();
    ROLLED
    for (uint32_t i = begin + lane; i < end; i += CUDA_WARP) {
        const uint32_t index = key_index(args->chosen[i]), bit = index % CUDA_PART, owner = bit / 32 / EACH;
        if (index / CUDA_PART != part)
            continue;
        uint32_t rank = below[warp_id()][owner];
        for (uint32_t w = owner * EACH; w < bit / 32; w++)
            rank += (uint32_t)__popc(bitmap[w]);
        rank += (uint32_t)__popc(bitmap[bit / 32] & ((1u << bit % 32) - 1));
        args->out.index[to + rank] = index;
        args->out.value[to + rank] = convert_float(scan_bits(args, index));
    }
    __syncwarp();
    return __shfl_sync(ALL_LANES, inclusive, CUDA_WARP - 1);
}

/* Keys from `bound` up, of those in the pool, go to out. */
static inline void write_chosen(const select_args_t *args, uint32_t held, uint64_t bound)
{
    cuda_scratch_t *scratch = args->scratch;
    uint32_t *counts = args->buckets, *placed = args->buckets + CUDA_BUCKETS;
    uint32_t smallest = 0; /* inverted */
    ROLLED
    for (uint64_t i = grid_thread(); i < held; i += grid_threads()) {
        const uint64_t key = args->pool.keys[i];
        if (key < bound)
            continue;
        (void)atomicAdd(&counts[key_index(key) >> args->bucket_bits], 1u);
        smallest = ~key_magnitude(key) > smallest ? ~key_magnitude(key) : smallest;
    }
    block_max_into(smallest, &scratch->largest);
    grid_sync(scratch);
    const uint32_t *begins = buckets_begin(counts);
    ROLLED
    for (uint64_t i = grid_thread(); i < held; i += grid_threads()) {
        const uint64_t key = args->pool.keys[i];
        const uint32_t b = key_index(key) >> args->bucket_bits;
        if (key >= bound)
            args->chosen[begins[b] + atomicAdd(&placed[b], 1u)] = key;
    }
    grid_sync(scratch);
    ROLLED
    for (uint32_t b = grid_warp(); b < CUDA_BUCKETS; b += grid_warps()) {
        const uint32_t begin = begins[b], end = begin + counts[b], parts = 1u << (args->bucket_bits - CUDA_PART_BITS);
        ROLLED
        for (uint32_t part = b * parts, to = begin; to < end; part++)
            to += part_write(args, begin, end, part, to);
    }
}

MEETING_KERNEL(select, select_args)
{
    cuda_scratch_t *scratch = args.scratch;
    uint64_t candidates;
    uint32_t floor;
    int missed;
    if (args.k == 0 || (args.words && args.words->nonfinite)) {
        if (is_first_thread())
            *args.out.count = 0;
        return;
    }
    ROLLED
    for (uint64_t b = grid_thread(); b < 2 * CUDA_BUCKETS; b += grid_threads())
        args.buckets[b] = 0;
    const uint32_t held = pool_fill(&args, &candidates, &missed, &floor);
    const uint64_t bound = pool_bound(&args, held, floor);
    if (!missed && held <= args.k)
        grid_sync(scratch); /* buckets are empty; elsewhere the grid has met since */
    write_chosen(&args, held, bound);

    bins_clear(scratch->pool_bins[0], CUDA_LEVELS * CUDA_BINS);
    bins_clear(scratch->near_bins[0], 2 * CUDA_BINS);
    if (missed) {
        bins_clear(scratch->scan_bins[0], CUDA_LEVELS * CUDA_BINS);
        bins_clear(scratch->sample_bins, CUDA_BINS);
    }
    if (!is_first_thread())
        return;
    const uint32_t selected = held < args.k ? held : args.k, smallest = ~scratch->largest;
    *args.out.count = selected;
    scratch->largest = 0;
    args.pool.state->offered[CUDA_PASS_SAMPLED] = args.pool.state->offered[CUDA_PASS_EXACT] = 0;
    if (args.whole)
        return;
    hint_learn(&args.pool.state->hint, selected < args.k ? 0 : smallest);
    args.words->selected = selected;
    args.words->candidates = candidates;
    args.words->misses = (uint32_t)missed;
}
