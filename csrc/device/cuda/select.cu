/* The exact k largest, in the order of their indices, without the host in between.
 *
 * 1  Is the answer in the pool? Otherwise x is read once more: from a threshold that a sample of x suggests, and should
 *    that mislead, from one that is found exactly.
 * 2  The key of rank k among those in the pool, digit by digit.
 * 3  Chosen keys are put into buckets of neighbouring indices (count, scan, scatter), and a warp sorts a bucket by a bitmap
 *    of its indices. So it does not matter in which order candidates came. */
#include "device/cuda/hint.h"
#include "device/cuda/pool.h"

#define SCAN_AT_ONCE 8u
#define SCAN_GROUP (SCAN_AT_ONCE * CUDA_WARP)
#define SAMPLE_ONE_IN 16u
#define SAMPLE_RANK_MIN 64u

static inline uint32_t select_magnitude(const select_args_t *args, float value)
{
    const uint32_t magnitude = convert_bits(value) & MAGNITUDE;
    return args->whole && magnitude > CONVERT_INF ? CONVERT_INF : magnitude; /* NaN: as Inf, the lower index first */
}

/* ---- reading x ---- */

/* Magnitudes of a group that a warp takes: entry j of this lane is first + j * CUDA_WARP; 0 beyond the end. */
static inline void scan_read(const select_args_t *args, uint64_t first, uint32_t *magnitude)
{
    UNROLL
    for (uint32_t j = 0; j < SCAN_AT_ONCE; j++) {
        const uint64_t at = first + j * CUDA_WARP;
        magnitude[j] = at < args->n ? select_magnitude(args, args->x[at]) : 0;
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
        scan_read(args, begin + lane_id(), magnitude);
        UNROLL
        for (uint32_t j = 0; j < SCAN_AT_ONCE; j++)
            if (magnitude[j] != 0)
                radix_count(radix, bins, key_make((uint32_t)(begin + lane_id() + j * CUDA_WARP), magnitude[j]));
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
        uint32_t magnitude[SCAN_AT_ONCE], any = 0;
        scan_read(args, begin + lane_id(), magnitude);
        UNROLL
        for (uint32_t j = 0; j < SCAN_AT_ONCE; j++)
            any |= magnitude[j] != 0 && magnitude[j] >= key_magnitude(bound);
        if (!__any_sync(ALL_LANES, any))
            continue;
        ROLLED
        for (uint32_t j = 0; j < SCAN_AT_ONCE; j++) { /* reads again: rare, and in the cache */
            const uint64_t at = begin + lane_id() + j * CUDA_WARP;
            const uint32_t again = at < args->n ? select_magnitude(args, args->x[at]) : 0;
            const uint64_t key = key_make((uint32_t)at, again);
            pool_make_room(&writer, &args->pool, pass);
            pool_offer(&writer, again != 0 && key >= bound, key);
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

/* Returns how many keys are in the pool. *candidates: how many were offered in all. */
static inline uint32_t pool_fill(const select_args_t *args, uint64_t *candidates, int *missed)
{
    const cuda_pool_t *pool = &args->pool;
    const uint32_t offered = pool->state->offered[CUDA_PASS_ACCUMULATE];
    *candidates = args->whole ? 0 : offered;
    *missed = args->whole || !pool_is_complete(offered, pool->state->floor, pool->capacity, args->k);
    if (!*missed)
        return offered;
    if (args->k >= SAMPLE_ONE_IN * SAMPLE_RANK_MIN) {
        const uint32_t floor = sample_floor(args);
        scan_offer(args, key_make(UINT32_MAX, floor), CUDA_PASS_SAMPLED);
        grid_sync(args->scratch);
        const uint32_t sampled = pool->state->offered[CUDA_PASS_SAMPLED];
        *candidates += sampled;
        if (pool_is_complete(sampled, floor, pool->capacity, args->k))
            return sampled;
    }
    const uint64_t bound = exact_bound(args);
    scan_offer(args, bound, CUDA_PASS_EXACT);
    grid_sync(args->scratch);
    *candidates += pool->state->offered[CUDA_PASS_EXACT];
    return pool->state->offered[CUDA_PASS_EXACT];
}

/* ---- 2: the key of rank k ---- */

static inline uint64_t pool_bound(const select_args_t *args, uint32_t held)
{
    radix_t *radix = radix_begin(args->k);
    if (held <= args->k)
        return 0;
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

/* buckets[b]: keys of the bucket, then where it begins. */
static inline void buckets_scan(const select_args_t *args, uint32_t buckets)
{
    cuda_scratch_t *scratch = args->scratch;
    const uint32_t begin = (uint32_t)slice_begin(buckets, blockIdx.x),
                   end = (uint32_t)slice_begin(buckets, blockIdx.x + 1);
    uint32_t mine = 0;
    ROLLED
    for (uint32_t b = begin + threadIdx.x; b < end; b += CUDA_THREADS)
        mine += args->buckets[b];
    mine = block_sum(mine);
    if (threadIdx.x == 0)
        scratch->counts[blockIdx.x] = mine;
    grid_sync(scratch);
    uint32_t at = scan_before(grid_scan(scratch->counts));
    ROLLED
    for (uint32_t tile = begin; tile < end; tile += CUDA_THREADS) {
        const uint32_t b = tile + threadIdx.x, count = b < end ? args->buckets[b] : 0;
        const scan_t scan = block_scan(count);
        if (b < end)
            args->buckets[b] = at + scan_before(scan);
        at += scan_total(scan);
    }
    grid_sync(scratch);
}

/* The warp writes a bucket's entries, chosen[begin..end), in the order of their indices. */
static inline void bucket_write(const select_args_t *args, uint32_t begin, uint32_t end)
{
    enum { WORDS = CUDA_BUCKET / 32, EACH = WORDS / CUDA_WARP };
    __shared__ uint32_t bitmaps[CUDA_WARPS][WORDS];
    __shared__ uint32_t below[CUDA_WARPS][CUDA_WARP]; /* ones in the words of the lanes before */
    uint32_t *bitmap = bitmaps[warp_id()], ones = 0;
    const uint32_t lane = lane_id();
    for (uint32_t w = 0; w < EACH; w++)
        bitmap[lane + w * CUDA_WARP] = 0;
    __syncwarp();
    ROLLED
    for (uint32_t i = begin + lane; i < end; i += CUDA_WARP) {
        const uint32_t bit = key_index(args->chosen[i]) % CUDA_BUCKET;
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
        const uint32_t index = key_index(args->chosen[i]), bit = index % CUDA_BUCKET, owner = bit / 32 / EACH;
        uint32_t rank = below[warp_id()][owner];
        for (uint32_t w = owner * EACH; w < bit / 32; w++)
            rank += (uint32_t)__popc(bitmap[w]);
        rank += (uint32_t)__popc(bitmap[bit / 32] & ((1u << bit % 32) - 1));
        args->out.index[begin + rank] = index;
        args->out.value[begin + rank] = args->x[index];
    }
    __syncwarp();
}

/* Keys from `bound` up, of those in the pool, go to out. */
static inline void write_chosen(const select_args_t *args, uint32_t held, uint64_t bound)
{
    cuda_scratch_t *scratch = args->scratch;
    const uint32_t buckets = (uint32_t)(args->n / CUDA_BUCKET + 1);
    uint32_t smallest = 0; /* inverted */
    ROLLED
    for (uint64_t i = grid_thread(); i < held; i += grid_threads()) {
        const uint64_t key = args->pool.keys[i];
        if (key < bound)
            continue;
        (void)atomicAdd(&args->buckets[key_index(key) / CUDA_BUCKET], 1u);
        smallest = ~key_magnitude(key) > smallest ? ~key_magnitude(key) : smallest;
    }
    block_max_into(smallest, &scratch->largest);
    grid_sync(scratch);
    buckets_scan(args, buckets);
    ROLLED
    for (uint64_t i = grid_thread(); i < held; i += grid_threads()) {
        const uint64_t key = args->pool.keys[i];
        if (key >= bound)
            args->chosen[atomicAdd(&args->buckets[key_index(key) / CUDA_BUCKET], 1u)] = key;
    }
    grid_sync(scratch);
    ROLLED
    for (uint32_t b = grid_warp(); b < buckets; b += grid_warps()) {
        const uint32_t begin = b == 0 ? 0 : args->buckets[b - 1], end = args->buckets[b];
        if (begin < end)
            bucket_write(args, begin, end);
    }
}

KERNEL(select, select_args)
{
    cuda_scratch_t *scratch = args.scratch;
    const uint32_t buckets = (uint32_t)(args.n / CUDA_BUCKET + 1);
    uint64_t candidates;
    int missed;
    if (args.k == 0 || (args.words && args.words->nonfinite)) {
        if (is_first_thread())
            *args.out.count = 0;
        return;
    }
    ROLLED
    for (uint64_t b = grid_thread(); b < buckets; b += grid_threads())
        args.buckets[b] = 0;
    const uint32_t held = pool_fill(&args, &candidates, &missed);
    const uint64_t bound = pool_bound(&args, held);
    if (!missed && held <= args.k)
        grid_sync(scratch); /* buckets are empty; elsewhere the grid has met since */
    write_chosen(&args, held, bound);

    bins_clear(scratch->pool_bins[0], CUDA_LEVELS * CUDA_BINS);
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
