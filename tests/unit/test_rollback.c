/* Reducers with rollback: a step that turns out to be non-finite leaves every rank's residual and velocity as they were
 * before it, bit for bit. Beside each runs one without, which never sees such a step: all else is the same. */
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

enum { SEGMENTS = 4, DIM = 200, STEPS = 5 };

/* Odd lengths, so that what follows lies askew, and one of no entries. */
static const uint64_t lengths[SEGMENTS] = {37, 0, 158, 5};

typedef enum poison { POISON_INF, POISON_FLAG, POISON_SUM, POISONS } poison_t;

typedef struct job {
    int algorithm, momentum;
    int bad_rank;
} job_t;

typedef struct arrays {
    float residual[DIM], velocity[DIM];
} arrays_t;

/* Two reducers: `plain` is without rollback. */
typedef struct twins {
    gtopk_reducer_t *rollback, *plain;
    int momentum;
} twins_t;

static gtopk_reducer_t *create(gtopk_comm_t *comm, const job_t *job, int rollback)
{
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    config.algorithm = job->algorithm;
    config.momentum_correction = job->momentum;
    config.density = 0.1;
    config.rollback = rollback;
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, lengths, SEGMENTS) == GTOPK_OK);
    if (job->momentum)
        REQUIRE(gtopk_reducer_set_momentum(reducer, 0.9, 1) == GTOPK_OK);
    return reducer;
}

static void read_arrays(gtopk_reducer_t *reducer, int momentum, arrays_t *out)
{
    memset(out, 0, sizeof *out);
    for (uint32_t s = 0, at = 0; s < SEGMENTS; at += (uint32_t)lengths[s++]) {
        REQUIRE(gtopk_reducer_residual(reducer, s, out->residual + at, lengths[s]) == GTOPK_OK);
        if (momentum)
            REQUIRE(gtopk_reducer_velocity(reducer, s, out->velocity + at, lengths[s]) == GTOPK_OK);
    }
}

static void require_same(gtopk_reducer_t *reducer, int momentum, const arrays_t *expected)
{
    arrays_t found;
    read_arrays(reducer, momentum, &found);
    REQUIRE(memcmp(&found, expected, sizeof found) == 0);
}

static void draw(float *values, int step, int rank)
{
    random_state_t random = {(uint64_t)(step * 64 + rank + 1)};
    for (int i = 0; i < DIM; i++)
        values[i] = (float)random_below(&random, 2001) / 7.0f - 142.0f;
}

static void tensors_of(float *values, gtopk_tensor_t tensors[SEGMENTS])
{
    for (int s = 0; s < SEGMENTS; values += lengths[s++])
        tensors[s] = (gtopk_tensor_t){values, lengths[s], GTOPK_F32, 0};
}

/* Segments in two calls, the last first; `left_out` gets nothing. */
static void accumulate(gtopk_reducer_t *reducer, float *values, int left_out, uint32_t flags)
{
    gtopk_tensor_t tensors[SEGMENTS];
    tensors_of(values, tensors);
    for (uint32_t s = SEGMENTS; s-- > 0;)
        if ((int)s != left_out)
            REQUIRE(gtopk_reducer_accumulate(reducer, &s, &tensors[s], 1, 1.0, s == 2 ? flags : 0, NULL) == GTOPK_OK);
}

static gtopk_stats_t reduce(gtopk_reducer_t *reducer, float *values)
{
    gtopk_stats_t stats = {.struct_size = sizeof stats};
    gtopk_tensor_t tensors[SEGMENTS];
    tensors_of(values, tensors);
    REQUIRE(step_reduce(reducer, tensors, SEGMENTS, 0, &stats) == GTOPK_OK);
    return stats;
}

/* Both take it, and come to the same. */
static void good_step(const twins_t *twins, int step, int rank)
{
    float values[2][DIM];
    arrays_t expected;
    const int left_out = step % SEGMENTS == 1 ? -1 : step % SEGMENTS;
    draw(values[0], step, rank);
    draw(values[1], step, rank);
    accumulate(twins->plain, values[0], left_out, 0);
    accumulate(twins->rollback, values[1], left_out, 0);
    read_arrays(twins->plain, twins->momentum, &expected);
    require_same(twins->rollback, twins->momentum, &expected); /* in the middle of a step, too */
    REQUIRE(reduce(twins->plain, values[0]).nonfinite == 0);
    REQUIRE(reduce(twins->rollback, values[1]).nonfinite == 0);
    REQUIRE(memcmp(values[0], values[1], sizeof values[0]) == 0);
    read_arrays(twins->plain, twins->momentum, &expected);
    require_same(twins->rollback, twins->momentum, &expected);
}

/* One of them takes it, and is as before. */
static void bad_step(const twins_t *twins, const job_t *job, int step, int rank, int size)
{
    const poison_t poison = (poison_t)(step / 2 % POISONS);
    float values[DIM];
    arrays_t before;
    read_arrays(twins->rollback, twins->momentum, &before);
    draw(values, step, rank);
    values[100] = 1e10f; /* what a burst of one step later would be made of */
    if (poison == POISON_INF && rank == job->bad_rank)
        values[41] = -INFINITY;
    if (poison == POISON_SUM)
        values[50] = size > 1 ? 3e38f : NAN;
    accumulate(twins->rollback, values, step % SEGMENTS == 2 ? 3 : step % SEGMENTS,
               poison == POISON_FLAG && rank == job->bad_rank ? GTOPK_FOUND_INF : 0);
    REQUIRE(reduce(twins->rollback, values).nonfinite == 1);
    REQUIRE(isnan(values[0]) && isnan(values[DIM - 1]));
    require_same(twins->rollback, twins->momentum, &before);
}

/* What was accumulated stays when a step is cancelled. */
static void cancelled_step(const twins_t *twins, int step, int rank)
{
    gtopk_reducer_t *const both[2] = {twins->plain, twins->rollback};
    float values[2][DIM]; /* of which what is queued reads until the arrays are read */
    arrays_t expected;
    for (int i = 0; i < 2; i++) {
        draw(values[i], step, rank);
        accumulate(both[i], values[i], 0, 0);
        REQUIRE(gtopk_reducer_cancel(both[i]) == GTOPK_OK);
    }
    read_arrays(twins->plain, twins->momentum, &expected);
    require_same(twins->rollback, twins->momentum, &expected);
}

static void run_twins(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const job_t *job = context;
    const twins_t twins = {create(comm, job, 1), create(comm, job, 0), job->momentum};
    for (int step = 0; step < STEPS; step++) {
        good_step(&twins, step, rank);
        bad_step(&twins, job, step, rank, size);
        if (step == STEPS / 2)
            cancelled_step(&twins, step, rank);
        if (step == STEPS / 3)
            REQUIRE(gtopk_reducer_set_density(twins.plain, 0.3) == GTOPK_OK &&
                    gtopk_reducer_set_density(twins.rollback, 0.3) == GTOPK_OK);
    }
    gtopk_reducer_destroy(twins.rollback);
    gtopk_reducer_destroy(twins.plain);
}

static void test_a_nonfinite_step_is_as_if_it_had_not_been(void **state)
{
    (void)state;
    for (int size = 1; size <= sizes_up_to(5); size++)
        for (int algorithm = 0; algorithm < 5; algorithm++)
            for (int momentum = 0; momentum < 2; momentum++) {
                job_t job = {.algorithm = algorithm, .momentum = momentum, .bad_rank = size - 1};
                ranks_run(size, run_twins, &job);
            }
}

/* Two reducers take a step together: what is non-finite in one is undone in both. */
static void run_together(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const job_t dense = {.algorithm = GTOPK_ALGORITHM_DENSE}, sparse = {.algorithm = GTOPK_ALGORITHM_GTOPK};
    gtopk_reducer_t *const reducers[2] = {create(comm, &dense, 1), create(comm, &sparse, 1)};
    const size_t counts[2] = {SEGMENTS, SEGMENTS};
    float values[2][DIM];
    arrays_t before[2];
    gtopk_tensor_t tensors[2][SEGMENTS];
    const gtopk_tensor_t *const outputs[2] = {tensors[0], tensors[1]};
    (void)context;
    for (int step = 0; step < 4; step++) {
        const int bad = step % 2;
        for (int i = 0; i < 2; i++) {
            read_arrays(reducers[i], 0, &before[i]);
            draw(values[i], 10 * step + i, rank);
            if (bad && i == step / 2 && rank == size - 1)
                values[i][7] = NAN;
            accumulate(reducers[i], values[i], -1, 0);
            tensors_of(values[i], tensors[i]);
        }
        REQUIRE(step_reduce_all(reducers, outputs, counts, 2, 0, NULL) == GTOPK_OK);
        for (int i = 0; i < 2; i++) {
            REQUIRE(bad == isnan(values[i][0]));
            if (bad)
                require_same(reducers[i], 0, &before[i]);
        }
    }
    for (int i = 0; i < 2; i++)
        gtopk_reducer_destroy(reducers[i]);
}

static void test_reducers_together(void **state)
{
    (void)state;
    for (int size = 1; size <= 4; size++)
        ranks_run(size, run_together, NULL);
}

/* The first reducer's exchange fails: what the second had accumulated is in its residual, and can be saved. A flag says
 * that a segment has overflowed, which changes nothing. */
static void run_failure(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const job_t job = {.algorithm = GTOPK_ALGORITHM_GTOPK};
    gtopk_reducer_t *const first = create(comm, &job, 1), *const second = create(comm, &job, 1);
    static const uint32_t flags[2] = {0, GTOPK_FOUND_INF};
    const uint32_t flag = flags[*(const int *)context];
    float values[DIM], expected[DIM] = {0};
    uint8_t state[2048];
    (void)size;
    for (int step = 0; step < 2; step++) { /* both arrays have seen a step */
        draw(values, step, rank);
        accumulate(second, values, -1, 0);
        (void)reduce(second, values);
    }
    arrays_t before, after;
    read_arrays(second, 0, &before);
    draw(values, 5, rank);
    accumulate(second, values, 0, flag);
    for (int i = 0; i < DIM; i++) {
        const int arrived = i >= 37 + 158 || (i >= 37 && !flag);
        expected[i] = arrived ? values[i] + before.residual[i] : before.residual[i];
    }
    const gtopk_status_t status = rank == 0 ? gtopk_barrier(comm)
                                            : step_reduce_all(&first, (const gtopk_tensor_t *[]){NULL},
                                                              (const size_t[]){0}, 1, GTOPK_JOINED, NULL);
    REQUIRE(status != GTOPK_OK);
    const size_t bytes = gtopk_reducer_state_size(second);
    REQUIRE(bytes <= sizeof state && gtopk_reducer_state_save(second, state, bytes) == GTOPK_OK);
    REQUIRE(memcmp(state + bytes - sizeof expected, expected, sizeof expected) == 0);
    read_arrays(second, 0, &after);
    REQUIRE(memcmp(after.residual, expected, sizeof expected) == 0);
    gtopk_reducer_destroy(first);
    gtopk_reducer_destroy(second);
}

static void test_a_failed_step_keeps_what_was_accumulated(void **state)
{
    (void)state;
    for (int size = 2; size <= 4; size++)
        for (int flag = 0; flag < 2; flag++)
            ranks_run_flags(size, run_failure, &flag, 60.0, GTOPK_THREAD_VIRTUAL_CLOCK);
}

/* The norm is of one array: not between accumulate and reduce. */
static void test_the_norm_is_between_steps(void **state)
{
    gtopk_comm_t *comm;
    const job_t job = {.algorithm = GTOPK_ALGORITHM_GTOPK};
    float values[DIM] = {[5] = 8.0f};
    double norm = -1.0;
    (void)state;
    ASSERT_OK(gtopk_comm_create(&comm, NULL));
    gtopk_reducer_t *reducer = create(comm, &job, 1);
    accumulate(reducer, values, -1, 0);
    assert_says(gtopk_reducer_residual_norm(reducer, &norm), GTOPK_ERR_STATE, "rollback");
    ASSERT_OK(gtopk_reducer_cancel(reducer));
    ASSERT_OK(gtopk_reducer_residual_norm(reducer, &norm));
    assert_true(norm == 8.0);
    gtopk_reducer_destroy(reducer);
    gtopk_comm_destroy(comm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_nonfinite_step_is_as_if_it_had_not_been),
        cmocka_unit_test(test_reducers_together),
        cmocka_unit_test(test_a_failed_step_keeps_what_was_accumulated),
        cmocka_unit_test(test_the_norm_is_between_steps),
    };
    return cmocka_run_group_tests_name("rollback", tests, NULL, NULL);
}
