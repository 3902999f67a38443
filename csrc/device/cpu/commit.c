/* The end of a sparse step: what was sent leaves the residual, deposits come in, the mean goes to the outputs. A few
 * passes over sorted sets, O(k log P); each entry is a cache miss somewhere in the residual, so it is asked for some
 * entries ahead. */
#include "device/cpu/output.h"
#include "device/cpu/store.h"
#include "util/fpenv.h"

/* Entries between asking for a cache line and using it: more than a memory latency, fewer than what a core can have
 * under way is of no harm. */
#define AHEAD 24u

static void ask_for(const float *vector, const device_set_t *set, uint32_t i, uint32_t count)
{
    uint32_t at = i + AHEAD < count ? i + AHEAD : count - 1;
    __builtin_prefetch(vector + set->index[at], 1, 3);
}

static void ask_for_residual(const device_store_t *store, const device_set_t *set, uint32_t i, uint32_t count)
{
    uint32_t at = i + AHEAD < count ? i + AHEAD : count - 1;
    if (store->narrow)
        __builtin_prefetch(store->narrow + set->index[at], 1, 3);
    else
        __builtin_prefetch(store->residual + set->index[at], 1, 3);
}

/* residual[selected] = v - first; with only_final, for those in final alone. */
static void clear_selected(device_store_t *store, const device_journal_t *journal)
{
    const device_set_t *selected = &journal->selected, *first = &journal->first, *final = &journal->final;
    const uint32_t key = dither_key(store->seed, DITHER_CLEAR);
    uint32_t count = *selected->count, firsts = *first->count, finals = *final->count, f = 0, m = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t index = selected->index[i];
        ask_for_residual(store, selected, i, count);
        float sent = 0.0f;
        if (f < firsts && first->index[f] == index)
            sent = first->value[f++];
        if (journal->clear_final_only) {
            while (m < finals && final->index[m] < index)
                m++;
            if (m == finals || final->index[m] != index)
                continue;
        }
        store_put(store, index, selected->value[i] - sent, key);
    }
}

/* Momentum factor masking: what was sent and arrived starts without momentum. */
static void mask_velocity(device_store_t *store, const device_journal_t *journal)
{
    const device_set_t *selected = &journal->selected, *final = &journal->final;
    uint32_t count = *selected->count, finals = *final->count;
    for (uint32_t i = 0, m = 0; i < count && m < finals;) {
        uint32_t mine = selected->index[i], theirs = final->index[m];
        if (mine == theirs) {
            ask_for(store->velocity, selected, i, count);
            store->velocity[mine] = 0.0f;
        }
        i += mine <= theirs;
        m += theirs <= mine;
    }
}

static void add_finite(device_store_t *store, uint32_t index, float value, uint32_t key)
{
    float sum = store_value(store, index) + value;
    if (output_is_finite(sum))
        store_put(store, index, sum, key);
}

static void add_deposits(device_store_t *store, const device_set_t *deposit, uint32_t number)
{
    const uint32_t key = dither_key(store->seed, DITHER_DEPOSIT + number);
    uint32_t count = *deposit->count;
    for (uint32_t i = 0; i < count; i++) {
        ask_for_residual(store, deposit, i, count);
        add_finite(store, deposit->index[i], deposit->value[i], key);
    }
}

/* mean = final / divisor; what an output cannot hold stays in the residual, if there is one, for each of `ranks`. */
static void write_mean(device_store_t *store, uint32_t ranks, const device_set_t *final, uint32_t divisor,
                       const device_target_t *target)
{
    const uint32_t key = store ? dither_key(store->seed, DITHER_MEAN) : 0;
    uint32_t count = *final->count, i = 0;
    for (size_t s = 0; s < target->count; s++) {
        const device_span_t *out = &target->spans[s];
        uint64_t end = out->offset + out->length;
        for (; i < count && final->index[i] < end; i++) {
            uint32_t at = i + AHEAD < count ? final->index[i + AHEAD] : 0;
            if (at >= out->offset && at < end)
                __builtin_prefetch((char *)out->data + (at - out->offset) * device_entry_size(out->dtype), 1, 3);
            float mean = final->value[i] / (float)divisor;
            float stored = output_store(out->data, final->index[i] - out->offset, out->dtype, mean);
            if (mean != stored && store)
                add_finite(store, final->index[i], (mean - stored) * (float)ranks, key);
        }
    }
}

static void write_arrays(const device_set_t *final, uint32_t divisor, const device_target_t *target)
{
    uint32_t count = *final->count;
    for (uint32_t i = 0; i < count; i++) {
        target->indices[i] = final->index[i];
        target->values[i] = final->value[i] / (float)divisor;
    }
}

gtopk_status_t store_commit(device_store_t *store, const device_journal_t *journal, const device_target_t *target,
                            const device_words_t *words, void *stream)
{
    (void)stream;
    if (outputs_drop(words, target))
        return GTOPK_OK;
    fpenv_t saved = fpenv_enter();
    clear_selected(store, journal);
    for (uint32_t d = 0; d < journal->deposit_count; d++)
        add_deposits(store, &journal->deposits[d], d);
    if (store->velocity)
        mask_velocity(store, journal);
    write_mean(store, 1 + journal->others, &journal->final, journal->divisor, target);
    if (target->indices)
        write_arrays(&journal->final, journal->divisor, target);
    fpenv_leave(saved);
    return GTOPK_OK;
}

gtopk_status_t target_write(device_t *device, const device_set_t *final, uint32_t divisor,
                            const device_target_t *target, const device_words_t *words, void *stream)
{
    (void)device;
    (void)stream;
    if (outputs_drop(words, target))
        return GTOPK_OK;
    const fpenv_t saved = fpenv_enter();
    write_mean(NULL, 0, final, divisor, target);
    if (target->indices)
        write_arrays(final, divisor, target);
    fpenv_leave(saved);
    return GTOPK_OK;
}
