/* The end of a step: what was sent leaves the residual, deposits enter it, the mean goes to the outputs. */
#include <math.h>
#include <string.h>

#include "device/reference/reference.h"
#include "util/fpenv.h"

/* What is no finite sum is not stored: the residual stays finite. */
static void residual_add(device_store_t *store, uint32_t index, float value)
{
    const float sum = store->residual[index] + value;
    if (isfinite(sum))
        store->residual[index] = sum;
}

/* ---- outputs ---- */

static const device_span_t *output_of(const device_span_t *outputs, size_t count, uint32_t index)
{
    for (const device_span_t *span = outputs; span < outputs + count; span++)
        if (index >= span->offset && index - span->offset < span->length)
            return span;
    return NULL;
}

/* Writes what the type can hold of `mean` and returns the rest. */
static float output_write(const device_span_t *span, uint32_t index, float mean)
{
    const uint64_t at = index - span->offset;
    uint16_t *half = span->data;
    switch (span->dtype) {
    case GTOPK_F16: half[at] = wire_fp16_from_float(mean); return mean - wire_float_from_fp16(half[at]);
    case GTOPK_BF16: half[at] = wire_bf16_from_float(mean); return mean - wire_float_from_bf16(half[at]);
    default: ((float *)span->data)[at] = mean; return 0.0f;
    }
}

/* The mean at one index; what its output cannot hold stays in this rank's residual. */
static void output_mean(device_store_t *store, const device_span_t *outputs, size_t count, uint32_t index, float mean)
{
    const device_span_t *span = output_of(outputs, count, index);
    if (span) {
        const float rest = output_write(span, index, mean);
        if (rest != 0.0f)
            residual_add(store, index, rest);
    }
}

static void outputs_zero(const device_span_t *outputs, size_t count)
{
    for (const device_span_t *span = outputs; span < outputs + count; span++)
        if (span->length > 0)
            memset(span->data, 0, span->length * (span->dtype == GTOPK_F32 ? 4 : 2));
}

static void outputs_nan(const device_span_t *outputs, size_t count)
{
    for (const device_span_t *span = outputs; span < outputs + count; span++)
        for (uint64_t i = 0; i < span->length; i++)
            (void)output_write(span, (uint32_t)(span->offset + i), NAN);
}

/* ---- commit ---- */

static void commit_clear(device_store_t *store, const device_journal_t *journal)
{
    for (uint32_t i = 0; i < *journal->selected.count; i++) {
        const uint32_t index = journal->selected.index[i];
        const int in_final = reference_value_at(&journal->final, index) != 0.0f;
        if (in_final || !journal->clear_final_only)
            store->residual[index] = journal->selected.value[i] - reference_value_at(&journal->first, index);
    }
}

static void commit_deposit(device_store_t *store, const device_set_t *deposit)
{
    for (uint32_t i = 0; i < *deposit->count; i++)
        residual_add(store, deposit->index[i], deposit->value[i]);
}

static void commit_velocity(device_store_t *store, const device_journal_t *journal)
{
    for (uint32_t i = 0; i < *journal->selected.count; i++)
        if (reference_value_at(&journal->final, journal->selected.index[i]) != 0.0f)
            store->velocity[journal->selected.index[i]] = 0.0f;
}

gtopk_status_t reference_commit(device_store_t *store, const device_journal_t *journal, const device_span_t *outputs,
                                size_t count, int outputs_are_zero, const device_words_t *words, void *stream)
{
    (void)stream;
    if (!words->ok)
        return GTOPK_OK;
    const fpenv_t saved = fpenv_enter();
    if (words->nonfinite) {
        outputs_nan(outputs, count);
    } else if (words->joined) {
        outputs_zero(outputs, count);
    } else {
        commit_clear(store, journal);
        for (uint32_t d = 0; d < journal->deposit_count; d++)
            commit_deposit(store, &journal->deposits[d]);
        if (store->velocity)
            commit_velocity(store, journal);
        if (!outputs_are_zero)
            outputs_zero(outputs, count);
        for (uint32_t i = 0; i < *journal->final.count; i++)
            output_mean(store, outputs, count, journal->final.index[i], journal->final.value[i] / (float)journal->size);
    }
    fpenv_leave(saved);
    return GTOPK_OK;
}

/* ---- dense ---- */

gtopk_status_t reference_dense_gather(device_store_t *store, float *out, void *stream)
{
    (void)stream;
    return reference_store_read(store, 0, 0, store->dim, out);
}

static int all_finite(const float *values, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        if (!isfinite(values[i]))
            return 0;
    return 1;
}

gtopk_status_t reference_dense_check(device_store_t *store, const float *sum, device_words_t *words, void *stream)
{
    (void)stream;
    if (!all_finite(sum, store->dim))
        words->nonfinite = 1;
    return GTOPK_OK;
}

gtopk_status_t reference_dense_commit(device_store_t *store, float *sum, uint32_t size, const device_span_t *outputs,
                                      size_t count, const device_words_t *words, void *stream)
{
    (void)stream;
    if (!words->ok)
        return GTOPK_OK;
    const fpenv_t saved = fpenv_enter();
    if (words->nonfinite) {
        outputs_nan(outputs, count);
    } else if (words->joined) {
        outputs_zero(outputs, count);
    } else {
        for (uint64_t i = 0; i < store->dim; i++) {
            store->residual[i] = 0.0f;
            sum[i] /= (float)size;
            output_mean(store, outputs, count, (uint32_t)i, sum[i]);
        }
    }
    fpenv_leave(saved);
    return GTOPK_OK;
}
