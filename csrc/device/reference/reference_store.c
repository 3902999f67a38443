/* The residual and velocity of one reducer: accumulate and select. */
#include <math.h>
#include <string.h>

#include "device/dither.h"
#include "device/host.h"
#include "device/reference/reference.h"
#include "util/fpenv.h"
#include "util/memory.h"

gtopk_status_t reference_store_create(device_t *device, uint64_t dim, uint64_t k, int with,
                                      const device_parallel_t *parallel, device_store_t **store)
{
    (void)device;
    (void)k;
    (void)parallel;
    device_store_t *made;
    *store = NULL;
    gtopk_status_t status = memory_alloc(&made, 1, sizeof *made, "a reducer's store");
    if (status != GTOPK_OK)
        return status;
    made->dim = dim;
    made->in_bf16 = (with & DEVICE_WITH_BF16) != 0;
    status = memory_alloc(&made->residual, dim, sizeof(float), "the residual");
    if (status == GTOPK_OK && (with & DEVICE_WITH_VELOCITY))
        status = memory_alloc(&made->velocity, dim, sizeof(float), "the velocity");
    if (status == GTOPK_OK && (with & DEVICE_WITH_SECOND))
        status = memory_alloc(&made->second, dim, sizeof(float), "the second residual");
    if (status == GTOPK_OK && made->second && made->velocity)
        status = memory_alloc(&made->second_velocity, dim, sizeof(float), "the second velocity");
    if (status == GTOPK_OK)
        *store = made;
    else
        reference_store_destroy(made);
    return status;
}

void reference_store_destroy(device_store_t *store)
{
    if (!store)
        return;
    memory_free(store->second_velocity);
    memory_free(store->second);
    memory_free(store->velocity);
    memory_free(store->residual);
    memory_free(store);
}

gtopk_status_t reference_store_resize(device_store_t *store, uint64_t k)
{
    (void)store;
    (void)k;
    return GTOPK_OK;
}

gtopk_status_t reference_store_read(device_store_t *store, int which, uint64_t offset, uint64_t length, float *out,
                                    void *stream)
{
    (void)stream;
    if (length > 0)
        memcpy(out, (which == 0 ? store->residual : store->velocity) + offset, length * sizeof(float));
    return GTOPK_OK;
}

gtopk_status_t reference_store_write(device_store_t *store, int which, uint64_t offset, uint64_t length,
                                     const float *in, void *stream)
{
    (void)stream;
    for (uint64_t i = 0; i < length; i++)
        if (which == DEVICE_RESIDUAL)
            store->residual[offset + i] = reference_rounded(store, offset + i, in[i], DITHER_WRITE);
        else
            store->velocity[offset + i] = in[i];
    return GTOPK_OK;
}

gtopk_status_t reference_store_square(device_store_t *store, double *sum, void *stream)
{
    (void)stream;
    *sum = 0.0;
    for (uint64_t i = 0; i < store->dim; i++)
        *sum += (double)store->residual[i] * (double)store->residual[i];
    return GTOPK_OK;
}

gtopk_status_t reference_store_seed(device_store_t *store, uint64_t seed, void *stream)
{
    (void)stream;
    store->seed = seed;
    return GTOPK_OK;
}

float reference_rounded(const device_store_t *store, uint64_t index, float value, uint32_t place)
{
    if (!store->in_bf16)
        return value;
    return convert_float_from_bf16(dither_bf16(value, (uint32_t)index, dither_key(store->seed, place)));
}

gtopk_status_t reference_step_begin(device_store_t *store, device_words_t *words, void *stream)
{
    (void)store;
    (void)stream;
    host_words_begin(words);
    return GTOPK_OK;
}

/* ---- accumulate ---- */

static float input_read(const device_span_t *span, uint64_t i)
{
    switch (span->dtype) {
    case GTOPK_F16: return wire_float_from_fp16(((const uint16_t *)span->data)[i]);
    case GTOPK_BF16: return wire_float_from_bf16(((const uint16_t *)span->data)[i]);
    default: return ((const float *)span->data)[i];
    }
}

static void input_zero(const device_span_t *span, uint64_t i)
{
    if (span->dtype == GTOPK_F32)
        ((float *)span->data)[i] = 0.0f;
    else
        ((uint16_t *)span->data)[i] = 0;
}

/* Both return 0, and change nothing, when a result is not finite. */
static int add_input(float *residual, float x, float scale)
{
    const float sum = scale == 1.0f ? *residual + x : fmaf(scale, x, *residual);
    if (!isfinite(sum))
        return 0;
    *residual = sum;
    return 1;
}

static int add_with_momentum(float *residual, float *velocity, float x, const device_accumulate_t *params)
{
    const float t = params->scale * x;
    const float v = fmaf(params->momentum, *velocity, t);
    const float sum = *residual + (params->nesterov ? fmaf(params->momentum, v, t) : v);
    if (!isfinite(v) || !isfinite(sum))
        return 0;
    *velocity = v;
    *residual = sum;
    return 1;
}

/* In place, or in the second array, where it begins as it was. */
static float *entry_to_write(float *array, float *second, uint64_t at)
{
    if (!second)
        return &array[at];
    second[at] = array[at];
    return &second[at];
}

gtopk_status_t reference_accumulate(device_store_t *store, const device_span_t *spans, size_t count,
                                    const device_accumulate_t *params, device_words_t *words, void *stream)
{
    (void)stream;
    if (params->found_inf) {
        words->nonfinite = 1;
        return GTOPK_OK;
    }
    const fpenv_t saved = fpenv_enter();
    for (const device_span_t *span = spans; span < spans + count; span++) {
        for (uint64_t i = 0; i < span->length; i++) {
            const uint64_t at = span->offset + i;
            float *residual = entry_to_write(store->residual, store->second, at);
            float *velocity = store->velocity ? entry_to_write(store->velocity, store->second_velocity, at) : NULL;
            if (!span->data)
                continue;
            const float x = input_read(span, i);
            const int finite = velocity ? add_with_momentum(residual, velocity, x, params)
                                        : add_input(residual, x, params->scale);
            *residual = reference_rounded(store, at, *residual, DITHER_ACCUMULATE);
            if (!finite)
                words->nonfinite = 1;
            if (params->zero_input)
                input_zero(span, i);
        }
    }
    fpenv_leave(saved);
    return GTOPK_OK;
}

static void swap(float **a, float **b)
{
    float *const was = *a;
    *a = *b;
    *b = was;
}

gtopk_status_t reference_swap(device_store_t *store, void *stream)
{
    (void)stream;
    swap(&store->residual, &store->second);
    if (store->velocity)
        swap(&store->velocity, &store->second_velocity);
    return GTOPK_OK;
}

/* ---- select ---- */

gtopk_status_t reference_array_select(device_t *device, const float *x, uint64_t n, uint64_t k,
                                      const device_parallel_t *parallel, device_set_t *out, void *stream)
{
    (void)device;
    (void)parallel;
    (void)stream;
    const fpenv_t saved = fpenv_enter();
    gtopk_status_t status = reference_largest(x, n, k, out->index, out->count);
    for (uint32_t i = 0; status == GTOPK_OK && i < *out->count; i++)
        out->value[i] = x[out->index[i]];
    fpenv_leave(saved);
    return status;
}

gtopk_status_t reference_select(device_store_t *store, uint64_t k, device_set_t *out, device_words_t *words,
                                void *stream)
{
    (void)stream;
    *out->count = 0;
    if (words->nonfinite)
        return GTOPK_OK;
    const fpenv_t saved = fpenv_enter();
    gtopk_status_t status = reference_largest(store->residual, store->dim, k, out->index, out->count);
    for (uint32_t i = 0; status == GTOPK_OK && i < *out->count; i++)
        out->value[i] = store->residual[out->index[i]];
    words->selected = *out->count;
    fpenv_leave(saved);
    return status;
}
