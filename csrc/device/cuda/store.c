/* Memory of a reducer on the GPU, and what waits for the stream: reading, writing, sums, selection from an array. */
#include "device/cuda/cuda.h"

#include <string.h>

#include "device/dither.h"
#include "util/memory.h"

/* ---- candidates ---- */

static void pool_release(device_cuda_t *device, cuda_memory_t *memory)
{
    cuda_release(device, memory->pool.keys);
    cuda_release(device, memory->chosen);
    memory->pool.keys = NULL;
    memory->chosen = NULL;
}

/* Room for the candidates of k among memory->dim. */
static gtopk_status_t pool_allocate(device_cuda_t *device, cuda_memory_t *memory, uint64_t k)
{
    memory->k = k;
    memory->pool.capacity = cuda_pool_capacity(memory->dim, k);
    gtopk_status_t status = cuda_allocate(device, memory->pool.capacity * sizeof *memory->pool.keys, "candidates",
                                          &memory->pool.keys);
    if (status == GTOPK_OK)
        status = cuda_allocate(device, (size_t)k * sizeof *memory->chosen, "chosen candidates", &memory->chosen);
    if (status != GTOPK_OK)
        pool_release(device, memory);
    return status;
}

static void memory_release(device_cuda_t *device, cuda_memory_t *memory)
{
    cuda_release(device, memory->residual);
    cuda_release(device, memory->velocity);
    cuda_release(device, memory->second);
    cuda_release(device, memory->narrow);
    cuda_release(device, memory->second_narrow);
    cuda_release(device, memory->second_velocity);
    cuda_release(device, memory->pool.state);
    cuda_release(device, memory->buckets);
    pool_release(device, memory);
}

/* All but residual and velocity, for selection from memory->dim entries. */
static gtopk_status_t selection_allocate(device_cuda_t *device, cuda_memory_t *memory, uint64_t k)
{
    gtopk_status_t status = pool_allocate(device, memory, k);
    if (status == GTOPK_OK)
        status = cuda_allocate(device, sizeof *memory->pool.state, "the state of candidates", &memory->pool.state);
    if (status == GTOPK_OK)
        status = cuda_allocate(device, 2 * CUDA_BUCKETS * sizeof *memory->buckets, "buckets of indices",
                               &memory->buckets);
    return status;
}

/* ---- create, destroy, resize ---- */

/* Floats, or bf16. */
static gtopk_status_t residual_allocate(device_cuda_t *device, const cuda_memory_t *memory, int with, float **wide,
                                        uint16_t **narrow, const char *what)
{
    const size_t dim = (size_t)memory->dim;
    return with & DEVICE_WITH_BF16 ? cuda_allocate(device, dim * sizeof **narrow, what, narrow)
                                   : cuda_allocate(device, dim * sizeof **wide, what, wide);
}

static gtopk_status_t store_fill(device_cuda_t *device, cuda_memory_t *memory, uint64_t k, int with)
{
    const size_t bytes = (size_t)memory->dim * sizeof(float);
    const int twice = (with & DEVICE_WITH_SECOND) != 0;
    gtopk_status_t status = residual_allocate(device, memory, with, &memory->residual, &memory->narrow, "the residual");
    if (status == GTOPK_OK && (with & DEVICE_WITH_VELOCITY))
        status = cuda_allocate(device, bytes, "the velocity", &memory->velocity);
    if (status == GTOPK_OK && twice)
        status = residual_allocate(device, memory, with, &memory->second, &memory->second_narrow,
                                   "the second residual");
    if (status == GTOPK_OK && twice && memory->velocity)
        status = cuda_allocate(device, bytes, "the second velocity", &memory->second_velocity);
    if (status == GTOPK_OK)
        status = selection_allocate(device, memory, k);
    if (status == GTOPK_OK)
        status = launch_forget(&device->queue, memory, 0, device->last_stream);
    return status;
}

gtopk_status_t cuda_store_create(device_t *base, uint64_t dim, uint64_t k, int with, const device_parallel_t *parallel,
                                 device_store_t **out)
{
    device_cuda_t *device = (device_cuda_t *)base;
    device_store_t *store;
    (void)parallel;
    *out = NULL;
    gtopk_status_t status = memory_alloc(&store, 1, sizeof *store, "a store");
    if (status != GTOPK_OK)
        return status;
    store->device = device;
    store->memory.dim = dim;
    status = cuda_enter(device, device->last_stream);
    if (status == GTOPK_OK) {
        status = store_fill(device, &store->memory, k, with);
        if (status != GTOPK_OK)
            memory_release(device, &store->memory);
        cuda_leave(device);
    }
    if (status != GTOPK_OK)
        memory_free(store);
    else
        *out = store;
    return status;
}

void cuda_store_destroy(device_store_t *store)
{
    if (!store)
        return;
    device_cuda_t *device = store->device;
    const int entered = cuda_enter(device, device->last_stream) == GTOPK_OK;
    if (entered || device->allocator.release) /* the caller's pool gets its own back in any case */
        memory_release(device, &store->memory);
    if (entered)
        cuda_leave(device);
    memory_free(store);
}

static void swap(float **a, float **b)
{
    float *const was = *a;
    *a = *b;
    *b = was;
}

/* What was queued before has its own addresses. */
gtopk_status_t cuda_store_swap(device_store_t *store, void *stream)
{
    (void)stream;
    swap(&store->memory.residual, &store->memory.second);
    swap(&store->memory.velocity, &store->memory.second_velocity);
    uint16_t *const narrow = store->memory.narrow;
    store->memory.narrow = store->memory.second_narrow;
    store->memory.second_narrow = narrow;
    return GTOPK_OK;
}

gtopk_status_t cuda_store_resize(device_store_t *store, uint64_t k)
{
    device_cuda_t *device = store->device;
    cuda_memory_t resized = store->memory;
    gtopk_status_t status = cuda_enter(device, device->last_stream);
    if (status != GTOPK_OK)
        return status;
    resized.pool.keys = NULL;
    resized.chosen = NULL;
    status = pool_allocate(device, &resized, k);
    if (status == GTOPK_OK) {
        status = launch_forget(&device->queue, &resized, 0, device->last_stream); /* it was learnt for another k */
        pool_release(device, status == GTOPK_OK ? &store->memory : &resized);
    }
    if (status == GTOPK_OK)
        store->memory = resized;
    cuda_leave(device);
    return status;
}

gtopk_status_t cuda_store_seed(device_store_t *store, uint64_t seed, void *stream)
{
    (void)stream; /* it goes along with each launch */
    store->memory.seed = seed;
    return GTOPK_OK;
}

/* ---- between steps ---- */

/* A residual in bf16 comes to the upper half of `out`, and is widened from its beginning on. */
static gtopk_status_t narrow_read(const device_store_t *store, uint64_t offset, uint64_t length, float *out,
                                  void *stream)
{
    uint16_t *const raw = (uint16_t *)out + length;
    gtopk_status_t status = cuda_copy(store->device, raw, store->memory.narrow + offset, (size_t)length * sizeof *raw,
                                      stream);
    if (status == GTOPK_OK)
        status = cuda_wait(store->device, stream);
    for (uint64_t i = 0; i < length && status == GTOPK_OK; i++) {
        uint16_t bits;
        memcpy(&bits, raw + i, sizeof bits);
        const float value = convert_float_from_bf16(bits);
        memcpy(out + i, &value, sizeof value);
    }
    return status;
}

/* Waits, as the rounded values are this function's. */
static gtopk_status_t narrow_write(const device_store_t *store, uint64_t offset, uint64_t length, const float *in,
                                   void *stream)
{
    const uint32_t key = dither_key(store->memory.seed, DITHER_WRITE);
    uint16_t *rounded;
    gtopk_status_t status = memory_alloc(&rounded, (size_t)length, sizeof *rounded, "a residual to be written");
    if (status != GTOPK_OK)
        return status;
    for (uint64_t i = 0; i < length; i++)
        rounded[i] = dither_bf16(in[i], (uint32_t)(offset + i), key);
    status = cuda_copy(store->device, store->memory.narrow + offset, rounded, (size_t)length * sizeof *rounded, stream);
    if (status == GTOPK_OK)
        status = cuda_wait(store->device, stream);
    memory_free(rounded);
    return status;
}

static float *vector_of(const device_store_t *store, int which)
{
    return which == DEVICE_VELOCITY ? store->memory.velocity : store->memory.residual;
}

gtopk_status_t cuda_store_read(device_store_t *store, int which, uint64_t offset, uint64_t length, float *out,
                               void *stream)
{
    gtopk_status_t status = cuda_enter(store->device, stream);
    if (status != GTOPK_OK)
        return status;
    if (which == DEVICE_RESIDUAL && store->memory.narrow)
        status = narrow_read(store, offset, length, out, stream);
    else
        status = cuda_copy(store->device, out, vector_of(store, which) + offset, (size_t)length * sizeof *out, stream);
    if (status == GTOPK_OK)
        status = cuda_wait(store->device, stream);
    cuda_leave(store->device);
    return status;
}

gtopk_status_t cuda_store_write(device_store_t *store, int which, uint64_t offset, uint64_t length, const float *in,
                                void *stream)
{
    gtopk_status_t status = cuda_enter(store->device, stream);
    if (status != GTOPK_OK)
        return status;
    if (which == DEVICE_RESIDUAL && store->memory.narrow)
        status = narrow_write(store, offset, length, in, stream);
    else
        status = cuda_copy(store->device, vector_of(store, which) + offset, in, (size_t)length * sizeof *in, stream);
    if (status == GTOPK_OK)
        status = launch_forget(&store->device->queue, &store->memory, 0, stream);
    if (status == GTOPK_OK)
        status = cuda_wait(store->device, stream);
    cuda_leave(store->device);
    return status;
}

gtopk_status_t cuda_store_square(device_store_t *store, double *sum, void *stream)
{
    device_cuda_t *device = store->device;
    gtopk_status_t status = cuda_enter(device, stream);
    if (status != GTOPK_OK)
        return status;
    status = launch_square(&device->queue, &store->memory, device->number, stream);
    if (status == GTOPK_OK)
        status = cuda_wait(device, stream);
    if (status == GTOPK_OK)
        *sum = *device->number;
    cuda_leave(device);
    return status;
}

/* ---- without a store ---- */

gtopk_status_t cuda_array_select(device_t *base, const float *x, uint64_t n, uint64_t k,
                                 const device_parallel_t *parallel, device_set_t *out, void *stream)
{
    device_cuda_t *device = (device_cuda_t *)base;
    cuda_memory_t memory = {.dim = n};
    (void)parallel;
    gtopk_status_t status = cuda_enter(device, stream);
    if (status != GTOPK_OK)
        return status;
    status = selection_allocate(device, &memory, k < n ? k : n);
    if (status == GTOPK_OK)
        status = launch_array_select(&device->queue, &memory, x, k, out, stream);
    if (status == GTOPK_OK)
        status = cuda_wait(device, stream); /* its memory is released */
    memory_release(device, &memory);
    cuda_leave(device);
    return status;
}
