/* Peers: ranks that exchange the parts of one model on communicators of their own, and take every step together. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "core/reducer.h"
#include "support/check.h"
#include "support/costs.h"
#include "support/guarded.h"
#include "support/ranks.h"
#include "support/step.h"
#include "util/clock.h"

#define NODES 3
#define SHARDS 3
#define DIM 40
#define STEPS 4
#define TIMEOUT 60.0
#define SOON 40.0 /* on a loaded machine */

/* NODES x SHARDS threads: those of a column exchange, those of a row are peers. */
typedef struct grid {
    gtopk_thread_group_t *columns[SHARDS], *rows[NODES];
    int rollback, dense, alone; /* alone: without peers */
    int overflow;               /* the step in which the gradient of node 1, shard 2 is not finite; -1: none */
    int leaves;                 /* the step before which node 2, shard 1 ends; -1: none */
    pthread_barrier_t end;      /* of all, or of all but that one */
    int gives_up;               /* it does not end, but says that it cannot go on */
    int reviews;                /* algorithm auto, whose times all but that one look at after step 1 */
    int with_faults;
    guarded_fault_t fault;      /* of node 2, shard 1 in step 1, at this operation of its device */
    long operation, operations; /* operations: of such a step, when nothing fails */
    float residuals[STEPS][NODES][SHARDS][DIM], gradients[NODES][SHARDS][DIM];
    int nonfinite[NODES][SHARDS], failed[NODES][SHARDS], told[NODES][SHARDS];
} grid_t;

typedef struct place {
    pthread_t thread;
    grid_t *grid;
    int node, shard;
} place_t;

static gtopk_comm_t *open_comm(gtopk_thread_group_t *group, int rank, int size, gtopk_comm_t *peers)
{
    gtopk_comm_config_t config = GTOPK_COMM_CONFIG_INIT;
    gtopk_comm_t *comm;
    config.transport = "thread";
    config.group = group;
    config.rank = rank;
    config.size = size;
    config.timeout = TIMEOUT;
    config.peers = peers;
    REQUIRE(gtopk_comm_create(&comm, &config) == GTOPK_OK);
    return comm;
}

/* Whole numbers, so that sums are exact. */
static void fill(float *gradient, int step, const place_t *place)
{
    for (int i = 0; i < DIM; i++)
        gradient[i] = (float)((i * 7 + step * 5 + place->node * 3 + place->shard * 11) % 13 - 6) * NODES;
}

static void steps(const place_t *place, gtopk_reducer_t *reducer)
{
    grid_t *grid = place->grid;
    float gradient[DIM];
    const gtopk_tensor_t tensor = {gradient, DIM, GTOPK_F32, 0};
    gtopk_stats_t stats = {.struct_size = sizeof stats};
    for (int step = 0; step < STEPS && step != (place->node == 2 && place->shard == 1 ? grid->leaves : -1); step++) {
        float *residual = grid->residuals[step][place->node][place->shard];
        fill(gradient, step, place);
        if (step == grid->overflow && place->node == 1 && place->shard == 2)
            gradient[5] = INFINITY;
        if (gtopk_reducer_accumulate(reducer, NULL, &tensor, 1, 1.0, GTOPK_ZERO_INPUT, NULL) != GTOPK_OK) {
            REQUIRE(step == grid->leaves && grid->reviews && place->shard == 1);
            grid->failed[place->node][place->shard] = 1;
            return;
        }
        if (step == grid->leaves)
            REQUIRE(gtopk_reducer_residual(reducer, 0, residual, DIM) == GTOPK_OK);
        if (step_reduce(reducer, &tensor, 1, GTOPK_OUTPUT_IS_ZERO, &stats) != GTOPK_OK) {
            float after[DIM];
            grid->told[place->node][place->shard] = strstr(gtopk_last_error(), "peer 1 failed in this step") != NULL;
            REQUIRE(step == grid->leaves);
            REQUIRE(gtopk_reducer_residual(reducer, 0, after, DIM) == GTOPK_OK);
            grid->failed[place->node][place->shard] = memcmp(after, residual, sizeof after) == 0;
            return;
        }
        REQUIRE(!stats.nonfinite == !isnan(gradient[0]));
        grid->nonfinite[place->node][place->shard] |= (stats.nonfinite != 0) << step;
        REQUIRE(gtopk_reducer_residual(reducer, 0, residual, DIM) == GTOPK_OK);
    }
}

/* For a reason outside of gtopk. What it calls from then on gives that reason. */
static void give_up(gtopk_comm_t *comm)
{
    REQUIRE(gtopk_comm_abort(comm, "the disk is full") == GTOPK_OK);
    REQUIRE(gtopk_barrier(comm) == GTOPK_ERR_ABORTED);
    REQUIRE(strstr(gtopk_last_error(), "this rank gave up: the disk is full"));
    REQUIRE(gtopk_comm_abort(comm, NULL) == GTOPK_ERR_ABORTED);
    REQUIRE(strstr(gtopk_last_error(), "the disk is full"));
}

/* Steps until one fails, with a fault of the device. `failed` says in which half of it: 1 accumulate, 2 reduce. */
static void steps_with_fault(const place_t *place, gtopk_reducer_t *reducer)
{
    grid_t *grid = place->grid;
    const int is_faulty = place->node == 2 && place->shard == 1;
    int *failed = &grid->failed[place->node][place->shard];
    float *gradient = grid->gradients[place->node][place->shard]; /* may be in the queue when a step has failed */
    const gtopk_tensor_t tensor = {gradient, DIM, GTOPK_F32, 0};
    for (int step = 0; step < STEPS && !*failed; step++) {
        fill(gradient, step, place);
        if (is_faulty && step == 1)
            guarded_arm(grid->fault, grid->operation);
        if (gtopk_reducer_accumulate(reducer, NULL, &tensor, 1, 1.0, GTOPK_ZERO_INPUT, NULL) != GTOPK_OK)
            *failed = 1;
        else if (gtopk_reducer_reduce(reducer, &tensor, 1, 0, NULL, NULL) != GTOPK_OK ||
                 gtopk_reducer_wait(reducer, NULL) != GTOPK_OK)
            *failed = 2;
        if (is_faulty && step == 1) {
            grid->operations = guarded_counted();
            guarded_arm(GUARDED_NO_FAULT, 0);
        }
    }
}

static void *run_place(void *argument)
{
    const place_t *place = argument;
    grid_t *grid = place->grid;
    gtopk_comm_t *peers = open_comm(grid->rows[place->node], place->shard, SHARDS, NULL);
    gtopk_comm_t *comm = open_comm(grid->columns[place->shard], place->node, NODES, grid->alone ? NULL : peers);
    const int is_last = place->node == 2 && place->shard == 1;
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    const uint64_t length = DIM;
    config.density = 0.1;
    config.value_type = GTOPK_VALUE_F32;
    config.rollback = grid->rollback;
    config.device = grid->with_faults ? "guarded" : NULL;
    config.algorithm = grid->dense     ? GTOPK_ALGORITHM_DENSE
                       : grid->reviews ? GTOPK_ALGORITHM_AUTO
                                       : GTOPK_ALGORITHM_GTOPK;
    comm->costs = next_to_nothing;
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, &length, 1) == GTOPK_OK);
    reducer->choice.window = is_last ? 1000 : 2;
    if (grid->with_faults)
        steps_with_fault(place, reducer);
    else
        steps(place, reducer);
    if (grid->gives_up && is_last)
        give_up(comm);
    if (grid->with_faults || grid->gives_up || (grid->reviews && !is_last))
        (void)pthread_barrier_wait(&grid->end); /* closing would tell the others */
    gtopk_reducer_destroy(reducer);
    gtopk_comm_destroy(peers); /* the other one keeps it */
    gtopk_comm_destroy(comm);
    return NULL;
}

static void run_grid(grid_t *grid)
{
    place_t places[NODES * SHARDS];
    for (int s = 0; s < SHARDS; s++)
        ASSERT_OK(gtopk_thread_group_create(&grid->columns[s], NODES, 0));
    for (int n = 0; n < NODES; n++)
        ASSERT_OK(gtopk_thread_group_create(&grid->rows[n], SHARDS, 0));
    for (int i = 0; i < NODES * SHARDS; i++) {
        places[i] = (place_t){.grid = grid, .node = i / SHARDS, .shard = i % SHARDS};
        if (pthread_create(&places[i].thread, NULL, run_place, &places[i]) != 0)
            abort();
    }
    for (int i = 0; i < NODES * SHARDS; i++)
        (void)pthread_join(places[i].thread, NULL);
    for (int s = 0; s < SHARDS; s++)
        gtopk_thread_group_destroy(grid->columns[s]);
    for (int n = 0; n < NODES; n++)
        gtopk_thread_group_destroy(grid->rows[n]);
}

static void test_peers_change_no_finite_step(void **state)
{
    (void)state;
    static grid_t together, alone;
    together = (grid_t){.overflow = -1, .leaves = -1};
    alone = (grid_t){.overflow = -1, .leaves = -1, .alone = 1};
    run_grid(&together);
    run_grid(&alone);
    assert_memory_equal(together.residuals, alone.residuals, sizeof alone.residuals);
    assert_true(alone.residuals[STEPS - 1][0][0][1] != 0.0f || alone.residuals[STEPS - 1][0][0][2] != 0.0f);
    for (int n = 0; n < NODES; n++)
        for (int s = 0; s < SHARDS; s++)
            assert_int_equal(together.nonfinite[n][s], 0);
}

static void test_a_step_is_nonfinite_on_all_peers(void **state)
{
    (void)state;
    static grid_t grid;
    for (int dense = 0; dense < 2; dense++)
        for (int rollback = 0; rollback < 2; rollback++) {
            float gradient[DIM];
            grid = (grid_t){.overflow = 2, .leaves = -1, .rollback = rollback, .dense = dense};
            run_grid(&grid);
            for (int n = 0; n < NODES; n++)
                for (int s = 0; s < SHARDS; s++) {
                    const place_t place = {.node = n, .shard = s};
                    assert_int_equal(grid.nonfinite[n][s], 1 << 2);
                    fill(gradient, 2, &place);
                    for (int i = 0; i < DIM; i++) {
                        float expected = grid.residuals[1][n][s][i];
                        if (!rollback && !(n == 1 && s == 2 && i == 5))
                            expected += gradient[i];
                        assert_true(grid.residuals[2][n][s][i] == expected);
                    }
                }
        }
}

/* Node 2, shard 1 ends. Its peers and those that exchange with it see that; the others hear of it from their peers. */
static void test_a_step_fails_on_all_peers(void **state)
{
    (void)state;
    static grid_t grid;
    grid = (grid_t){.overflow = -1, .leaves = 2};
    run_grid(&grid);
    for (int n = 0; n < NODES; n++)
        for (int s = 0; s < SHARDS; s++) {
            assert_int_equal(grid.failed[n][s], !(n == 2 && s == 1));
            assert_int_equal(grid.told[n][s], n != 2 && s != 1);
        }
}

/* All but node 2, shard 1 see it, long before the deadline. `staying` of the ranks end together. */
static void check_all_fail_at_once(grid_t *grid, unsigned staying)
{
    const double start = clock_now();
    assert_int_equal(pthread_barrier_init(&grid->end, NULL, staying), 0);
    run_grid(grid);
    (void)pthread_barrier_destroy(&grid->end);
    for (int n = 0; n < NODES; n++)
        for (int s = 0; s < SHARDS; s++)
            assert_int_equal(grid->failed[n][s], !(n == 2 && s == 1));
    assert_true(clock_now() - start < SOON);
}

/* It stays, and says so. */
static void test_a_rank_that_gives_up_ends_all_peers(void **state)
{
    (void)state;
    static grid_t grid;
    grid = (grid_t){.overflow = -1, .leaves = 2, .gives_up = 1};
    check_all_fail_at_once(&grid, NODES * SHARDS);
}

/* The same while times are looked at, after a step: its own ranks break, and tell their peers. */
static void test_a_review_fails_on_all_peers(void **state)
{
    (void)state;
    static grid_t grid;
    grid = (grid_t){.overflow = -1, .leaves = 2, .reviews = 1};
    check_all_fail_at_once(&grid, NODES * SHARDS - 1);
}

static void run_with_fault(grid_t *grid, guarded_fault_t fault, long operation)
{
    *grid = (grid_t){.overflow = -1, .leaves = -1, .with_faults = 1, .fault = fault, .operation = operation};
    assert_int_equal(pthread_barrier_init(&grid->end, NULL, NODES * SHARDS), 0);
    run_grid(grid);
    (void)pthread_barrier_destroy(&grid->end);
}

/* The device of node 2, shard 1 fails at each place of a step; all learn of it, and none waits for the deadline. */
static void test_a_broken_device_ends_all_peers(void **state)
{
    (void)state;
    static grid_t grid;
    run_with_fault(&grid, GUARDED_NO_FAULT, 0);
    const long operations = grid.operations;
    assert_true(operations > 5);
    for (int fault = GUARDED_AT_QUEUE; fault <= GUARDED_AT_RUN; fault++)
        for (long operation = 0; operation < operations; operation++) {
            const double start = clock_now();
            run_with_fault(&grid, (guarded_fault_t)fault, operation);
            for (int n = 0; n < NODES; n++)
                for (int s = 0; s < SHARDS; s++)
                    if (!grid.failed[n][s])
                        fail_msg("fault %d at operation %ld: node %d, shard %d went on", fault, operation, n, s);
            if (clock_now() - start > SOON)
                fail_msg("fault %d at operation %ld: somebody waited for %.1f s", fault, operation,
                         clock_now() - start);
        }
}

static void test_one_rank_and_a_peer(void **state)
{
    (void)state;
    gtopk_comm_t *peers, *comm;
    gtopk_comm_config_t config = GTOPK_COMM_CONFIG_INIT;
    gtopk_reducer_config_t options = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    const uint64_t length = 2;
    float gradient[2] = {1, INFINITY};
    const gtopk_tensor_t tensor = {gradient, 2, GTOPK_F32, 0};
    gtopk_stats_t stats = {.struct_size = sizeof stats};
    ASSERT_OK(gtopk_comm_create(&peers, NULL));
    config.peers = peers;
    ASSERT_OK(gtopk_comm_create(&comm, &config));
    ASSERT_OK(gtopk_reducer_create(&reducer, comm, &options, &length, 1));
    ASSERT_OK(gtopk_reducer_accumulate(reducer, NULL, &tensor, 1, 1.0, 0, NULL));
    ASSERT_OK(step_reduce(reducer, &tensor, 1, 0, &stats));
    assert_int_equal(stats.nonfinite, 1);
    assert_null(strstr(gtopk_last_error(), "peers told each other")); /* nothing went wrong */
    gtopk_reducer_destroy(reducer);
    gtopk_comm_destroy(comm);
    gtopk_comm_destroy(peers);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_peers_change_no_finite_step),
        cmocka_unit_test(test_a_step_is_nonfinite_on_all_peers),
        cmocka_unit_test(test_a_step_fails_on_all_peers),
        cmocka_unit_test(test_a_review_fails_on_all_peers),
        cmocka_unit_test(test_a_rank_that_gives_up_ends_all_peers),
        cmocka_unit_test(test_a_broken_device_ends_all_peers),
        cmocka_unit_test(test_one_rank_and_a_peer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
