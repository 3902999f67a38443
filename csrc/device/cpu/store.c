/* Memory of a reducer on the CPU: created, destroyed, resized, read and written. */
#include "device/cpu/store.h"

#include <string.h>
#include <sys/mman.h>

#include "util/memory.h"

/* In huge pages where the system has them: commit reads k places all over the residual, and with small pages each of them
 * misses the TLB as well as the cache. */
static void advise(void *vector, size_t bytes)
{
#ifdef MADV_HUGEPAGE
    const uintptr_t page = 2u << 20;
    uintptr_t begin = ((uintptr_t)vector + page - 1) & ~(page - 1);
    uintptr_t end = ((uintptr_t)vector + bytes) & ~(page - 1);
    if (vector && begin < end)
        (void)madvise((void *)begin, end - begin, MADV_HUGEPAGE);
#else
    (void)vector;
    (void)bytes;
#endif
}

/* `size` bytes an entry, in *out. */
static gtopk_status_t vector_create(void *out, uint64_t dim, size_t size, const char *what)
{
    const gtopk_status_t status = memory_alloc(out, (size_t)dim, size, what);
    void *vector;
    memcpy(&vector, out, sizeof vector);
    advise(vector, (size_t)dim * size);
    return status;
}

/* The residual itself or its second one: floats, or in bf16. */
static gtopk_status_t residual_create(uint64_t dim, const char *what, int in_bf16, float **floats, uint16_t **narrow)
{
    return in_bf16 ? vector_create(narrow, dim, sizeof **narrow, what)
                   : vector_create(floats, dim, sizeof **floats, what);
}

static gtopk_status_t arrays_create(device_store_t *store, int with)
{
    const uint64_t dim = store->dim;
    const int in_bf16 = with & DEVICE_WITH_BF16, second = with & DEVICE_WITH_SECOND;
    gtopk_status_t status = residual_create(dim, "the residual", in_bf16, &store->residual, &store->narrow);
    if (status == GTOPK_OK && (with & DEVICE_WITH_VELOCITY))
        status = vector_create(&store->velocity, dim, sizeof *store->velocity, "the velocity");
    if (status == GTOPK_OK && second)
        status = residual_create(dim, "the second residual", in_bf16, &store->second, &store->second_narrow);
    if (status == GTOPK_OK && second && store->velocity)
        status = vector_create(&store->second_velocity, dim, sizeof *store->second_velocity, "the second velocity");
    return status;
}

gtopk_status_t store_create(device_t *device, uint64_t dim, uint64_t k, int with, const device_parallel_t *parallel,
                            device_store_t **out)
{
    device_store_t *store = NULL;
    gtopk_status_t status = memory_alloc(&store, 1, sizeof *store, "a store");
    if (status != GTOPK_OK)
        return status;
    status = pool_create(&store->pool, dim, k);
    if (status != GTOPK_OK) {
        memory_free(store);
        return status;
    }
    if (pthread_mutex_init(&store->lock, NULL) != 0) {
        pool_destroy(&store->pool);
        memory_free(store);
        return STATUS_NOMEM("the lock of a store", sizeof store->lock);
    }
    store->kernels = cpu_kernels(device);
    store->dim = dim;
    store->k = k;
    if (parallel)
        store->parallel = *parallel;
    hint_reset(&store->hint);
    status = arrays_create(store, with);
    if (status != GTOPK_OK) {
        store_destroy(store);
        return status;
    }
    *out = store;
    return GTOPK_OK;
}

void store_destroy(device_store_t *store)
{
    if (!store)
        return;
    memory_free(store->residual);
    memory_free(store->velocity);
    memory_free(store->second);
    memory_free(store->second_velocity);
    memory_free(store->narrow);
    memory_free(store->second_narrow);
    pool_destroy(&store->pool);
    (void)pthread_mutex_destroy(&store->lock);
    memory_free(store);
}

static void swap(float **a, float **b)
{
    float *const was = *a;
    *a = *b;
    *b = was;
}

gtopk_status_t store_swap(device_store_t *store, void *stream)
{
    (void)stream;
    uint16_t *const narrow = store->narrow;
    swap(&store->residual, &store->second);
    swap(&store->velocity, &store->second_velocity);
    store->narrow = store->second_narrow;
    store->second_narrow = narrow;
    return GTOPK_OK;
}

gtopk_status_t store_seed(device_store_t *store, uint64_t seed, void *stream)
{
    (void)stream;
    store->seed = seed;
    return GTOPK_OK;
}

gtopk_status_t store_resize(device_store_t *store, uint64_t k)
{
    pool_t pool;
    gtopk_status_t status = pool_create(&pool, store->dim, k);
    if (status != GTOPK_OK)
        return status;
    pool_destroy(&store->pool);
    store->pool = pool;
    store->k = k;
    hint_reset(&store->hint); /* it was learnt for another k */
    return GTOPK_OK;
}

static float *vector_of(const device_store_t *store, int which)
{
    return which == DEVICE_VELOCITY ? store->velocity : store->residual;
}

gtopk_status_t store_read(device_store_t *store, int which, uint64_t offset, uint64_t length, float *out, void *stream)
{
    (void)stream;
    if (which == DEVICE_RESIDUAL && store->narrow)
        store->kernels->widen(store->narrow + offset, (size_t)length, out);
    else if (length)
        memcpy(out, vector_of(store, which) + offset, (size_t)length * sizeof *out);
    return GTOPK_OK;
}

gtopk_status_t store_write(device_store_t *store, int which, uint64_t offset, uint64_t length, const float *in,
                           void *stream)
{
    (void)stream;
    if (which == DEVICE_RESIDUAL && store->narrow) {
        const uint32_t key = dither_key(store->seed, DITHER_WRITE);
        for (uint64_t i = 0; i < length; i++)
            store_put(store, offset + i, in[i], key);
    } else if (length)
        memcpy(vector_of(store, which) + offset, in, (size_t)length * sizeof *in);
    hint_reset(&store->hint);
    return GTOPK_OK;
}

gtopk_status_t store_square(device_store_t *store, double *sum, void *stream)
{
    (void)stream;
    *sum = 0.0;
    for (uint64_t i = 0; i < store->dim; i++)
        *sum += (double)store_value(store, i) * (double)store_value(store, i);
    return GTOPK_OK;
}

void store_parallel(const device_store_t *store, int64_t items, int64_t grain, gtopk_parallel_body_fn body, void *arg)
{
    if (store->parallel.parallel_for && items > grain)
        store->parallel.parallel_for(store->parallel.context, 0, items, grain, body, arg);
    else if (items > 0)
        body(0, items, arg);
}
