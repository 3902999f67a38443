/* The step of training, from top to bottom: accumulate, select, exchange, commit. */
#include <math.h>
#include <string.h>

#include "core/reducer.h"
#include "exchange/dense.h"
#include "util/clock.h"

/* ---- accumulate ---- */

static void step_begin(gtopk_reducer_t *reducer)
{
    if (reducer->in_step)
        return;
    reducer->in_step = 1;
    reducer->words->ok = 1;
    reducer->words->nonfinite = 0;
    reducer->device->ops->step_begin(reducer->store);
    reducer->stats = (gtopk_stats_t){
        .struct_size = sizeof reducer->stats,
        .step = reducer->step,
        .k = reducer_is_dense(reducer) ? reducer->record.dim : reducer->k,
        .slowest_peer = -1,
    };
}

static size_t dtype_size(int32_t dtype)
{
    return dtype == GTOPK_F32 ? 4 : dtype == GTOPK_F16 || dtype == GTOPK_BF16 ? 2 : 0;
}

/* A tensor that stands for segment s: type, length, alignment. */
static gtopk_status_t check_tensor(const gtopk_reducer_t *reducer, const char *what, size_t s,
                                   const gtopk_tensor_t *tensor)
{
    const size_t item = dtype_size(tensor->dtype);
    if (item == 0)
        return status_set(GTOPK_ERR_INVALID,
                          "%s of segment %zu has dtype %d: GTOPK_F32, GTOPK_F16 or GTOPK_BF16 is possible", what, s,
                          (int)tensor->dtype);
    if (tensor->length != reducer->lengths[s])
        return status_set(GTOPK_ERR_INVALID, "%s of segment %zu has %llu entries, the segment has %llu", what, s,
                          (unsigned long long)tensor->length, (unsigned long long)reducer->lengths[s]);
    if (tensor->length > 0 && !tensor->data)
        return status_set(GTOPK_ERR_INVALID, "%s of segment %zu is NULL", what, s);
    if ((uintptr_t)tensor->data % item != 0)
        return status_set(GTOPK_ERR_INVALID, "%s of segment %zu is not aligned to its %zu bytes an entry", what, s,
                          item);
    return GTOPK_OK;
}

static void span_set(gtopk_reducer_t *reducer, size_t at, size_t segment, const gtopk_tensor_t *tensor)
{
    reducer->spans[at] = (device_span_t){
        .offset = reducer->offsets[segment],
        .length = reducer->lengths[segment],
        .data = tensor ? tensor->data : NULL,
        .dtype = tensor ? tensor->dtype : GTOPK_F32,
    };
}

/* Checks all tensors and marks their segments as seen; on an error no mark is left behind. */
static gtopk_status_t claim_segments(gtopk_reducer_t *reducer, const uint32_t *segments, const gtopk_tensor_t *tensors,
                                     size_t count)
{
    gtopk_status_t status = GTOPK_OK;
    size_t claimed = 0;
    if (count > reducer->record.segments)
        return status_set(GTOPK_ERR_INVALID, "accumulate got %zu tensors, the reducer has %llu segments", count,
                          (unsigned long long)reducer->record.segments);
    if (count > 0 && !tensors)
        return status_set(GTOPK_ERR_INVALID, "accumulate of %zu tensors got none", count);
    for (size_t i = 0; i < count && status == GTOPK_OK; i++) {
        const size_t s = segments ? segments[i] : i;
        if (s >= reducer->record.segments)
            status = status_set(GTOPK_ERR_INVALID, "segment %zu does not exist: the reducer has %llu", s,
                                (unsigned long long)reducer->record.segments);
        else if (reducer->seen[s])
            status = status_set(GTOPK_ERR_STATE,
                                "segment %zu was accumulated already in step %llu: each segment once a step; add up "
                                "gradients before, or call reduce",
                                s, (unsigned long long)reducer->step);
        else
            status = check_tensor(reducer, "the gradient", s, &tensors[i]);
        if (status != GTOPK_OK)
            break;
        reducer->seen[s] = 1;
        claimed++;
        span_set(reducer, i, s, &tensors[i]);
    }
    for (size_t i = 0; i < claimed && status != GTOPK_OK; i++)
        reducer->seen[segments ? segments[i] : i] = 0;
    return status;
}

static gtopk_status_t accumulate_checked(gtopk_reducer_t *reducer, size_t count, float scale, uint32_t flags,
                                         void *stream)
{
    if (flags & GTOPK_FOUND_INF) {
        reducer->words->nonfinite = 1;
        return GTOPK_OK;
    }
    const device_accumulate_t params = {
        .scale = scale,
        .zero_input = (flags & GTOPK_ZERO_INPUT) != 0,
        .momentum = reducer->momentum,
        .nesterov = reducer->nesterov,
    };
    return reducer->device->ops->accumulate(reducer->store, reducer->spans, count, &params, reducer->words, stream);
}

gtopk_status_t gtopk_reducer_accumulate(gtopk_reducer_t *reducer, const uint32_t *segments,
                                        const gtopk_tensor_t *tensors, size_t count, double scale, uint32_t flags,
                                        void *stream)
{
    gtopk_status_t status = reducer_enter(reducer);
    if (status != GTOPK_OK)
        return status;
    const double start = clock_now();
    status = link_check_alive(&reducer->comm->link);
    if (status == GTOPK_OK && !(isfinite(scale) && isfinite((float)scale)))
        status = status_set(GTOPK_ERR_INVALID, "scale %g is not a finite float", scale);
    if (status == GTOPK_OK && (flags & ~(uint32_t)(GTOPK_ZERO_INPUT | GTOPK_FOUND_INF)))
        status = status_set(GTOPK_ERR_INVALID, "accumulate does not know flags %#x", flags);
    if (status == GTOPK_OK)
        status = claim_segments(reducer, segments, tensors, count);
    if (status == GTOPK_OK) {
        step_begin(reducer);
        status = accumulate_checked(reducer, count, (float)scale, flags, stream);
    }
    reducer->stats.accumulate_s += clock_now() - start;
    reducer_leave(reducer);
    return status;
}

/* Segments without a gradient are offered to the selection as they are. */
static gtopk_status_t accumulate_missing(gtopk_reducer_t *reducer, void *stream)
{
    size_t missing = 0;
    for (size_t s = 0; s < reducer->record.segments; s++)
        if (!reducer->seen[s])
            span_set(reducer, missing++, s, NULL);
    const device_accumulate_t params = {.scale = 1.0f};
    return missing == 0 ? GTOPK_OK
                        : reducer->device->ops->accumulate(reducer->store, reducer->spans, missing, &params,
                                                           reducer->words, stream);
}

/* ---- reduce ---- */

/* Where the update goes: dense outputs, or a set of the caller. */
typedef struct target {
    const gtopk_tensor_t *outputs;
    size_t count;
    gtopk_set_t *set;
    int outputs_are_zero;
} target_t;

static gtopk_status_t check_target(const gtopk_reducer_t *reducer, const target_t *target)
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
    if (target->count != reducer->record.segments || !target->outputs)
        return status_set(GTOPK_ERR_INVALID, "reduce got %zu outputs, the reducer has %llu segments: give one for each",
                          target->count, (unsigned long long)reducer->record.segments);
    for (size_t s = 0; s < target->count && status == GTOPK_OK; s++)
        status = check_tensor(reducer, "the output", s, &target->outputs[s]);
    return status;
}

static size_t output_spans(gtopk_reducer_t *reducer, const target_t *target)
{
    for (size_t s = 0; s < target->count; s++)
        span_set(reducer, s, s, &target->outputs[s]);
    return target->count;
}

static void write_set(gtopk_set_t *set, const device_set_t *sum, uint32_t size, int nonfinite)
{
    set->count = nonfinite ? 0 : *sum->count;
    for (uint64_t i = 0; i < set->count; i++) {
        set->indices[i] = sum->index[i];
        set->values[i] = sum->value[i] / (float)size;
    }
}

static void write_set_dense(gtopk_set_t *set, const float *mean, uint64_t dim, int nonfinite)
{
    set->count = 0;
    for (uint64_t i = 0; i < dim && !nonfinite; i++)
        if (mean[i] != 0.0f) {
            set->indices[set->count] = (uint32_t)i;
            set->values[set->count++] = mean[i];
        }
}

static gtopk_status_t run_dense(gtopk_reducer_t *reducer, const target_t *target, void *stream)
{
    gtopk_comm_t *comm = reducer->comm;
    const device_ops_t *ops = reducer->device->ops;
    gtopk_stats_t *stats = &reducer->stats;
    double start = clock_now();
    gtopk_status_t status = dense_run(reducer->sparse, &comm->link, reducer->device, reducer->store, reducer->dense,
                                      reducer->record.dim, reducer->step, reducer->hash, reducer->words);
    stats->exchange_s = clock_now() - start;
    start = clock_now();
    if (status == GTOPK_OK)
        status = ops->dense_commit(reducer->store, reducer->dense, (uint32_t)comm->transport->size, reducer->spans,
                                   output_spans(reducer, target), reducer->words, stream);
    if (status == GTOPK_OK && target->set)
        write_set_dense(target->set, reducer->dense, reducer->record.dim, reducer->words->nonfinite != 0);
    stats->count = reducer->words->nonfinite ? 0 : reducer->record.dim;
    stats->selected = stats->count;
    stats->commit_s = clock_now() - start;
    return status;
}

static gtopk_status_t run_sparse(gtopk_reducer_t *reducer, const target_t *target, void *stream)
{
    gtopk_comm_t *comm = reducer->comm;
    const device_ops_t *ops = reducer->device->ops;
    gtopk_stats_t *stats = &reducer->stats;
    device_set_t *selected = sparse_selected(reducer->sparse);
    device_journal_t journal;
    double start = clock_now();
    gtopk_status_t status = accumulate_missing(reducer, stream);
    stats->accumulate_s += clock_now() - start;

    start = clock_now();
    *selected->count = 0;
    if (status == GTOPK_OK && !reducer->words->nonfinite)
        status = ops->select(reducer->store, reducer->k, selected, stream, &stats->candidates, &stats->hint_misses);
    stats->selected = *selected->count;
    stats->select_s = clock_now() - start;

    start = clock_now();
    if (status == GTOPK_OK)
        status = sparse_run(reducer->sparse, reducer->step, reducer->hash, link_deadline(&comm->link), reducer->words,
                            &journal);
    stats->exchange_s = clock_now() - start;
    if (status != GTOPK_OK)
        return status;

    start = clock_now();
    status = ops->commit(reducer->store, &journal, reducer->spans, output_spans(reducer, target),
                         target->outputs_are_zero, reducer->words, stream);
    if (status == GTOPK_OK && target->set)
        write_set(target->set, &journal.final, journal.size, reducer->words->nonfinite != 0);
    stats->count = reducer->words->nonfinite ? 0 : *journal.final.count;
    stats->commit_s = clock_now() - start;
    return status;
}

static void finish_stats(gtopk_reducer_t *reducer)
{
    const link_stats_t *link = &reducer->comm->link.stats;
    gtopk_stats_t *stats = &reducer->stats;
    stats->bytes_sent = link->bytes_sent;
    stats->bytes_received = link->bytes_received;
    stats->rounds = link->rounds;
    stats->slowest_peer = link->slowest_peer;
    stats->wait_s = link->wait_s;
    stats->nonfinite = reducer->words->nonfinite != 0;
    stats->all_joined = reducer->words->joined != 0;
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

static gtopk_status_t reduce(gtopk_reducer_t *reducer, const target_t *target, uint32_t flags, void *stream,
                             gtopk_stats_t *stats)
{
    gtopk_status_t status = reducer_enter(reducer);
    if (status != GTOPK_OK)
        return status;
    gtopk_comm_t *comm = reducer->comm;
    status = comm_enter(comm);
    if (status != GTOPK_OK) {
        reducer_leave(reducer);
        return status;
    }
    if (flags & ~(uint32_t)(GTOPK_OUTPUT_IS_ZERO | GTOPK_JOINED))
        status = status_set(GTOPK_ERR_INVALID, "reduce does not know flags %#x", flags);
    if (status == GTOPK_OK && stats && stats->struct_size < sizeof(size_t))
        status = status_set(GTOPK_ERR_INVALID, "stats->struct_size is %zu: set it to sizeof(gtopk_stats_t)",
                            stats->struct_size);
    if (status == GTOPK_OK)
        status = check_target(reducer, target);
    if (status == GTOPK_OK) {
        step_begin(reducer);
        reducer->words->joined = (flags & GTOPK_JOINED) != 0;
        link_stats_reset(&comm->link);
        status = reducer_is_dense(reducer) ? run_dense(reducer, target, stream) : run_sparse(reducer, target, stream);
        status = comm_settle(comm, status, reducer->step);
        finish_stats(reducer);
        reducer->in_step = 0; /* whatever happened, the step is over */
        memset(reducer->seen, 0, reducer->record.segments);
        reducer->step += status == GTOPK_OK;
        stats_copy(reducer, stats);
    }
    comm_leave(comm);
    reducer_leave(reducer);
    return status;
}

gtopk_status_t gtopk_reducer_reduce(gtopk_reducer_t *reducer, const gtopk_tensor_t *outputs, size_t count,
                                    uint32_t flags, void *stream, gtopk_stats_t *stats)
{
    const target_t target = {
        .outputs = outputs, .count = count, .outputs_are_zero = (flags & GTOPK_OUTPUT_IS_ZERO) != 0};
    return reduce(reducer, &target, flags, stream, stats);
}

gtopk_status_t gtopk_reducer_reduce_sparse(gtopk_reducer_t *reducer, gtopk_set_t *set, uint32_t flags, void *stream,
                                           gtopk_stats_t *stats)
{
    const target_t target = {.set = set};
    if (!set)
        return status_set(GTOPK_ERR_INVALID, "gtopk_reducer_reduce_sparse needs a set");
    return reduce(reducer, &target, flags, stream, stats);
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
