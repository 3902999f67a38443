/* The public calls that end a step: what they were given is checked, then step.c takes it. */
#include <string.h>

#include "core/step.h"

static int target_is_nowhere(const step_target_t *target, uint32_t flags)
{
    return (flags & GTOPK_JOINED) && !target->set && !target->outputs && target->count == 0;
}

static gtopk_status_t check_target(const gtopk_reducer_t *reducer, const step_target_t *target, uint32_t flags)
{
    const segments_t *segments = &reducer->segments;
    gtopk_status_t status = GTOPK_OK;
    if (target->set) {
        const uint64_t needed = gtopk_reducer_max_count(reducer);
        if (target->set->capacity < needed || (needed > 0 && (!target->set->indices || !target->set->values)))
            status = status_set(GTOPK_ERR_INVALID,
                                "the set has room for %llu entries, an update may have %llu: see "
                                "gtopk_reducer_max_count",
                                (unsigned long long)target->set->capacity, (unsigned long long)needed);
        return status;
    }
    if (target_is_nowhere(target, flags))
        return GTOPK_OK;
    if (target->count != segments->count || !target->outputs)
        return status_set(GTOPK_ERR_INVALID, "reduce got %zu outputs, the reducer has %zu segments: give one for each",
                          target->count, segments->count);
    for (size_t s = 0; s < target->count && status == GTOPK_OK; s++)
        status = segments_check_tensor(segments, "the output", s, &target->outputs[s]);
    return status;
}

static gtopk_status_t check_group(const step_group_t *group, gtopk_stats_t *const *stats)
{
    gtopk_status_t status = GTOPK_OK;
    if (group->flags & ~(uint32_t)(GTOPK_OUTPUT_IS_ZERO | GTOPK_JOINED))
        status = status_set(GTOPK_ERR_INVALID, "reduce does not know flags %#x", group->flags);
    for (size_t i = 0; i < group->count && status == GTOPK_OK; i++) {
        if (group->reducers[i]->device != group->reducers[0]->device)
            status = status_set(
                GTOPK_ERR_INVALID,
                "reducer %zu computes on another device than reducer 0: only reducers of one device can "
                "take a step together",
                i);
        if (status == GTOPK_OK && stats && stats[i] && stats[i]->struct_size < sizeof(size_t))
            status = status_set(GTOPK_ERR_INVALID, "stats->struct_size is %zu: set it to sizeof(gtopk_stats_t)",
                                stats[i]->struct_size);
        if (status == GTOPK_OK)
            status = check_target(group->reducers[i], &group->targets[i], group->flags);
    }
    return status;
}

/* ---- the calls ---- */

static void stats_copy(const gtopk_reducer_t *reducer, gtopk_stats_t *out)
{
    if (!out)
        return;
    const size_t size = out->struct_size < sizeof *out ? out->struct_size : sizeof *out;
    const size_t kept = out->struct_size;
    memcpy(out, &reducer->stats, size);
    out->struct_size = kept;
}

static gtopk_status_t reduce(const step_group_t *group, gtopk_stats_t *const *stats)
{
    gtopk_comm_t *comm = NULL;
    size_t entered = 0;
    gtopk_status_t status = GTOPK_OK;
    while (entered < group->count && status == GTOPK_OK) {
        status = reducer_enter(group->reducers[entered]);
        entered += status == GTOPK_OK;
    }
    if (status == GTOPK_OK)
        status = comm_enter(group->reducers[0]->comm);
    if (status == GTOPK_OK) {
        comm = group->reducers[0]->comm;
        status = check_group(group, stats);
    }
    if (status == GTOPK_OK) {
        status = step_take(group);
        for (size_t i = 0; stats && i < group->count; i++)
            stats_copy(group->reducers[i], stats[i]);
    }
    if (comm)
        comm_leave(comm);
    while (entered > 0)
        reducer_leave(group->reducers[--entered]);
    return status;
}

gtopk_status_t gtopk_reducer_reduce(gtopk_reducer_t *reducer, const gtopk_tensor_t *outputs, size_t count,
                                    uint32_t flags, void *stream, gtopk_stats_t *stats)
{
    const step_target_t target = {.outputs = outputs, .count = count};
    exchange_step_t step;
    const step_group_t group = {&reducer, &target, 1, flags, stream, &step};
    return reduce(&group, &stats);
}

gtopk_status_t gtopk_reducer_reduce_sparse(gtopk_reducer_t *reducer, gtopk_set_t *set, uint32_t flags, void *stream,
                                           gtopk_stats_t *stats)
{
    const step_target_t target = {.set = set};
    exchange_step_t step;
    const step_group_t group = {&reducer, &target, 1, flags, stream, &step};
    if (!set)
        return status_set(GTOPK_ERR_INVALID, "gtopk_reducer_reduce_sparse needs a set");
    return reduce(&group, &stats);
}

/* They must be different reducers of one communicator. */
static gtopk_status_t check_reducers(gtopk_reducer_t *const *reducers, size_t count)
{
    if (count == 0 || count > GTOPK_REDUCERS_MAX || !reducers)
        return status_set(GTOPK_ERR_INVALID, "gtopk_reducers_reduce got %zu reducers: give 1 to %d", count,
                          GTOPK_REDUCERS_MAX);
    for (size_t i = 0; i < count; i++) {
        if (!reducers[i])
            return status_set(GTOPK_ERR_INVALID, "reducer %zu is NULL: create one with gtopk_reducer_create", i);
        if (reducers[i]->comm != reducers[0]->comm)
            return status_set(GTOPK_ERR_INVALID,
                              "reducer %zu has another communicator than reducer 0: only reducers of one communicator "
                              "can take a step together",
                              i);
        for (size_t j = 0; j < i; j++)
            if (reducers[i] == reducers[j])
                return status_set(GTOPK_ERR_INVALID, "reducers %zu and %zu are the same", j, i);
    }
    return GTOPK_OK;
}

gtopk_status_t gtopk_reducers_reduce(gtopk_reducer_t *const *reducers, const gtopk_tensor_t *const *outputs,
                                     const size_t *counts, size_t count, uint32_t flags, void *stream,
                                     gtopk_stats_t *const *stats)
{
    step_target_t targets[GTOPK_REDUCERS_MAX];
    exchange_step_t steps[GTOPK_REDUCERS_MAX];
    const gtopk_status_t status = check_reducers(reducers, count);
    if (status != GTOPK_OK)
        return status;
    for (size_t i = 0; i < count; i++)
        targets[i] = (step_target_t){.outputs = outputs ? outputs[i] : NULL, .count = counts ? counts[i] : 0};
    const step_group_t group = {reducers, targets, count, flags, stream, steps};
    return reduce(&group, stats);
}

gtopk_status_t gtopk_reducer_cancel(gtopk_reducer_t *reducer)
{
    gtopk_status_t status = reducer_enter(reducer);
    if (status != GTOPK_OK)
        return status;
    if (reducer->shares)
        status = shares_keep(reducer);
    const gtopk_status_t ended = step_end(reducer);
    status = status == GTOPK_OK ? ended : status;
    reducer_leave(reducer);
    return status;
}

gtopk_status_t gtopk_reducer_wait(gtopk_reducer_t *reducer, gtopk_stats_t *stats)
{
    gtopk_status_t status = reducer_enter(reducer);
    if (status != GTOPK_OK)
        return status;
    status = reducer->device->ops->synchronize(reducer->device, reducer->stream);
    if (status != GTOPK_OK)
        status = reducer_lose(reducer, status);
    stats_copy(reducer, stats);
    reducer_leave(reducer);
    return status;
}
