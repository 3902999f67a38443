/* Compiles the kernels' own sources for the emulator. */
#include "support/cuda_kernels.h"

#include "support/cuda_emulator.h"

#include "device/cuda/kernels.cu"

/* A kernel takes its arguments by value. */
#define RUN(name, args_name, meets)          \
    static void run_##name(const void *args) \
    {                                        \
        args_name##_t copy;                  \
        memcpy(&copy, args, sizeof copy);    \
        emulated_##name(copy);               \
    }
CUDA_KERNELS(RUN)

const cuda_emulated_t cuda_emulated[CUDA_KERNEL_COUNT] = {
#define ENTRY(name, args_name, meets) {"gtopk_cuda_" #name, run_##name, sizeof(args_name##_t), meets},
    CUDA_KERNELS(ENTRY)};
