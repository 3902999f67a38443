/* The dense step: everything is sent. */
#include <string.h>

#include "device/cpu/output.h"
#include "device/cpu/store.h"
#include "util/fpenv.h"

gtopk_status_t store_dense_gather(device_store_t *store, float *out, void *stream)
{
    return store_read(store, DEVICE_RESIDUAL, 0, store->dim, out, stream);
}

static int all_finite(const float *values, uint64_t count)
{
    uint32_t bad = 0;
    for (uint64_t i = 0; i < count; i++)
        bad |= (uint32_t)!output_is_finite(values[i]);
    return !bad;
}

/* Writes the mean; what a 16-bit output cannot hold stays in the residual, which is zero so far. */
static void write_span(device_store_t *store, const float *mean, const device_span_t *out)
{
    if (out->length == 0)
        return;
    if (out->dtype == GTOPK_F32) {
        memcpy(out->data, mean + out->offset, (size_t)out->length * sizeof *mean);
        return;
    }
    const uint32_t key = dither_key(store->seed, DITHER_MEAN);
    for (uint64_t i = 0; i < out->length; i++) {
        uint64_t at = out->offset + i;
        float rest = mean[at] - output_store(out->data, i, out->dtype, mean[at]);
        if (output_is_finite(rest))
            store_put(store, at, rest, key);
    }
}

gtopk_status_t store_dense_check(device_store_t *store, const float *sum, device_words_t *words, void *stream)
{
    (void)stream;
    if (!all_finite(sum, store->dim))
        words->nonfinite = 1;
    words->count = store->dim;
    return GTOPK_OK;
}

/* Returns how many entries are not zero. */
static uint64_t write_arrays(const float *mean, uint64_t dim, const device_target_t *target)
{
    uint64_t entries = 0;
    for (uint64_t i = 0; i < dim; i++)
        if (mean[i] != 0.0f) {
            target->indices[entries] = (uint32_t)i;
            target->values[entries++] = mean[i];
        }
    return entries;
}

gtopk_status_t store_dense_commit(device_store_t *store, float *sum, uint32_t divisor, const device_target_t *target,
                                  device_words_t *words, void *stream)
{
    (void)stream;
    const device_target_t overwritten = {.spans = target->spans, .count = target->count, .are_zero = 1};
    const int whole = words->ok && !words->nonfinite && !words->joined;
    if (outputs_drop(words, whole ? &overwritten : target))
        return GTOPK_OK;
    fpenv_t saved = fpenv_enter();
    for (uint64_t i = 0; i < store->dim; i++)
        sum[i] /= (float)divisor;
    if (store->narrow)
        memset(store->narrow, 0, (size_t)store->dim * sizeof *store->narrow);
    else
        memset(store->residual, 0, (size_t)store->dim * sizeof *store->residual);
    for (size_t s = 0; s < target->count; s++)
        write_span(store, sum, &target->spans[s]);
    if (target->indices)
        words->count = write_arrays(sum, store->dim, target);
    hint_reset_dense(&store->hint);
    fpenv_leave(saved);
    return GTOPK_OK;
}
