/* The language of the kernels: C that is C++ as well, with the names of CUDA that are used here. NVRTC compiles it for
 * GPUs; for the tests a C compiler does, and tests/support/cuda_emulator.h defines those names. */
#ifndef GTOPK_DEVICE_CUDA_KERNEL_H
#define GTOPK_DEVICE_CUDA_KERNEL_H

#include "device/cuda/args.h"
#include "wire/convert.h"

#ifdef __CUDACC_RTC__
#define KERNEL_FOR(name, args_name, blocks)                            \
    extern "C" __global__ void __launch_bounds__(CUDA_THREADS, blocks) \
        gtopk_cuda_##name(const __grid_constant__ args_name##_t args)
/* Four blocks run on a multiprocessor; of those that meet no more than two are launched, so they have twice the registers. */
#define KERNEL(name, args_name) KERNEL_FOR(name, args_name, 4)
#define MEETING_KERNEL(name, args_name) KERNEL_FOR(name, args_name, CUDA_MEETING_BLOCKS)
#define FUNCTION static __noinline__ /* compiled once, where inlining would compile it many times */
#define SPIN() __nanosleep(20)
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1") /* what is rare, or waits for memory anyway: the library is to stay small */
#else
#define KERNEL(name, args_name) static void emulated_##name(const args_name##_t args)
#define MEETING_KERNEL KERNEL
#define FUNCTION static __attribute__((unused))
#define SPIN() emulator_spin()
#define UNROLL
#define ROLLED
#endif

#define ALL_LANES 0xffffffffu
#define MAGNITUDE 0x7fffffffu

static inline uint32_t lane_id(void)
{
    return threadIdx.x % CUDA_WARP;
}

static inline uint32_t warp_id(void)
{
    return threadIdx.x / CUDA_WARP;
}

static inline uint32_t grid_warp(void)
{
    return blockIdx.x * CUDA_WARPS + warp_id();
}

static inline uint32_t grid_warps(void)
{
    return gridDim.x * CUDA_WARPS;
}

static inline uint64_t grid_thread(void)
{
    return (uint64_t)blockIdx.x * CUDA_THREADS + threadIdx.x;
}

static inline uint64_t grid_threads(void)
{
    return (uint64_t)gridDim.x * CUDA_THREADS;
}

static inline int is_first_thread(void)
{
    return blockIdx.x == 0 && threadIdx.x == 0;
}

static inline int is_finite(float value)
{
    return (convert_bits(value) & MAGNITUDE) < CONVERT_INF;
}

/* One instruction, which knows denormals, in place of the twenty that convert.h takes. Of a NaN it makes another one. */
static inline float float_from_half(uint16_t bits)
{
#ifdef __CUDACC_RTC__
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
#else
    return convert_float_from_fp16(bits);
#endif
}

/* ---- between blocks ---- */

/* Adds to a word, after all that the thread has written or seen; what others did before they added is seen by what follows.
 * A fence that orders everything would take longer. */
static inline uint32_t add_in_order(uint32_t *word, uint32_t add)
{
#ifdef __CUDACC_RTC__
    uint32_t old;
    asm volatile("atom.add.acq_rel.gpu.u32 %0, [%1], %2;" : "=r"(old) : "l"(word), "r"(add) : "memory");
    return old;
#else
    return atomicAdd(word, add);
#endif
}

/* Reads a word, before all that follows. */
static inline uint32_t read_in_order(const uint32_t *word)
{
#ifdef __CUDACC_RTC__
    uint32_t value;
    asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
    return value;
#else
    return *(const volatile uint32_t *)word;
#endif
}

/* ---- the words of a step ---- */

static inline void words_fail(device_words_t *words, uint32_t error)
{
    if (words->error == DEVICE_NO_ERROR)
        words->error = error;
    words->ok = 0;
}

/* For the thread that writes the words. */
static inline uint32_t is_halted(const cuda_scratch_t *scratch)
{
    return scratch->halt ? *(const volatile uint32_t *)scratch->halt : 0;
}

/* 1 when a step's end changes the residual. */
static inline int words_commit(const device_words_t *words)
{
    return words->ok && !words->nonfinite && !words->joined;
}

#endif
