/* Merge, deposit and copy: linear in the entries, without branches that depend on them. */
#include "device/cpu/sets.h"

#include <string.h>

#include "device/cpu/store.h"
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

/* a where take is 1, b where it is 0. The compiler would make an unpredictable branch of a conditional. */
static inline float choose(uint32_t take, float a, float b)
{
    uint32_t x = convert_bits(a), y = convert_bits(b);
    return convert_float(y ^ ((x ^ y) & -take));
}

/* The entries of a and b, sorted by index, those of a before those of b. What a step costs is the time from loading an
 * index to knowing the next one to load, so the merge runs from both ends at once: two such chains overlap. */
static void interleave(const device_set_t *a, const device_set_t *b, uint32_t *restrict index, float *restrict value)
{
    const uint32_t *restrict ai = a->index, *restrict bi = b->index;
    const float *restrict av = a->value, *restrict bv = b->value;
    size_t i = 0, j = 0, i_end = *a->count, j_end = *b->count;
    for (;;) {
        /* So many steps cannot run out of either set, whichever way they go. */
        size_t left_a = i_end - i, left_b = j_end - j, steps = (left_a < left_b ? left_a : left_b) / 2;
        if (steps == 0)
            break;
        for (; steps > 0; steps--) {
            uint32_t x = ai[i], y = bi[j], from_a = x <= y;
            index[i + j] = x < y ? x : y;
            value[i + j] = choose(from_a, av[i], bv[j]);
            i += from_a;
            j += 1 - from_a;
            x = ai[i_end - 1], y = bi[j_end - 1];
            uint32_t from_b = x <= y;
            index[i_end + j_end - 1] = x < y ? y : x;
            value[i_end + j_end - 1] = choose(from_b, bv[j_end - 1], av[i_end - 1]);
            i_end -= 1 - from_b;
            j_end -= from_b;
        }
    }
    while (i < i_end || j < j_end) {
        int from_a = j == j_end || (i < i_end && ai[i] <= bi[j]);
        index[i + j] = from_a ? ai[i] : bi[j];
        value[i + j] = from_a ? av[i] : bv[j];
        i += (size_t)from_a;
        j += (size_t)!from_a;
    }
}

static void keep(const kernels_t *kernels, const uint32_t *index, const float *value, size_t count, uint64_t k, device_set_t *kept)
{
    if (count > k) {
        rank_keep_largest(kernels, index, value, count, (size_t)k, kept->index, kept->value);
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
    (void)stream;
    const kernels_t *kernels = ((const device_cpu_t *)device)->kernels;
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
    int nonfinite = 0;
    interleave(a, b, index, value);
    size_t count = kernels->join(index, value, (size_t)room, &nonfinite);
    keep(kernels, index, value, count, k, kept);
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
