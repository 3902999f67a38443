/* The dense step: everything is sent. */
#include <string.h>

#include "device/cpu/output.h"
#include "device/cpu/store.h"
#include "util/fpenv.h"

gtopk_status_t store_dense_gather(device_store_t *store, float *out, void *stream)
{
    (void)stream;
    memcpy(out, store->residual, (size_t)store->dim * sizeof *out);
    return GTOPK_OK;
}

static int all_finite(const float *values, uint64_t count)
{
    uint32_t bad = 0;
    for (uint64_t i = 0; i < count; i++)
        bad |= (uint32_t)!output_is_finite(values[i]);
    return !bad;
}

static void write_span(device_store_t *store, const float *mean, const device_span_t *out)
{
    for (uint64_t i = 0; i < out->length; i++) {
        uint64_t at = out->offset + i;
        float rest = mean[at] - output_store(out->data, i, out->dtype, mean[at]);
        if (output_is_finite(rest))
            store->residual[at] = rest;
    }
}

gtopk_status_t store_dense_commit(device_store_t *store, float *sum, uint32_t size, const device_span_t *outputs,
                                  size_t count, device_words_t *words, void *stream)
{
    (void)stream;
    if (!words->ok)
        return GTOPK_OK;
    fpenv_t saved = fpenv_enter();
    if (words->nonfinite || !all_finite(sum, store->dim)) {
        words->nonfinite = 1;
        outputs_fill_nan(outputs, count);
    } else {
        for (uint64_t i = 0; i < store->dim; i++)
            sum[i] /= (float)size;
        memset(store->residual, 0, (size_t)store->dim * sizeof *store->residual);
        for (size_t s = 0; s < count; s++)
            if (outputs[s].dtype == GTOPK_F32)
                memcpy(outputs[s].data, sum + outputs[s].offset, (size_t)outputs[s].length * sizeof *sum);
            else
                write_span(store, sum, &outputs[s]);
        hint_reset(&store->hint);
    }
    fpenv_leave(saved);
    return GTOPK_OK;
}
