/* A set's part in a range of indices, and the way back. */
#include "device/cuda/block.h"

KERNEL(cut, cut_args)
{
    cuda_scratch_t *scratch = args.scratch;
    const uint32_t count = *args.set.count;
    const uint32_t begin = (uint32_t)slice_begin(count, blockIdx.x), end = (uint32_t)slice_begin(count, blockIdx.x + 1);
    uint32_t at = 0, total = 0;
    ROLLED
    for (uint32_t pass = 0; pass < 2; pass++) {
        if (pass == 1) {
            const scan_t offset = grid_scan(scratch->counts);
            at = scan_before(offset);
            total = scan_total(offset);
            if (total > args.out.capacity)
                break;
        }
        ROLLED
        for (uint64_t tile = begin; tile < end; tile += CUDA_THREADS) {
            const uint64_t i = tile + threadIdx.x;
            const uint32_t index = i < end ? args.set.index[i] : 0;
            const int stays = i < end && range_has(args.range, index);
            const scan_t scan = block_scan((uint32_t)stays);
            if (pass == 1 && stays) {
                args.out.index[at + scan_before(scan)] = range_inside(args.range, index);
                args.out.value[at + scan_before(scan)] = args.set.value[i];
            }
            at += scan_total(scan);
        }
        if (pass == 0) {
            if (threadIdx.x == 0)
                scratch->counts[blockIdx.x] = at;
            grid_sync(scratch);
        }
    }
    if (is_first_thread()) {
        const int room = total <= args.out.capacity;
        *args.out.count = room ? total : 0;
        if (!room)
            words_fail(args.words, DEVICE_NO_ROOM);
    }
}

KERNEL(widen, widen_args)
{
    const uint32_t count = *args.set.count;
    ROLLED
    for (uint64_t i = grid_thread(); i < count; i += grid_threads())
        args.set.index[i] = range_outside(args.range, args.set.index[i]);
}
