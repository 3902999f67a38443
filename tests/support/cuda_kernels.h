/* The CUDA kernels compiled as C, to be run by the emulator. For tests only. */
#ifndef TESTS_SUPPORT_CUDA_KERNELS_H
#define TESTS_SUPPORT_CUDA_KERNELS_H

#include "device/cuda/args.h"

typedef struct cuda_emulated {
    const char *name; /* as the driver knows it */
    void (*run)(const void *args);
    size_t bytes;
    int meets; /* its blocks wait for each other */
} cuda_emulated_t;

extern const cuda_emulated_t cuda_emulated[CUDA_KERNEL_COUNT];

#endif
