/* Several reducers that take a step together: gtopk_reducers_reduce. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "support/check.h"
#include "support/ranks.h"
#include "support/step.h"

static const uint64_t two_segments[2] = {6, 4};

static gtopk_comm_t *open_self(void)
{
    gtopk_comm_t *comm;
    ASSERT_OK(gtopk_comm_create(&comm, NULL));
    return comm;
}

typedef struct group_job {
    float last; /* value of the last rank's last gradient: an overflow shows in the second reducer alone */
    int joined; /* ranks below it have no more data */
} group_job_t;

static void group_create(gtopk_comm_t *comm, gtopk_reducer_t *reducers[2])
{
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    config.density = 0.5;
    config.value_type = GTOPK_VALUE_F32;
    REQUIRE(gtopk_reducer_create(&reducers[1], comm, &config, two_segments, 2) == GTOPK_OK);
    config.algorithm = GTOPK_ALGORITHM_DENSE;
    REQUIRE(gtopk_reducer_create(&reducers[0], comm, &config, two_segments + 1, 1) == GTOPK_OK);
}

static void run_group(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const group_job_t *job = context;
    gtopk_reducer_t *reducers[2];
    gtopk_stats_t stats[2] = {{.struct_size = sizeof *stats}, {.struct_size = sizeof *stats}};
    gtopk_stats_t *const both[2] = {&stats[0], &stats[1]};
    float dense[4] = {1, 2, 3, 4}, a[6] = {8, 0, 0, 7, 1, 0}, b[4] = {0, 9, 0, rank == size - 1 ? job->last : 6.0f};
    float residual[6];
    const gtopk_tensor_t small = {dense, 4, GTOPK_F32, 0};
    const gtopk_tensor_t large[2] = {{a, 6, GTOPK_F32, 0}, {b, 4, GTOPK_F32, 0}};
    const gtopk_tensor_t *const outputs[2] = {&small, large};
    const size_t counts[2] = {1, 2}, none[2] = {0, 0};
    const int bad = isinf(job->last), all = job->joined == size, mine = rank < job->joined;
    group_create(comm, reducers);
    REQUIRE(gtopk_reducer_accumulate(reducers[0], NULL, &small, 1, 1, GTOPK_ZERO_INPUT, NULL) == GTOPK_OK);
    REQUIRE(gtopk_reducer_accumulate(reducers[1], NULL, large, 2, 1, GTOPK_ZERO_INPUT, NULL) == GTOPK_OK);
    REQUIRE(step_reduce_all(reducers, mine ? NULL : outputs, mine ? none : counts, 2, mine ? GTOPK_JOINED : 0, both) ==
            GTOPK_OK);
    for (int i = 0; i < 2; i++)
        REQUIRE(stats[i].nonfinite == bad && stats[i].all_joined == all && stats[i].step == 0);
    REQUIRE(stats[0].count == (uint64_t)(bad || all ? 0 : 4) && stats[1].count == (uint64_t)(bad || all ? 0 : 5));
    if (mine)
        REQUIRE(dense[1] == 0.0f && a[0] == 0.0f); /* no outputs, none written */
    else if (bad)
        REQUIRE(isnan(dense[1]) && isnan(a[0]) && isnan(b[2]));
    else
        REQUIRE(dense[1] == 2.0f && a[0] == 8.0f && a[2] == 0.0f && b[1] == 9.0f && b[3] == 6.0f);
    REQUIRE(gtopk_reducer_residual(reducers[0], 0, residual, 4) == GTOPK_OK);
    REQUIRE(residual[1] == (bad || all ? 2.0f : 0.0f));
    REQUIRE(gtopk_reducer_residual(reducers[1], 0, residual, 6) == GTOPK_OK);
    REQUIRE(residual[0] == (bad || all ? 8.0f : 0.0f) && residual[4] == (bad || all ? 1.0f : 0.0f));
    for (int i = 0; i < 2; i++)
        gtopk_reducer_destroy(reducers[i]);
}

static void test_several_reducers_in_one_step(void **state)
{
    (void)state;
    for (int size = 1; size <= 5; size++)
        for (int joined = 0; joined <= size; joined++)
            for (int bad = 0; bad < 2; bad++) {
                group_job_t job = {bad ? INFINITY : 6.0f, joined};
                ranks_run(size, run_group, &job);
            }
}

static void test_wrong_groups(void **state)
{
    (void)state;
    gtopk_comm_t *comm = open_self(), *other = open_self();
    gtopk_reducer_t *reducers[2], *others[2], *many[GTOPK_REDUCERS_MAX + 1];
    float dense[4] = {1, 2, 3, 4}, a[6] = {0}, b[4] = {0}, residual[4];
    const gtopk_tensor_t small = {dense, 4, GTOPK_F32, 0};
    const gtopk_tensor_t large[2] = {{a, 6, GTOPK_F32, 0}, {b, 4, GTOPK_F32, 0}};
    const gtopk_tensor_t *const outputs[2] = {&small, large};
    const size_t counts[2] = {1, 2}, short_counts[2] = {1, 1};
    group_create(comm, reducers);
    group_create(other, others);
    ASSERT_OK(gtopk_reducer_accumulate(reducers[0], NULL, &small, 1, 1, GTOPK_ZERO_INPUT, NULL));
    assert_says(gtopk_reducers_reduce(NULL, outputs, counts, 2, 0, NULL, NULL), GTOPK_ERR_INVALID, "reducers");
    assert_says(gtopk_reducers_reduce(reducers, outputs, counts, 0, 0, NULL, NULL), GTOPK_ERR_INVALID, "0 reducers");
    for (int i = 0; i <= GTOPK_REDUCERS_MAX; i++)
        many[i] = reducers[0];
    assert_says(gtopk_reducers_reduce(many, NULL, NULL, GTOPK_REDUCERS_MAX + 1, 0, NULL, NULL), GTOPK_ERR_INVALID,
                "17 reducers");
    assert_says(gtopk_reducers_reduce(many, outputs, counts, 2, 0, NULL, NULL), GTOPK_ERR_INVALID,
                "0 and 1 are the same");
    assert_says(gtopk_reducers_reduce((gtopk_reducer_t *[]){reducers[0], NULL}, outputs, counts, 2, 0, NULL, NULL),
                GTOPK_ERR_INVALID, "reducer 1 is NULL");
    assert_says(gtopk_reducers_reduce((gtopk_reducer_t *[]){reducers[0], others[1]}, outputs, counts, 2, 0, NULL, NULL),
                GTOPK_ERR_INVALID, "another communicator");
    assert_says(gtopk_reducers_reduce(reducers, outputs, short_counts, 2, 0, NULL, NULL), GTOPK_ERR_INVALID,
                "1 outputs");
    assert_says(gtopk_reducers_reduce(reducers, NULL, NULL, 2, 0, NULL, NULL), GTOPK_ERR_INVALID, "0 outputs");
    assert_says(gtopk_reducers_reduce(reducers, outputs, counts, 2, 64, NULL, NULL), GTOPK_ERR_INVALID, "flags");
    /* Nothing of that ended the step. */
    ASSERT_OK(gtopk_reducer_residual(reducers[0], 0, residual, 4));
    assert_true(residual[1] == 2.0f && dense[1] == 0.0f);
    ASSERT_OK(step_reduce_all(reducers, outputs, counts, 2, 0, NULL));
    assert_true(dense[1] == 2.0f);
    for (int i = 0; i < 2; i++) {
        gtopk_reducer_destroy(reducers[i]);
        gtopk_reducer_destroy(others[i]);
    }
    gtopk_comm_destroy(comm);
    gtopk_comm_destroy(other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_several_reducers_in_one_step),
        cmocka_unit_test(test_wrong_groups),
    };
    return cmocka_run_group_tests_name("reducers_together", tests, NULL, NULL);
}
