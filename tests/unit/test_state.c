/* States: a resumed run is the same run bit for bit; any number of ranks takes over a consolidated one with the mean
 * kept; whatever is not a state of this reducer is refused and changes nothing. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "support/check.h"
#include "support/ranks.h"
#include "support/random.h"
#include "support/step.h"

#define DIM 500

static const uint64_t lengths[3] = {200, 0, 300};

typedef struct run {
    int momentum;
    int size;
    int first_step, last_step;
    const uint8_t *load; /* states of all ranks one after the other, or one consolidated state; NULL: from zero */
    int load_one;
    uint8_t *save; /* likewise; NULL: none */
    int consolidate;
    float updates[8][40][DIM]; /* rank, step */
    float waits[8][2][DIM];    /* rank; residual and velocity, after loading or where they were saved */
} run_t;

static gtopk_reducer_t *open_reducer(gtopk_comm_t *comm, int momentum)
{
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    config.density = 0.02;
    config.momentum_correction = momentum;
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, lengths, 3) == GTOPK_OK);
    if (momentum)
        REQUIRE(gtopk_reducer_set_momentum(reducer, 0.9, 1) == GTOPK_OK);
    return reducer;
}

static void step(run_t *run, gtopk_reducer_t *reducer, int rank, int number)
{
    random_state_t random = {(uint64_t)(number * 100 + rank)};
    float gradient[DIM];
    for (int i = 0; i < DIM; i++)
        gradient[i] = (float)((double)random_below(&random, 2001) - 1000.0) * 0.01f;
    const gtopk_tensor_t tensors[3] = {
        {gradient, 200, GTOPK_F32, 0}, {NULL, 0, GTOPK_F32, 0}, {gradient + 200, 300, GTOPK_F32, 0}};
    REQUIRE(gtopk_reducer_accumulate(reducer, NULL, tensors, 3, 1, GTOPK_ZERO_INPUT, NULL) == GTOPK_OK);
    REQUIRE(step_reduce(reducer, tensors, 3, GTOPK_OUTPUT_IS_ZERO, NULL) == GTOPK_OK);
    memcpy(run->updates[rank][number], gradient, sizeof gradient);
}

static void read_what_waits(const run_t *run, gtopk_reducer_t *reducer, float (*waits)[DIM])
{
    REQUIRE(gtopk_reducer_residual(reducer, 0, waits[0], 200) == GTOPK_OK);
    REQUIRE(gtopk_reducer_residual(reducer, 2, waits[0] + 200, 300) == GTOPK_OK);
    if (run->momentum) {
        REQUIRE(gtopk_reducer_velocity(reducer, 0, waits[1], 200) == GTOPK_OK);
        REQUIRE(gtopk_reducer_velocity(reducer, 2, waits[1] + 200, 300) == GTOPK_OK);
    }
}

static void run_rank(gtopk_comm_t *comm, int rank, int size, void *context)
{
    run_t *run = context;
    gtopk_reducer_t *reducer = open_reducer(comm, run->momentum);
    const size_t bytes = gtopk_reducer_state_size(reducer);
    (void)size;
    if (run->load)
        REQUIRE(gtopk_reducer_state_load(reducer, run->load + (run->load_one ? 0 : (size_t)rank * bytes), bytes) ==
                GTOPK_OK);
    read_what_waits(run, reducer, run->waits[rank]);
    for (int number = run->first_step; number < run->last_step; number++)
        step(run, reducer, rank, number);
    if (run->save && run->consolidate)
        REQUIRE(gtopk_reducer_state_consolidate(reducer, rank == 1 ? run->save : NULL, bytes, 1) == GTOPK_OK);
    else if (run->save)
        REQUIRE(gtopk_reducer_state_save(reducer, run->save + (size_t)rank * bytes, bytes) == GTOPK_OK);
    if (run->save && run->consolidate) /* what the state must hold */
        read_what_waits(run, reducer, run->waits[rank]);
    gtopk_reducer_destroy(reducer);
}

static void test_resume_is_bit_exact(void **state)
{
    (void)state;
    static run_t straight, first, second;
    static uint8_t states[8 * 8192];
    for (int momentum = 0; momentum < 2; momentum++)
        for (int size = 1; size <= 5; size++) {
            straight = (run_t){.momentum = momentum, .size = size, .last_step = 20};
            first = (run_t){.momentum = momentum, .size = size, .last_step = 10, .save = states};
            second = (run_t){.momentum = momentum, .size = size, .first_step = 10, .last_step = 20, .load = states};
            ranks_run(size, run_rank, &straight);
            ranks_run(size, run_rank, &first);
            ranks_run(size, run_rank, &second);
            for (int r = 0; r < size; r++)
                for (int number = 10; number < 20; number++)
                    assert_memory_equal(straight.updates[r][number], second.updates[r][number],
                                        sizeof straight.updates[r][number]);
        }
}

static void check_same_mean(const run_t *before, const run_t *after, int which)
{
    for (int i = 0; i < DIM; i++) {
        double old = 0.0, new = 0.0, scale = 0.0;
        for (int r = 0; r < before->size; r++) {
            old += (double)before->waits[r][which][i] / before->size;
            scale += fabs((double)before->waits[r][which][i]);
        }
        for (int r = 0; r < after->size; r++)
            new += (double)after->waits[r][which][i] / after->size;
        if (fabs(old - new) > 1e-6 * scale)
            fail_msg("%d, entry %d: a mean of %g before, %g after (%d to %d ranks)", which, i, old, new, before->size,
                     after->size);
    }
}

static void test_any_size_takes_over(void **state)
{
    (void)state;
    static run_t before, after;
    static uint8_t saved[8192];
    for (int momentum = 0; momentum < 2; momentum++)
        for (int size = 2; size <= 8; size += 2)
            for (int next = 1; next <= 5; next++) {
                before = (run_t){.momentum = momentum, .size = size, .last_step = 10, .save = saved, .consolidate = 1};
                after = (run_t){.momentum = momentum,
                                .size = next,
                                .first_step = 10,
                                .last_step = 12,
                                .load = saved,
                                .load_one = 1};
                ranks_run(size, run_rank, &before);
                ranks_run(next, run_rank, &after);
                for (int which = 0; which <= momentum; which++)
                    check_same_mean(&before, &after, which);
            }
}

/* With numbers: two ranks have 1 and 2 waiting at one entry, so 1.5 of it is the update on one rank and on three. */
static void run_small(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const uint64_t length = 1;
    uint8_t *state = context;
    float value = (float)(1 + rank);
    const gtopk_tensor_t tensor = {&value, 1, GTOPK_F32, 0};
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, &length, 1) == GTOPK_OK);
    const size_t bytes = gtopk_reducer_state_size(reducer);
    if (size == 2) {
        REQUIRE(gtopk_reducer_set_residual(reducer, 0, &value, 1) == GTOPK_OK);
        REQUIRE(gtopk_reducer_state_consolidate(reducer, rank == 0 ? state : NULL, bytes, 0) == GTOPK_OK);
    } else {
        REQUIRE(gtopk_reducer_state_load(reducer, state, bytes) == GTOPK_OK);
        REQUIRE(gtopk_reducer_accumulate(reducer, NULL, &tensor, 1, 0.0, GTOPK_ZERO_INPUT, NULL) == GTOPK_OK);
        REQUIRE(step_reduce(reducer, &tensor, 1, 0, NULL) == GTOPK_OK);
        REQUIRE(value == 1.5f);
    }
    gtopk_reducer_destroy(reducer);
}

static void test_the_update_that_waits_stays_what_it_was(void **state)
{
    static uint8_t saved[128];
    (void)state;
    ranks_run(2, run_small, saved);
    ranks_run(1, run_small, saved);
    ranks_run(3, run_small, saved);
}

/* ---- refusals ---- */

static void assert_refused(gtopk_reducer_t *reducer, const uint8_t *state, size_t bytes, gtopk_status_t expected,
                           const char *part)
{
    float residual[200];
    const float zeros[200] = {0};
    const gtopk_status_t status = gtopk_reducer_state_load(reducer, state, bytes);
    if (status != expected || !strstr(gtopk_last_error(), part))
        fail_msg("%s: %s (awaited %s: %s)", gtopk_status_name(status), gtopk_last_error(), gtopk_status_name(expected),
                 part);
    assert_int_equal(gtopk_reducer_residual(reducer, 0, residual, 200), GTOPK_OK);
    assert_memory_equal(residual, zeros, sizeof residual);
}

/* Rank 1 has taken a step back. */
static void run_apart(gtopk_comm_t *comm, int rank, int size, void *context)
{
    static uint8_t early[2][8192], late[2][8192], sum[8192];
    run_t *run = context;
    gtopk_reducer_t *reducer = open_reducer(comm, 0);
    const size_t bytes = gtopk_reducer_state_size(reducer);
    (void)size;
    for (int number = 0; number < 2; number++) {
        step(run, reducer, rank, number);
        REQUIRE(gtopk_reducer_state_save(reducer, number == 0 ? early[rank] : late[rank], bytes) == GTOPK_OK);
    }
    if (rank == 1)
        REQUIRE(gtopk_reducer_state_load(reducer, early[rank], bytes) == GTOPK_OK);
    REQUIRE(gtopk_reducer_state_consolidate(reducer, sum, bytes, 0) == GTOPK_ERR_DESYNC);
    REQUIRE(strstr(gtopk_last_error(), "rank 0 is at step 2") && strstr(gtopk_last_error(), "rank 1 at step 1"));
    if (rank == 1)
        REQUIRE(gtopk_reducer_state_load(reducer, late[rank], bytes) == GTOPK_OK);
    REQUIRE(gtopk_reducer_state_consolidate(reducer, sum, bytes, 0) == GTOPK_OK);
    gtopk_reducer_destroy(reducer);
}

static void test_ranks_at_different_steps_have_no_state_together(void **state)
{
    static run_t run;
    (void)state;
    run = (run_t){.size = 2};
    ranks_run(2, run_apart, &run);
}

static void test_refusals(void **state)
{
    (void)state;
    static run_t run;
    static uint8_t saved[2 * 8192], broken[8192];
    run = (run_t){.size = 2, .last_step = 5, .save = saved};
    ranks_run(2, run_rank, &run);
    gtopk_comm_t *comm;
    assert_int_equal(gtopk_comm_create(&comm, NULL), GTOPK_OK);
    gtopk_reducer_t *reducer = open_reducer(comm, 0), *with_velocity = open_reducer(comm, 1);
    const size_t bytes = gtopk_reducer_state_size(reducer);

    assert_refused(reducer, saved, bytes, GTOPK_ERR_MISMATCH, "rank 0 of 2");
    assert_refused(reducer, saved, bytes - 1, GTOPK_ERR_CORRUPT, "length");
    assert_refused(reducer, saved, 10, GTOPK_ERR_CORRUPT, "begin");
    assert_refused(with_velocity, saved, bytes, GTOPK_ERR_MISMATCH, "velocity");
    for (size_t at = 0; at < bytes; at += 3) {
        memcpy(broken, saved, bytes);
        broken[at] ^= 0x10;
        assert_refused(reducer, broken, bytes, GTOPK_ERR_CORRUPT, "");
    }
    const uint64_t other[3] = {200, 1, 299};
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *different;
    assert_int_equal(gtopk_reducer_create(&different, comm, &config, other, 3), GTOPK_OK);
    assert_refused(different, saved, bytes, GTOPK_ERR_MISMATCH, "segment 1");

    /* Another rank's state can be adopted: its step, and nothing of its residual. */
    assert_int_equal(gtopk_reducer_state_adopt(reducer, saved, bytes), GTOPK_OK);
    float x[DIM] = {1};
    const gtopk_tensor_t tensors[3] = {{x, 200, GTOPK_F32, 0}, {NULL, 0, GTOPK_F32, 0}, {x + 200, 300, GTOPK_F32, 0}};
    gtopk_stats_t stats = {.struct_size = sizeof stats};
    assert_int_equal(gtopk_reducer_accumulate(reducer, NULL, tensors, 3, 1, 0, NULL), GTOPK_OK);
    assert_int_equal(gtopk_reducer_state_save(reducer, broken, bytes), GTOPK_ERR_STATE);
    assert_int_equal(gtopk_reducer_state_load(reducer, saved, bytes), GTOPK_ERR_STATE);
    assert_int_equal(step_reduce(reducer, tensors, 3, 0, &stats), GTOPK_OK);
    assert_int_equal(stats.step, 5);
    assert_int_equal(stats.count, 1);
    gtopk_reducer_destroy(different);
    gtopk_reducer_destroy(with_velocity);
    gtopk_reducer_destroy(reducer);
    gtopk_comm_destroy(comm);
}

static void test_residual_is_set_by_hand(void **state)
{
    (void)state;
    gtopk_comm_t *comm;
    assert_int_equal(gtopk_comm_create(&comm, NULL), GTOPK_OK);
    gtopk_reducer_t *reducer = open_reducer(comm, 0);
    float values[200] = {0}, back[200];
    values[7] = 3.5f;
    assert_int_equal(gtopk_reducer_set_residual(reducer, 0, values, 200), GTOPK_OK);
    assert_int_equal(gtopk_reducer_residual(reducer, 0, back, 200), GTOPK_OK);
    assert_memory_equal(values, back, sizeof values);
    values[9] = NAN;
    assert_int_equal(gtopk_reducer_set_residual(reducer, 0, values, 200), GTOPK_ERR_INVALID);
    assert_int_equal(gtopk_reducer_set_residual(reducer, 3, values, 200), GTOPK_ERR_INVALID);
    assert_int_equal(gtopk_reducer_set_residual(reducer, 2, values, 200), GTOPK_ERR_INVALID);
    gtopk_set_t set = {malloc(sizeof(uint32_t) * 10), malloc(sizeof(float) * 10), 10, 0};
    assert_int_equal(gtopk_reducer_max_count(reducer), 10);
    assert_int_equal(step_reduce_sparse(reducer, &set, 0, NULL), GTOPK_OK);
    assert_int_equal(set.count, 1);
    assert_int_equal(set.indices[0], 7);
    assert_true(set.values[0] == 3.5f);
    free(set.indices);
    free(set.values);
    gtopk_reducer_destroy(reducer);
    gtopk_comm_destroy(comm);
}

static gtopk_status_t step_with_one(gtopk_reducer_t *reducer)
{
    float x[DIM] = {1};
    const gtopk_tensor_t tensors[3] = {{x, 200, GTOPK_F32, 0}, {NULL, 0, GTOPK_F32, 0}, {x + 200, 300, GTOPK_F32, 0}};
    REQUIRE(gtopk_reducer_accumulate(reducer, NULL, tensors, 3, 1, 0, NULL) == GTOPK_OK);
    return step_reduce(reducer, tensors, 3, 0, NULL);
}

/* Ranks that load states of different steps find out in the next exchange. */
static void run_other_step(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const run_t *run = context;
    (void)size;
    gtopk_reducer_t *reducer = open_reducer(comm, 0);
    const size_t bytes = gtopk_reducer_state_size(reducer);
    if (rank == 0)
        REQUIRE(gtopk_reducer_state_load(reducer, run->save, bytes) == GTOPK_OK);
    REQUIRE(step_with_one(reducer) == GTOPK_ERR_DESYNC);
    REQUIRE(strstr(gtopk_last_error(), "step 5") && strstr(gtopk_last_error(), " 0"));
    gtopk_reducer_destroy(reducer);
}

/* States of two runs at one step: found out too, also when the density is changed in between. */
static void run_other_run(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const run_t *runs = context;
    (void)size;
    gtopk_reducer_t *reducer = open_reducer(comm, 0);
    const size_t bytes = gtopk_reducer_state_size(reducer);
    REQUIRE(gtopk_reducer_state_load(reducer, runs[rank].save + (size_t)rank * bytes, bytes) == GTOPK_OK);
    REQUIRE(gtopk_reducer_set_density(reducer, 0.5) == GTOPK_OK);
    REQUIRE(step_with_one(reducer) == GTOPK_ERR_DESYNC);
    gtopk_reducer_destroy(reducer);
}

static void test_states_of_other_runs(void **state)
{
    (void)state;
    static run_t runs[2];
    static uint8_t saved[2][2 * 8192];
    for (int i = 0; i < 2; i++) {
        runs[i] = (run_t){.size = 2, .last_step = 5, .save = saved[i]};
        ranks_run(2, run_rank, &runs[i]);
    }
    ranks_run(2, run_other_run, runs);
}

static void test_states_of_other_steps(void **state)
{
    (void)state;
    static run_t run;
    static uint8_t saved[2 * 8192];
    run = (run_t){.size = 2, .last_step = 5, .save = saved};
    ranks_run(2, run_rank, &run);
    ranks_run(2, run_other_step, &run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resume_is_bit_exact),
        cmocka_unit_test(test_any_size_takes_over),
        cmocka_unit_test(test_the_update_that_waits_stays_what_it_was),
        cmocka_unit_test(test_ranks_at_different_steps_have_no_state_together),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_residual_is_set_by_hand),
        cmocka_unit_test(test_states_of_other_steps),
        cmocka_unit_test(test_states_of_other_runs),
    };
    return cmocka_run_group_tests_name("state", tests, NULL, NULL);
}
