/* The candidates of a step: a streaming top-k. Entries are offered from any thread; those below the bound are let go.
 * When the pool is full it is cut to its k largest, and the bound rises to the smallest of them. So memory is O(k), a
 * bound that starts too low costs little, and only one that starts too high can leave the answer open. Knows no
 * residual, no kernels and no hints. */
#ifndef GTOPK_DEVICE_CPU_POOL_H
#define GTOPK_DEVICE_CPU_POOL_H

#include <stdatomic.h>
#include <stdint.h>

#include "device/cpu/keys.h"
#include "device/cpu/kernels.h"
#include "util/status.h"

typedef struct pool {
    uint64_t *keys, *scratch;
    size_t capacity, count, k;
    uint32_t floor;         /* smaller magnitudes were let go from the start */
    uint64_t offered;       /* candidates since pool_reset */
    _Atomic uint64_t bound; /* smaller keys are not wanted */
    int cut;                /* the bound is the key of an entry in the pool, which has k entries not below it */
} pool_t;

/* For the k largest of dim entries, 1 <= k <= dim. */
gtopk_status_t pool_create(pool_t *pool, uint64_t dim, uint64_t k);
void pool_destroy(pool_t *pool);

/* Empties the pool. Entries whose |v| has bits below `magnitude` (at least 1: zeros are never candidates) are let go.
 */
void pool_reset(pool_t *pool, uint32_t magnitude);

/* What a kernel needs to know: an entry with index >= first is wanted only if the bits of its |v| are above this. */
uint32_t pool_above(const pool_t *pool, uint32_t first);

/* Takes what kernels have found, and empties it. The caller holds the pool's lock, where there are several threads. */
void pool_offer(pool_t *pool, kernel_found_t *found);

/* Whether the k largest entries of all that were offered are in the pool, or all non-zeros where there are fewer: what
 * it let go was beaten by k entries, or was zero, or lies below k entries. */
int pool_is_complete(const pool_t *pool, size_t k);

/* Cuts the pool to its k largest entries, k <= the pool's k; fewer stay as they are. */
void pool_cut(pool_t *pool, size_t k);

#endif
