/* a + b, and the k largest of it. The union is cut into tiles of equal size by merge path (sets.h). A block loads the two
 * pieces of a tile and its threads search again, in shared memory.
 *
 * Tiles are walked twice: to count entries that stay, and magnitudes for the search of the k-th; then to write. A block that
 * has one tile, as is usual, keeps its entries in registers in between. */
#include "device/cuda/keys.h"
#include "device/cuda/sets.h"

typedef struct tile {
    uint32_t a_index[CUDA_MERGE_TILE + 1], b_index[CUDA_MERGE_TILE + 1]; /* [0]: the entry before the tile */
    float a_value[CUDA_MERGE_TILE + 1], b_value[CUDA_MERGE_TILE + 1];
    uint32_t a_from, b_from, a_count, b_count;
    uint32_t has_a; /* there is one of a before the tile */
} tile_t;

/* Loads entries [first, first + CUDA_MERGE_TILE) of the merge. */
FUNCTION void tile_load(const merge_args_t *args, uint64_t first, uint32_t a_count, uint32_t b_count, tile_t *tile)
{
    const uint64_t all = (uint64_t)a_count + b_count,
                   last = first + CUDA_MERGE_TILE < all ? first + CUDA_MERGE_TILE : all;
    __syncthreads();
    if (warp_id() < 2) {
        const uint32_t diagonal = (uint32_t)(warp_id() == 0 ? first : last);
        const uint32_t in_a = warp_path_search(args->a.index, a_count, args->b.index, b_count, diagonal);
        if (threadIdx.x == 0) {
            tile->a_from = in_a;
            tile->b_from = diagonal - in_a;
            tile->has_a = in_a > 0;
        } else if (lane_id() == 0) {
            tile->a_count = in_a;
            tile->b_count = diagonal - in_a;
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        tile->a_count -= tile->a_from;
        tile->b_count -= tile->b_from;
        if (tile->has_a)
            tile->a_index[0] = args->a.index[tile->a_from - 1];
    }
    __syncthreads();
    ROLLED
    for (uint32_t i = threadIdx.x; i < tile->a_count; i += CUDA_THREADS) {
        tile->a_index[i + 1] = args->a.index[tile->a_from + i];
        tile->a_value[i + 1] = args->a.value[tile->a_from + i];
    }
    ROLLED
    for (uint32_t i = threadIdx.x; i < tile->b_count; i += CUDA_THREADS) {
        tile->b_index[i + 1] = args->b.index[tile->b_from + i];
        tile->b_value[i + 1] = args->b.value[tile->b_from + i];
    }
    __syncthreads();
}

/* What a thread finds on its part of the path. A sum of 0 is none. */
typedef struct found {
    uint32_t index[CUDA_MERGE_EACH];
    float sum[CUDA_MERGE_EACH];
} found_t;

/* The value of b at an index of a's that is the last before b's entry `j` (of the tile). 0 where it has none. */
static inline float partner(const merge_args_t *args, const tile_t *tile, uint32_t b_count, uint32_t j, uint32_t index)
{
    if (j < tile->b_count)
        return tile->b_index[j + 1] == index ? tile->b_value[j + 1] : 0.0f;
    const uint32_t next = tile->b_from + j; /* in the next tile */
    return next < b_count && args->b.index[next] == index ? args->b.value[next] : 0.0f;
}

/* Entries of the merge from threadIdx.x * CUDA_MERGE_EACH on; returns 1 when a sum was not finite. */
static inline uint32_t tile_merge(const merge_args_t *args, const tile_t *tile, uint32_t b_count, found_t *found)
{
    const uint32_t all = tile->a_count + tile->b_count, diagonal = threadIdx.x * CUDA_MERGE_EACH;
    uint32_t i = 0, j = 0, bad = 0;
    if (diagonal < all) {
        i = path_search(tile->a_index + 1, tile->a_count, tile->b_index + 1, tile->b_count, diagonal);
        j = diagonal - i;
    }
    UNROLL
    for (uint32_t n = 0; n < CUDA_MERGE_EACH; n++) {
        float sum = 0.0f;
        uint32_t index = 0;
        if (diagonal + n < all) {
            const int from_a = i < tile->a_count &&
                               (j == tile->b_count || tile->a_index[i + 1] <= tile->b_index[j + 1]);
            if (from_a) {
                index = tile->a_index[i + 1];
                sum = tile->a_value[i + 1] + partner(args, tile, b_count, j, index);
                i++;
            } else {
                index = tile->b_index[j + 1];
                const int added = (i > 0 || tile->has_a) && tile->a_index[i] == index;
                sum = added ? 0.0f : tile->b_value[j + 1] + 0.0f;
                j++;
            }
            if (!is_finite(sum)) {
                bad = 1;
                sum = 0.0f;
            }
        }
        found->index[n] = index;
        found->sum[n] = sum;
    }
    return bad;
}

/* ---- the k largest ---- */

/* The entries that a block found: all[begin..end), once they are written. */
typedef struct own {
    uint32_t begin, end;
    int held; /* 1: they are in its threads' registers as well */
} own_t;

/* A magnitude that few entries are below, from a sample of a set that was selected. All threads of the block. */
static inline uint32_t sampled_floor(const device_set_t *set, uint32_t count)
{
    __shared__ uint32_t smallest; /* inverted */
    const uint32_t at = (uint32_t)((uint64_t)count * threadIdx.x / CUDA_THREADS);
    if (threadIdx.x == 0)
        smallest = 0;
    __syncthreads();
    block_max_into(count > 0 ? ~(convert_bits(set->value[at]) & MAGNITUDE) : 0, &smallest);
    __syncthreads();
    return ~smallest;
}

static inline uint64_t found_key(const found_t *found, uint32_t n)
{
    return key_make(found->index[n], convert_bits(found->sum[n]) & MAGNITUDE);
}

static inline uint64_t all_key(const merge_args_t *args, uint64_t i)
{
    return key_make(args->all.index[i], convert_bits(args->all.value[i]) & MAGNITUDE);
}

/* Counts the block's entries for radix's level, which is one from the floor or one of all digits. */
static inline void count_own(const merge_args_t *args, const radix_t *radix, uint32_t *bins, const found_t *found,
                             own_t own, int near, uint32_t floor)
{
    UNROLL
    for (uint32_t n = 0; n < CUDA_MERGE_EACH; n++) {
        if (!own.held || found->sum[n] == 0.0f)
            continue;
        if (near)
            near_count(radix, bins, key_magnitude(found_key(found, n)), floor);
        else
            radix_count(radix, bins, found_key(found, n));
    }
    ROLLED
    for (uint64_t i = own.begin + threadIdx.x; !own.held && i < own.end; i += CUDA_THREADS) {
        if (near)
            near_count(radix, bins, key_magnitude(all_key(args, i)), floor);
        else
            radix_count(radix, bins, all_key(args, i));
    }
}

/* The first digit from the floor was counted while merging. */
static inline uint64_t bound_of(const merge_args_t *args, radix_t *radix, const found_t *found, own_t own,
                                uint32_t floor)
{
    cuda_scratch_t *scratch = args->scratch;
    int near = near_take(radix, scratch->near_bins[0], 0, floor, args->k);
    ROLLED
    while (near || (radix->level < CUDA_LEVELS && radix->wanted != radix->inside)) {
        const uint32_t level = near ? 0 : radix->level;
        uint32_t *bins = radix_bins_begin(level), *sum = near ? scratch->near_bins[1] : scratch->pool_bins[level];
        count_own(args, radix, bins, found, own, near, floor);
        radix_bins_end(level, bins, sum);
        grid_sync(scratch);
        if (near)
            (void)near_take(radix, sum, 1, floor, args->k);
        else
            radix_descend(radix, sum);
        near = 0;
    }
    return radix_bound(radix);
}

/* Entries from `bound` up. */
static inline void keep(const merge_args_t *args, const found_t *found, own_t own, uint64_t bound)
{
    cuda_scratch_t *scratch = args->scratch;
    uint32_t kept = 0;
    UNROLL
    for (uint32_t n = 0; n < CUDA_MERGE_EACH; n++)
        kept += own.held && found->sum[n] != 0.0f && found_key(found, n) >= bound;
    ROLLED
    for (uint64_t i = own.begin + threadIdx.x; !own.held && i < own.end; i += CUDA_THREADS)
        kept += all_key(args, i) >= bound;
    const scan_t of_block = block_scan(kept);
    if (threadIdx.x == 0)
        scratch->kept[blockIdx.x] = scan_total(of_block);
    grid_sync(scratch);
    uint32_t at = scan_before(grid_scan(scratch->kept));
    if (own.held) {
        uint32_t to = at + scan_before(of_block);
        UNROLL
        for (uint32_t n = 0; n < CUDA_MERGE_EACH; n++)
            if (found->sum[n] != 0.0f && found_key(found, n) >= bound) {
                args->kept.index[to] = found->index[n];
                args->kept.value[to++] = found->sum[n];
            }
        return;
    }
    ROLLED
    for (uint64_t tile = own.begin; tile < own.end; tile += CUDA_THREADS) {
        const uint64_t i = tile + threadIdx.x;
        const int stays = i < own.end && all_key(args, i) >= bound;
        const scan_t scan = block_scan((uint32_t)stays);
        if (stays) {
            args->kept.index[at + scan_before(scan)] = args->all.index[i];
            args->kept.value[at + scan_before(scan)] = args->all.value[i];
        }
        at += scan_total(scan);
    }
}

MEETING_KERNEL(merge, merge_args)
{
    __shared__ tile_t tile;
    cuda_scratch_t *scratch = args.scratch;
    const uint32_t halted = is_first_thread() && is_halted(scratch);
    const uint32_t a_count = *args.a.count, b_count = *args.b.count;
    const uint32_t tiles = (uint32_t)(((uint64_t)a_count + b_count + CUDA_MERGE_TILE - 1) / CUDA_MERGE_TILE);
    const uint32_t begin = (uint32_t)slice_begin(tiles, blockIdx.x), end = (uint32_t)slice_begin(tiles, blockIdx.x + 1);
    radix_t *radix = radix_begin(args.k);
    uint32_t *bins = radix_bins_begin(0);
    const uint32_t floor = sampled_floor(&args.a, a_count);
    uint32_t bad = 0, at = 0, total = 0, most = 0;
    int room = 1;
    own_t own = {0, 0, end - begin <= 1};
    found_t found;
    UNROLL
    for (uint32_t n = 0; n < CUDA_MERGE_EACH; n++)
        found.sum[n] = 0.0f;

    /* Once to count, once to write; one loop, so that the code is there once. */
    ROLLED
    for (uint32_t pass = 0; pass < 2 && room; pass++) {
        ROLLED
        for (uint32_t t = begin; t < end; t++) {
            uint32_t mine = 0;
            if (pass == 0 || !own.held) {
                tile_load(&args, (uint64_t)t * CUDA_MERGE_TILE, a_count, b_count, &tile);
                bad |= tile_merge(&args, &tile, b_count, &found);
            }
            UNROLL
            for (uint32_t n = 0; n < CUDA_MERGE_EACH; n++)
                mine += found.sum[n] != 0.0f;
            const scan_t scan = block_scan(mine);
            uint32_t to = at + scan_before(scan);
            UNROLL
            for (uint32_t n = 0; n < CUDA_MERGE_EACH; n++) {
                if (found.sum[n] == 0.0f)
                    continue;
                if (pass == 0) {
                    near_count(radix, bins, key_magnitude(found_key(&found, n)), floor);
                } else {
                    args.all.index[to] = found.index[n];
                    args.all.value[to++] = found.sum[n];
                }
            }
            at += scan_total(scan);
        }
        if (pass == 1)
            break;
        const uint32_t stay = at;
        if (threadIdx.x == 0)
            scratch->counts[blockIdx.x] = stay;
        radix_bins_end(0, bins, scratch->near_bins[0]);
        grid_sync(scratch);
        const scan_t offset = grid_scan(scratch->counts);
        at = scan_before(offset);
        total = scan_total(offset);
        own.begin = at;
        own.end = at + stay;
        most = args.k < total ? args.k : total;
        room = total <= args.all.capacity && most <= args.kept.capacity;
    }
    if (bad)
        (void)atomicOr(&args.words->nonfinite, 1u);
    __syncthreads(); /* what the block has written it reads */

    if (room)
        keep(&args, &found, own, total > args.k ? bound_of(&args, radix, &found, own, floor) : 0);
    bins_clear(scratch->pool_bins[0], CUDA_LEVELS * CUDA_BINS);
    bins_clear(scratch->near_bins[0], 2 * CUDA_BINS);
    if (is_first_thread()) {
        *args.all.count = room && !halted ? total : 0;
        *args.kept.count = room && !halted ? most : 0;
        if (halted)
            words_fail(args.words, DEVICE_HALTED);
        else if (!room)
            words_fail(args.words, DEVICE_NO_ROOM);
    }
}
