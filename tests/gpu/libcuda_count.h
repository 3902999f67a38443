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

/* One call of the driver. */
typedef struct cuda_call {
    const char *function;
    const char *kernel;      /* of a launch, else NULL */
    double begin_us, end_us; /* of CLOCK_MONOTONIC */
} cuda_call_t;

/* Calls between begin and end, in the order in which they came back; when there were 2^16 of them no more are noted. */
void cuda_trace_begin(void) __attribute__((visibility("default")));
size_t cuda_trace_end(const cuda_call_t **calls) __attribute__((visibility("default")));
typedef void (*cuda_trace_begin_fn)(void);
typedef size_t (*cuda_trace_end_fn)(const cuda_call_t **calls);

#define CUDA_TRACE_BEGIN "cuda_trace_begin"
#define CUDA_TRACE_END "cuda_trace_end"

#endif
