/* What a round gives back, and copies of sets. */
#include "device/cuda/block.h"
#include "device/cuda/sets.h"

KERNEL(deposit, deposit_args)
{
    __shared__ uint32_t sent_begin, sent_end;
    cuda_scratch_t *scratch = args.scratch;
    const uint32_t all = *args.all.count, room = all <= args.out.capacity, count = room ? all : 0,
                   sent = *args.sent.count;
    const uint32_t begin = (uint32_t)slice_begin(count, blockIdx.x), end = (uint32_t)slice_begin(count, blockIdx.x + 1);
    if (threadIdx.x < 2 && begin < end) {
        const uint32_t at = threadIdx.x == 0 ? lower_bound(args.sent.index, 0, sent, args.all.index[begin])
                            : end < count    ? lower_bound(args.sent.index, 0, sent, args.all.index[end])
                                             : sent;
        *(threadIdx.x == 0 ? &sent_begin : &sent_end) = at;
    }
    __syncthreads();
    uint32_t at = 0, total = 0;
    ROLLED
    for (uint32_t pass = 0; pass < 2; pass++) {
        ROLLED
        for (uint64_t tile = begin; tile < end; tile += CUDA_THREADS) {
            const uint64_t i = tile + threadIdx.x;
            float back = 0.0f;
            if (i < end) {
                const float gone = value_at(&args.sent, sent_begin, sent_end, args.all.index[i]);
                back = (args.all.value[i] - gone) * args.share;
            }
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
