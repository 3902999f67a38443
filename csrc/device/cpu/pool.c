/* Streaming top-k of the candidates. */
#include "device/cpu/pool.h"

#include "util/memory.h"

/* Room beyond 2k: cutting costs a few passes over the pool, and this makes it rare for small k. */
#define POOL_ROOM 32768u

gtopk_status_t pool_create(pool_t *pool, uint64_t dim, uint64_t k)
{
    uint64_t capacity = 2 * k + POOL_ROOM;
    capacity = (capacity < dim ? capacity : dim) + 2 * KERNEL_BLOCK;
    *pool = (pool_t){.capacity = (size_t)capacity, .k = (size_t)k};
    gtopk_status_t status = memory_alloc(&pool->keys, pool->capacity, sizeof *pool->keys, "candidates");
    if (status == GTOPK_OK)
        status = memory_alloc(&pool->scratch, pool->capacity, sizeof *pool->scratch, "candidates");
    if (status != GTOPK_OK)
        pool_destroy(pool);
    pool_reset(pool, 1);
    return status;
}

void pool_destroy(pool_t *pool)
{
    memory_free(pool->keys);
    memory_free(pool->scratch);
    pool->keys = pool->scratch = NULL;
}

void pool_reset(pool_t *pool, uint32_t magnitude)
{
    pool->count = 0;
    pool->offered = 0;
    pool->cut = 0;
    pool->floor = magnitude;
    /* Of the entries with this magnitude the one with the highest index has the smallest key. */
    atomic_store_explicit(&pool->bound, key_make(UINT32_MAX, magnitude), memory_order_relaxed);
}

uint32_t pool_above(const pool_t *pool, uint32_t first)
{
    uint64_t bound = atomic_load_explicit(&pool->bound, memory_order_relaxed);
    /* On a tie the lower index wins: behind the bound's own index equal magnitudes lose. */
    return key_magnitude(bound) - (first <= key_index(bound));
}

void pool_offer(pool_t *pool, kernel_found_t *found)
{
    if (pool->count + found->count > pool->capacity)
        pool_cut(pool, pool->k);
    uint64_t *to = pool->keys + pool->count;
    for (uint32_t i = 0; i < found->count; i++)
        to[i] = key_make(found->index[i], found->bits[i]);
    pool->count += found->count;
    pool->offered += found->count;
    found->count = 0;
}

int pool_is_complete(const pool_t *pool, size_t k)
{
    return pool->cut || pool->floor <= 1 || pool->count >= k;
}

void pool_cut(pool_t *pool, size_t k)
{
    if (pool->count <= k)
        return;
    uint64_t smallest = keys_keep_largest(pool->keys, pool->count, k, pool->scratch);
    pool->count = k;
    pool->cut = 1;
    atomic_store_explicit(&pool->bound, smallest, memory_order_relaxed);
}
