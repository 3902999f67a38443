/* What a round gives back, and copies of sets. */
#include "device/cuda/block.h"
#include "device/cuda/sets.h"

/* What an entry of `all` gives back. The block looks at these sent entries; the indices of the first are `near`. */
static inline float given_back(const deposit_args_t *args, const uint32_t *near, uint32_t sent_begin, uint32_t sent_end,
                               uint64_t i)
{
    const uint32_t looked_at = sent_end - sent_begin, most = looked_at < CUDA_THREADS ? looked_at : CUDA_THREADS;
    const uint32_t index = args->all.index[i];
    uint32_t at = sent_begin + lower_bound(near, 0, most, index);
    if (at == sent_begin + most) /* beyond */
        at = lower_bound(args->sent.index, at, sent_end, index);
    const float gone = at < sent_end && args->sent.index[at] == index ? args->sent.value[at] : 0.0f;
    return (args->all.value[i] - gone) * args->share;
}

KERNEL(deposit, deposit_args)
{
    __shared__ uint32_t bounds[2], near[CUDA_THREADS];
    cuda_scratch_t *scratch = args.scratch;
    const uint32_t all = *args.all.count, room = all <= args.out.capacity, count = room ? all : 0,
                   sent = *args.sent.count;
    const uint32_t begin = (uint32_t)slice_begin(count, blockIdx.x), end = (uint32_t)slice_begin(count, blockIdx.x + 1);
    if (warp_id() < 2 && begin < end) {
        const uint32_t edge = warp_id() == 0 ? begin : end;
        const uint32_t at = edge < count ? warp_lower_bound(args.sent.index, 0, sent, args.all.index[edge]) : sent;
        if (lane_id() == 0)
            bounds[warp_id()] = at;
    }
    __syncthreads();
    const uint32_t sent_begin = begin < end ? bounds[0] : 0, sent_end = begin < end ? bounds[1] : 0;
    near[threadIdx.x] = sent_begin + threadIdx.x < sent_end ? args.sent.index[sent_begin + threadIdx.x] : 0;
    __syncthreads();

    /* Once to count, once to write; with one entry a thread what it found stays in a register. */
    const int once = end - begin <= CUDA_THREADS;
    uint32_t at = 0, total = 0;
    float back = 0.0f;
    ROLLED
    for (uint32_t pass = 0; pass < 2; pass++) {
        ROLLED
        for (uint64_t tile = begin; tile < end; tile += CUDA_THREADS) {
            const uint64_t i = tile + threadIdx.x;
            if (pass == 0 || !once)
                back = i < end ? given_back(&args, near, sent_begin, sent_end, i) : 0.0f;
            const scan_t scan = block_scan(back != 0.0f);
            if (pass == 1 && back != 0.0f) {
                args.out.index[at + scan_before(scan)] = args.all.index[i];
                args.out.value[at + scan_before(scan)] = back;
            }
            at += scan_total(scan);
        }
        if (pass == 1)
            break;
        if (threadIdx.x == 0)
            scratch->counts[blockIdx.x] = at;
        grid_sync(scratch);
        const scan_t offset = grid_scan(scratch->counts);
        at = scan_before(offset);
        total = scan_total(offset);
    }
    if (is_first_thread()) {
        *args.out.count = total;
        if (!room)
            words_fail(args.words, DEVICE_NO_ROOM);
    }
}

KERNEL(copy_set, copy_set_args)
{
    const uint32_t count = *args.from.count;
    const int room = count <= args.to.capacity;
    ROLLED
    for (uint64_t i = grid_thread(); room && i < count; i += grid_threads()) {
        args.to.index[i] = args.from.index[i];
        args.to.value[i] = args.from.value[i];
    }
    if (is_first_thread()) {
        *args.to.count = room ? count : 0;
        if (!room)
            words_fail(args.words, DEVICE_NO_ROOM);
    }
}
