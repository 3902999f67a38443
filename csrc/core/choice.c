/* Choosing an algorithm. */
#include "core/choice.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/measure.h"
#include "core/settings.h"
#include "exchange/collective.h"
#include "exchange/cost.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/memory.h"

#define WORTH_A_CHANGE 0.95 /* of the time so far */

static const int32_t algorithms[] = {GTOPK_ALGORITHM_GTOPK, GTOPK_ALGORITHM_GTOPK_SPLIT, GTOPK_ALGORITHM_TOPK,
                                     GTOPK_ALGORITHM_GTOPK_TREE, GTOPK_ALGORITHM_DENSE};

#define ALGORITHMS (sizeof algorithms / sizeof *algorithms)

_Static_assert(ALGORITHMS == WIRE_ALGORITHMS && ALGORITHMS <= GTOPK_CHOICES, "each is a choice");

/* Predictions are not better than that: what may be faster by them is tried. */
#define TRUST 1.5

/* What is known of an algorithm by itself. */
static double known(const double *predicted, const double *measured, int32_t algorithm)
{
    if (!(predicted[algorithm] > 0.0))
        return INFINITY;
    return measured[algorithm] > 0.0 ? measured[algorithm] : predicted[algorithm];
}

/* Times that came out shorter than predicted are taken to be so for all. */
static double estimate(const double *predicted, const double *measured, int32_t algorithm, int32_t current)
{
    const double seconds = known(predicted, measured, algorithm);
    if (measured[algorithm] > 0.0 || !(measured[current] > 0.0) || !isfinite(seconds))
        return seconds;
    return seconds * fmin(1.0, measured[current] / predicted[current] / TRUST);
}

int32_t choice_pick(const double *predicted, const double *measured, int32_t current)
{
    int32_t best = current;
    for (size_t i = 0; i < ALGORITHMS; i++)
        if (estimate(predicted, measured, algorithms[i], current) < estimate(predicted, measured, best, current))
            best = algorithms[i];
    const double limit = WORTH_A_CHANGE * known(predicted, measured, current);
    return estimate(predicted, measured, best, current) < limit ? best : current;
}

int32_t choice_predict(const gtopk_reducer_t *reducer, double density, choice_t *choice)
{
    const config_record_t *record = &reducer->record;
    const shares_t *shares = reducer->shares;
    gtopk_costs_t costs = reducer->comm->costs;
    const uint64_t dim = reducer_store_dim(reducer);
    const cost_job_t job = {shares ? shares->peers.size : comm_size(reducer->comm), record->value_type, dim,
                            config_k(dim, density), record->merge_growth};
    if (shares)
        costs.each_node = 1;
    *choice = (choice_t){.window = CHOICE_FIRST};
    for (size_t i = 0; i < ALGORITHMS; i++) {
        const int32_t algorithm = algorithms[i];
        if (!shares || exchange_find(algorithm)->selects)
            choice->predicted[algorithm] = cost_of(&costs, &job, algorithm);
    }
    return choice_pick(choice->predicted, choice->measured, GTOPK_ALGORITHM_GTOPK);
}

void choice_log(const gtopk_reducer_t *reducer, const char *why)
{
    const choice_t *choice = &reducer->choice;
    char text[256] = "";
    size_t at = 0;
    for (size_t i = 0; i < ALGORITHMS; i++) {
        const int32_t algorithm = algorithms[i];
        const double seconds = known(choice->predicted, choice->measured, algorithm);
        if (isfinite(seconds) && at < sizeof text)
            at += (size_t)snprintf(text + at, sizeof text - at, "%s%s %.3f ms%s", at > 0 ? ", " : "",
                                   exchange_find(algorithm)->name, 1e3 * seconds,
                                   choice->measured[algorithm] > 0.0 ? " measured" : "");
    }
    LOG(GTOPK_LOG_INFO, "rank %d: algorithm auto, reducer %u, %s: a step takes %s: %s is taken",
        (int)comm_rank(reducer->comm), reducer->record.reducer, why, text,
        exchange_find(reducer->record.algorithm)->name);
}

/* ---- review ---- */

/* The first step of an algorithm learns its hint, and the last ones of a window are enough. */
static int is_timed(const choice_t *choice)
{
    return choice->warm && choice->steps + CHOICE_TIMES >= choice->window;
}

/* The median of the times, each on the rank where it is highest. */
static gtopk_status_t slowest(gtopk_comm_t *comm, double *times, uint32_t count, double *seconds)
{
    double *all;
    gtopk_status_t status = memory_alloc(&all, (size_t)comm_size(comm) * count, sizeof *all, "the ranks' times");
    if (status == GTOPK_OK)
        status = collective_allgather(&comm->link, times, count * sizeof *times, all);
    for (size_t i = 0; i < (size_t)comm_size(comm) * count && status == GTOPK_OK; i++)
        times[i % count] = fmax(times[i % count], all[i]);
    memory_free(all);
    *seconds = clock_median(times, count);
    return comm_settle(comm, status, 0);
}

static void change(gtopk_reducer_t *reducer, int32_t algorithm)
{
    choice_t *choice = &reducer->choice;
    const int is_new = choice->measured[algorithm] == 0.0;
    const gtopk_status_t status = settings_change(reducer, algorithm);
    if (status != GTOPK_OK) { /* some rank has no memory for it, or the communicator is broken */
        LOG(GTOPK_LOG_INFO, "rank %d: algorithm auto: %s cannot be taken (%s)", (int)comm_rank(reducer->comm),
            exchange_find(algorithm)->name, gtopk_last_error());
        choice->predicted[algorithm] = INFINITY;
        return;
    }
    choice->warm = 0;
    if (is_new)
        choice->window = CHOICE_FIRST;
    choice_log(reducer, "times looked at");
}

gtopk_status_t choice_begin(gtopk_reducer_t *reducer, const gtopk_reducer_config_t *config)
{
    gtopk_comm_t *comm = reducer->comm;
    gtopk_reducer_config_t full;
    gtopk_status_t status = config_check(config, &full);
    if (status == GTOPK_OK)
        status = measure_once(comm, &full);
    if (status == GTOPK_OK)
        status = comm_enter(comm);
    if (status != GTOPK_OK)
        return status;
    const int32_t best = choice_predict(reducer, reducer->record.density, &reducer->choice);
    if (best != reducer->record.algorithm)
        change(reducer, best);
    choice_log(reducer, "predicted");
    status = link_check_alive(&comm->link);
    comm_leave(comm);
    return status;
}

/* The step stays as it is; what goes wrong is for the next one. */
void choice_review(gtopk_reducer_t *reducer)
{
    choice_t *choice = &reducer->choice;
    const gtopk_stats_t *stats = &reducer->stats;
    const int32_t current = reducer->record.algorithm;
    const double seconds = stats->accumulate_s + stats->select_s + stats->exchange_s + stats->commit_s;
    double all;
    if (!choice_is_open(reducer))
        return;
    if (is_timed(choice) && !stats->nonfinite && !stats->all_joined)
        choice->times[choice->timed++] = seconds;
    choice->warm = 1;
    choice->steps++;
    if (choice->steps < choice->window)
        return;
    const uint32_t timed = choice->timed;
    if (timed > 0 && slowest(reducer->comm, choice->times, timed, &all) != GTOPK_OK)
        return;
    choice->steps = choice->timed = 0;
    choice->window = choice->window < CHOICE_LAST ? 2 * choice->window : CHOICE_LAST;
    if (timed == 0)
        return;
    choice->measured[current] = all;
    const int32_t next = choice_pick(choice->predicted, choice->measured, current);
    if (next != current)
        change(reducer, next);
}

gtopk_status_t gtopk_reducer_choice(const gtopk_reducer_t *reducer, gtopk_choice_info_t *info)
{
    if (!reducer || !info || info->struct_size < sizeof(size_t))
        return status_set(GTOPK_ERR_INVALID,
                          "gtopk_reducer_choice needs a reducer and an info with its struct_size set");
    gtopk_choice_info_t found = {
        .struct_size = info->struct_size,
        .algorithm = reducer->record.algorithm,
        .is_auto = reducer->record.open,
    };
    for (int32_t i = 0; i < (int32_t)ALGORITHMS && reducer->record.open; i++) {
        found.predicted_s[i] = isfinite(reducer->choice.predicted[i]) ? reducer->choice.predicted[i] : 0.0;
        found.measured_s[i] = reducer->choice.measured[i];
    }
    memcpy(info, &found, info->struct_size < sizeof found ? info->struct_size : sizeof found);
    return GTOPK_OK;
}
