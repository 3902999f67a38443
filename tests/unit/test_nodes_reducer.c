/* A reducer on nodes beside its plain steps: flags reach every rank, segments that nobody gives, momentum, density, several
 * reducers at once, a step that is cancelled, states from one arrangement of ranks to another. Nodes are names. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "support/check.h"
#include "support/random.h"
#include "support/ranks.h"
#include "support/sizes.h"
#include "support/step.h"

#define DIM 90
#define STEPS 10
#define RANKS 8

static const uint64_t lengths[3] = {40, 0, 50};

static const struct {
    int size, each;
} layouts[] = {{4, 2}, {2, 1}, {3, 3}, {6, 3}, {6, -3}};

enum { FEW = 2 };

/* GTOPK_TEST_SIZES below 6: a few of them. */
static size_t layout_count(void)
{
    return sizes_up_to(6) < 6 ? FEW : sizeof layouts / sizeof *layouts;
}

static void tensors_of(float *values, gtopk_tensor_t tensors[3])
{
    tensors[0] = (gtopk_tensor_t){values, 40, GTOPK_F32, 0};
    tensors[1] = (gtopk_tensor_t){NULL, 0, GTOPK_F32, 0};
    tensors[2] = (gtopk_tensor_t){values + 40, 50, GTOPK_F32, 0};
}

static gtopk_reducer_t *create(gtopk_comm_t *comm, int algorithm, double density, int momentum, int hierarchy)
{
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    config.algorithm = algorithm;
    config.density = density;
    config.momentum_correction = momentum;
    config.hierarchy = hierarchy;
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, lengths, 3) == GTOPK_OK);
    if (momentum)
        REQUIRE(gtopk_reducer_set_momentum(reducer, 0.5, 1) == GTOPK_OK);
    return reducer;
}

static void read_residual(gtopk_reducer_t *reducer, float *out)
{
    REQUIRE(gtopk_reducer_residual(reducer, 0, out, 40) == GTOPK_OK);
    REQUIRE(gtopk_reducer_residual(reducer, 2, out + 40, 50) == GTOPK_OK);
}

/* Sums over the ranks, on all of them. */
static void add_up(gtopk_comm_t *comm, float *values)
{
    REQUIRE(gtopk_allreduce(comm, values, DIM, GTOPK_F32) == GTOPK_OK);
}

/* ---- flags ---- */

typedef struct flags {
    int algorithm, bad, by_flag, joined, stays, nodes;
} flags_t;

/* Entry 70 of one rank's gradient is Inf, or it has found_inf: nobody's update is taken, and all that was finite is there
 * for the next step. */
static void run_nonfinite(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const flags_t *flags = context;
    gtopk_reducer_t *reducer = create(comm, flags->algorithm, 0.1, 0, GTOPK_HIERARCHY_NODE);
    gtopk_stats_t stats = {.struct_size = sizeof stats};
    float x[DIM], residual[DIM];
    gtopk_tensor_t tensors[3];
    tensors_of(x, tensors);
    const int bad = rank == flags->bad;
    for (int i = 0; i < DIM; i++)
        x[i] = (float)(i + 1);
    if (bad && !flags->by_flag)
        x[70] = INFINITY;
    const uint32_t bits = (bad && flags->by_flag ? GTOPK_FOUND_INF : 0u) | (flags->stays ? GTOPK_INPUT_STAYS : 0u);
    REQUIRE(gtopk_reducer_accumulate(reducer, NULL, tensors, 3, 1.0, bits, NULL) == GTOPK_OK);
    REQUIRE(step_reduce(reducer, tensors, 3, 0, &stats) == GTOPK_OK);
    REQUIRE(stats.nonfinite == 1 && stats.count == 0);
    for (int i = 0; i < DIM; i++)
        REQUIRE(isnan(x[i]));
    read_residual(reducer, residual);
    add_up(comm, residual);
    const int gave = size - (flags->by_flag ? 1 : 0);
    for (int i = 0; i < DIM; i++)
        if (i != 70 || flags->by_flag)
            REQUIRE(residual[i] == (float)(gave * (i + 1)));
        else
            REQUIRE(isfinite(residual[i]));

    memset(x, 0, sizeof x);
    REQUIRE(gtopk_reducer_accumulate(reducer, NULL, tensors, 1, 1.0, 0, NULL) == GTOPK_OK);
    REQUIRE(step_reduce(reducer, tensors, 3, 0, &stats) == GTOPK_OK);
    REQUIRE(stats.nonfinite == 0 && stats.step == 1 && stats.count > 0);
    REQUIRE(x[DIM - 1] == (float)(gave * DIM) / (float)size);
    gtopk_reducer_destroy(reducer);
}

static void test_nonfinite_reaches_every_rank(void **state)
{
    (void)state;
    for (size_t l = 0; l < layout_count(); l++)
        for (int bad = 0; bad < layouts[l].size; bad++)
            for (int how = 0; how < 4; how++) {
                flags_t flags = {.algorithm = 1 + bad % 3, .bad = bad, .by_flag = how % 2, .stays = how / 2};
                ranks_run_nodes(layouts[l].size, layouts[l].each, run_nonfinite, &flags);
            }
}

/* With rollback a step that is dropped leaves the shares as they were, bit for bit. */
static void run_rollback(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const flags_t *flags = context;
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    gtopk_stats_t stats = {.struct_size = sizeof stats};
    float x[DIM], before[DIM], after[DIM], sum[DIM] = {0}, sent[DIM] = {0};
    gtopk_tensor_t tensors[3];
    tensors_of(x, tensors);
    config.density = 0.1;
    config.rollback = 1;
    config.hierarchy = GTOPK_HIERARCHY_NODE;
    config.algorithm = flags->algorithm;
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, lengths, 3) == GTOPK_OK);
    for (int step = 0; step < 6; step++) {
        const int dropped = step == 2 || step == 3, bad = dropped && rank == flags->bad;
        for (int i = 0; i < DIM; i++)
            x[i] = (float)((i * 7 + rank * 3 + step) % 11 - 5);
        for (int i = 0; i < DIM && !dropped; i++)
            sum[i] += x[i];
        if (bad && !flags->by_flag)
            x[70] = NAN;
        read_residual(reducer, before);
        const uint32_t bits = (bad && flags->by_flag ? GTOPK_FOUND_INF : 0u) | (flags->stays ? GTOPK_INPUT_STAYS : 0u);
        REQUIRE(gtopk_reducer_accumulate(reducer, NULL, tensors, 3, 1.0, bits, NULL) == GTOPK_OK);
        if (step == 4) { /* dropped, too: it is taken back */
            REQUIRE(gtopk_reducer_cancel(reducer) == GTOPK_OK);
            read_residual(reducer, after);
            REQUIRE(!size || gtopk_reducer_accumulate(reducer, NULL, tensors, 3, 1.0, 0, NULL) == GTOPK_OK);
        }
        REQUIRE(step_reduce(reducer, tensors, 3, 0, &stats) == GTOPK_OK);
        REQUIRE(stats.nonfinite == dropped);
        if (step != 4)
            read_residual(reducer, after);
        REQUIRE(!(dropped || (step == 4 && flags->nodes)) || memcmp(before, after, sizeof before) == 0);
        for (int i = 0; i < DIM && !dropped; i++)
            sent[i] += x[i];
        for (int i = 0; i < DIM && step == 4 && !flags->nodes; i++) /* without shares what is cancelled is kept */
            sum[i] += (float)((i * 7 + rank * 3 + step) % 11 - 5);
    }
    read_residual(reducer, after);
    for (int i = 0; i < DIM; i++)
        after[i] -= sum[i];
    add_up(comm, after);
    for (int i = 0; i < DIM; i++)
        REQUIRE(fabsf(after[i] + sent[i] * (float)size) < 1e-3f * (float)size);
    gtopk_reducer_destroy(reducer);
}

static void test_rollback(void **state)
{
    (void)state;
    for (size_t l = 0; l < layout_count(); l++)
        for (int how = 0; how < 4; how++) {
            flags_t flags = {
                .algorithm = 1 + how % 3, .bad = how % layouts[l].size, .by_flag = how % 2, .stays = how / 2};
            flags.nodes = layouts[l].each != 1;
            ranks_run_nodes(layouts[l].size, layouts[l].each, run_rollback, &flags);
        }
}

/* Ranks without data give nothing; when all have joined nobody takes an update, and nothing is lost. */
static void run_joined(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const flags_t *flags = context;
    gtopk_reducer_t *reducer = create(comm, flags->algorithm, 0.001, 0, GTOPK_HIERARCHY_NODE);
    gtopk_stats_t stats = {.struct_size = sizeof stats};
    float x[DIM] = {0}, residual[DIM];
    gtopk_tensor_t tensors[3];
    tensors_of(x, tensors);
    const int all = flags->joined == size, mine = rank < flags->joined;
    x[77] = (float)(1 << rank);
    if (!mine || all)
        REQUIRE(gtopk_reducer_accumulate(reducer, NULL, tensors, 3, 1.0, 0, NULL) == GTOPK_OK);
    if (mine)
        REQUIRE(step_reduce_all(&reducer, (const gtopk_tensor_t *const[1]){NULL}, (const size_t[1]){0}, 1, GTOPK_JOINED,
                                (gtopk_stats_t *const[1]){&stats}) == GTOPK_OK);
    else
        REQUIRE(step_reduce(reducer, tensors, 3, 0, &stats) == GTOPK_OK);
    REQUIRE(stats.all_joined == all && (stats.count == 0) == all);
    const int sum = (1 << size) - (all ? 1 : 1 << flags->joined);
    REQUIRE(mine || x[77] == (float)sum / (float)size);
    read_residual(reducer, residual);
    add_up(comm, residual);
    REQUIRE(residual[77] == (all ? (float)sum : 0.0f));
    gtopk_reducer_destroy(reducer);
}

static void test_joined(void **state)
{
    (void)state;
    for (size_t l = 0; l < layout_count(); l++)
        for (int joined = 0; joined <= layouts[l].size; joined++) {
            flags_t flags = {.algorithm = 1 + joined % 3, .joined = joined};
            ranks_run_nodes(layouts[l].size, layouts[l].each, run_joined, &flags);
        }
}

/* ---- what is left out, given up and set ---- */

static void run_partly(gtopk_comm_t *comm, int rank, int size, void *context)
{
    gtopk_reducer_t *reducer = create(comm, GTOPK_ALGORITHM_GTOPK, 1.0, 0, GTOPK_HIERARCHY_NODE);
    float x[DIM], out[DIM], residual[DIM], twice[40];
    gtopk_tensor_t given[3], tensors[3];
    const uint32_t last = 2;
    double norm;
    (void)context;
    tensors_of(x, given);
    tensors_of(out, tensors);
    for (int i = 0; i < DIM; i++)
        x[i] = 1.0f;
    /* Cancelled: what was accumulated is there for the next step, from where it lay. */
    REQUIRE(gtopk_reducer_accumulate(reducer, NULL, given, 1, 2.0, GTOPK_INPUT_STAYS, NULL) == GTOPK_OK);
    REQUIRE(gtopk_reducer_cancel(reducer) == GTOPK_OK && gtopk_reducer_wait(reducer, NULL) == GTOPK_OK);
    for (int i = 0; i < DIM; i++)
        x[i] = 4.0f;
    read_residual(reducer, residual);
    for (int i = 0; i < DIM; i++)
        REQUIRE(residual[i] == (i < 40 ? 2.0f : 0.0f));
    REQUIRE(gtopk_reducer_residual_norm(reducer, &norm) == GTOPK_OK && fabs(norm - sqrt(160.0)) < 1e-9);
    /* Set: in this rank's share; others have theirs. */
    gtopk_hierarchy_info_t info = {.struct_size = sizeof info};
    for (int i = 0; i < 40; i++)
        twice[i] = (float)(i % 4);
    REQUIRE(gtopk_reducer_set_residual(reducer, 0, twice, 40) == GTOPK_OK);
    REQUIRE(gtopk_reducer_hierarchy(reducer, &info) == GTOPK_OK);
    read_residual(reducer, residual);
    for (uint64_t i = 0; i < 40; i++)
        REQUIRE(residual[i] == (i >= info.begin && i < info.end ? twice[i] : 0.0f));
    /* Rank 0 gives the last segment, and nobody the first. */
    if (rank == 0)
        REQUIRE(gtopk_reducer_accumulate(reducer, &last, &given[2], 1, 0.5, GTOPK_INPUT_STAYS | GTOPK_ZERO_INPUT,
                                         NULL) == GTOPK_OK);
    REQUIRE(step_reduce(reducer, tensors, 3, 0, NULL) == GTOPK_OK);
    REQUIRE(x[0] == 4.0f && x[DIM - 1] == (rank == 0 ? 0.0f : 4.0f));
    for (int i = 0; i < DIM; i++)
        REQUIRE(fabsf(out[i] - (i < 40 ? (float)(i % 4 * info.nodes) : 2.0f) / (float)size) < 0.01f);
    REQUIRE(gtopk_reducer_residual_norm(reducer, &norm) == GTOPK_OK && norm < 1e-2);
    /* A segment twice is refused, and changes nothing. */
    REQUIRE(gtopk_reducer_accumulate(reducer, &last, &given[2], 1, 1.0, GTOPK_INPUT_STAYS, NULL) == GTOPK_OK);
    REQUIRE(gtopk_reducer_accumulate(reducer, &last, &given[2], 1, 1.0, 0, NULL) == GTOPK_ERR_STATE);
    REQUIRE(step_reduce(reducer, tensors, 3, 0, NULL) == GTOPK_OK);
    REQUIRE(out[DIM - 1] == (float)(4 * size - 4) / (float)size || size == 1);
    gtopk_reducer_destroy(reducer);
}

static void test_left_out_cancelled_and_set(void **state)
{
    (void)state;
    for (size_t l = 0; l < layout_count(); l++)
        ranks_run_nodes(layouts[l].size, layouts[l].each, run_partly, NULL);
}

/* ---- several reducers, densities ---- */

static void run_together(gtopk_comm_t *comm, int rank, int size, void *context)
{
    gtopk_reducer_t *reducers[3];
    float x[3][DIM];
    gtopk_tensor_t tensors[3][3];
    const gtopk_tensor_t *const outputs[3] = {tensors[0], tensors[1], tensors[2]};
    const size_t counts[3] = {3, 3, 3};
    gtopk_stats_t stats[3];
    (void)context;
    for (int i = 0; i < 3; i++)
        reducers[i] = create(comm,
                             i == 1   ? GTOPK_ALGORITHM_DENSE
                             : i == 0 ? GTOPK_ALGORITHM_GTOPK
                                      : GTOPK_ALGORITHM_TOPK,
                             0.02, 0, GTOPK_HIERARCHY_NODE);
    float sum[3][DIM] = {{0}}, sent[3][DIM] = {{0}}, residual[DIM];
    for (int step = 0; step < 6; step++) {
        const int bad = step == 2 ? size - 1 : -1; /* of reducer 2: the whole step is dropped */
        for (int i = 0; i < 3; i++) {
            tensors_of(x[i], tensors[i]);
            for (int j = 0; j < DIM; j++)
                x[i][j] = (float)((j * 7 + rank * 3 + step) % 11 - 5);
            for (int j = 0; j < DIM; j++)
                sum[i][j] += i == 2 && j == 3 && rank == bad ? 0.0f : x[i][j];
            if (i == 2 && rank == bad)
                x[i][3] = NAN;
            stats[i].struct_size = sizeof stats[i];
            if (step == 4 && i != 1)
                REQUIRE(gtopk_reducer_set_density(reducers[i], 0.5) == GTOPK_OK);
            REQUIRE(gtopk_reducer_accumulate(reducers[i], NULL, tensors[i], 3, 1.0,
                                             step % 2 ? GTOPK_INPUT_STAYS | GTOPK_ZERO_INPUT : 0, NULL) == GTOPK_OK);
        }
        REQUIRE(step_reduce_all(reducers, outputs, counts, 3, 0,
                                (gtopk_stats_t *const[3]){&stats[0], &stats[1], &stats[2]}) == GTOPK_OK);
        for (int i = 0; i < 3; i++) {
            REQUIRE(stats[i].nonfinite == (step == 2));
            for (int j = 0; j < DIM; j++)
                sent[i][j] += step == 2 ? 0.0f : x[i][j];
        }
    }
    for (int i = 0; i < 3; i++) {
        read_residual(reducers[i], residual);
        for (int j = 0; j < DIM; j++)
            residual[j] -= sum[i][j];
        add_up(comm, residual);
        for (int j = 0; j < DIM; j++) /* what the others of the node gave for the bad entry went with it */
            REQUIRE((i == 2 && j == 3) || fabsf(residual[j] + sent[i][j] * (float)size) < 1e-3f);
        gtopk_reducer_destroy(reducers[i]);
    }
}

static void test_several_reducers_and_densities(void **state)
{
    (void)state;
    for (size_t l = 0; l < layout_count(); l++)
        ranks_run_nodes(layouts[l].size, layouts[l].each, run_together, NULL);
}

/* ---- momentum, against one rank a node ---- */

typedef struct momentum {
    int size, each;
    float updates[STEPS][DIM];
} momentum_t;

/* Rank r of a node has the gradient r + 1 times that of the node. */
static void run_momentum(gtopk_comm_t *comm, int rank, int size, void *context)
{
    momentum_t *run = context;
    const int node = rank / run->each, local = rank % run->each;
    gtopk_reducer_t *reducer = create(comm, GTOPK_ALGORITHM_GTOPK, 1.0, 1, GTOPK_HIERARCHY_NODE);
    (void)size;
    for (int step = 0; step < STEPS; step++) {
        float x[DIM];
        gtopk_tensor_t tensors[3];
        tensors_of(x, tensors);
        for (int i = 0; i < DIM; i++)
            x[i] = (float)((i * 5 + node * 3 + step * 7) % 13 - 6) * (run->each == 1 ? 3.0f : (float)(local + 1));
        /* The last segment is left out by all ranks of node 0 now and then, and by some. */
        const size_t count = step % 3 == 1 && node == 0 ? 1 : 3;
        const uint32_t stays = step % 2 ? GTOPK_INPUT_STAYS : 0;
        if (step % 3 == 2 && node == 0 && local == 0 && run->each > 1) {
            REQUIRE(gtopk_reducer_accumulate(reducer, NULL, tensors, 1, 1.0, stays, NULL) == GTOPK_OK);
        } else {
            if (step % 3 == 2 && node == 0 && run->each == 1)
                for (int i = 40; i < DIM; i++) /* what the second of two ranks gives */
                    x[i] = x[i] / 3.0f * 2.0f;
            REQUIRE(gtopk_reducer_accumulate(reducer, NULL, tensors, count, 1.0, stays, NULL) == GTOPK_OK);
        }
        REQUIRE(step_reduce(reducer, tensors, 3, 0, NULL) == GTOPK_OK);
        if (rank == 0)
            memcpy(run->updates[step], x, sizeof x);
    }
    gtopk_reducer_destroy(reducer);
}

static void test_momentum_of_the_sum(void **state)
{
    static momentum_t whole, alone;
    (void)state;
    whole = (momentum_t){.size = 4, .each = 2};
    alone = (momentum_t){.size = 2, .each = 1};
    ranks_run_nodes(4, 2, run_momentum, &whole);
    ranks_run_nodes(2, 1, run_momentum, &alone);
    for (int step = 0; step < STEPS; step++)
        for (int i = 0; i < DIM; i++) /* 1 + 2 is 3, of half as many ranks */
            if (fabsf(2.0f * whole.updates[step][i] - alone.updates[step][i]) >
                1e-3f + 0.01f * fabsf(alone.updates[step][i]))
                fail_msg("step %d, entry %d: %g on nodes, %g alone", step, i, (double)whole.updates[step][i],
                         (double)alone.updates[step][i]);
}

/* ---- states ---- */

typedef struct run {
    int momentum, hierarchy;
    int first_step, last_step;
    const uint8_t *load;
    int load_one;
    uint8_t *save;
    int consolidate;
    float updates[RANKS][2 * STEPS][DIM];
    float loaded[RANKS][DIM], residual[RANKS][DIM];
} run_t;

static void run_state(gtopk_comm_t *comm, int rank, int size, void *context)
{
    run_t *run = context;
    gtopk_reducer_t *reducer = create(comm, GTOPK_ALGORITHM_GTOPK, 0.05, run->momentum, run->hierarchy);
    const size_t bytes = gtopk_reducer_state_size(reducer);
    (void)size;
    if (run->load)
        REQUIRE(gtopk_reducer_state_load(reducer, run->load + (run->load_one ? 0 : (size_t)rank * bytes), bytes) ==
                GTOPK_OK);
    read_residual(reducer, run->loaded[rank]);
    for (int number = run->first_step; number < run->last_step; number++) {
        random_state_t random = {(uint64_t)(number * 100 + rank)};
        float x[DIM];
        gtopk_tensor_t tensors[3];
        tensors_of(x, tensors);
        for (int i = 0; i < DIM; i++)
            x[i] = (float)((double)random_below(&random, 2001) - 1000.0) * 0.01f;
        REQUIRE(gtopk_reducer_accumulate(reducer, NULL, tensors, 3, 1.0, GTOPK_ZERO_INPUT | GTOPK_INPUT_STAYS, NULL) ==
                GTOPK_OK);
        REQUIRE(step_reduce(reducer, tensors, 3, GTOPK_OUTPUT_IS_ZERO, NULL) == GTOPK_OK);
        memcpy(run->updates[rank][number], x, sizeof x);
    }
    if (run->save && run->consolidate)
        REQUIRE(gtopk_reducer_state_consolidate(reducer, rank == 1 ? run->save : NULL, bytes, 1) == GTOPK_OK);
    else if (run->save)
        REQUIRE(gtopk_reducer_state_save(reducer, run->save + (size_t)rank * bytes, bytes) == GTOPK_OK);
    read_residual(reducer, run->residual[rank]);
    gtopk_reducer_destroy(reducer);
}

static void test_resume_is_bit_exact(void **state)
{
    static run_t straight, first, second;
    static uint8_t states[RANKS * 2048];
    (void)state;
    for (size_t l = 0; l < layout_count(); l++)
        for (int momentum = 0; momentum < 2; momentum++) {
            const int size = layouts[l].size, each = layouts[l].each;
            straight = (run_t){.momentum = momentum, .hierarchy = GTOPK_HIERARCHY_NODE, .last_step = 2 * STEPS};
            first = (run_t){
                .momentum = momentum, .hierarchy = GTOPK_HIERARCHY_NODE, .last_step = STEPS, .save = states};
            second = (run_t){.momentum = momentum,
                             .hierarchy = GTOPK_HIERARCHY_NODE,
                             .first_step = STEPS,
                             .last_step = 2 * STEPS,
                             .load = states};
            ranks_run_nodes(size, each, run_state, &straight);
            ranks_run_nodes(size, each, run_state, &first);
            ranks_run_nodes(size, each, run_state, &second);
            for (int r = 0; r < size; r++)
                for (int number = STEPS; number < 2 * STEPS; number++)
                    assert_memory_equal(straight.updates[r][number], second.updates[r][number],
                                        sizeof straight.updates[r][number]);
        }
}

static void check_same_mean(const float (*before)[DIM], int ranks_before, const float (*after)[DIM], int ranks_after)
{
    for (int i = 0; i < DIM; i++) {
        double old = 0.0, new = 0.0, scale = 0.0;
        for (int r = 0; r < ranks_before; r++) {
            old += (double)before[r][i] / ranks_before;
            scale += fabs((double)before[r][i]);
        }
        for (int r = 0; r < ranks_after; r++)
            new += (double)after[r][i] / ranks_after;
        if (fabs(old - new) > 1e-6 * scale)
            fail_msg("entry %d: a mean of %g of %d ranks, %g of %d", i, old, ranks_before, new, ranks_after);
    }
}

/* A consolidated state is anybody's: other ranks a node, other nodes, no hierarchy. */
static void test_any_arrangement_takes_over(void **state)
{
    static run_t before, after;
    static uint8_t saved[2048];
    (void)state;
    for (size_t l = 0; l < layout_count(); l++)
        for (size_t m = 0; m < layout_count(); m++)
            for (int kind = 0; kind < 3; kind++) { /* of what was before, and of what comes after */
                before = (run_t){.hierarchy = kind != 1, .last_step = STEPS, .save = saved, .consolidate = 1};
                after = (run_t){
                    .hierarchy = kind != 2, .first_step = STEPS, .last_step = STEPS + 2, .load = saved, .load_one = 1};
                ranks_run_nodes(layouts[l].size, layouts[l].each, run_state, &before);
                ranks_run_nodes(layouts[m].size, layouts[m].each, run_state, &after);
                check_same_mean(before.residual, layouts[l].size, after.loaded, layouts[m].size);
            }
}

/* Each rank's own states of another hierarchy: a residual of all entries has no place in a share, but shares do in one. */
static void test_own_states_without_hierarchy(void **state)
{
    static run_t before, after;
    static uint8_t states[RANKS * 2048];
    (void)state;
    before = (run_t){.hierarchy = GTOPK_HIERARCHY_NODE, .last_step = STEPS, .save = states};
    after = (run_t){.hierarchy = GTOPK_HIERARCHY_OFF, .load = states};
    ranks_run_nodes(6, 3, run_state, &before);
    ranks_run_nodes(6, 3, run_state, &after);
    check_same_mean(before.residual, 6, after.loaded, 6);
}

static void run_foreign(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const run_t *run = context;
    const uint8_t *states = run->save;
    gtopk_reducer_t *reducer = create(comm, GTOPK_ALGORITHM_GTOPK, 0.05, run->momentum, GTOPK_HIERARCHY_NODE);
    const size_t bytes = gtopk_reducer_state_size(reducer);
    float residual[DIM];
    (void)size;
    REQUIRE(gtopk_reducer_state_load(reducer, states + (size_t)rank * bytes, bytes) == GTOPK_ERR_MISMATCH);
    REQUIRE(strstr(gtopk_last_error(), "of another rank's share"));
    read_residual(reducer, residual);
    for (int i = 0; i < DIM; i++)
        REQUIRE(residual[i] == 0.0f);
    REQUIRE(gtopk_reducer_state_adopt(reducer, states + (size_t)rank * bytes, bytes) == GTOPK_OK);
    gtopk_reducer_destroy(reducer);
}

static void test_states_of_another_hierarchy_are_refused(void **state)
{
    static run_t before;
    static uint8_t states[RANKS * 2048];
    (void)state;
    for (int momentum = 0; momentum < 2; momentum++) {
        before = (run_t){.momentum = momentum, .hierarchy = GTOPK_HIERARCHY_OFF, .last_step = STEPS, .save = states};
        ranks_run_nodes(4, 2, run_state, &before);
        ranks_run_nodes(4, 2, run_foreign, &before);
    }
}

/* ---- auto ---- */

/* All ranks keep the same one, and begin with nothing in the residual; the table says why. */
static void run_auto(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const int each = *(const int *)context;
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    gtopk_hierarchy_info_t info = {.struct_size = sizeof info}, all[RANKS];
    float x[DIM], residual[DIM];
    gtopk_tensor_t tensors[3];
    tensors_of(x, tensors);
    config.density = 1.0;
    config.hierarchy = GTOPK_HIERARCHY_AUTO;
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, lengths, 3) == GTOPK_OK);
    REQUIRE(gtopk_reducer_hierarchy(reducer, &info) == GTOPK_OK);
    REQUIRE(gtopk_allgather(comm, &info, sizeof info, all) == GTOPK_OK);
    const int tried = each > 1 && size % each == 0;
    for (int r = 0; r < size; r++) {
        REQUIRE(all[r].hierarchy == info.hierarchy && all[r].off_s == info.off_s && all[r].node_s == info.node_s);
        REQUIRE((all[r].off_s > 0.0) == tried && (all[r].node_s > 0.0) == tried);
        REQUIRE(info.hierarchy == (tried && info.node_s < info.off_s));
    }
    REQUIRE(info.end - info.begin == (info.hierarchy ? (DIM + (uint64_t)each - 1) / (uint64_t)each : DIM) ||
            info.end == DIM);
    read_residual(reducer, residual);
    for (int i = 0; i < DIM; i++) {
        REQUIRE(residual[i] == 0.0f);
        x[i] = (float)(i + rank);
    }
    REQUIRE(gtopk_reducer_accumulate(reducer, NULL, tensors, 3, 1.0, 0, NULL) == GTOPK_OK);
    REQUIRE(step_reduce(reducer, tensors, 3, 0, NULL) == GTOPK_OK);
    REQUIRE(fabsf(x[DIM - 1] - (float)(DIM - 1) - 0.5f * (float)(size - 1)) < 0.5f);
    gtopk_reducer_destroy(reducer);

    /* Ranks that disagree are told, before anything is tried. */
    config.hierarchy = rank == 0 ? GTOPK_HIERARCHY_OFF : GTOPK_HIERARCHY_AUTO;
    const gtopk_status_t status = gtopk_reducer_create(&reducer, comm, &config, lengths, 3);
    REQUIRE(status == GTOPK_ERR_MISMATCH && strstr(gtopk_last_error(), "hierarchy is"));
    config.hierarchy = GTOPK_HIERARCHY_AUTO;
    config.algorithm = GTOPK_ALGORITHM_DENSE;
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, lengths, 3) == GTOPK_OK);
    REQUIRE(gtopk_reducer_hierarchy(reducer, &info) == GTOPK_OK && info.hierarchy == 0 && info.off_s == 0.0);
    gtopk_reducer_destroy(reducer);
}

static void test_auto(void **state)
{
    const struct {
        int size, each;
    } tried[] = {{4, 2}, {5, 2}, {3, 1}, {6, 3}};
    (void)state;
    for (size_t i = 0; i < layout_count() && i < sizeof tried / sizeof *tried; i++) {
        int each = tried[i].each;
        ranks_run_nodes(tried[i].size, each, run_auto, &each);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nonfinite_reaches_every_rank),
        cmocka_unit_test(test_rollback),
        cmocka_unit_test(test_joined),
        cmocka_unit_test(test_left_out_cancelled_and_set),
        cmocka_unit_test(test_several_reducers_and_densities),
        cmocka_unit_test(test_momentum_of_the_sum),
        cmocka_unit_test(test_resume_is_bit_exact),
        cmocka_unit_test(test_any_arrangement_takes_over),
        cmocka_unit_test(test_own_states_without_hierarchy),
        cmocka_unit_test(test_states_of_another_hierarchy_are_refused),
        cmocka_unit_test(test_auto),
    };
    return cmocka_run_group_tests_name("nodes_reducer", tests, NULL, NULL);
}
