/* A dense step: everything is sent. Also the sum of squares of the residual. */
#include "device/cuda/block.h"
#include "device/cuda/hint.h"
#include "device/cuda/spans.h"

/* A residual as floats. */
KERNEL(gather, gather_args)
{
    ROLLED
    for (uint64_t i = grid_thread(); i < args.dim; i += grid_threads())
        args.out[i] = residual_get(&args.residual, i);
}

KERNEL(dense_check, dense_check_args)
{
    uint32_t bad = 0;
    ROLLED
    for (uint64_t i = grid_thread(); i < args.dim; i += grid_threads())
        bad |= (uint32_t)!is_finite(args.sum[i]);
    if (bad)
        (void)atomicOr(&args.words->nonfinite, 1u);
    if (is_first_thread())
        args.words->count = args.dim;
}

/* With arrays: blocks take slices, which are walked twice. */
KERNEL(dense_mean, dense_mean_args)
{
    cuda_scratch_t *scratch = args.scratch;
    if (!words_commit(args.words))
        return;
    const uint64_t begin = slice_begin(args.dim, blockIdx.x), end = slice_begin(args.dim, blockIdx.x + 1);
    const float divisor = (float)args.divisor;
    uint32_t entries = 0;
    ROLLED
    for (uint64_t i = begin + threadIdx.x; i < end; i += CUDA_THREADS) {
        const float mean = args.sum[i] / divisor;
        args.sum[i] = mean;
        if (args.residual.narrow)
            args.residual.narrow[i] = 0;
        else
            args.residual.wide[i] = 0.0f;
        entries += mean != 0.0f;
    }
    if (is_first_thread())
        hint_reset(&args.state->hint, 1);
    if (!args.indices)
        return;
    entries = block_sum(entries);
    if (threadIdx.x == 0)
        scratch->counts[blockIdx.x] = entries;
    grid_sync(scratch);
    const scan_t offset = grid_scan(scratch->counts);
    uint64_t at = scan_before(offset);
    ROLLED
    for (uint64_t tile = begin; tile < end; tile += CUDA_THREADS) {
        const uint64_t i = tile + threadIdx.x;
        const float mean = i < end ? args.sum[i] : 0.0f;
        const scan_t scan = block_scan(mean != 0.0f);
        if (mean != 0.0f) {
            args.indices[at + scan_before(scan)] = (uint32_t)i;
            args.values[at + scan_before(scan)] = mean;
        }
        at += scan_total(scan);
    }
    if (is_first_thread())
        args.words->count = scan_total(offset);
}

/* The mean to spans of one type; what a 16-bit type cannot hold is all that stays in the residual. */
KERNEL(dense_spans, dense_spans_args)
{
    if (!words_commit(args.words))
        return;
    const uint32_t size = args.dtype == GTOPK_F32 ? 4 : 2;
    ROLLED
    for (uint32_t number = grid_warp(); number < args.spans.chunks; number += grid_warps()) {
        const chunk_t chunk = spans_chunk(&args.spans, number, size);
        ROLLED
        for (uint32_t i = lane_id(); i < CUDA_CHUNK; i += CUDA_WARP) {
            const int64_t at = chunk.begin + i;
            if (at < 0 || at >= (int64_t)chunk.length)
                continue;
            const uint64_t place = chunk.offset + (uint64_t)at;
            const float rest = entry_write(chunk.data, args.dtype, (uint64_t)at, args.mean[place]);
            if (rest != 0.0f)
                residual_add(&args.residual, place, rest, DITHER_MEAN);
        }
    }
}

/* ---- squares ---- */

/* The sum over the block, in the order of the threads; in thread 0. */
static inline double block_add(double value)
{
    __shared__ double values[CUDA_THREADS];
    double sum = 0.0;
    __syncthreads();
    values[threadIdx.x] = value;
    __syncthreads();
    if (threadIdx.x == 0)
        ROLLED
    for (uint32_t t = 0; t < CUDA_THREADS; t++)
        sum += values[t];
    return sum;
}

KERNEL(square, square_args)
{
    cuda_scratch_t *scratch = args.scratch;
    double sum = 0.0;
    ROLLED
    for (uint64_t i = grid_thread(); i < args.n; i += grid_threads()) {
        const double x = (double)residual_get(&args.x, i);
        sum += x * x;
    }
    sum = block_add(sum);
    if (threadIdx.x == 0)
        scratch->squares[blockIdx.x] = sum;
    grid_sync(scratch);
    if (!is_first_thread())
        return;
    sum = 0.0;
    ROLLED
    for (uint32_t b = 0; b < gridDim.x; b++)
        sum += scratch->squares[b];
    *args.sum = sum;
}
