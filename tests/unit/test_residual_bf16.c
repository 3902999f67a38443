/* A residual in bf16: what is stored is right in the mean, however small an addition is beside it; steps that are dropped
 * leave it as it was; training that is resumed goes on bit for bit. That all devices round alike is test_device's. */
#include <float.h>
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
#include "support/step.h"

enum { DIM = 4096, STEPS = 12 };

static const uint64_t length = DIM;

static gtopk_reducer_config_t config_of(void)
{
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    config.residual_dtype = GTOPK_BF16;
    config.density = 1.0 / DIM;
    return config;
}

static gtopk_reducer_t *create(gtopk_comm_t *comm, const gtopk_reducer_config_t *config)
{
    gtopk_reducer_t *reducer;
    REQUIRE(gtopk_reducer_create(&reducer, comm, config, &length, 1) == GTOPK_OK);
    return reducer;
}

static void take_step(gtopk_reducer_t *reducer, float *values, gtopk_stats_t *stats)
{
    const gtopk_tensor_t tensor = {values, DIM, GTOPK_F32, 0};
    REQUIRE(gtopk_reducer_accumulate(reducer, NULL, &tensor, 1, 1, GTOPK_ZERO_INPUT, NULL) == GTOPK_OK);
    REQUIRE(step_reduce(reducer, &tensor, 1, GTOPK_OUTPUT_IS_ZERO, stats) == GTOPK_OK);
}

/* ---- many small additions to something large ---- */

enum { MANY = 2048 };
#define LARGE 1.0f
#define SMALL 0x1p-12f /* a thirty-second of what bf16 can tell apart there: nearest even would never move */

static void add_many(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const gtopk_reducer_config_t config = config_of();
    gtopk_reducer_t *reducer = create(comm, &config);
    float *out = (float *)context + rank * DIM;
    static float values[2][DIM];
    (void)size;
    for (int i = 0; i < DIM; i++)
        out[i] = LARGE;
    REQUIRE(gtopk_reducer_set_residual(reducer, 0, out, DIM) == GTOPK_OK);
    for (int step = 0; step < MANY; step++) {
        for (int i = 0; i < DIM; i++)
            values[rank][i] = SMALL;
        values[rank][7] = 100.0f; /* what is sent */
        take_step(reducer, values[rank], NULL);
    }
    REQUIRE(gtopk_reducer_residual(reducer, 0, out, DIM) == GTOPK_OK);
    gtopk_reducer_destroy(reducer);
}

/* Each addition moves an entry by 2^-7 with probability p = 1/32, so after MANY of them it has a standard deviation of
 * 2^-7 sqrt(MANY p (1 - p)) = .062, and the mean of DIM entries one of .001: five of these, and of those, are allowed. */
static void test_small_additions_are_not_lost(void **state)
{
    (void)state;
    static float residuals[2][DIM];
    const double expected = (double)LARGE + MANY * (double)SMALL, p = (double)SMALL * 128.0;
    const double deviation = sqrt(MANY * p * (1.0 - p)) / 128.0;
    int same = 0;
    ranks_run(2, add_many, residuals);
    for (int rank = 0; rank < 2; rank++) {
        double sum = 0.0, squares = 0.0;
        for (int i = 0; i < DIM; i++) {
            const double off = (double)residuals[rank][i] - expected;
            if (i == 7)
                continue;
            sum += off;
            squares += off * off;
            assert_true(fabs(off) < 5.0 * deviation);
        }
        assert_true(fabs(sum / (DIM - 1)) < 5.0 * deviation / sqrt(DIM));
        assert_true(fabs(sqrt(squares / (DIM - 1)) / deviation - 1.0) < 0.1); /* entries draw for themselves */
    }
    for (int i = 0; i < DIM; i++)
        same += residuals[0][i] == residuals[1][i];
    assert_true(same < DIM / 4); /* and ranks */
}

/* ---- every change of a residual: the mean over entries that are alike ---- */

/* Of a set, a residual that was set, and an update that a 16-bit output cannot hold. */
static void test_what_is_set_and_given_back_is_right_in_the_mean(void **state)
{
    (void)state;
    gtopk_comm_t *comm;
    gtopk_reducer_config_t config = config_of();
    static float values[DIM];
    static uint16_t halves[DIM];
    const gtopk_tensor_t gradient = {values, DIM, GTOPK_F32, 0}, output = {halves, DIM, GTOPK_BF16, 0};
    const double value = 1.003;
    double set = 0.0, left = 0.0;
    config.density = 1.0;
    config.value_type = GTOPK_VALUE_F32;
    ASSERT_OK(gtopk_comm_create(&comm, NULL));
    gtopk_reducer_t *reducer = create(comm, &config);
    for (int i = 0; i < DIM; i++)
        values[i] = (float)value;
    ASSERT_OK(gtopk_reducer_set_residual(reducer, 0, values, DIM));
    ASSERT_OK(gtopk_reducer_residual(reducer, 0, values, DIM));
    for (int i = 0; i < DIM; i++)
        set += (double)values[i] / DIM;
    assert_true(fabs(set - value) < 5.0 * 0x1p-8 / sqrt(DIM));
    for (int i = 0; i < DIM; i++)
        values[i] = 0x1p-9f; /* sums of 9 bits */
    ASSERT_OK(gtopk_reducer_accumulate(reducer, NULL, &gradient, 1, 1, 0, NULL));
    ASSERT_OK(step_reduce(reducer, &output, 1, 0, NULL));
    ASSERT_OK(gtopk_reducer_residual(reducer, 0, values, DIM));
    for (int i = 0; i < DIM; i++) {
        const uint32_t bits = (uint32_t)halves[i] << 16;
        float sent;
        memcpy(&sent, &bits, sizeof sent);
        left += ((double)values[i] + (double)sent) / DIM;
    }
    assert_true(fabs(left - set - 0x1p-9) < 5.0 * 0x1p-8 / sqrt(DIM));
    for (int i = 0; i < DIM; i++)
        values[i] = i % 2 ? FLT_MAX : -FLT_MAX;
    ASSERT_OK(gtopk_reducer_set_residual(reducer, 0, values, DIM));
    ASSERT_OK(gtopk_reducer_residual(reducer, 0, values, DIM));
    for (int i = 0; i < DIM; i++)
        assert_true(values[i] == (i % 2 ? 0x1.fep127f : -0x1.fep127f)); /* the largest, and not Inf */
    gtopk_reducer_destroy(reducer);
    gtopk_comm_destroy(comm);
}

/* ---- what must not change it ---- */

typedef struct run {
    int first, last;
    int by_hand; /* resumed as Python does: residuals are set in a reducer that is told how many steps there were */
    int momentum;
    const uint8_t *load;
    uint8_t *save;
    float residual[3][DIM], update[3][DIM], saved[3][DIM];
} run_t;

static void draw(float *values, int rank, int step)
{
    random_state_t random = {(uint64_t)(step * 100 + rank)};
    for (int i = 0; i < DIM; i++)
        values[i] = (float)random_below(&random, 2001) / 7.0f - 142.0f;
}

static void run_rank(gtopk_comm_t *comm, int rank, int size, void *context)
{
    run_t *run = context;
    gtopk_reducer_config_t config = config_of();
    static float values[3][DIM];
    (void)size;
    config.density = 0.02;
    config.rollback = 1;
    config.momentum_correction = run->momentum;
    config.steps_before = run->by_hand ? (uint64_t)run->first : 0;
    gtopk_reducer_t *reducer = create(comm, &config);
    const size_t bytes = gtopk_reducer_state_size(reducer);
    if (run->by_hand)
        REQUIRE(gtopk_reducer_set_residual(reducer, 0, run->saved[rank], DIM) == GTOPK_OK);
    else if (run->load)
        REQUIRE(gtopk_reducer_state_load(reducer, run->load + (size_t)rank * bytes, bytes) == GTOPK_OK);
    for (int step = run->first; step < run->last; step++) {
        gtopk_stats_t stats = {.struct_size = sizeof stats};
        float before[DIM];
        draw(values[rank], rank, step);
        if (step == 2 && rank == 1)
            values[rank][30] = INFINITY;
        REQUIRE(gtopk_reducer_residual(reducer, 0, before, DIM) == GTOPK_OK);
        take_step(reducer, values[rank], &stats);
        REQUIRE(stats.nonfinite == (step == 2));
        REQUIRE(gtopk_reducer_residual(reducer, 0, run->residual[rank], DIM) == GTOPK_OK);
        REQUIRE((memcmp(before, run->residual[rank], sizeof before) == 0) == (step == 2));
        if (step == 3)
            REQUIRE(gtopk_reducer_set_density(reducer, 0.05) == GTOPK_OK);
        if (step == 4)
            REQUIRE(gtopk_reducer_set_algorithm(reducer, GTOPK_ALGORITHM_GTOPK_SPLIT) == GTOPK_OK);
        memcpy(run->update[rank], values[rank], sizeof values[rank]);
    }
    if (run->save)
        REQUIRE(gtopk_reducer_state_save(reducer, run->save + (size_t)rank * bytes, bytes) == GTOPK_OK);
    gtopk_reducer_destroy(reducer);
}

static void test_resumed_it_goes_on_bit_for_bit(void **state)
{
    (void)state;
    static run_t straight, first, second;
    static uint8_t states[3 * (2 * DIM * sizeof(float) + 128)];
    for (int way = 0; way < 3; way++) {
        const int momentum = way == 1;
        straight = (run_t){.last = 2, .momentum = momentum};
        ranks_run(3, run_rank, &straight);
        first = (run_t){.last = 1, .save = states, .momentum = momentum};
        ranks_run(3, run_rank, &first);
        second = (run_t){.first = 1, .last = 2, .load = states, .by_hand = way == 2, .momentum = momentum};
        memcpy(second.saved, first.residual, sizeof second.saved);
        ranks_run(3, run_rank, &second);
        assert_memory_equal(straight.residual, second.residual, sizeof straight.residual);
        assert_memory_equal(straight.update, second.update, sizeof straight.update);
    }
}

/* A step that is not finite (2), another density, another algorithm. */
static void test_it_lives_through_all_that_others_do(void **state)
{
    (void)state;
    static run_t run;
    run = (run_t){.last = STEPS};
    ranks_run(3, run_rank, &run);
    assert_memory_equal(run.update[0], run.update[1], sizeof run.update[0]);
    assert_memory_equal(run.update[0], run.update[2], sizeof run.update[0]);
}

/* A state of floats is rounded, and what all ranks have of one is right in the mean. */
static void test_a_state_of_floats_is_taken(void **state)
{
    (void)state;
    gtopk_comm_t *comm;
    static float values[DIM], found[DIM];
    static uint8_t saved[DIM * sizeof(float) + 128];
    gtopk_reducer_config_t narrow = config_of(), wide = GTOPK_REDUCER_CONFIG_INIT;
    double mean = 0.0;
    ASSERT_OK(gtopk_comm_create(&comm, NULL));
    gtopk_reducer_t *from = create(comm, &wide), *to = create(comm, &narrow);
    const size_t bytes = gtopk_reducer_state_size(from);
    for (int i = 0; i < DIM; i++)
        values[i] = 1.003f;
    ASSERT_OK(gtopk_reducer_set_residual(from, 0, values, DIM));
    ASSERT_OK(gtopk_reducer_state_save(from, saved, bytes));
    ASSERT_OK(gtopk_reducer_state_load(to, saved, bytes));
    ASSERT_OK(gtopk_reducer_residual(to, 0, found, DIM));
    for (int i = 0; i < DIM; i++) {
        mean += (double)found[i] / DIM;
        assert_true(found[i] == 1.0f || found[i] == 1.0078125f);
    }
    assert_true(fabs(mean - 1.003) < 5.0 * 0x1p-8 / sqrt(DIM));
    /* And back: what bf16 holds a float holds. */
    ASSERT_OK(gtopk_reducer_state_save(to, saved, bytes));
    ASSERT_OK(gtopk_reducer_state_load(from, saved, bytes));
    ASSERT_OK(gtopk_reducer_residual(from, 0, values, DIM));
    assert_memory_equal(values, found, sizeof values);
    gtopk_reducer_destroy(from);
    gtopk_reducer_destroy(to);
    gtopk_comm_destroy(comm);
}

/* ---- mistakes ---- */

static void differ(gtopk_comm_t *comm, int rank, int size, void *context)
{
    gtopk_reducer_config_t config = config_of();
    gtopk_reducer_t *reducer;
    (void)size;
    (void)context;
    config.residual_dtype = rank == 1 ? GTOPK_BF16 : GTOPK_F32;
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, &length, 1) == GTOPK_ERR_MISMATCH);
    REQUIRE(strstr(gtopk_last_error(), "residual_dtype"));
}

static void test_mistakes_name_the_parameter(void **state)
{
    (void)state;
    gtopk_comm_t *comm;
    gtopk_reducer_t *reducer;
    gtopk_reducer_config_t config = config_of();
    ASSERT_OK(gtopk_comm_create(&comm, NULL));
    config.residual_dtype = GTOPK_F16;
    assert_int_equal(gtopk_reducer_create(&reducer, comm, &config, &length, 1), GTOPK_ERR_INVALID);
    assert_non_null(strstr(gtopk_last_error(), "residual_dtype 1"));
    gtopk_comm_destroy(comm);
    ranks_run(2, differ, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small_additions_are_not_lost),
        cmocka_unit_test(test_what_is_set_and_given_back_is_right_in_the_mean),
        cmocka_unit_test(test_resumed_it_goes_on_bit_for_bit),
        cmocka_unit_test(test_it_lives_through_all_that_others_do),
        cmocka_unit_test(test_a_state_of_floats_is_taken),
        cmocka_unit_test(test_mistakes_name_the_parameter),
    };
    return cmocka_run_group_tests_name("residual_bf16", tests, NULL, NULL);
}
