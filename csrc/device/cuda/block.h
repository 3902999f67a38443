/* What the threads of a block, and the blocks of a grid, do together. All threads of the block call these. */
#ifndef GTOPK_DEVICE_CUDA_BLOCK_H
#define GTOPK_DEVICE_CUDA_BLOCK_H

#include "device/cuda/kernel.h"

/* A sum over those before this one, and over all; in one word, because a pointer to a result would need local memory. */
typedef uint64_t scan_t;

static inline scan_t scan_make(uint32_t before, uint32_t total)
{
    return (uint64_t)total << 32 | before;
}

static inline uint32_t scan_before(scan_t scan)
{
    return (uint32_t)scan;
}

static inline uint32_t scan_total(scan_t scan)
{
    return (uint32_t)(scan >> 32);
}

/* Over the threads of the block. */
FUNCTION scan_t block_scan(uint32_t value)
{
    __shared__ uint32_t sums[CUDA_WARPS];
    const uint32_t lane = lane_id();
    uint32_t inclusive = value, before = 0, all = 0;
    UNROLL
    for (uint32_t by = 1; by < CUDA_WARP; by *= 2) {
        const uint32_t other = __shfl_up_sync(ALL_LANES, inclusive, by);
        inclusive += lane >= by ? other : 0;
    }
    if (lane == CUDA_WARP - 1)
        sums[warp_id()] = inclusive;
    __syncthreads();
    UNROLL
    for (uint32_t w = 0; w < CUDA_WARPS; w++) {
        before += w < warp_id() ? sums[w] : 0;
        all += sums[w];
    }
    __syncthreads();
    return scan_make(before + inclusive - value, all);
}

static inline uint32_t block_sum(uint32_t value)
{
    return scan_total(block_scan(value));
}

/* The largest value of the block goes into *to. */
FUNCTION void block_max_into(uint32_t value, uint32_t *to)
{
    UNROLL
    for (uint32_t by = CUDA_WARP / 2; by > 0; by /= 2) {
        const uint32_t other = __shfl_xor_sync(ALL_LANES, value, by);
        value = other > value ? other : value;
    }
    if (lane_id() == 0 && value != 0)
        (void)atomicMax(to, value);
}

/* ---- the grid ---- */

/* All blocks wait for all. What was written before is seen after. The word needs no reset: block 0 adds what turns its
 * highest bit over when the others have added 1 (so do CUDA's cooperative groups). */
FUNCTION void grid_sync(cuda_scratch_t *scratch)
{
    __syncthreads();
    if (threadIdx.x == 0) {
        const uint32_t add = blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1u;
        const uint32_t old = add_in_order(&scratch->barrier, add);
        while (((old ^ read_in_order(&scratch->barrier)) & 0x80000000u) == 0)
            SPIN();
    }
    __syncthreads();
}

/* 1 for one thread, of the block that comes last: all others have done what is before their call. Cheaper than grid_sync,
 * which all wait for. */
FUNCTION int grid_is_done(cuda_scratch_t *scratch)
{
    __syncthreads();
    if (threadIdx.x != 0)
        return 0;
    if (add_in_order(&scratch->finished, 1u) != gridDim.x - 1)
        return 0;
    scratch->finished = 0;
    return 1;
}

/* The part of [0, count) that is this block's. */
static inline uint64_t slice_begin(uint64_t count, uint32_t block)
{
    return count / gridDim.x * block + count % gridDim.x * block / gridDim.x;
}

/* Over what each block has counted into counts. After a grid_sync. */
FUNCTION scan_t grid_scan(const uint32_t *counts)
{
    uint32_t before = 0, all = 0;
    ROLLED
    for (uint32_t b = threadIdx.x; b < gridDim.x; b += CUDA_THREADS) {
        before += b < blockIdx.x ? counts[b] : 0;
        all += counts[b];
    }
    all = block_sum(all);
    return scan_make(block_sum(before), all);
}

#endif
