/* a + b, and the k largest of it. The union is cut into tiles of equal size by merge path (Odeh, Green, Mwassi, Shmueli,
 * Birk: Merge path, 2012): a diagonal of the grid of both indices meets the path of the merge in one place, which a
 * binary search finds. A block loads the two pieces of a tile and its threads search again, in shared memory.
 *
 * Tiles are walked twice: to count entries that stay, and magnitudes for the search of the k-th; then to write. */
#include "device/cuda/keys.h"

enum { MERGE_EACH = 4, MERGE_TILE = CUDA_THREADS * MERGE_EACH };

/* Of the first `diagonal` entries of the merge, how many are a's; a goes first where indices are equal. */
static inline uint32_t path_search(const uint32_t *a, uint32_t a_count, const uint32_t *b, uint32_t b_count,
                                   uint32_t diagonal)
{
    uint32_t low = diagonal > b_count ? diagonal - b_count : 0, high = diagonal < a_count ? diagonal : a_count;
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        if (a[middle] <= b[diagonal - 1 - middle])
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

typedef struct tile {
    uint32_t a_index[MERGE_TILE + 1], b_index[MERGE_TILE + 1]; /* [0]: the entry before the tile */
    float a_value[MERGE_TILE + 1], b_value[MERGE_TILE + 1];
    uint32_t a_from, b_from, a_count, b_count;
    uint32_t has_a; /* there is one of a before the tile */
} tile_t;

/* Loads entries [first, first + MERGE_TILE) of the merge. */
FUNCTION void tile_load(const merge_args_t *args, uint64_t first, uint32_t a_count, uint32_t b_count, tile_t *tile)
{
    const uint64_t all = (uint64_t)a_count + b_count, last = first + MERGE_TILE < all ? first + MERGE_TILE : all;
    __syncthreads();
    if (threadIdx.x < 2) {
        const uint32_t diagonal = (uint32_t)(threadIdx.x == 0 ? first : last);
        const uint32_t in_a = path_search(args->a.index, a_count, args->b.index, b_count, diagonal);
        if (threadIdx.x == 0) {
            tile->a_from = in_a;
            tile->b_from = diagonal - in_a;
            tile->has_a = in_a > 0;
        } else {
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
    uint32_t index[MERGE_EACH];
    float sum[MERGE_EACH];
} found_t;

/* The value of b at an index of a's that is the last before b's entry `j` (of the tile). 0 where it has none. */
static inline float partner(const merge_args_t *args, const tile_t *tile, uint32_t b_count, uint32_t j, uint32_t index)
{
    if (j < tile->b_count)
        return tile->b_index[j + 1] == index ? tile->b_value[j + 1] : 0.0f;
    const uint32_t next = tile->b_from + j; /* in the next tile */
    return next < b_count && args->b.index[next] == index ? args->b.value[next] : 0.0f;
}

/* Entries of the merge from threadIdx.x * MERGE_EACH on; returns 1 when a sum was not finite. */
static inline uint32_t tile_merge(const merge_args_t *args, const tile_t *tile, uint32_t b_count, found_t *found)
{
    const uint32_t all = tile->a_count + tile->b_count, diagonal = threadIdx.x * MERGE_EACH;
    uint32_t i = 0, j = 0, bad = 0;
    if (diagonal < all) {
        i = path_search(tile->a_index + 1, tile->a_count, tile->b_index + 1, tile->b_count, diagonal);
        j = diagonal - i;
    }
    UNROLL
    for (uint32_t n = 0; n < MERGE_EACH; n++) {
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

/* ---- the k largest of all, which is sorted by index ---- */

static inline uint64_t all_key(const merge_args_t *args, uint64_t i)
{
    return key_make(args->all.index[i], convert_bits(args->all.value[i]) & MAGNITUDE);
}

/* radix's first digit was counted while merging. */
static inline uint64_t all_bound(const merge_args_t *args, radix_t *radix, uint32_t total)
{
    cuda_scratch_t *scratch = args->scratch;
    radix_descend(radix, scratch->pool_bins[0]);
    ROLLED
    while (radix->level < CUDA_LEVELS && radix->wanted != radix->inside) {
        uint32_t *bins = radix_bins_begin(radix->level), *sum = scratch->pool_bins[radix->level];
        ROLLED
        for (uint64_t i = grid_thread(); i < total; i += grid_threads())
            radix_count(radix, bins, all_key(args, i));
        radix_bins_end(radix->level, bins, sum);
        grid_sync(scratch);
        radix_descend(radix, sum);
    }
    return radix_bound(radix);
}

/* Entries of `all` from `bound` up. */
static inline void keep(const merge_args_t *args, uint32_t total, uint64_t bound)
{
    cuda_scratch_t *scratch = args->scratch;
    const uint32_t begin = (uint32_t)slice_begin(total, blockIdx.x), end = (uint32_t)slice_begin(total, blockIdx.x + 1);
    uint32_t kept = 0;
    ROLLED
    for (uint64_t i = begin + threadIdx.x; i < end; i += CUDA_THREADS)
        kept += all_key(args, i) >= bound;
    kept = block_sum(kept);
    if (threadIdx.x == 0)
        scratch->counts[blockIdx.x] = kept;
    grid_sync(scratch);
    uint32_t at = scan_before(grid_scan(scratch->counts));
    ROLLED
    for (uint64_t tile = begin; tile < end; tile += CUDA_THREADS) {
        const uint64_t i = tile + threadIdx.x;
        const int stays = i < end && all_key(args, i) >= bound;
        const scan_t scan = block_scan((uint32_t)stays);
        if (stays) {
            args->kept.index[at + scan_before(scan)] = args->all.index[i];
            args->kept.value[at + scan_before(scan)] = args->all.value[i];
        }
        at += scan_total(scan);
    }
}

KERNEL(merge, merge_args)
{
    __shared__ tile_t tile;
    cuda_scratch_t *scratch = args.scratch;
    const uint32_t a_count = *args.a.count, b_count = *args.b.count;
    const uint32_t tiles = (uint32_t)(((uint64_t)a_count + b_count + MERGE_TILE - 1) / MERGE_TILE);
    const uint32_t begin = (uint32_t)slice_begin(tiles, blockIdx.x), end = (uint32_t)slice_begin(tiles, blockIdx.x + 1);
    radix_t *radix = radix_begin(args.k);
    uint32_t *bins = radix_bins_begin(0);
    uint32_t stay = 0, bad = 0, at = 0, total = 0;
    found_t found;

    /* Once to count, once to write; one loop, so that the code is there once. */
    ROLLED
    for (uint32_t pass = 0; pass < 2; pass++) {
        if (pass == 1) {
            const scan_t offset = grid_scan(scratch->counts);
            at = scan_before(offset);
            total = scan_total(offset);
            if (total > args.all.capacity)
                break;
        }
        ROLLED
        for (uint32_t t = begin; t < end; t++) {
            uint32_t mine = 0;
            tile_load(&args, (uint64_t)t * MERGE_TILE, a_count, b_count, &tile);
            bad |= tile_merge(&args, &tile, b_count, &found);
            UNROLL
            for (uint32_t n = 0; n < MERGE_EACH; n++)
                mine += found.sum[n] != 0.0f;
            const scan_t scan = block_scan(mine);
            uint32_t to = at + scan_before(scan);
            UNROLL
            for (uint32_t n = 0; n < MERGE_EACH; n++) {
                if (found.sum[n] == 0.0f)
                    continue;
                if (pass == 0) {
                    radix_count(radix, bins, key_make(found.index[n], convert_bits(found.sum[n]) & MAGNITUDE));
                } else {
                    args.all.index[to] = found.index[n];
                    args.all.value[to++] = found.sum[n];
                }
            }
            at += scan_total(scan);
            stay += scan_total(scan);
        }
        if (pass == 0) {
            if (threadIdx.x == 0)
                scratch->counts[blockIdx.x] = stay;
            radix_bins_end(0, bins, scratch->pool_bins[0]);
        }
        grid_sync(scratch);
    }
    if (bad)
        (void)atomicOr(&args.words->nonfinite, 1u);

    const uint32_t most = args.k < total ? args.k : total;
    const int room = total <= args.all.capacity, kept_room = room && most <= args.kept.capacity;
    if (kept_room)
        keep(&args, total, total > args.k ? all_bound(&args, radix, total) : 0);
    bins_clear(scratch->pool_bins[0], CUDA_LEVELS * CUDA_BINS);
    if (is_first_thread()) {
        *args.all.count = kept_room ? total : 0;
        *args.kept.count = kept_room ? most : 0;
        if (!kept_room)
            words_fail(args.words, DEVICE_NO_ROOM);
    }
}
