/* Each operation of device.h as launches of kernels: which, how many blocks, with what. Knows no driver: whoever has a
 * queue can launch, on a GPU or emulated. Nothing here waits. */
#ifndef GTOPK_DEVICE_CUDA_LAUNCH_H
#define GTOPK_DEVICE_CUDA_LAUNCH_H

#include "device/cuda/args.h"

typedef struct cuda_queue {
    /* A kernel with its arguments (at most CUDA_ARGUMENTS_MAX bytes, which are read before this returns). */
    gtopk_status_t (*launch)(void *context, cuda_kernel_t kernel, uint32_t grid, const void *args, size_t bytes,
                             void *stream);
    void *context;
    cuda_scratch_t *scratch;              /* zeroed once; for one stream at a time */
    uint32_t resident[CUDA_KERNEL_COUNT]; /* blocks that the GPU runs at the same time */
    uint32_t processors;                  /* streaming multiprocessors */
} cuda_queue_t;

/* Memory of a store, all on the device. */
typedef struct cuda_memory {
    uint64_t dim, k;
    float *residual, *velocity;       /* velocity NULL: none */
    float *second, *second_velocity;  /* NULL: accumulate writes where it reads */
    uint16_t *narrow, *second_narrow; /* the residual in bf16, in place of the floats; NULL: none */
    uint64_t seed;                    /* of its roundings */
    cuda_pool_t pool;
    uint32_t *buckets; /* 2 * CUDA_BUCKETS */
    uint64_t *chosen;
} cuda_memory_t;

static inline cuda_residual_t cuda_residual_of(const cuda_memory_t *memory)
{
    return (cuda_residual_t){memory->residual, memory->narrow, memory->seed};
}

/* Candidates that the pool of a store has room for. */
uint32_t cuda_pool_capacity(uint64_t dim, uint64_t k);

gtopk_status_t launch_begin(const cuda_queue_t *queue, const cuda_memory_t *memory, device_words_t *words,
                            void *stream);

/* unwanted: the next step is not expected to select. */
gtopk_status_t launch_forget(const cuda_queue_t *queue, const cuda_memory_t *memory, int unwanted, void *stream);

gtopk_status_t launch_accumulate(const cuda_queue_t *queue, const cuda_memory_t *memory, const device_span_t *spans,
                                 size_t count, const device_accumulate_t *params, device_words_t *words, void *stream);
gtopk_status_t launch_select(const cuda_queue_t *queue, const cuda_memory_t *memory, uint64_t k,
                             const device_set_t *out, device_words_t *words, void *stream);

/* x[0..n) in place of a residual. Of memory: dim is n, pool, buckets and chosen; the pool's state starts as zeros. */
gtopk_status_t launch_array_select(const cuda_queue_t *queue, const cuda_memory_t *memory, const float *x, uint64_t k,
                                   const device_set_t *out, void *stream);

gtopk_status_t launch_commit(const cuda_queue_t *queue, const cuda_memory_t *memory, const device_journal_t *journal,
                             const device_target_t *target, const device_words_t *words, void *stream);

/* The last part of commit alone, without a residual. */
gtopk_status_t launch_write(const cuda_queue_t *queue, const device_set_t *final, uint32_t divisor,
                            const device_target_t *target, const device_words_t *words, void *stream);

/* Its residual, as floats. */
gtopk_status_t launch_gather(const cuda_queue_t *queue, const cuda_memory_t *memory, float *out, void *stream);

gtopk_status_t launch_dense_check(const cuda_queue_t *queue, const cuda_memory_t *memory, const float *sum,
                                  device_words_t *words, void *stream);
gtopk_status_t launch_dense_commit(const cuda_queue_t *queue, const cuda_memory_t *memory, float *sum, uint32_t divisor,
                                   const device_target_t *target, device_words_t *words, void *stream);
gtopk_status_t launch_square(const cuda_queue_t *queue, const cuda_memory_t *memory, double *sum, void *stream);

gtopk_status_t launch_words_join(const cuda_queue_t *queue, device_words_t *const *words, size_t count, int joined,
                                 void *stream);
gtopk_status_t launch_verdict(const cuda_queue_t *queue, const device_outcome_t *outcomes, size_t count, void *stream);

gtopk_status_t launch_encode(const cuda_queue_t *queue, const device_set_t *set, const wire_header_t *header,
                             uint8_t *message, const device_set_t *decoded, device_words_t *words, void *stream);
gtopk_status_t launch_address(const cuda_queue_t *queue, uint8_t *message, uint32_t sender, uint16_t round, uint32_t k,
                              const device_words_t *words, void *stream);
gtopk_status_t launch_decode(const cuda_queue_t *queue, const uint8_t *message, size_t capacity,
                             const wire_expect_t *expect, const device_set_t *out, device_words_t *words, void *stream);
gtopk_status_t launch_merge(const cuda_queue_t *queue, const device_set_t *a, const device_set_t *b, uint64_t k,
                            const device_set_t *kept, const device_set_t *all, device_words_t *words, void *stream);
gtopk_status_t launch_deposit(const cuda_queue_t *queue, const device_set_t *all, const device_set_t *sent, float share,
                              const device_set_t *out, device_words_t *words, void *stream);
gtopk_status_t launch_cut(const cuda_queue_t *queue, const device_set_t *set, device_range_t range,
                          const device_set_t *out, device_words_t *words, void *stream);
gtopk_status_t launch_widen(const cuda_queue_t *queue, const device_set_t *set, device_range_t range, void *stream);
gtopk_status_t launch_stage(const cuda_queue_t *queue, const device_span_t *spans, size_t count,
                            const device_stage_t *params, float *out, void *stream);
gtopk_status_t launch_add_up(const cuda_queue_t *queue, const float *parts, size_t stride, uint32_t count, float *out,
                             uint64_t length, void *stream);
gtopk_status_t launch_append(const cuda_queue_t *queue, const device_set_t *set, uint32_t offset,
                             const device_set_t *to, device_words_t *words, void *stream);
gtopk_status_t launch_copy_set(const cuda_queue_t *queue, const device_set_t *from, const device_set_t *to,
                               device_words_t *words, void *stream);

#endif
