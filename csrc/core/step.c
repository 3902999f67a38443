/* The second half of a step, after accumulate: select, exchange, commit. */
#include "core/step.h"

#include <string.h>

#include "exchange/dense.h"
#include "util/clock.h"

/* Where the update of a reducer goes: dense outputs, a set of the caller, or nowhere. */
typedef struct target {
    const gtopk_tensor_t *outputs;
    size_t count;
    gtopk_set_t *set;
} target_t;

static int target_is_nowhere(const target_t *target, uint32_t flags)
{
    return (flags & GTOPK_JOINED) && !target->set && !target->outputs && target->count == 0;
}

static gtopk_status_t check_target(const gtopk_reducer_t *reducer, const target_t *target, uint32_t flags)
{
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
    if (target->count != reducer->record.segments || !target->outputs)
        return status_set(GTOPK_ERR_INVALID, "reduce got %zu outputs, the reducer has %llu segments: give one for each",
                          target->count, (unsigned long long)reducer->record.segments);
    for (size_t s = 0; s < target->count && status == GTOPK_OK; s++)
        status = step_check_tensor(reducer, "the output", s, &target->outputs[s]);
    return status;
}

static size_t output_spans(gtopk_reducer_t *reducer, const target_t *target)
{
    for (size_t s = 0; s < target->count; s++)
        step_set_span(reducer, s, s, &target->outputs[s]);
    return target->count;
}

/* Nothing is committed: the update is empty. */
static int is_dropped(const device_words_t *words)
{
    return words->nonfinite || words->joined;
}

static void write_set(gtopk_set_t *set, const device_set_t *sum, uint32_t size)
{
    set->count = *sum->count;
    for (uint64_t i = 0; i < set->count; i++) {
        set->indices[i] = sum->index[i];
        set->values[i] = sum->value[i] / (float)size;
    }
}

static void write_set_dense(gtopk_set_t *set, const float *mean, uint64_t dim)
{
    set->count = 0;
    for (uint64_t i = 0; i < dim; i++)
        if (mean[i] != 0.0f) {
            set->indices[set->count] = (uint32_t)i;
            set->values[set->count++] = mean[i];
        }
}

static gtopk_status_t exchange_dense(gtopk_reducer_t *reducer)
{
    const double start = clock_now();
    const gtopk_status_t status = dense_run(reducer->sparse, &reducer->comm->link, reducer->device, reducer->store,
                                            reducer->dense, reducer->record.dim, reducer->step, reducer->hash,
                                            reducer->words);
    reducer->stats.selected = reducer->words->nonfinite ? 0 : reducer->record.dim;
    reducer->stats.exchange_s = clock_now() - start;
    return status;
}

static gtopk_status_t exchange_sparse(gtopk_reducer_t *reducer, void *stream)
{
    gtopk_stats_t *stats = &reducer->stats;
    device_set_t *selected = sparse_selected(reducer->sparse);
    double start = clock_now();
    gtopk_status_t status = step_accumulate_missing(reducer, stream);
    stats->accumulate_s += clock_now() - start;

    start = clock_now();
    *selected->count = 0;
    if (status == GTOPK_OK && !reducer->words->nonfinite)
        status = reducer->device->ops->select(reducer->store, reducer->k, selected, stream, &stats->candidates,
                                              &stats->hint_misses);
    stats->selected = *selected->count;
    stats->select_s = clock_now() - start;

    start = clock_now();
    if (status == GTOPK_OK)
        status = sparse_run(reducer->sparse, reducer->step, reducer->hash, link_deadline(&reducer->comm->link),
                            reducer->words, &reducer->journal);
    stats->exchange_s = clock_now() - start;
    return status;
}

static void count_messages(gtopk_reducer_t *reducer)
{
    const link_stats_t *link = &reducer->comm->link.stats;
    gtopk_stats_t *stats = &reducer->stats;
    stats->bytes_sent = link->bytes_sent;
    stats->bytes_received = link->bytes_received;
    stats->rounds = link->rounds;
    stats->slowest_peer = link->slowest_peer;
    stats->wait_s = link->wait_s;
}

static gtopk_status_t exchange(gtopk_reducer_t *reducer, void *stream)
{
    link_stats_reset(&reducer->comm->link);
    gtopk_status_t status = reducer_is_dense(reducer) ? exchange_dense(reducer) : exchange_sparse(reducer, stream);
    status = comm_settle(reducer->comm, status, reducer->step);
    count_messages(reducer);
    return status;
}

static gtopk_status_t commit_dense(gtopk_reducer_t *reducer, const target_t *target, void *stream)
{
    const gtopk_status_t status = reducer->device->ops->dense_commit(
        reducer->store, reducer->dense, (uint32_t)reducer->comm->transport->size, reducer->spans,
        output_spans(reducer, target), reducer->words, stream);
    reducer->stats.count = is_dropped(reducer->words) ? 0 : reducer->record.dim;
    if (status == GTOPK_OK && target->set && reducer->stats.count > 0)
        write_set_dense(target->set, reducer->dense, reducer->record.dim);
    return status;
}

static gtopk_status_t commit_sparse(gtopk_reducer_t *reducer, const target_t *target, uint32_t flags, void *stream)
{
    const gtopk_status_t status = reducer->device->ops->commit(
        reducer->store, &reducer->journal, reducer->spans, output_spans(reducer, target),
        (flags & GTOPK_OUTPUT_IS_ZERO) != 0, reducer->words, stream);
    reducer->stats.count = is_dropped(reducer->words) ? 0 : *reducer->journal.final.count;
    if (status == GTOPK_OK && target->set && reducer->stats.count > 0)
        write_set(target->set, &reducer->journal.final, reducer->journal.size);
    return status;
}

static gtopk_status_t commit(gtopk_reducer_t *reducer, const target_t *target, uint32_t flags, void *stream)
{
    const double start = clock_now();
    if (target->set)
        target->set->count = 0;
    const gtopk_status_t status = reducer_is_dense(reducer) ? commit_dense(reducer, target, stream)
                                                            : commit_sparse(reducer, target, flags, stream);
    reducer->stats.commit_s = clock_now() - start;
    return comm_settle(reducer->comm, status, reducer->step);
}

/* Some reducers of one communicator and what they do in this step. */
typedef struct group {
    gtopk_reducer_t *const *reducers;
    const target_t *targets;
    size_t count;
    uint32_t flags;
    void *stream;
} group_t;

static gtopk_status_t group_exchange(const group_t *group)
{
    gtopk_status_t status = GTOPK_OK;
    uint32_t nonfinite = 0;
    for (size_t i = 0; i < group->count; i++) {
        gtopk_reducer_t *reducer = group->reducers[i];
        step_begin(reducer);
        reducer->words->joined = (group->flags & GTOPK_JOINED) != 0;
    }
    for (size_t i = 0; i < group->count && status == GTOPK_OK; i++) {
        device_words_t *words = group->reducers[i]->words;
        words->nonfinite |= nonfinite; /* spares the others work that would be dropped */
        status = exchange(group->reducers[i], group->stream);
        nonfinite |= words->nonfinite;
    }
    for (size_t i = 0; i < group->count; i++)
        group->reducers[i]->words->nonfinite = nonfinite;
    return status;
}

/* Every reducer's exchange comes before the first commit: what can fail has not failed by then. */
static gtopk_status_t group_step(const group_t *group)
{
    gtopk_status_t status = group_exchange(group);
    for (size_t i = 0; i < group->count && status == GTOPK_OK; i++)
        status = commit(group->reducers[i], &group->targets[i], group->flags, group->stream);
    for (size_t i = 0; i < group->count; i++) {
        gtopk_reducer_t *reducer = group->reducers[i];
        reducer->stats.nonfinite = reducer->words->nonfinite != 0;
        reducer->stats.all_joined = reducer->words->joined != 0;
        step_end(reducer); /* whatever happened, it is over */
        reducer->step += status == GTOPK_OK;
    }
    return status;
}

static gtopk_status_t check_group(const group_t *group, gtopk_stats_t *const *stats)
{
    gtopk_status_t status = GTOPK_OK;
    if (group->flags & ~(uint32_t)(GTOPK_OUTPUT_IS_ZERO | GTOPK_JOINED))
        status = status_set(GTOPK_ERR_INVALID, "reduce does not know flags %#x", group->flags);
    for (size_t i = 0; i < group->count && status == GTOPK_OK; i++) {
        if (stats && stats[i] && stats[i]->struct_size < sizeof(size_t))
            status = status_set(GTOPK_ERR_INVALID, "stats->struct_size is %zu: set it to sizeof(gtopk_stats_t)",
                                stats[i]->struct_size);
        if (status == GTOPK_OK)
            status = check_target(group->reducers[i], &group->targets[i], group->flags);
    }
    return status;
}

static void stats_copy(const gtopk_reducer_t *reducer, gtopk_stats_t *out)
{
    if (!out)
        return;
    const size_t size = out->struct_size < sizeof *out ? out->struct_size : sizeof *out;
    const size_t kept = out->struct_size;
    memcpy(out, &reducer->stats, size);
    out->struct_size = kept;
}

static gtopk_status_t reduce(const group_t *group, gtopk_stats_t *const *stats)
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
        status = group_step(group);
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
    const target_t target = {.outputs = outputs, .count = count};
    const group_t group = {&reducer, &target, 1, flags, stream};
    return reduce(&group, &stats);
}

gtopk_status_t gtopk_reducer_reduce_sparse(gtopk_reducer_t *reducer, gtopk_set_t *set, uint32_t flags, void *stream,
                                           gtopk_stats_t *stats)
{
    const target_t target = {.set = set};
    const group_t group = {&reducer, &target, 1, flags, stream};
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
    target_t targets[GTOPK_REDUCERS_MAX];
    const gtopk_status_t status = check_reducers(reducers, count);
    if (status != GTOPK_OK)
        return status;
    for (size_t i = 0; i < count; i++)
        targets[i] = (target_t){.outputs = outputs ? outputs[i] : NULL, .count = counts ? counts[i] : 0};
    const group_t group = {reducers, targets, count, flags, stream};
    return reduce(&group, stats);
}

gtopk_status_t gtopk_reducer_cancel(gtopk_reducer_t *reducer)
{
    const gtopk_status_t status = reducer_enter(reducer);
    if (status != GTOPK_OK)
        return status;
    step_end(reducer);
    reducer_leave(reducer);
    return GTOPK_OK;
}

gtopk_status_t gtopk_reducer_wait(gtopk_reducer_t *reducer, gtopk_stats_t *stats)
{
    const gtopk_status_t status = reducer_enter(reducer);
    if (status != GTOPK_OK)
        return status;
    stats_copy(reducer, stats);
    reducer_leave(reducer);
    return GTOPK_OK;
}
