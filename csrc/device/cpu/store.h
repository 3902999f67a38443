/* The store of the CPU device and the operations on it, one file each: store.c, accumulate.c, commit.c, dense.c. */
#ifndef GTOPK_DEVICE_CPU_STORE_H
#define GTOPK_DEVICE_CPU_STORE_H

#include <pthread.h>

#include "device/cpu/hint.h"
#include "device/cpu/kernels.h"
#include "device/cpu/pool.h"
#include "device/device.h"
#include "device/dither.h"

/* The device: no state but the choice of kernels. */
typedef struct device_cpu {
    device_t base;
    const kernels_t *kernels;
} device_cpu_t;

static inline const kernels_t *cpu_kernels(const device_t *device)
{
    return ((const device_cpu_t *)device)->kernels;
}

struct device_store {
    const kernels_t *kernels;
    device_parallel_t parallel;
    uint64_t dim, k;
    float *residual, *velocity;       /* velocity NULL: none */
    float *second, *second_velocity;  /* NULL: accumulate writes where it reads */
    uint16_t *narrow, *second_narrow; /* the residual in bf16, in place of the floats; NULL: none */
    uint64_t seed;                    /* of its roundings */
    pool_t pool;
    hint_t hint;
    pthread_mutex_t lock; /* of the pool, while several threads accumulate */
};

/* One entry of the residual. key: dither_key of the place. */
static inline float store_value(const device_store_t *store, uint64_t at)
{
    return store->narrow ? convert_float_from_bf16(store->narrow[at]) : store->residual[at];
}

static inline void store_put(device_store_t *store, uint64_t at, float value, uint32_t key)
{
    if (store->narrow)
        store->narrow[at] = dither_bf16(value, (uint32_t)at, key);
    else
        store->residual[at] = value;
}

gtopk_status_t store_create(device_t *device, uint64_t dim, uint64_t k, int with, const device_parallel_t *parallel,
                            device_store_t **store);
void store_destroy(device_store_t *store);
gtopk_status_t store_resize(device_store_t *store, uint64_t k);
gtopk_status_t store_read(device_store_t *store, int which, uint64_t offset, uint64_t length, float *out, void *stream);
gtopk_status_t store_write(device_store_t *store, int which, uint64_t offset, uint64_t length, const float *in,
                           void *stream);
gtopk_status_t store_square(device_store_t *store, double *sum, void *stream);

/* Runs body over [0, items), on the caller's threads when that is more than one grain. */
void store_parallel(const device_store_t *store, int64_t items, int64_t grain, gtopk_parallel_body_fn body, void *arg);

gtopk_status_t store_seed(device_store_t *store, uint64_t seed, void *stream);
gtopk_status_t store_step_begin(device_store_t *store, device_words_t *words, void *stream);
gtopk_status_t store_accumulate(device_store_t *store, const device_span_t *spans, size_t count,
                                const device_accumulate_t *params, device_words_t *words, void *stream);
gtopk_status_t store_swap(device_store_t *store, void *stream);
gtopk_status_t store_select(device_store_t *store, uint64_t k, device_set_t *out, device_words_t *words, void *stream);

gtopk_status_t array_select(device_t *device, const float *x, uint64_t n, uint64_t k, const device_parallel_t *parallel,
                            device_set_t *out, void *stream);

gtopk_status_t store_commit(device_store_t *store, const device_journal_t *journal, const device_target_t *target,
                            const device_words_t *words, void *stream);

gtopk_status_t store_dense_gather(device_store_t *store, float *out, void *stream);
gtopk_status_t store_dense_check(device_store_t *store, const float *sum, device_words_t *words, void *stream);
gtopk_status_t store_dense_commit(device_store_t *store, float *sum, uint32_t divisor, const device_target_t *target,
                                  device_words_t *words, void *stream);

#endif
