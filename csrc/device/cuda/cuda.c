/* The CUDA device: the table of operations. What is computed is in the kernels, how they are launched in launch.h. */
#include "device/cuda/cuda.h"

#include <string.h>

static device_cuda_t *of(device_t *device)
{
    return (device_cuda_t *)device;
}

/* ---- memory ---- */

static gtopk_status_t op_allocate(device_t *base, size_t bytes, const char *what, void **out)
{
    device_cuda_t *device = of(base);
    gtopk_status_t status = cuda_enter(device, device->last_stream);
    if (status != GTOPK_OK)
        return status;
    status = cuda_allocate(device, bytes, what, out);
    cuda_leave(device);
    return status;
}

static void op_release(device_t *base, void *block)
{
    device_cuda_t *device = of(base);
    const int entered = block && cuda_enter(device, device->last_stream) == GTOPK_OK;
    if (entered || device->allocator.release) /* the caller's pool gets its own back in any case */
        cuda_release(device, block);
    if (entered)
        cuda_leave(device);
}

static gtopk_status_t op_allocate_pinned(device_t *base, size_t bytes, const char *what, void **out)
{
    device_cuda_t *device = of(base);
    gtopk_status_t status = cuda_enter(device, device->last_stream);
    *out = NULL;
    if (status != GTOPK_OK)
        return status;
    if (bytes > 0)
        status = cuda_check(device, device->driver->cuMemHostAlloc(out, bytes, CU_HOST_PORTABLE | CU_HOST_DEVICE_MAP),
                            "pinned memory");
    if (status != GTOPK_OK)
        status = status_prefix(status, "%s, %zu bytes", what, bytes);
    else if (bytes > 0)
        memset(*out, 0, bytes);
    cuda_leave(device);
    return status;
}

static void op_release_pinned(device_t *base, void *block)
{
    device_cuda_t *device = of(base);
    if (!block || cuda_enter(device, device->last_stream) != GTOPK_OK)
        return;
    (void)device->driver->cuMemFreeHost(block);
    cuda_leave(device);
}

/* ---- operations: each enters the context, launches, and leaves ---- */

#define WITHIN(device, stream, call)                     \
    do {                                                 \
        device_cuda_t *const gpu = (device);             \
        gtopk_status_t status = cuda_enter(gpu, stream); \
        if (status != GTOPK_OK)                          \
            return status;                               \
        status = (call);                                 \
        cuda_leave(gpu);                                 \
        return status;                                   \
    } while (0)

static gtopk_status_t op_copy(device_t *device, void *to, const void *from, size_t bytes, void *stream)
{
    WITHIN(of(device), stream, cuda_copy(gpu, to, from, bytes, stream));
}

static gtopk_status_t op_enter(device_t *base)
{
    const device_cuda_t *device = of(base);
    return cuda_check(device, device->driver->cuCtxPushCurrent(device->context), "entering the GPU's context");
}

static void op_leave(device_t *base)
{
    cuda_leave(of(base));
}

static gtopk_status_t op_synchronize(device_t *device, void *stream)
{
    WITHIN(of(device), stream, cuda_wait(gpu, stream));
}

static gtopk_status_t op_passed(device_t *base, void *stream, int *passed)
{
    device_cuda_t *device = of(base);
    *passed = 0;
    const gtopk_status_t status = op_enter(base);
    if (status != GTOPK_OK)
        return status;
    const cu_result_t result = device->driver->cuStreamQuery(stream);
    cuda_leave(device);
    *passed = result == CU_SUCCESS;
    return result == CU_NOT_READY ? GTOPK_OK : cuda_check(device, result, "asking the GPU how far it is");
}

/* Without a wait: kernels that are running see it too. */
static void op_halt(device_t *base)
{
    __atomic_store_n(of(base)->halt, 1u, __ATOMIC_SEQ_CST);
}

static gtopk_status_t op_step_begin(device_store_t *store, device_words_t *words, void *stream)
{
    WITHIN(store->device, stream, launch_begin(&gpu->queue, &store->memory, words, stream));
}

static gtopk_status_t op_accumulate(device_store_t *store, const device_span_t *spans, size_t count,
                                    const device_accumulate_t *params, device_words_t *words, void *stream)
{
    WITHIN(store->device, stream, launch_accumulate(&gpu->queue, &store->memory, spans, count, params, words, stream));
}

static gtopk_status_t op_select(device_store_t *store, uint64_t k, device_set_t *out, device_words_t *words,
                                void *stream)
{
    WITHIN(store->device, stream, launch_select(&gpu->queue, &store->memory, k, out, words, stream));
}

static gtopk_status_t op_commit(device_store_t *store, const device_journal_t *journal, const device_target_t *target,
                                const device_words_t *words, void *stream)
{
    WITHIN(store->device, stream, launch_commit(&gpu->queue, &store->memory, journal, target, words, stream));
}

static gtopk_status_t op_dense_gather(device_store_t *store, float *out, void *stream)
{
    const size_t bytes = (size_t)store->memory.dim * sizeof *out;
    if (store->memory.narrow)
        WITHIN(store->device, stream, launch_gather(&gpu->queue, &store->memory, out, stream));
    WITHIN(store->device, stream, cuda_copy(gpu, out, store->memory.residual, bytes, stream));
}

static gtopk_status_t op_dense_check(device_store_t *store, const float *sum, device_words_t *words, void *stream)
{
    WITHIN(store->device, stream, launch_dense_check(&gpu->queue, &store->memory, sum, words, stream));
}

static gtopk_status_t op_dense_commit(device_store_t *store, float *sum, uint32_t divisor,
                                      const device_target_t *target, device_words_t *words, void *stream)
{
    WITHIN(store->device, stream,
           launch_dense_commit(&gpu->queue, &store->memory, sum, divisor, target, words, stream));
}

static gtopk_status_t op_words_join(device_t *device, device_words_t *const *words, size_t count, int joined,
                                    void *stream)
{
    WITHIN(of(device), stream, launch_words_join(&gpu->queue, words, count, joined, stream));
}

static gtopk_status_t launch_and_wait(device_cuda_t *device, const device_outcome_t *outcomes, size_t count,
                                      void *stream)
{
    const gtopk_status_t status = launch_verdict(&device->queue, outcomes, count, stream);
    return status == GTOPK_OK ? cuda_wait(device, stream) : status;
}

static gtopk_status_t op_verdict(device_t *device, const device_outcome_t *outcomes, size_t count, void *stream)
{
    WITHIN(of(device), stream, launch_and_wait(gpu, outcomes, count, stream));
}

static gtopk_status_t op_encode(device_t *device, const device_set_t *set, const wire_header_t *header,
                                uint8_t *message, device_set_t *decoded, device_words_t *words, void *stream)
{
    WITHIN(of(device), stream, launch_encode(&gpu->queue, set, header, message, decoded, words, stream));
}

static gtopk_status_t op_address(device_t *device, uint8_t *message, uint32_t sender, uint16_t round, uint32_t k,
                                 const device_words_t *words, void *stream)
{
    WITHIN(of(device), stream, launch_address(&gpu->queue, message, sender, round, k, words, stream));
}

static gtopk_status_t op_decode(device_t *device, const uint8_t *message, size_t capacity, const wire_expect_t *expect,
                                device_set_t *out, device_words_t *words, void *stream)
{
    WITHIN(of(device), stream, launch_decode(&gpu->queue, message, capacity, expect, out, words, stream));
}

static gtopk_status_t op_merge(device_t *device, const device_set_t *a, const device_set_t *b, uint64_t k,
                               device_set_t *kept, device_set_t *all, device_words_t *words, void *stream)
{
    WITHIN(of(device), stream, launch_merge(&gpu->queue, a, b, k, kept, all, words, stream));
}

static gtopk_status_t op_deposit(device_t *device, const device_set_t *all, const device_set_t *sent, float share,
                                 device_set_t *out, device_words_t *words, void *stream)
{
    WITHIN(of(device), stream, launch_deposit(&gpu->queue, all, sent, share, out, words, stream));
}

static gtopk_status_t op_cut(device_t *device, const device_set_t *set, device_range_t range, device_set_t *out,
                             device_words_t *words, void *stream)
{
    WITHIN(of(device), stream, launch_cut(&gpu->queue, set, range, out, words, stream));
}

static gtopk_status_t op_widen(device_t *device, device_set_t *set, device_range_t range, void *stream)
{
    WITHIN(of(device), stream, launch_widen(&gpu->queue, set, range, stream));
}

static gtopk_status_t op_copy_set(device_t *device, const device_set_t *from, device_set_t *to, device_words_t *words,
                                  void *stream)
{
    WITHIN(of(device), stream, launch_copy_set(&gpu->queue, from, to, words, stream));
}

static gtopk_status_t op_stage(device_t *device, const device_span_t *spans, size_t count, const device_stage_t *params,
                               float *out, void *stream)
{
    WITHIN(of(device), stream, launch_stage(&gpu->queue, spans, count, params, out, stream));
}

static gtopk_status_t op_add_up(device_t *device, const float *parts, size_t stride, uint32_t count, float *out,
                                uint64_t length, void *stream)
{
    WITHIN(of(device), stream, launch_add_up(&gpu->queue, parts, stride, count, out, length, stream));
}

static gtopk_status_t op_append(device_t *device, const device_set_t *set, uint32_t offset, device_set_t *to,
                                device_words_t *words, void *stream)
{
    WITHIN(of(device), stream, launch_append(&gpu->queue, set, offset, to, words, stream));
}

static gtopk_status_t op_write(device_t *device, const device_set_t *final, uint32_t divisor,
                               const device_target_t *target, const device_words_t *words, void *stream)
{
    WITHIN(of(device), stream, launch_write(&gpu->queue, final, divisor, target, words, stream));
}

const device_ops_t cuda_ops = {
    .name = "cuda",
    .host_memory = 0,
    .close = cuda_close,
    .allocate = op_allocate,
    .release = op_release,
    .allocate_pinned = op_allocate_pinned,
    .release_pinned = op_release_pinned,
    .store_create = cuda_store_create,
    .store_destroy = cuda_store_destroy,
    .store_resize = cuda_store_resize,
    .store_seed = cuda_store_seed,
    .step_begin = op_step_begin,
    .accumulate = op_accumulate,
    .swap = cuda_store_swap,
    .select = op_select,
    .array_select = cuda_array_select,
    .commit = op_commit,
    .dense_gather = op_dense_gather,
    .dense_check = op_dense_check,
    .dense_commit = op_dense_commit,
    .store_read = cuda_store_read,
    .store_write = cuda_store_write,
    .store_square = cuda_store_square,
    .words_join = op_words_join,
    .verdict = op_verdict,
    .encode = op_encode,
    .address = op_address,
    .decode = op_decode,
    .merge = op_merge,
    .deposit = op_deposit,
    .cut = op_cut,
    .widen = op_widen,
    .copy = op_copy,
    .copy_set = op_copy_set,
    .stage = op_stage,
    .add_up = op_add_up,
    .append = op_append,
    .write = op_write,
    .synchronize = op_synchronize,
    .passed = op_passed,
    .enter = op_enter,
    .leave = op_leave,
    .halt = op_halt,
};
