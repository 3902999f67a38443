/* GTOPK_ALGORITHM_AUTO and gtopk_reducer_set_algorithm: what is chosen from given numbers, how it changes with density and with
 * measured times, and what ranks that disagree are told. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "core/choice.h"
#include "support/check.h"
#include "support/costs.h"
#include "support/ranks.h"
#include "support/step.h"
#include "util/clock.h"

#define DIM 4000

enum { DENSE, TOPK, GTOPK, TREE, SPLIT };

static const uint64_t lengths[2] = {1000, 3000};

/* ---- picking, pure ---- */

static void test_pick(void **state)
{
    const struct {
        double predicted[5], measured[5];
        int32_t current, next;
    } cases[] = {
        {{5, 4, 3, 6, 2}, {0}, GTOPK, SPLIT},
        {{5, 4, 3, 6, 2}, {0}, SPLIT, SPLIT},
        {{5, 4, 3, 6, 2.9}, {0}, GTOPK, GTOPK},             /* less than 5 % */
        {{5, 4, 3, 6, 9}, {0, 0, 3, 0, 0}, GTOPK, TOPK},    /* 4 may be less than 3, by predictions */
        {{5, 4.6, 3, 6, 9}, {0, 0, 3, 0, 0}, GTOPK, GTOPK}, /* 4.6 is too much more */
        {{5, 4, 3, 6, 9}, {0, 0, 1, 0, 0}, GTOPK, TOPK},    /* all are taken to be three times as fast */
        {{5, 4.6, 3, 6, 9}, {0, 0, 1, 0, 0}, GTOPK, GTOPK},
        {{5, 4, 3, 6, 9}, {0, 3.1, 3, 0, 0}, GTOPK, GTOPK},      /* it was tried */
        {{5, 4, 3, 6, 9}, {9, 3.1, 3, 9, 9}, TOPK, TOPK},        /* and is as good */
        {{5, 4, 3, 6, 2}, {0, 0, 0, 0, 9}, SPLIT, GTOPK},        /* slower than predicted: the next one */
        {{5, 4, 3, 6, 2}, {0, 0, 9, 0, 9}, SPLIT, TOPK},         /* of those left the fastest */
        {{5, 8.6, 3, 6, 2}, {9, 0, 9, 9, 9}, SPLIT, SPLIT},      /* no faster than 5 % even so */
        {{5, 4, 3, 6, 2}, {7, 7.5, 9, 8, 9}, GTOPK, DENSE},      /* all are known */
        {{0, 4, 3, 6, 2}, {0.1, 0, 9, 0, 9}, GTOPK, TOPK},       /* no choice is no choice */
        {{5, INFINITY, 3, 6, 2}, {0, 0, 9, 0, 9}, GTOPK, DENSE}, /* nor is what nobody has memory for */
        {{0, 0, INFINITY, 0, 0}, {0}, GTOPK, GTOPK},
        {{0, 0, INFINITY, 0, 1}, {0, 0, 3, 0, 0}, GTOPK, SPLIT},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int32_t next = choice_pick(cases[i].predicted, cases[i].measured, cases[i].current);
        if (next != cases[i].next)
            fail_msg("case %zu: %d in place of %d", i, (int)next, (int)cases[i].next);
    }
}

/* ---- reducers ---- */

static gtopk_reducer_t *create(gtopk_comm_t *comm, int32_t algorithm, double density, int32_t hierarchy)
{
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    config.algorithm = algorithm;
    config.density = density;
    config.value_type = GTOPK_VALUE_F32;
    config.hierarchy = hierarchy;
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, lengths, 2) == GTOPK_OK);
    return reducer;
}

static gtopk_choice_info_t choice_of(const gtopk_reducer_t *reducer)
{
    gtopk_choice_info_t info = {.struct_size = sizeof info};
    REQUIRE(gtopk_reducer_choice(reducer, &info) == GTOPK_OK);
    return info;
}

static void step(gtopk_reducer_t *reducer, int value)
{
    static _Thread_local float values[DIM];
    gtopk_tensor_t tensors[2] = {{values, 1000, GTOPK_F32, 0}, {values + 1000, 3000, GTOPK_F32, 0}};
    for (int i = 0; i < DIM; i++)
        values[i] = (float)((i * 37 + value) % 101 - 50);
    REQUIRE(gtopk_reducer_accumulate(reducer, NULL, tensors, 2, 1.0, 0, NULL) == GTOPK_OK);
    REQUIRE(step_reduce(reducer, tensors, 2, 0, NULL) == GTOPK_OK);
}

/* All ranks have the same numbers. */
static void require_same(gtopk_comm_t *comm, const void *mine, size_t bytes)
{
    uint8_t all[8 * 512];
    REQUIRE(bytes <= 512 && gtopk_comm_size(comm) <= 8);
    REQUIRE(gtopk_allgather(comm, mine, bytes, all) == GTOPK_OK);
    for (int32_t r = 0; r < gtopk_comm_size(comm); r++)
        REQUIRE(memcmp(all + (size_t)r * bytes, mine, bytes) == 0);
}

static void run_measure(gtopk_comm_t *comm, int rank, int size, void *context)
{
    gtopk_costs_t costs = GTOPK_COSTS_INIT;
    (void)rank;
    (void)context;
    REQUIRE(gtopk_comm_measure(comm, NULL, &costs) == GTOPK_OK);
    require_same(comm, &costs, sizeof costs);
    REQUIRE(costs.accumulate_s > 0.0 && costs.accumulate_s < 1e-5 && costs.dense_s > 0.0 && costs.merge_s > 0.0);
    REQUIRE(costs.select_s >= 0.0 && costs.each_node == size);
    if (size > 1)
        REQUIRE(costs.near_message_s + costs.near_byte_s > 0.0 && costs.sum_message_s + costs.sum_byte_s > 0.0);
    else
        REQUIRE(costs.message_s == 0.0 && costs.byte_s == 0.0 && costs.sum_byte_s == 0.0);
    costs.struct_size = sizeof costs + 8;
    REQUIRE(gtopk_comm_measure(comm, NULL, &costs) == GTOPK_ERR_INVALID);
}

static void test_measure(void **state)
{
    (void)state;
    ranks_run(1, run_measure, NULL);
    ranks_run(3, run_measure, NULL);
}

/* The fastest by the numbers is taken, and gtopk_predict says the same numbers. */
static void run_auto(gtopk_comm_t *comm, int rank, int size, void *context)
{
    gtopk_reducer_t *reducer = create(comm, GTOPK_ALGORITHM_AUTO, 0.01, GTOPK_HIERARCHY_OFF);
    gtopk_choice_info_t info = choice_of(reducer);
    (void)rank;
    (void)context;
    REQUIRE(info.is_auto == 1 && comm->costs.struct_size == sizeof comm->costs);
    require_same(comm, &info, sizeof info);
    for (int32_t a = 0; a < 5; a++) {
        gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
        double seconds;
        config.algorithm = a;
        config.density = 0.01;
        config.value_type = GTOPK_VALUE_F32;
        REQUIRE(gtopk_predict(&comm->costs, &config, DIM, size, &seconds) == GTOPK_OK);
        REQUIRE(info.predicted_s[a] == seconds && info.measured_s[a] == 0.0);
        REQUIRE(info.predicted_s[info.algorithm] <= seconds / 0.95);
    }
    for (int i = 0; i < 3; i++)
        step(reducer, i);
    gtopk_reducer_destroy(reducer);
    reducer = create(comm, GTOPK_ALGORITHM_GTOPK, 0.01, GTOPK_HIERARCHY_OFF);
    info = choice_of(reducer);
    REQUIRE(info.is_auto == 0 && info.algorithm == GTOPK && info.predicted_s[GTOPK] == 0.0);
    gtopk_reducer_destroy(reducer);
}

/* Nothing is measured for one rank. */
static void run_alone(gtopk_comm_t *comm, int rank, int size, void *context)
{
    gtopk_reducer_t *reducer = create(comm, GTOPK_ALGORITHM_AUTO, 0.01, GTOPK_HIERARCHY_OFF);
    (void)size;
    (void)context;
    for (int i = 0; i < 2 * CHOICE_FIRST; i++)
        step(reducer, rank);
    REQUIRE(gtopk_reducer_set_density(reducer, 1.0) == GTOPK_OK);
    REQUIRE(choice_of(reducer).algorithm == GTOPK && choice_of(reducer).is_auto == 1 && comm->costs.struct_size == 0);
    gtopk_reducer_destroy(reducer);
}

static void test_auto(void **state)
{
    (void)state;
    ranks_run(1, run_alone, NULL);
    for (int size = 2; size <= 5; size += 3)
        ranks_run(size, run_auto, NULL);
}

/* The median of what the slowest rank took. */
static double slowest_of(gtopk_comm_t *comm, const double *times)
{
    double all[8][CHOICE_FIRST - 1], most[CHOICE_FIRST - 1] = {0};
    REQUIRE(gtopk_allgather(comm, times, sizeof most, all) == GTOPK_OK);
    for (int32_t r = 0; r < gtopk_comm_size(comm); r++)
        for (int i = 0; i < CHOICE_FIRST - 1; i++)
            most[i] = fmax(most[i], all[r][i]);
    return clock_median(most, CHOICE_FIRST - 1);
}

static double seconds_of(const gtopk_reducer_t *reducer)
{
    const gtopk_stats_t *stats = &reducer->stats;
    return stats->accumulate_s + stats->select_s + stats->exchange_s + stats->commit_s;
}

/* Each algorithm is tried, and the fastest stays. */
static void run_contradicted(gtopk_comm_t *comm, int rank, int size, void *context)
{
    double times[5][CHOICE_FIRST];
    int seen[5] = {0};
    (void)context;
    comm->costs = next_to_nothing;
    gtopk_reducer_t *reducer = create(comm, GTOPK_ALGORITHM_AUTO, 0.01, GTOPK_HIERARCHY_OFF);
    REQUIRE(choice_of(reducer).algorithm == (size == 3 ? TOPK : GTOPK)); /* three messages against two */
    for (int i = 0; i < 5 * CHOICE_FIRST; i++) {
        const int32_t algorithm = choice_of(reducer).algorithm;
        require_same(comm, &algorithm, sizeof algorithm);
        step(reducer, i + rank);
        times[algorithm][seen[algorithm]++ % CHOICE_FIRST] = seconds_of(reducer);
    }
    const gtopk_choice_info_t info = choice_of(reducer);
    require_same(comm, &info, sizeof info);
    for (int32_t a = 0; a < 5; a++) {
        REQUIRE(seen[a] == CHOICE_FIRST && info.measured_s[a] > 0.0);
        REQUIRE(info.measured_s[a] == slowest_of(comm, times[a] + 1)); /* without the first */
        REQUIRE(info.measured_s[info.algorithm] <= info.measured_s[a] / 0.95);
    }
    for (int i = 0; i < 5 * CHOICE_TIMES; i++) { /* windows that are longer than what is kept */
        step(reducer, i + rank);
        REQUIRE(reducer->choice.timed <= CHOICE_TIMES);
    }
    gtopk_reducer_destroy(reducer);
}

static void test_contradicted(void **state)
{
    (void)state;
    for (int size = 2; size <= 5; size++)
        ranks_run(size, run_contradicted, NULL);
}

/* Bytes alone: few entries are for gtopk-split, all of them for dense. Another density begins with what is predicted. */
static void run_density(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const gtopk_costs_t costs = {.struct_size = sizeof costs,
                                 .message_s = 1e-3,
                                 .byte_s = 1.0,
                                 .sum_message_s = 1e-3,
                                 .sum_byte_s = 1.0,
                                 .each_node = 1};
    (void)size;
    (void)context;
    comm->costs = costs;
    gtopk_reducer_t *reducer = create(comm, GTOPK_ALGORITHM_AUTO, 0.1, GTOPK_HIERARCHY_OFF);
    REQUIRE(choice_of(reducer).algorithm == SPLIT);
    step(reducer, rank);
    REQUIRE(gtopk_reducer_set_density(reducer, 1.0) == GTOPK_OK);
    REQUIRE(choice_of(reducer).algorithm == DENSE && gtopk_reducer_max_count(reducer) == DIM);
    step(reducer, rank);
    for (int i = 1; i < CHOICE_FIRST; i++)
        step(reducer, rank);
    REQUIRE(choice_of(reducer).measured_s[DENSE] > 0.0);
    const gtopk_choice_info_t before = choice_of(reducer);
    REQUIRE(gtopk_reducer_set_density(reducer, rank == 0 ? 2.0 : 0.1) != GTOPK_OK);
    const gtopk_choice_info_t after = choice_of(reducer);
    REQUIRE(memcmp(&before, &after, sizeof before) == 0);
    REQUIRE(gtopk_reducer_set_density(reducer, 0.1) == GTOPK_OK);
    REQUIRE(choice_of(reducer).algorithm == SPLIT && choice_of(reducer).measured_s[DENSE] == 0.0);
    step(reducer, rank);
    gtopk_reducer_destroy(reducer);
}

static void test_density(void **state)
{
    (void)state;
    ranks_run(4, run_density, NULL);
}

/* In shares everything is selected: dense is not among the choices. */
static void run_nodes(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const gtopk_costs_t costs = {.struct_size = sizeof costs, .message_s = 1.0, .each_node = 2};
    (void)size;
    (void)context;
    comm->costs = costs;
    gtopk_reducer_t *reducer = create(comm, GTOPK_ALGORITHM_AUTO, 0.01, GTOPK_HIERARCHY_NODE);
    const gtopk_choice_info_t info = choice_of(reducer);
    REQUIRE(info.algorithm == GTOPK && info.predicted_s[DENSE] == 0.0 && info.predicted_s[GTOPK] == 1.0);
    REQUIRE(gtopk_reducer_set_algorithm(reducer, DENSE) == GTOPK_ERR_UNSUPPORTED);
    REQUIRE(strstr(gtopk_last_error(), "\"dense\""));
    REQUIRE(choice_of(reducer).is_auto == 1);
    step(reducer, rank);
    REQUIRE(gtopk_reducer_set_algorithm(reducer, SPLIT) == GTOPK_OK);
    step(reducer, rank);
    REQUIRE(choice_of(reducer).is_auto == 0 && choice_of(reducer).algorithm == SPLIT);
    gtopk_reducer_destroy(reducer);
}

static void test_nodes(void **state)
{
    (void)state;
    ranks_run_nodes(4, 2, run_nodes, NULL);
}

/* ---- mistakes ---- */

static void run_mistakes(gtopk_comm_t *comm, int rank, int size, void *context)
{
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    float values[DIM] = {0};
    const gtopk_tensor_t tensors[2] = {{values, 1000, GTOPK_F32, 0}, {values + 1000, 3000, GTOPK_F32, 0}};
    (void)size;
    (void)context;
    config.algorithm = rank == 1 ? GTOPK_ALGORITHM_AUTO : GTOPK_ALGORITHM_GTOPK;
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, lengths, 2) == GTOPK_ERR_MISMATCH);
    REQUIRE(strstr(gtopk_last_error(), "algorithm is") && strstr(gtopk_last_error(), "100"));
    reducer = create(comm, GTOPK_ALGORITHM_GTOPK, 0.01, GTOPK_HIERARCHY_OFF);
    REQUIRE(gtopk_reducer_set_algorithm(reducer, rank == 1 ? SPLIT : TOPK) == GTOPK_ERR_MISMATCH);
    REQUIRE(strstr(gtopk_last_error(), "algorithm is"));
    REQUIRE(gtopk_reducer_set_algorithm(reducer, rank == 1 ? GTOPK_ALGORITHM_AUTO : TOPK) ==
            (rank == 1 ? GTOPK_ERR_INVALID : GTOPK_ERR_MISMATCH));
    REQUIRE(choice_of(reducer).algorithm == GTOPK);
    step(reducer, rank);
    REQUIRE(gtopk_reducer_accumulate(reducer, NULL, tensors, 2, 1.0, 0, NULL) == GTOPK_OK);
    REQUIRE(gtopk_reducer_set_algorithm(reducer, TOPK) == GTOPK_ERR_STATE);
    REQUIRE(gtopk_reducer_set_algorithm(NULL, TOPK) == GTOPK_ERR_INVALID);
    REQUIRE(step_reduce(reducer, tensors, 2, 0, NULL) == GTOPK_OK);
    REQUIRE(gtopk_reducer_choice(reducer, NULL) == GTOPK_ERR_INVALID);
    gtopk_reducer_destroy(reducer);
}

static void test_mistakes(void **state)
{
    (void)state;
    ranks_run(3, run_mistakes, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pick),         cmocka_unit_test(test_measure), cmocka_unit_test(test_auto),
        cmocka_unit_test(test_contradicted), cmocka_unit_test(test_density), cmocka_unit_test(test_nodes),
        cmocka_unit_test(test_mistakes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
