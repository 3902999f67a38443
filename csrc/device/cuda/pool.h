/* Candidates on their way into the pool. A warp collects them and takes room for many at once; those for which there is
 * none are counted, never forgotten. */
#ifndef GTOPK_DEVICE_CUDA_POOL_H
#define GTOPK_DEVICE_CUDA_POOL_H

#include "device/cuda/keys.h"

#define POOL_BUFFER 256u
#define POOL_OFFERS 4u /* that a warp makes in a row */

typedef struct pool_writer {
    uint64_t *keys; /* the warp's, in shared memory */
    uint32_t held;
} pool_writer_t;

static inline pool_writer_t pool_writer(void)
{
    __shared__ uint64_t buffer[CUDA_WARPS][POOL_BUFFER];
    pool_writer_t writer;
    writer.keys = buffer[warp_id()];
    writer.held = 0;
    return writer;
}

/* All lanes. */
static inline void pool_flush(pool_writer_t *writer, const cuda_pool_t *pool, uint32_t pass)
{
    uint32_t base = 0;
    if (writer->held == 0)
        return;
    if (lane_id() == 0)
        base = atomicAdd(&pool->state->offered[pass], writer->held);
    base = __shfl_sync(ALL_LANES, base, 0);
    __syncwarp(); /* a shuffle is no fence for what the lanes have written */
    ROLLED
    for (uint32_t i = lane_id(); i < writer->held; i += CUDA_WARP)
        if ((uint64_t)base + i < pool->capacity)
            pool->keys[base + i] = writer->keys[i];
    __syncwarp();
    writer->held = 0;
}

/* All threads of the block, at the end of a pass: what its warps still hold takes room by one atomic. With one a warp the
 * last of thousands would wait for all others. */
static inline void pool_finish(pool_writer_t *writer, const cuda_pool_t *pool, uint32_t pass)
{
    __shared__ uint32_t held[CUDA_WARPS], base;
    uint32_t before = 0, all = 0;
    if (lane_id() == 0)
        held[warp_id()] = writer->held;
    __syncthreads();
    UNROLL
    for (uint32_t w = 0; w < CUDA_WARPS; w++) {
        before += w < warp_id() ? held[w] : 0;
        all += held[w];
    }
    if (threadIdx.x == 0 && all != 0)
        base = atomicAdd(&pool->state->offered[pass], all);
    __syncthreads();
    ROLLED
    for (uint32_t i = lane_id(); i < writer->held; i += CUDA_WARP)
        if ((uint64_t)base + before + i < pool->capacity)
            pool->keys[base + before + i] = writer->keys[i];
    writer->held = 0;
}

/* All lanes: room for the next POOL_OFFERS offers. */
static inline void pool_make_room(pool_writer_t *writer, const cuda_pool_t *pool, uint32_t pass)
{
    if (writer->held > POOL_BUFFER - POOL_OFFERS * CUDA_WARP)
        pool_flush(writer, pool, pass);
}

/* All lanes, each with an entry that it wants to offer or not. */
static inline void pool_offer(pool_writer_t *writer, int wanted, uint64_t key)
{
    const uint32_t ballot = __ballot_sync(ALL_LANES, wanted);
    if (wanted)
        writer->keys[writer->held + (uint32_t)__popc(ballot & ((1u << lane_id()) - 1))] = key;
    writer->held += (uint32_t)__popc(ballot);
}

/* Whether `offered` candidates from `floor` up hold the k largest entries, or all that are not zero. */
static inline int pool_is_complete(uint32_t offered, uint32_t floor, uint32_t capacity, uint32_t k)
{
    return offered <= capacity && (offered >= k || floor <= 1);
}

#endif
