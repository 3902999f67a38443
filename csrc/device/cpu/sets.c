/* Merge, deposit, cut and copy: linear in the entries, without branches that depend on them. */
#include "device/cpu/sets.h"

#include <string.h>

#include "device/cpu/store.h"
#include "device/host.h"
#include "util/fpenv.h"
#include "wire/convert.h"

#define MAGNITUDE 0x7fffffffu

/* a where take is 1, b where it is 0. The compiler would make an unpredictable branch of a conditional. */
static inline float choose(uint32_t take, float a, float b)
{
    uint32_t x = convert_bits(a), y = convert_bits(b);
    return convert_float(y ^ ((x ^ y) & -take));
}

/* The entries of a and b, sorted by index, those of a before those of b. What a step costs is the time from loading an
 * index to knowing the next one to load, so the merge runs from both ends at once: two such chains overlap. Choosing
 * between addresses, not values, is what compilers make a conditional move of; a branch would be a coin toss. */
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
        size_t low = i + j, high = i_end + j_end, stop = low + steps;
        while (low < stop) {
            uint32_t x = ai[i], y = bi[low - i];
            const float *of_a = av + i, *of_b = bv + (low - i), *from = x <= y ? of_a : of_b;
            index[low] = x < y ? x : y;
            value[low++] = *from;
            i += x <= y;

            high--;
            x = ai[i_end - 1], y = bi[j_end - 1];
            of_a = av + i_end - 1, of_b = bv + j_end - 1, from = x <= y ? of_b : of_a;
            index[high] = x < y ? y : x;
            value[high] = *from;
            j_end -= x <= y;
            i_end -= x > y;
        }
        j = low - i;
    }
    while (i < i_end || j < j_end) {
        int from_a = j == j_end || (i < i_end && ai[i] <= bi[j]);
        index[i + j] = from_a ? ai[i] : bi[j];
        value[i + j] = from_a ? av[i] : bv[j];
        i += (size_t)from_a;
        j += (size_t)!from_a;
    }
}

static void keep(const kernels_t *kernels, const uint32_t *index, const float *value, size_t count, uint64_t k,
                 device_set_t *kept)
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
    const kernels_t *kernels = cpu_kernels(device);
    uint64_t room = (uint64_t)*a->count + *b->count;
    *kept->count = *all->count = 0;
    if (!host_has_room(all, room, words) || !host_has_room(kept, k < room ? k : room, words))
        return GTOPK_OK;
    fpenv_t saved = fpenv_enter();
    int nonfinite = 0;
    interleave(a, b, all->index, all->value);
    size_t count = kernels->join(all->index, all->value, (size_t)room, &nonfinite);
    keep(kernels, all->index, all->value, count, k, kept);
    *all->count = (uint32_t)count;
    if (nonfinite)
        words->nonfinite = 1;
    fpenv_leave(saved);
    return GTOPK_OK;
}

/* One of the two halves that a deposit is computed in, in turn, for the reason given at interleave. */
typedef struct half {
    size_t i, j, out; /* places in all, in sent and in the result */
} half_t;

static inline __attribute__((always_inline)) void deposit_step(half_t *half, const device_set_t *all,
                                                               const device_set_t *sent, size_t last, float share,
                                                               uint32_t *restrict index, float *restrict value)
{
    /* Behind its end sent stays at the last entry, whose index was met already. */
    size_t j = half->j < last ? half->j : last;
    uint32_t here = all->index[half->i], match = sent->index[j] == here;
    float left = (all->value[half->i] - choose(match, sent->value[j], 0.0f)) * share;
    index[half->out] = here;
    value[half->out] = left;
    half->out += (convert_bits(left) & MAGNITUDE) != 0;
    half->i++;
    half->j += match;
}

/* The first entry of a sorted set whose index is not below `index`. */
static size_t lower_bound(const device_set_t *set, uint32_t index)
{
    size_t low = 0, high = *set->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (set->index[middle] < index)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static size_t deposit_all(const device_set_t *all_entries, const device_set_t *sent_entries, float share,
                          const device_set_t *out)
{
    const device_set_t all = *all_entries, sent = *sent_entries;
    uint32_t *index = out->index;
    float *value = out->value;
    size_t count = *all.count, middle = count / 2, last = *sent.count - 1u;
    half_t low = {0, 0, 0}, high = {middle, lower_bound(&sent, all.index[middle]), middle};
    for (size_t steps = middle; steps > 0; steps--) {
        deposit_step(&low, &all, &sent, last, share, index, value);
        deposit_step(&high, &all, &sent, last, share, index, value);
    }
    if (high.i < count)
        deposit_step(&high, &all, &sent, last, share, index, value);
    size_t moved = high.out - middle;
    memmove(index + low.out, index + middle, moved * sizeof *index);
    memmove(value + low.out, value + middle, moved * sizeof *value);
    return low.out + moved;
}

/* Nothing was sent: everything goes back. */
static size_t deposit_unsent(const device_set_t *all, float share, const device_set_t *out)
{
    size_t n = 0;
    for (size_t i = 0; i < *all->count; i++) {
        out->index[n] = all->index[i];
        out->value[n] = all->value[i] * share;
        n += out->value[n] != 0.0f;
    }
    return n;
}

gtopk_status_t sets_deposit(device_t *device, const device_set_t *all, const device_set_t *sent, float share,
                            device_set_t *out, device_words_t *words, void *stream)
{
    (void)device;
    (void)stream;
    if (!host_has_room(out, *all->count, words))
        return GTOPK_OK;
    fpenv_t saved = fpenv_enter();
    *out->count = (uint32_t)(*sent->count ? deposit_all(all, sent, share, out) : deposit_unsent(all, share, out));
    fpenv_leave(saved);
    return GTOPK_OK;
}

gtopk_status_t sets_cut(device_t *device, const device_set_t *set, device_range_t range, device_set_t *out,
                        device_words_t *words, void *stream)
{
    (void)device;
    (void)stream;
    const uint32_t *restrict from = set->index;
    const float *restrict value = set->value;
    uint32_t *restrict index = out->index;
    float *restrict kept = out->value;
    uint32_t total = 0;
    for (uint32_t i = 0; i < *set->count; i++)
        total += range_has(range, from[i]) != 0;
    if (!host_has_room(out, total, words))
        return GTOPK_OK;
    for (uint32_t i = 0, n = 0; n < total; i++) {
        index[n] = range_inside(range, from[i]);
        kept[n] = value[i];
        n += range_has(range, from[i]) != 0;
    }
    *out->count = total;
    return GTOPK_OK;
}

gtopk_status_t sets_copy(device_t *device, const device_set_t *from, device_set_t *to, device_words_t *words,
                         void *stream)
{
    (void)device;
    (void)stream;
    if (!host_has_room(to, *from->count, words))
        return GTOPK_OK;
    *to->count = *from->count;
    if (*from->count) {
        memcpy(to->index, from->index, *from->count * sizeof *to->index);
        memcpy(to->value, from->value, *from->count * sizeof *to->value);
    }
    return GTOPK_OK;
}
