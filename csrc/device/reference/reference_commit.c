/* The end of a step: what was sent leaves the residual, deposits enter it, the mean goes to the outputs. */
#include <math.h>
#include <string.h>

#include "device/dither.h"
#include "device/reference/reference.h"
#include "util/fpenv.h"

/* What is no finite sum is not stored: the residual stays finite. */
static void residual_add(device_store_t *store, uint32_t index, float value, uint32_t place)
{
    const float sum = store->residual[index] + value;
    if (isfinite(sum))
        store->residual[index] = reference_rounded(store, index, sum, place);
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

/* The mean at one index; returns what its output cannot hold. */
static float output_mean(const device_span_t *outputs, size_t count, uint32_t index, float mean)
{
    const device_span_t *span = output_of(outputs, count, index);
    return span ? output_write(span, index, mean) : 0.0f;
}

static void outputs_zero(const device_span_t *outputs, size_t count)
{
    for (const device_span_t *span = outputs; span < outputs + count; span++)
        if (span->length > 0)
            memset(span->data, 0, span->length * device_entry_size(span->dtype));
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
            store->residual[index] = reference_rounded(
                store, index, journal->selected.value[i] - reference_value_at(&journal->first, index), DITHER_CLEAR);
    }
}

static void commit_deposit(device_store_t *store, const device_set_t *deposit, uint32_t number)
{
    for (uint32_t i = 0; i < *deposit->count; i++)
        residual_add(store, deposit->index[i], deposit->value[i], DITHER_DEPOSIT + number);
}

static void commit_velocity(device_store_t *store, const device_journal_t *journal)
{
    for (uint32_t i = 0; i < *journal->selected.count; i++)
        if (reference_value_at(&journal->final, journal->selected.index[i]) != 0.0f)
            store->velocity[journal->selected.index[i]] = 0.0f;
}

/* The update of a target: what a dropped step leaves there. Returns 1 when the step is to be committed. */
static int target_open(const device_target_t *target, const device_words_t *words)
{
    if (!words->ok)
        return 0;
    if (words->nonfinite)
        outputs_nan(target->spans, target->count);
    else if (words->joined || !target->are_zero)
        outputs_zero(target->spans, target->count);
    return !words->nonfinite && !words->joined;
}

gtopk_status_t reference_commit(device_store_t *store, const device_journal_t *journal, const device_target_t *target,
                                const device_words_t *words, void *stream)
{
    (void)stream;
    if (!target_open(target, words))
        return GTOPK_OK;
    const fpenv_t saved = fpenv_enter();
    commit_clear(store, journal);
    for (uint32_t d = 0; d < journal->deposit_count; d++)
        commit_deposit(store, &journal->deposits[d], d);
    if (store->velocity)
        commit_velocity(store, journal);
    for (uint32_t i = 0; i < *journal->final.count; i++) {
        const float mean = journal->final.value[i] / (float)journal->divisor;
        const float rest = output_mean(target->spans, target->count, journal->final.index[i], mean);
        if (rest != 0.0f)
            residual_add(store, journal->final.index[i], rest * (float)(1 + journal->others), DITHER_MEAN);
        if (target->indices) {
            target->indices[i] = journal->final.index[i];
            target->values[i] = mean;
        }
    }
    fpenv_leave(saved);
    return GTOPK_OK;
}

gtopk_status_t reference_write(device_t *device, const device_set_t *final, uint32_t divisor,
                               const device_target_t *target, const device_words_t *words, void *stream)
{
    (void)device;
    (void)stream;
    if (!target_open(target, words))
        return GTOPK_OK;
    const fpenv_t saved = fpenv_enter();
    for (uint32_t i = 0; i < *final->count; i++) {
        const float mean = final->value[i] / (float)divisor;
        (void)output_mean(target->spans, target->count, final->index[i], mean);
        if (target->indices) {
            target->indices[i] = final->index[i];
            target->values[i] = mean;
        }
    }
    fpenv_leave(saved);
    return GTOPK_OK;
}

/* ---- dense ---- */

gtopk_status_t reference_dense_gather(device_store_t *store, float *out, void *stream)
{
    return reference_store_read(store, DEVICE_RESIDUAL, 0, store->dim, out, stream);
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
    words->count = store->dim;
    return GTOPK_OK;
}

gtopk_status_t reference_dense_commit(device_store_t *store, float *sum, uint32_t divisor,
                                      const device_target_t *target, device_words_t *words, void *stream)
{
    (void)stream;
    uint64_t entries = 0;
    if (!target_open(target, words))
        return GTOPK_OK;
    const fpenv_t saved = fpenv_enter();
    for (uint64_t i = 0; i < store->dim; i++) {
        store->residual[i] = 0.0f;
        sum[i] /= (float)divisor;
        const float rest = output_mean(target->spans, target->count, (uint32_t)i, sum[i]);
        if (rest != 0.0f)
            residual_add(store, (uint32_t)i, rest, DITHER_MEAN);
        if (target->indices && sum[i] != 0.0f) {
            target->indices[entries] = (uint32_t)i;
            target->values[entries++] = sum[i];
        }
    }
    if (target->indices)
        words->count = entries;
    fpenv_leave(saved);
    return GTOPK_OK;
}
