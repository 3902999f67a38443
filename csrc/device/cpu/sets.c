/* Merge, deposit and copy: linear in the entries, without branches that depend on them. */
#include "device/cpu/sets.h"

#include <string.h>

#include "util/fpenv.h"
#include "util/memory.h"
#include "wire/convert.h"

#define MAGNITUDE 0x7fffffffu

static gtopk_status_t check_capacity(const char *what, uint64_t needed, const device_set_t *out)
{
    if (needed <= out->capacity)
        return GTOPK_OK;
    return status_set(GTOPK_ERR_INTERNAL, "%s needs room for %llu entries; the set has %u", what,
                      (unsigned long long)needed, out->capacity);
}

/* Sum over the union of a and b; returns its entries. */
static size_t add_union(const device_set_t *a, const device_set_t *b, uint32_t *index, float *value, int *nonfinite)
{
    size_t i = 0, j = 0, na = *a->count, nb = *b->count, n = 0;
    uint32_t largest = 0;
    while (i < na && j < nb) {
        uint32_t ia = a->index[i], ib = b->index[j];
        float from_a = ia <= ib ? a->value[i] : 0.0f, from_b = ib <= ia ? b->value[j] : 0.0f;
        float sum = from_a + from_b;
        uint32_t bits = convert_bits(sum) & MAGNITUDE;
        index[n] = ia < ib ? ia : ib;
        value[n] = sum;
        n += bits - 1 < CONVERT_INF - 1; /* neither zero nor beyond the finite */
        largest = bits > largest ? bits : largest;
        i += ia <= ib;
        j += ib <= ia;
    }
    *nonfinite = largest >= CONVERT_INF;
    const device_set_t *rest = i < na ? a : b;
    size_t from = i < na ? i : j, count = *rest->count - from;
    if (count) {
        memcpy(index + n, rest->index + from, count * sizeof *index);
        memcpy(value + n, rest->value + from, count * sizeof *value);
    }
    return n + count;
}

static void keep(const uint32_t *index, const float *value, size_t count, uint64_t k, device_set_t *kept)
{
    if (count > k) {
        rank_keep_largest(index, value, count, (size_t)k, kept->index, kept->value);
        count = (size_t)k;
    } else if (count) {
        memcpy(kept->index, index, count * sizeof *index);
        memcpy(kept->value, value, count * sizeof *value);
    }
    *kept->count = (uint32_t)count;
}

gtopk_status_t sets_merge(device_t *device, const device_set_t *a, const device_set_t *b, uint64_t k,
                          device_set_t *kept, device_set_t *all, device_words_t *words, void *stream)
{
    (void)device;
    (void)stream;
    uint64_t room = (uint64_t)*a->count + *b->count;
    gtopk_status_t status = check_capacity("merge", k < room ? k : room, kept);
    if (status == GTOPK_OK && all)
        status = check_capacity("merge", room, all);
    if (status != GTOPK_OK)
        return status;

    uint32_t *own_index = NULL;
    float *own_value = NULL;
    if (!all) {
        status = memory_alloc(&own_index, (size_t)room, sizeof *own_index, "a merged set");
        if (status == GTOPK_OK)
            status = memory_alloc(&own_value, (size_t)room, sizeof *own_value, "a merged set");
        if (status != GTOPK_OK)
            goto cleanup;
    }
    uint32_t *index = all ? all->index : own_index;
    float *value = all ? all->value : own_value;

    fpenv_t saved = fpenv_enter();
    int nonfinite;
    size_t count = add_union(a, b, index, value, &nonfinite);
    keep(index, value, count, k, kept);
    if (all)
        *all->count = (uint32_t)count;
    if (nonfinite)
        words->nonfinite = 1;
    fpenv_leave(saved);

cleanup:
    memory_free(own_index);
    memory_free(own_value);
    return status;
}

gtopk_status_t sets_deposit(device_t *device, const device_set_t *all, const device_set_t *sent, float share,
                            device_set_t *out, void *stream)
{
    (void)device;
    (void)stream;
    size_t count = *all->count, sent_count = *sent->count, i = 0, j = 0, n = 0;
    gtopk_status_t status = check_capacity("deposit", count, out);
    if (status != GTOPK_OK)
        return status;
    fpenv_t saved = fpenv_enter();
    for (; i < count && j < sent_count; i++) {
        uint32_t index = all->index[i];
        int match = sent->index[j] == index;
        float left = (all->value[i] - (match ? sent->value[j] : 0.0f)) * share;
        out->index[n] = index;
        out->value[n] = left;
        n += left != 0.0f;
        j += (size_t)match;
    }
    for (; i < count; i++) {
        float left = all->value[i] * share;
        out->index[n] = all->index[i];
        out->value[n] = left;
        n += left != 0.0f;
    }
    *out->count = (uint32_t)n;
    fpenv_leave(saved);
    return GTOPK_OK;
}

gtopk_status_t sets_copy(device_t *device, const device_set_t *from, device_set_t *to, void *stream)
{
    (void)device;
    (void)stream;
    gtopk_status_t status = check_capacity("copy", *from->count, to);
    if (status != GTOPK_OK)
        return status;
    *to->count = *from->count;
    if (*from->count) {
        memcpy(to->index, from->index, *from->count * sizeof *to->index);
        memcpy(to->value, from->value, *from->count * sizeof *to->value);
    }
    return GTOPK_OK;
}
