/* Arithmetic on sets: merge, deposit, and the order by which entries are kept. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "device/host.h"
#include "device/reference/reference.h"
#include "util/fpenv.h"
#include "util/memory.h"

/* ---- helpers ---- */

void reference_append(device_set_t *set, uint32_t index, float value)
{
    const uint32_t at = (*set->count)++;
    set->index[at] = index;
    set->value[at] = value;
}

static int compare_index(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

float reference_value_at(const device_set_t *set, uint32_t index)
{
    const uint32_t *found = *set->count ? bsearch(&index, set->index, *set->count, sizeof index, compare_index) : NULL;
    return found ? set->value[found - set->index] : 0.0f;
}

typedef struct keyed {
    float magnitude;
    uint32_t position;
} keyed_t;

static int compare_key(const void *a, const void *b)
{
    const keyed_t *x = a, *y = b;
    if (x->magnitude != y->magnitude)
        return x->magnitude > y->magnitude ? -1 : 1;
    return x->position < y->position ? -1 : 1;
}

gtopk_status_t reference_largest(const float *values, uint64_t count, uint64_t k, uint32_t *positions, uint32_t *taken)
{
    keyed_t *keys;
    gtopk_status_t status = memory_alloc(&keys, count, sizeof *keys, "sorting for the k largest entries");
    if (status != GTOPK_OK)
        return status;
    size_t nonzero = 0;
    for (uint64_t i = 0; i < count; i++)
        if (values[i] != 0.0f)
            keys[nonzero++] = (keyed_t){isnan(values[i]) ? INFINITY : fabsf(values[i]), (uint32_t)i};
    if (nonzero > 0)
        qsort(keys, nonzero, sizeof *keys, compare_key);

    const size_t kept = k < nonzero ? (size_t)k : nonzero;
    for (size_t i = 0; i < kept; i++)
        positions[i] = keys[i].position;
    if (kept > 0)
        qsort(positions, kept, sizeof *positions, compare_index);
    *taken = (uint32_t)kept;
    memory_free(keys);
    return GTOPK_OK;
}

/* ---- merge ---- */

/* a + b over the union, without sums that are zero. Returns 0 when one was not finite; it is left out. */
static int set_add(const device_set_t *a, const device_set_t *b, device_set_t *out)
{
    int finite = 1;
    *out->count = 0;
    for (uint32_t i = 0, j = 0; i < *a->count || j < *b->count;) {
        const uint32_t ia = i < *a->count ? a->index[i] : UINT32_MAX, ib = j < *b->count ? b->index[j] : UINT32_MAX;
        const uint32_t index = ia < ib ? ia : ib;
        const float sum = (ia == index ? a->value[i++] : 0.0f) + (ib == index ? b->value[j++] : 0.0f);
        if (!isfinite(sum))
            finite = 0;
        else if (sum != 0.0f)
            reference_append(out, index, sum);
    }
    return finite;
}

static gtopk_status_t set_keep_largest(const device_set_t *set, uint64_t k, device_set_t *kept)
{
    gtopk_status_t status = reference_largest(set->value, *set->count, k, kept->index, kept->count);
    for (uint32_t i = 0; status == GTOPK_OK && i < *kept->count; i++) {
        kept->value[i] = set->value[kept->index[i]];
        kept->index[i] = set->index[kept->index[i]];
    }
    return status;
}

gtopk_status_t reference_merge(device_t *device, const device_set_t *a, const device_set_t *b, uint64_t k,
                               device_set_t *kept, device_set_t *all, device_words_t *words, void *stream)
{
    (void)device;
    (void)stream;
    const fpenv_t saved = fpenv_enter();
    const size_t capacity = (size_t)*a->count + *b->count;
    uint32_t count = 0;
    device_set_t sum = {.count = &count, .capacity = (uint32_t)capacity};
    gtopk_status_t status = memory_alloc(&sum.index, capacity, sizeof *sum.index, "a merge's indices");
    if (status == GTOPK_OK)
        status = memory_alloc(&sum.value, capacity, sizeof *sum.value, "a merge's values");
    if (status != GTOPK_OK)
        goto cleanup;

    if (!set_add(a, b, &sum))
        words->nonfinite = 1;
    *kept->count = *all->count = 0;
    if (!host_has_room(kept, k < count ? k : count, words) || !host_has_room(all, count, words))
        goto cleanup;
    status = set_keep_largest(&sum, k, kept);
    if (status == GTOPK_OK)
        status = reference_copy_set(device, &sum, all, words, stream);

cleanup:
    memory_free(sum.value);
    memory_free(sum.index);
    fpenv_leave(saved);
    return status;
}

/* ---- deposit, cut, copy ---- */

gtopk_status_t reference_deposit(device_t *device, const device_set_t *all, const device_set_t *sent, float share,
                                 device_set_t *out, device_words_t *words, void *stream)
{
    (void)device;
    (void)stream;
    if (!host_has_room(out, *all->count, words))
        return GTOPK_OK;
    const fpenv_t saved = fpenv_enter();
    *out->count = 0;
    for (uint32_t i = 0; i < *all->count; i++) {
        const float back = (all->value[i] - reference_value_at(sent, all->index[i])) * share;
        if (back != 0.0f)
            reference_append(out, all->index[i], back);
    }
    fpenv_leave(saved);
    return GTOPK_OK;
}

gtopk_status_t reference_cut(device_t *device, const device_set_t *set, device_range_t range, device_set_t *out,
                             device_words_t *words, void *stream)
{
    uint32_t count = 0;
    (void)device;
    (void)stream;
    for (uint32_t i = 0; i < *set->count; i++)
        count += range_has(range, set->index[i]) != 0;
    if (!host_has_room(out, count, words))
        return GTOPK_OK;
    *out->count = 0;
    for (uint32_t i = 0; i < *set->count; i++)
        if (range_has(range, set->index[i]))
            reference_append(out, range_inside(range, set->index[i]), set->value[i]);
    return GTOPK_OK;
}

gtopk_status_t reference_copy_set(device_t *device, const device_set_t *from, device_set_t *to, device_words_t *words,
                                  void *stream)
{
    (void)device;
    (void)stream;
    if (!host_has_room(to, *from->count, words))
        return GTOPK_OK;
    *to->count = *from->count;
    if (*from->count > 0) {
        memcpy(to->index, from->index, *from->count * sizeof *from->index);
        memcpy(to->value, from->value, *from->count * sizeof *from->value);
    }
    return GTOPK_OK;
}
