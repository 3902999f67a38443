/* Memory of a reducer on the CPU: created, destroyed, resized, read and written. */
#include "device/cpu/store.h"

#include <string.h>
#include <sys/mman.h>

#include "util/memory.h"

/* One entry for each float, in huge pages where the system has them: commit reads k places all over the residual, and
 * with small pages each of them misses the TLB as well as the cache. */
static gtopk_status_t vector_create(uint64_t dim, const char *what, float **out)
{
    gtopk_status_t status = memory_alloc(out, (size_t)dim, sizeof **out, what);
#ifdef MADV_HUGEPAGE
    const uintptr_t page = 2u << 20;
    uintptr_t begin = ((uintptr_t)*out + page - 1) & ~(page - 1);
    uintptr_t end = ((uintptr_t)*out + (uintptr_t)dim * sizeof **out) & ~(page - 1);
    if (status == GTOPK_OK && begin < end)
        (void)madvise((void *)begin, end - begin, MADV_HUGEPAGE);
#endif
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
    status = vector_create(dim, "the residual", &store->residual);
    if (status == GTOPK_OK && (with & DEVICE_WITH_VELOCITY))
        status = vector_create(dim, "the velocity", &store->velocity);
    if (status == GTOPK_OK && (with & DEVICE_WITH_SECOND))
        status = vector_create(dim, "the second residual", &store->second);
    if (status == GTOPK_OK && store->second && store->velocity)
        status = vector_create(dim, "the second velocity", &store->second_velocity);
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
    swap(&store->residual, &store->second);
    swap(&store->velocity, &store->second_velocity);
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
    if (length)
        memcpy(out, vector_of(store, which) + offset, (size_t)length * sizeof *out);
    return GTOPK_OK;
}

gtopk_status_t store_write(device_store_t *store, int which, uint64_t offset, uint64_t length, const float *in,
                           void *stream)
{
    (void)stream;
    if (length)
        memcpy(vector_of(store, which) + offset, in, (size_t)length * sizeof *in);
    hint_reset(&store->hint);
    return GTOPK_OK;
}

gtopk_status_t store_square(device_store_t *store, double *sum, void *stream)
{
    (void)stream;
    *sum = 0.0;
    for (uint64_t i = 0; i < store->dim; i++)
        *sum += (double)store->residual[i] * (double)store->residual[i];
    return GTOPK_OK;
}

void store_parallel(const device_store_t *store, int64_t items, int64_t grain, gtopk_parallel_body_fn body, void *arg)
{
    if (store->parallel.parallel_for && items > grain)
        store->parallel.parallel_for(store->parallel.context, 0, items, grain, body, arg);
    else if (items > 0)
        body(0, items, arg);
}
