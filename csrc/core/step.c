/* The second half of a step, after accumulate: select, exchange, verdict, commit, of some reducers as one.
 *
 * Everything up to the verdict is queued on the caller's stream, as far as the transport allows. The verdict brings all that
 * was learnt on the device; only then does the host look, and only then is anything committed. */
#include "core/step.h"

#include "core/choice.h"
#include "exchange/check.h"
#include "util/clock.h"

static device_t *group_device(const step_group_t *group)
{
    return group->reducers[0]->device;
}

static link_t *group_link(const step_group_t *group)
{
    return &group->reducers[0]->comm->link;
}

/* ---- exchange ---- */

static void count_messages(gtopk_reducer_t *reducer)
{
    const link_stats_t *link = &reducer->comm->link.stats;
    gtopk_stats_t *stats = &reducer->stats;
    stats->bytes_sent = link->bytes_sent;
    stats->bytes_received = link->bytes_received;
    stats->rounds = link->rounds;
    stats->slowest_peer = link->slowest_peer;
    stats->wait_s = link->wait_s;
    stats->network_bytes_sent = link->network_bytes_sent;
}

/* What the words say of a step that failed on the device. */
static gtopk_status_t explain(const link_t *link, const device_words_t *words, uint64_t step)
{
    const wire_expect_t *expect = &words->expect;
    const int32_t from = (int32_t)expect->sender;
    const size_t longest = wire_message_capacity(expect->dim, expect->k, expect->value_type);
    const size_t capacity = expect->tail ? wire_tailed_capacity(longest) : longest;
    gtopk_status_t status = GTOPK_OK;
    char peer[96];
    switch (words->error) {
    case DEVICE_BAD_HEADER:
        status = check_message(link, words->header, capacity, CHECK_TRUSTED, from, expect, NULL);
        break;
    case DEVICE_BAD_PAYLOAD:
        status = status_set(
            GTOPK_ERR_CORRUPT,
            "message of %s: its header is right, but its indices or values are no set; it was damaged, or "
            "written by another program",
            link_peer_name(link, from, peer, sizeof peer));
        break;
    case DEVICE_BAD_TAIL:
        status = status_set(GTOPK_ERR_CORRUPT,
                            "only a part of the message of %s was written: its end is of another one",
                            link_peer_name(link, from, peer, sizeof peer));
        break;
    case DEVICE_HALTED:
        status = status_set(GTOPK_ERR_TRANSPORT, "the exchange was given up while the device was at it");
        break;
    default: break;
    }
    if (status == GTOPK_OK)
        status = status_set(GTOPK_ERR_INTERNAL, "the device stopped a step for reason %u", words->error);
    return status_prefix(status, "step %llu, round %u", (unsigned long long)step, (unsigned)expect->round);
}

/* In shares: the sum over the node goes to the residual, when it is known to be one. */
static gtopk_status_t accumulate_sum(gtopk_reducer_t *reducer, const exchange_step_t *step)
{
    const device_outcome_t outcome = {reducer->words, NULL, reducer->verdict};
    link_t *link = &reducer->comm->link;
    float *sum = NULL;
    gtopk_status_t status = shares_sum(reducer, step, &sum);
    if (status == GTOPK_OK && link->data->ops->stream_ordered) {
        status = link_finish(link, step->deadline);
        if (status == GTOPK_OK)
            status = reducer->device->ops->verdict(reducer->device, &outcome, 1, step->stream);
        if (status == GTOPK_OK && !reducer->verdict->ok)
            status = explain(link, reducer->verdict, reducer->step);
    }
    return status == GTOPK_OK ? shares_take(reducer, step, sum) : status;
}

static gtopk_status_t exchange_one(gtopk_reducer_t *reducer, exchange_step_t *step)
{
    gtopk_stats_t *stats = &reducer->stats;
    gtopk_status_t status = GTOPK_OK;
    link_stats_reset(&reducer->comm->link);
    const double start = clock_now();
    if (reducer->shares)
        status = accumulate_sum(reducer, step);
    const double summed = reducer->shares ? clock_now() - start : 0.0;
    if (status == GTOPK_OK)
        status = step_settle(reducer, step->stream);
    if (status == GTOPK_OK)
        status = reducer->exchange->ops->run(reducer->exchange, step);
    stats->select_s = step->select_s;
    stats->exchange_s = summed + step->exchange_s;
    count_messages(reducer);
    return status;
}

static gtopk_status_t group_begin(const step_group_t *group)
{
    device_words_t *words[GTOPK_REDUCERS_MAX];
    gtopk_status_t status = GTOPK_OK;
    for (size_t i = 0; i < group->count; i++) {
        gtopk_reducer_t *reducer = group->reducers[i];
        reducer->stream = group->stream;
        words[i] = reducer->words;
        if (status == GTOPK_OK)
            status = reducer_check_device(reducer);
        if (status == GTOPK_OK)
            status = step_begin(reducer, group->stream);
        group->steps[i] = (exchange_step_t){
            .number = reducer->step,
            .config_hash = reducer->hash,
            .words = reducer->words,
            .stream = group->stream,
        };
    }
    if (status != GTOPK_OK)
        return status;
    return group_device(group)->ops->words_join(group_device(group), words, group->count,
                                                (group->flags & GTOPK_JOINED) != 0, group->stream);
}

static gtopk_status_t group_exchange(const step_group_t *group)
{
    gtopk_status_t status = group_begin(group);
    for (size_t i = 0; i < group->count && status == GTOPK_OK; i++) {
        group->steps[i].deadline = link_deadline(group_link(group));
        status = exchange_one(group->reducers[i], &group->steps[i]);
    }
    return status;
}

/* ---- verdict ---- */

static gtopk_status_t bring_words(const step_group_t *group)
{
    device_outcome_t outcomes[GTOPK_REDUCERS_MAX];
    for (size_t i = 0; i < group->count; i++)
        outcomes[i] = (device_outcome_t){group->reducers[i]->words, group->steps[i].final, group->reducers[i]->verdict};
    return group_device(group)->ops->verdict(group_device(group), outcomes, group->count, group->stream);
}

/* Waits for all that was queued, and looks at what came of it. */
static gtopk_status_t group_verdict(const step_group_t *group)
{
    const double start = clock_now();
    gtopk_reducer_t *last = group->reducers[group->count - 1];
    gtopk_status_t status = link_finish(group_link(group), group->steps[group->count - 1].deadline);
    if (status == GTOPK_OK)
        status = bring_words(group);
    for (size_t i = 0; i < group->count && status == GTOPK_OK; i++) {
        const device_words_t *verdict = group->reducers[i]->verdict;
        if (!verdict->ok && verdict->error != DEVICE_NO_ERROR)
            status = explain(group_link(group), verdict, group->reducers[i]->step);
    }
    if (status == GTOPK_OK && !last->verdict->ok)
        status = status_set(GTOPK_ERR_INTERNAL, "the device stopped a step without a reason");
    last->stats.exchange_s += clock_now() - start;
    count_messages(last);
    return status;
}

/* The peers found something that is not finite, which this rank has not seen. */
static gtopk_status_t group_drop(const step_group_t *group)
{
    const gtopk_reducer_t *first = group->reducers[0];
    const device_accumulate_t params = {.scale = 1.0f, .found_inf = 1};
    const gtopk_status_t status = first->device->ops->accumulate(first->store, first->segments.spans, 0, &params,
                                                                 first->words, group->stream);
    return status == GTOPK_OK ? bring_words(group) : status;
}

/* A step that goes wrong on one of the peers happens on none of them: so they are told of errors, too. *drop: one of them found
 * something that is not finite, and this rank did not. */
static gtopk_status_t group_agree(const step_group_t *group, gtopk_status_t status, int *drop)
{
    const gtopk_reducer_t *first = group->reducers[0];
    const uint32_t mine = status == GTOPK_OK && first->verdict->nonfinite;
    uint32_t all = mine;
    if (first->comm->peers)
        status = comm_agree_with_peers(first->comm, status, &all);
    *drop = all && !mine;
    return status;
}

static void count_verdict(gtopk_reducer_t *reducer)
{
    const device_words_t *verdict = reducer->verdict;
    gtopk_stats_t *stats = &reducer->stats;
    stats->nonfinite = verdict->nonfinite != 0;
    stats->all_joined = verdict->joined != 0;
    stats->candidates = verdict->candidates;
    stats->hint_misses = verdict->misses;
    stats->count = verdict->count;
    stats->selected = verdict->selected;
    if (!reducer_selects(reducer) && !verdict->nonfinite)
        stats->selected = reducer->record.dim;
}

/* The step is over. After an error nothing that was queued goes on running, or is waited for by others, when this returns. */
static void group_end(const step_group_t *group, gtopk_status_t status)
{
    char text[STATUS_TEXT_SIZE];
    status_keep(text);
    for (size_t i = 0; i < group->count; i++) {
        (void)step_end(group->reducers[i]); /* fails after another error only */
        group->reducers[i]->step += status == GTOPK_OK;
    }
    if (status != GTOPK_OK && link_give_up(group_link(group)))
        (void)group_device(group)->ops->synchronize(group_device(group), group->stream);
    (void)status_set(GTOPK_OK, "%s", text);
}

/* ---- commit ---- */

static gtopk_status_t commit(gtopk_reducer_t *reducer, const exchange_step_t *step, const step_target_t *target,
                             uint32_t flags)
{
    const double start = clock_now();
    const gtopk_set_t *set = target->set;
    if (target->count > 0)
        segments_fill(&reducer->segments, target->outputs);
    const device_target_t to = {
        .spans = target->count > 0 ? reducer->segments.spans : NULL,
        .count = target->count,
        .are_zero = (flags & GTOPK_OUTPUT_IS_ZERO) != 0,
        .indices = set ? set->indices : NULL,
        .values = set ? set->values : NULL,
    };
    gtopk_status_t status = reducer->exchange->ops->commit(reducer->exchange, step, &to);
    if (status == GTOPK_OK && reducer->verdict->nonfinite)
        status = step_undo(reducer, step->stream);
    reducer->stats.commit_s = clock_now() - start;
    return status;
}

/* How many entries went into the sets. Those of a dense update are known only now. */
static gtopk_status_t count_sets(const step_group_t *group)
{
    gtopk_status_t status = GTOPK_OK;
    int dense = 0;
    for (size_t i = 0; i < group->count; i++)
        dense |= group->targets[i].set && !reducer_selects(group->reducers[i]);
    if (dense)
        status = bring_words(group);
    for (size_t i = 0; i < group->count; i++)
        if (group->targets[i].set)
            group->targets[i].set->count = status == GTOPK_OK ? group->reducers[i]->verdict->count : 0;
    return status;
}

/* Every reducer's exchange comes before the first commit: what can fail has not failed by then. */
gtopk_status_t step_take(const step_group_t *group)
{
    gtopk_comm_t *comm = group->reducers[0]->comm;
    int drop;
    gtopk_status_t status = group_exchange(group);
    if (status == GTOPK_OK)
        status = group_verdict(group);
    status = group_agree(group, status, &drop);
    const int agreed = status == GTOPK_OK;
    if (agreed && drop)
        status = group_drop(group);
    for (size_t i = 0; i < group->count && status == GTOPK_OK; i++)
        count_verdict(group->reducers[i]);
    for (size_t i = 0; i < group->count && status == GTOPK_OK; i++)
        status = commit(group->reducers[i], &group->steps[i], &group->targets[i], group->flags);
    if (status == GTOPK_OK)
        status = count_sets(group);
    status = comm_settle(comm, status, group->reducers[0]->step);
    group_end(group, status);
    for (size_t i = 0; i < group->count && status == GTOPK_OK && link_check_alive(&comm->link) == GTOPK_OK; i++)
        choice_review(group->reducers[i]);
    if (agreed)
        comm_tell_peers(comm, group->reducers[0]->step);
    return status;
}
