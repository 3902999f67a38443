/* Selection from an array that is no residual: a store for the time of the call that borrows the array, and reads it
 * only. */
#include "device/cpu/store.h"

gtopk_status_t array_select(device_t *device, const float *x, uint64_t n, uint64_t k, const device_parallel_t *parallel,
                            device_set_t *out, void *stream)
{
    /* Nothing below writes to the residual: spans without data are scanned. */
    device_store_t store = {
        .kernels = cpu_kernels(device),
        .parallel = *parallel,
        .dim = n,
        .k = k,
        .residual = (float *)(uintptr_t)x,
    };
    const device_span_t everything = {.offset = 0, .length = n};
    const device_accumulate_t unused = {.scale = 1.0f};
    device_words_t words;
    gtopk_status_t status = pool_create(&store.pool, n, k);
    if (status != GTOPK_OK)
        return status;
    if (pthread_mutex_init(&store.lock, NULL) != 0) {
        pool_destroy(&store.pool);
        return status_set(GTOPK_ERR_NOMEM, "the system has no lock for a selection");
    }
    hint_reset(&store.hint);
    (void)store_step_begin(&store, &words, stream);
    status = store_accumulate(&store, &everything, 1, &unused, &words, stream);
    if (status == GTOPK_OK)
        status = store_select(&store, k, out, &words, stream);
    pool_destroy(&store.pool);
    (void)pthread_mutex_destroy(&store.lock);
    return status;
}
