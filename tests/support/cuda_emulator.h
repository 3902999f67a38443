/* Runs CUDA kernels that are compiled as C: each thread of the grid is a fibre, on one thread of the host. For tests only.
 *
 * A fibre runs until it must wait (barrier, ballot, shuffle, spin) or ends; which one is next is the order's choice. Blocks
 * that are resident together take turns and have shared memory of their own, which holds garbage at first. What a GPU
 * would hang on, or leaves undefined (a barrier that not all threads reach, lanes of one warp at different shuffles),
 * is an error with a text. A kernel sees the names of CUDA that are defined here, and no others. */
#ifndef TESTS_SUPPORT_CUDA_EMULATOR_H
#define TESTS_SUPPORT_CUDA_EMULATOR_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* ---- for tests ---- */

typedef enum emulator_order {
    EMULATOR_FORWARD,  /* threads and blocks by number */
    EMULATOR_BACKWARD, /* the other way round */
    EMULATOR_SHUFFLED, /* anew each time; atomics and single blocks are no safe places either */
    EMULATOR_ORDERS
} emulator_order_t;

typedef void (*emulator_kernel_fn)(const void *args);

/* Runs a grid to its end: 0, or -1 with emulator_error() saying what went wrong. cooperative: all blocks are resident.
 * Threads of the host take turns. */
int emulator_run(emulator_kernel_fn kernel, const void *args, unsigned grid, unsigned block, int cooperative,
                 emulator_order_t order, uint64_t seed);
const char *emulator_error(void);

/* For cuda_races.c: the thread that runs, and what it has waited for. Outside of a grid `runs` is 0. */
typedef struct emulator_moment {
    int runs;
    unsigned slot, block, thread, line; /* slot: a place for a resident block; line: of the last barrier */
    uint64_t epoch;                     /* another one after each barrier, and for each block */
    unsigned synced;                    /* __syncwarp's that its warp has passed */
} emulator_moment_t;
emulator_moment_t emulator_moment(void);
void emulator_fail(const char *text);              /* ends the grid */
size_t emulator_shared_place(const void *address); /* SIZE_MAX: no shared memory */
size_t emulator_shared_bytes(void);

/* ---- what a kernel sees ---- */

typedef struct emulator_dim {
    unsigned x;
} emulator_dim_t;

typedef struct emulator_place {
    emulator_dim_t thread, block, block_size, grid_size;
} emulator_place_t;

extern emulator_place_t emulator_place; /* of the fibre that runs */

#define threadIdx emulator_place.thread
#define blockIdx emulator_place.block
#define blockDim emulator_place.block_size
#define gridDim emulator_place.grid_size

/* Variables of a block: the emulator finds them in this section. */
#define __shared__ static __attribute__((section("cuda_shared")))

typedef enum emulator_warp_op {
    EMULATOR_SYNC,
    EMULATOR_BALLOT,
    EMULATOR_SHUFFLE, /* argument: source lane */
    EMULATOR_SHUFFLE_UP,
    EMULATOR_SHUFFLE_DOWN,
    EMULATOR_SHUFFLE_XOR,
    EMULATOR_WARP_OPS
} emulator_warp_op_t;

void emulator_barrier(int line);
uint32_t emulator_warp(emulator_warp_op_t op, uint32_t mask, uint32_t value, uint32_t argument, int line);
void emulator_spin(void);
void emulator_atomic(const void *address);
void emulator_saw_atomic(const void *address); /* cuda_races.c has one that does something */

#define __syncthreads() emulator_barrier(__LINE__)
#define __syncwarp() ((void)emulator_warp(EMULATOR_SYNC, 0xffffffffu, 0, 0, __LINE__))
#define __ballot_sync(mask, predicate) emulator_warp(EMULATOR_BALLOT, mask, (predicate) != 0, 0, __LINE__)
#define __any_sync(mask, predicate) (__ballot_sync(mask, predicate) != 0)
#define __shfl_sync(mask, value, lane) emulator_warp(EMULATOR_SHUFFLE, mask, value, lane, __LINE__)
#define __shfl_up_sync(mask, value, by) emulator_warp(EMULATOR_SHUFFLE_UP, mask, value, by, __LINE__)
#define __shfl_down_sync(mask, value, by) emulator_warp(EMULATOR_SHUFFLE_DOWN, mask, value, by, __LINE__)
#define __shfl_xor_sync(mask, value, by) emulator_warp(EMULATOR_SHUFFLE_XOR, mask, value, by, __LINE__)
#define __threadfence() ((void)0)

static inline int __popc(uint32_t x)
{
    return __builtin_popcount(x);
}

static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}

static inline int __clzll(long long x)
{
    return x == 0 ? 64 : __builtin_clzll((unsigned long long)x);
}

/* One for each type and operation: C has no overloading. */
#define EMULATOR_ATOMIC(name, type, result)                                                 \
    __attribute__((unused, no_sanitize_thread)) static type name(type *address, type value) \
    {                                                                                       \
        emulator_atomic(address);                                                           \
        const type old = *(volatile type *)address;                                         \
        *(volatile type *)address = (type)(result);                                         \
        return old;                                                                         \
    }

EMULATOR_ATOMIC(emulator_atomic_add32, uint32_t, old + value)
EMULATOR_ATOMIC(emulator_atomic_or32, uint32_t, old | value)
EMULATOR_ATOMIC(emulator_atomic_max32, uint32_t, old > value ? old : value)

#define atomicAdd emulator_atomic_add32
#define atomicOr emulator_atomic_or32
#define atomicMax emulator_atomic_max32

/* Vectors are read and written as one; the sanitizer sees to it that they are aligned. */
typedef struct uint4 {
    uint32_t x, y, z, w;
} __attribute__((aligned(16))) uint4;

typedef struct uint2 {
    uint32_t x, y;
} __attribute__((aligned(8))) uint2;

#define __ldcs(address) (*(address))
#define __stcs(address, value) ((void)(*(address) = (value)))

#endif
