/* What libcuda_count.so tells whoever opens it. */
#ifndef TESTS_GPU_LIBCUDA_COUNT_H
#define TESTS_GPU_LIBCUDA_COUNT_H

#include <stddef.h>
#include <stdint.h>

typedef struct cuda_count {
    const char *function;
    uint64_t calls;
} cuda_count_t;

/* Functions that were called since the last time, on all threads; returns how many. */
size_t cuda_count_take(cuda_count_t *counts, size_t most) __attribute__((visibility("default")));
typedef size_t (*cuda_count_take_fn)(cuda_count_t *counts, size_t most);

#define CUDA_COUNT_TAKE "cuda_count_take"

#endif
