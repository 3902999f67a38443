/* Promises 2 and 3 on nodes, through the public API: replicas agree bit for bit, mass is kept, whatever the algorithm is,
 * however many ranks a node has, whoever copies; and what a step with one rank a node gives, with the sums of the nodes
 * as gradients, is what a step on nodes gives. Nodes are names. GTOPK_TEST_SIZES: no more ranks than these, but at least 4,
 * and gradients given in one way for each setting. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/check.h"
#include "support/random.h"
#include "support/ranks.h"
#include "support/sizes.h"
#include "support/step.h"
#include "wire/wire.h"

#define DIM 700
#define STEPS 4
#define SEGMENTS 4
#define RANKS 9

static const uint64_t lengths[SEGMENTS] = {300, 0, 1, 399};
static const size_t starts[SEGMENTS] = {0, 300, 300, 301};

/* Ranks of a node, or, below 0, nodes whose ranks take turns. */
static const struct {
    int size, each;
} layouts[] = {{4, 2}, {6, 3}, {6, 2}, {8, 2}, {4, 4}, {4, 1}, {6, -2}, {9, 3}, {1, 1}};

/* How gradients are given. */
enum { COPIED = 1, STAYING = 2, BY_TURNS = 3 };

typedef struct job {
    gtopk_reducer_config_t config;
    int size, each, give, dtype;
    int switches; /* another algorithm before each step */
    uint64_t seed;
    float gradients[RANKS][STEPS][DIM]; /* integers */
    float residuals[RANKS][STEPS + 1][DIM];
    float updates[RANKS][STEPS][DIM];
    uint64_t between[RANKS]; /* bytes that left the node */
} job_t;

static void fill_gradients(job_t *job)
{
    random_state_t random = {job->seed};
    for (int r = 0; r < job->size; r++)
        for (int step = 0; step < STEPS; step++)
            for (int i = 0; i < DIM; i++) {
                const int value = (int)random_below(&random, 61) - 30;
                job->gradients[r][step][i] = (float)(random_below(&random, 8) == 0 ? 8 * value : value);
            }
}

static void residual_of(gtopk_reducer_t *reducer, float *out)
{
    for (uint32_t s = 0; s < SEGMENTS; s++)
        REQUIRE(gtopk_reducer_residual(reducer, s, out + starts[s], lengths[s]) == GTOPK_OK);
}

static void give(const job_t *job, gtopk_reducer_t *reducer, const gtopk_tensor_t *tensors, int step)
{
    const uint32_t order[2][2] = {{3, 0}, {2, 1}};
    for (uint32_t half = 0; half < 2; half++) {
        const gtopk_tensor_t mine[2] = {tensors[order[half][0]], tensors[order[half][1]]};
        const int stays = job->give == STAYING || (job->give == BY_TURNS && (step + (int)half) % 2);
        REQUIRE(gtopk_reducer_accumulate(reducer, order[half], mine, 2, 1.0,
                                         GTOPK_ZERO_INPUT | (stays ? GTOPK_INPUT_STAYS : 0u), NULL) == GTOPK_OK);
    }
}

static void run_rank(gtopk_comm_t *comm, int rank, int size, void *context)
{
    job_t *job = context;
    gtopk_reducer_t *reducer;
    (void)size;
    REQUIRE(gtopk_reducer_create(&reducer, comm, &job->config, lengths, SEGMENTS) == GTOPK_OK);
    for (int step = 0; step < STEPS; step++) {
        if (job->switches)
            REQUIRE(gtopk_reducer_set_algorithm(reducer, 1 + (step + job->config.value_type) % 4) == GTOPK_OK);
        gtopk_tensor_t tensors[SEGMENTS];
        gtopk_stats_t stats = {.struct_size = sizeof stats};
        float gradient[DIM];
        uint16_t half[DIM];
        memcpy(gradient, job->gradients[rank][step], sizeof gradient);
        for (int i = 0; i < DIM; i++) /* bf16 holds these integers */
            memcpy(&half[i], (const char *)&gradient[i] + 2, 2);
        for (size_t s = 0; s < SEGMENTS; s++)
            tensors[s] = (gtopk_tensor_t){job->dtype == GTOPK_F32 ? (void *)(gradient + starts[s]) : half + starts[s],
                                          lengths[s], job->dtype, 0};
        give(job, reducer, tensors, step);
        if (rank % 3 == step % 3) {
            uint32_t indices[DIM];
            float values[DIM];
            gtopk_set_t set = {indices, values, DIM, 0};
            REQUIRE(gtopk_reducer_max_count(reducer) <= DIM && job->dtype == GTOPK_F32);
            REQUIRE(step_reduce_sparse(reducer, &set, 0, &stats) == GTOPK_OK);
            REQUIRE(set.count == stats.count || job->config.algorithm == GTOPK_ALGORITHM_DENSE);
            for (uint64_t i = 0; i < set.count; i++) {
                REQUIRE(i == 0 || indices[i - 1] < indices[i]);
                job->updates[rank][step][indices[i]] = values[i];
            }
        } else {
            REQUIRE(step_reduce(reducer, tensors, SEGMENTS, GTOPK_OUTPUT_IS_ZERO, &stats) == GTOPK_OK);
            for (int i = 0; i < DIM && job->dtype != GTOPK_F32; i++)
                memset(&gradient[i], 0, 2), memcpy((char *)&gradient[i] + 2, &half[i], 2);
            memcpy(job->updates[rank][step], gradient, sizeof gradient);
        }
        REQUIRE(stats.step == (uint64_t)step && stats.nonfinite == 0);
        job->between[rank] += stats.network_bytes_sent;
        residual_of(reducer, job->residuals[rank][step + 1]);
    }
    gtopk_reducer_destroy(reducer);
}

static void fail_job(const job_t *job, int step, const char *what)
{
    fail_msg("%s: step %d (algorithm %d, type %d, outputs %d, %d ranks, %d a node, given %d)", what, step,
             job->config.algorithm, job->config.value_type, job->dtype, job->size, job->each, job->give);
}

/* The mean is a sum of multiples of 2^-12, or nearly, divided by the number of ranks. */
static void check_step(const job_t *job, int step)
{
    for (int r = 1; r < job->size; r++)
        if (memcmp(job->updates[r][step], job->updates[0][step], sizeof job->updates[0][step]) != 0)
            fail_job(job, step, "replicas differ");
    int sent = 0;
    for (int i = 0; i < DIM; i++) {
        double before = 0.0, after = 0.0;
        for (int r = 0; r < job->size; r++) {
            before += (double)job->residuals[r][step][i] + (double)job->gradients[r][step][i];
            after += (double)job->residuals[r][step + 1][i];
        }
        const double sum = (double)job->updates[0][step][i] * job->size;
        sent += sum != 0.0;
        if (fabs(before - after - sum) >
            (job->config.value_type == GTOPK_VALUE_F32 && job->dtype == GTOPK_F32 ? 2e-4 : 2e-3))
            fail_job(job, step, "mass was lost");
    }
    if (sent == 0)
        fail_job(job, step, "nothing was sent");
}

/* Each rank of a node has a residual in its share alone. */
static void check_shares(const job_t *job)
{
    int local[RANKS] = {0};
    for (int r = 0; r < job->size; r++) {
        const int each = job->each > 0 ? job->each : job->size / -job->each;
        local[r] = job->each > 0 ? r % job->each : r / -job->each;
        const int share = (DIM + each - 1) / each, begin = local[r] * share, end = begin + share;
        for (int i = 0; i < DIM; i++)
            if ((i < begin || i >= end) && job->residuals[r][STEPS][i] != 0.0f)
                fail_job(job, STEPS - 1, "a residual outside of its share");
    }
}

static job_t *run_job(const job_t *made, int check_mass)
{
    static job_t job;
    job = *made;
    job.config.hierarchy = GTOPK_HIERARCHY_NODE;
    job.seed = (uint64_t)(job.size * 100 + job.each + 10);
    fill_gradients(&job);
    ranks_run_nodes(job.size, job.each, run_rank, &job);
    for (int step = 0; step < STEPS && check_mass; step++)
        check_step(&job, step);
    if (job.config.algorithm != GTOPK_ALGORITHM_DENSE)
        check_shares(&job);
    return &job;
}

static int most_ranks(void)
{
    const int most = sizes_up_to(RANKS);
    return most < 4 ? 4 : most;
}

static void run_layouts(int algorithm)
{
    for (size_t l = 0; l < sizeof layouts / sizeof *layouts; l++)
        for (int type = 0; type < 4; type++)
            for (int how = COPIED; how <= BY_TURNS; how++) {
                if (layouts[l].size > most_ranks() ||
                    (most_ranks() < RANKS && how != COPIED + (algorithm + type + (int)l) % 3))
                    continue;
                job_t made = {.config = GTOPK_REDUCER_CONFIG_INIT, .size = layouts[l].size, .each = layouts[l].each};
                made.config.algorithm = algorithm;
                made.config.value_type = type;
                made.config.density = 0.03;
                made.config.merge_growth = type % 2 ? 1.41 : 1.0;
                made.give = how;
                (void)run_job(&made, 1);
            }
}

static void test_every_algorithm(void **state)
{
    (void)state;
    for (int algorithm = 0; algorithm < WIRE_ALGORITHMS; algorithm++)
        run_layouts(algorithm);
}

/* What one algorithm has left in a share is for the next one. */
static void test_algorithms_change(void **state)
{
    (void)state;
    for (size_t l = 0; l < sizeof layouts / sizeof *layouts; l++)
        for (int type = 0; type < 4 && layouts[l].size <= most_ranks(); type++) {
            job_t made = {.config = GTOPK_REDUCER_CONFIG_INIT, .size = layouts[l].size, .each = layouts[l].each};
            made.config.value_type = type;
            made.config.density = 0.03;
            made.give = COPIED + type % 3;
            made.switches = 1;
            (void)run_job(&made, 1);
        }
}

/* ---- outputs of 16 bits ---- */

static void run_halves(gtopk_comm_t *comm, int rank, int size, void *context)
{
    job_t *job = context;
    gtopk_reducer_t *reducer;
    REQUIRE(gtopk_reducer_create(&reducer, comm, &job->config, lengths, SEGMENTS) == GTOPK_OK);
    for (int step = 0; step < STEPS; step++) {
        gtopk_tensor_t in[SEGMENTS], out[SEGMENTS];
        uint16_t half[DIM];
        for (size_t s = 0; s < SEGMENTS; s++) {
            in[s] = (gtopk_tensor_t){job->gradients[rank][step] + starts[s], lengths[s], GTOPK_F32, 0};
            out[s] = (gtopk_tensor_t){half + starts[s], lengths[s], GTOPK_BF16, 0};
        }
        REQUIRE(gtopk_reducer_accumulate(reducer, NULL, in, SEGMENTS, 1.0, 0, NULL) == GTOPK_OK);
        REQUIRE(step_reduce(reducer, out, SEGMENTS, 0, NULL) == GTOPK_OK);
        for (int i = 0; i < DIM; i++)
            memcpy((char *)&job->updates[rank][step][i] + 2, &half[i], 2);
        residual_of(reducer, job->residuals[rank][step + 1]);
    }
    (void)size;
    gtopk_reducer_destroy(reducer);
}

/* What they cannot hold of the mean stays in the residual of whoever has the share, for all ranks of the node. */
static void test_outputs_of_16_bits(void **state)
{
    static job_t job;
    (void)state;
    for (size_t l = 0; l < sizeof layouts / sizeof *layouts; l++)
        for (int algorithm = 0; algorithm < WIRE_ALGORITHMS && layouts[l].size <= most_ranks(); algorithm++) {
            job = (job_t){.config = GTOPK_REDUCER_CONFIG_INIT, .size = layouts[l].size, .each = layouts[l].each};
            job.config.algorithm = algorithm;
            job.config.density = 0.05;
            job.config.hierarchy = GTOPK_HIERARCHY_NODE;
            job.dtype = GTOPK_BF16;
            job.seed = 7;
            fill_gradients(&job);
            for (int i = 0; i < DIM; i++) /* a mean that bf16 rounds */
                job.gradients[0][0][i] += 1.0f / 64.0f;
            ranks_run_nodes(job.size, job.each, run_halves, &job);
            for (int step = 0; step < STEPS; step++)
                check_step(&job, step);
        }
}

/* ---- the same as one rank a node ---- */

/* Integers are added up exactly: a node's sum is what one rank that has it as its gradient gives. */
static void test_same_as_the_sums_of_nodes(void **state)
{
    static job_t whole;
    static job_t alone;
    (void)state;
    for (int each = 2; each <= 3 && 3 * each <= most_ranks(); each++) {
        job_t made = {.config = GTOPK_REDUCER_CONFIG_INIT, .size = 3 * each, .each = each, .give = STAYING};
        made.config.density = 1.0; /* then selection does not depend on the shares */
        made.config.value_type = GTOPK_VALUE_F32;
        whole = *run_job(&made, 1);
        alone = made;
        alone.size = 3;
        alone.each = 1;
        alone.config.hierarchy = GTOPK_HIERARCHY_OFF;
        memset(alone.gradients, 0, sizeof alone.gradients);
        for (int r = 0; r < whole.size; r++)
            for (int step = 0; step < STEPS; step++)
                for (int i = 0; i < DIM; i++)
                    alone.gradients[r / each][step][i] += whole.gradients[r][step][i];
        ranks_run(3, run_rank, &alone);
        for (int step = 0; step < STEPS; step++)
            for (int i = 0; i < DIM; i++) {
                const double one = (double)whole.updates[0][step][i] * each, other = (double)alone.updates[0][step][i];
                if (fabs(one - other) > 1e-4)
                    fail_msg("entry %d of step %d: %g on nodes, %g of their sums", i, step, one, other);
            }
    }
}

/* ---- more than one piece of the sum ---- */

enum { LONG = (5 << 19) + 3 };

/* Small integers: the mass is kept exactly. */
static void run_long(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const uint64_t length = LONG;
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    float *x = malloc(LONG * sizeof *x), *mass = malloc(LONG * sizeof *mass);
    (void)context;
    REQUIRE(x && mass);
    config.hierarchy = GTOPK_HIERARCHY_NODE;
    config.value_type = GTOPK_VALUE_F32;
    const gtopk_tensor_t tensor = {x, length, GTOPK_F32, 0};
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, &length, 1) == GTOPK_OK);
    for (uint64_t i = 0; i < LONG; i++)
        mass[i] = x[i] = (float)((i * 2654435761u + (uint64_t)rank * 40503u) >> 7 & 63u) - 31.0f;
    REQUIRE(gtopk_reducer_accumulate(reducer, NULL, &tensor, 1, 1.0, GTOPK_INPUT_STAYS, NULL) == GTOPK_OK);
    REQUIRE(step_reduce(reducer, &tensor, 1, 0, NULL) == GTOPK_OK);
    float *residual = malloc(LONG * sizeof *residual);
    REQUIRE(residual && gtopk_reducer_residual(reducer, 0, residual, length) == GTOPK_OK);
    for (uint64_t i = 0; i < LONG; i++)
        mass[i] -= residual[i] + x[i];
    REQUIRE(gtopk_allreduce(comm, mass, length, GTOPK_F32) == GTOPK_OK);
    for (uint64_t i = 0; i < LONG; i++)
        REQUIRE(mass[i] == 0.0f);
    (void)size;
    free(residual);
    free(mass);
    free(x);
    gtopk_reducer_destroy(reducer);
}

static void test_pieces(void **state)
{
    (void)state;
    if (most_ranks() < 5)
        skip();
    ranks_run_nodes(4, 2, run_long, NULL);
}

/* ---- what leaves a node ---- */

static void test_bytes_of_a_node(void **state)
{
    (void)state;
    if (most_ranks() < 8)
        skip();
    /* The tree's ranks follow each other on a node: it crosses from node to node once as it is. */
    for (int algorithm = GTOPK_ALGORITHM_TOPK; algorithm <= GTOPK_ALGORITHM_GTOPK; algorithm++) {
        job_t made = {.config = GTOPK_REDUCER_CONFIG_INIT, .size = 8, .each = 4, .give = STAYING};
        made.config.algorithm = algorithm;
        made.config.density = 0.2;
        const job_t *job = run_job(&made, 1);
        uint64_t nodes = 0, off = 0;
        for (int r = 0; r < 4; r++)
            nodes += job->between[r];
        made.config.hierarchy = GTOPK_HIERARCHY_OFF;
        static job_t flat;
        flat = made;
        fill_gradients(&flat);
        memset(flat.gradients, 0, sizeof flat.gradients);
        memcpy(flat.gradients, job->gradients, sizeof flat.gradients);
        ranks_run_nodes(8, 4, run_rank, &flat);
        for (int r = 0; r < 4; r++)
            off += flat.between[r];
        if (nodes == 0 || 2 * nodes > off)
            fail_msg("%llu bytes left a node of 4 ranks, %llu without hierarchy (algorithm %d)",
                     (unsigned long long)nodes, (unsigned long long)off, algorithm);
    }
}

/* ---- nodes of unequal numbers of ranks, and other arguments ---- */

static void run_unequal(gtopk_comm_t *comm, int rank, int size, void *context)
{
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    (void)rank;
    (void)size;
    (void)context;
    config.hierarchy = GTOPK_HIERARCHY_NODE;
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, lengths, SEGMENTS) == GTOPK_ERR_UNSUPPORTED);
    REQUIRE(strstr(gtopk_last_error(), "equally many ranks") && strstr(gtopk_last_error(), "has 2, that of rank 4"));
    config.hierarchy = 3;
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, lengths, SEGMENTS) == GTOPK_ERR_INVALID);
    config.hierarchy = rank == 0 ? GTOPK_HIERARCHY_NODE : GTOPK_HIERARCHY_OFF;
    const gtopk_status_t status = gtopk_reducer_create(&reducer, comm, &config, lengths, SEGMENTS);
    REQUIRE(status == (rank == 0 ? GTOPK_ERR_UNSUPPORTED : GTOPK_ERR_MISMATCH));
    config.hierarchy = GTOPK_HIERARCHY_OFF;
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, lengths, SEGMENTS) == GTOPK_OK);
    gtopk_reducer_destroy(reducer);
}

static void test_unequal_nodes_are_refused_on_every_rank(void **state)
{
    (void)state;
    ranks_run_nodes(5, 2, run_unequal, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_algorithm),
        cmocka_unit_test(test_algorithms_change),
        cmocka_unit_test(test_outputs_of_16_bits),
        cmocka_unit_test(test_same_as_the_sums_of_nodes),
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_bytes_of_a_node),
        cmocka_unit_test(test_unequal_nodes_are_refused_on_every_rank),
    };
    return cmocka_run_group_tests_name("nodes", tests, NULL, NULL);
}
