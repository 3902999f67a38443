/* Reducers on several ranks: flags reach every rank, ranks that disagree are told so, a failure is everybody's. */
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

/* ---- flags over several ranks ---- */

typedef struct flags_job {
    int algorithm;
    int bad_rank; /* its gradient holds an Inf, or it has found_inf */
    int by_flag;
    int joined; /* that many ranks are without data */
} flags_job_t;

static gtopk_reducer_t *create(gtopk_comm_t *comm, int algorithm, double density)
{
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    config.algorithm = algorithm;
    config.density = density;
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, two_segments, 2) == GTOPK_OK);
    return reducer;
}

static void run_nonfinite(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const flags_job_t *job = context;
    gtopk_reducer_t *reducer = create(comm, job->algorithm, 0.3);
    gtopk_stats_t stats = {.struct_size = sizeof stats};
    float a[6] = {1, 2, 3, 4, 5, 6}, b[4] = {1, 1, 1, 1}, residual[6];
    gtopk_tensor_t tensors[2] = {{a, 6, GTOPK_F32, 0}, {b, 4, GTOPK_F32, 0}};
    const int bad = rank == job->bad_rank;
    if (bad && !job->by_flag)
        a[2] = INFINITY;
    REQUIRE(gtopk_reducer_accumulate(reducer, NULL, tensors, 2, 1, bad && job->by_flag ? GTOPK_FOUND_INF : 0, NULL) ==
            GTOPK_OK);
    REQUIRE(step_reduce(reducer, tensors, 2, 0, &stats) == GTOPK_OK);
    REQUIRE(stats.nonfinite == 1 && stats.count == 0);
    for (int i = 0; i < 6; i++)
        REQUIRE(isnan(a[i]));
    REQUIRE(gtopk_reducer_residual(reducer, 0, residual, 6) == GTOPK_OK);
    for (int i = 0; i < 6; i++)
        REQUIRE(residual[i] == (bad && (job->by_flag || i == 2) ? 0.0f : (float)(i + 1)));

    /* The next step is whole again, with what the residuals kept. */
    for (int i = 0; i < 6; i++)
        a[i] = 0.0f;
    REQUIRE(gtopk_reducer_accumulate(reducer, NULL, tensors, 1, 1, 0, NULL) == GTOPK_OK);
    REQUIRE(step_reduce(reducer, tensors, 2, 0, &stats) == GTOPK_OK);
    REQUIRE(stats.nonfinite == 0 && stats.step == 1);
    REQUIRE(a[5] > 0.0f || (size == 1 && job->by_flag)); /* then nothing was ever accumulated */
    gtopk_reducer_destroy(reducer);
}

static void test_nonfinite_reaches_every_rank(void **state)
{
    (void)state;
    for (int size = 1; size <= 7; size++)
        for (int algorithm = 0; algorithm < 4; algorithm++)
            for (int bad = 0; bad < size; bad++)
                for (int by_flag = 0; by_flag < 2; by_flag++) {
                    flags_job_t job = {.algorithm = algorithm, .bad_rank = bad, .by_flag = by_flag};
                    ranks_run(size, run_nonfinite, &job);
                }
}

/* Two finite values whose sum is not. */
static void run_overflow(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const flags_job_t *job = context;
    gtopk_reducer_t *reducer = create(comm, job->algorithm, 0.3);
    gtopk_stats_t stats = {.struct_size = sizeof stats};
    float a[6] = {rank >= size - 2 ? 3e38f : 0.0f, 1}, b[4] = {0}, residual[6];
    gtopk_tensor_t tensors[2] = {{a, 6, GTOPK_F32, 0}, {b, 4, GTOPK_F32, 0}};
    REQUIRE(gtopk_reducer_accumulate(reducer, NULL, tensors, 2, 1, 0, NULL) == GTOPK_OK);
    REQUIRE(step_reduce(reducer, tensors, 2, 0, &stats) == GTOPK_OK);
    REQUIRE(stats.nonfinite == 1 && isnan(a[0]) && isnan(b[3]));
    REQUIRE(gtopk_reducer_residual(reducer, 0, residual, 6) == GTOPK_OK);
    REQUIRE(residual[0] == (rank >= size - 2 ? 3e38f : 0.0f) && residual[1] == 1.0f);
    gtopk_reducer_destroy(reducer);
}

static void test_overflow_of_a_sum(void **state)
{
    (void)state;
    for (int size = 2; size <= 7; size++)
        for (int algorithm = 0; algorithm < 4; algorithm++) {
            flags_job_t job = {.algorithm = algorithm};
            ranks_run(size, run_overflow, &job);
        }
}

static void run_joined(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const flags_job_t *job = context;
    gtopk_reducer_t *reducer = create(comm, job->algorithm, 0.001);
    gtopk_stats_t stats = {.struct_size = sizeof stats};
    float a[6] = {0}, b[4] = {0}, residual[6];
    const gtopk_tensor_t tensors[2] = {{a, 6, GTOPK_F32, 0}, {b, 4, GTOPK_F32, 0}};
    const int all = job->joined == size;
    a[3] = (float)(1 << rank);
    REQUIRE(gtopk_reducer_accumulate(reducer, NULL, tensors, 2, 1, 0, NULL) == GTOPK_OK);
    REQUIRE(step_reduce(reducer, tensors, 2, rank < job->joined ? GTOPK_JOINED : 0, &stats) == GTOPK_OK);
    REQUIRE(stats.all_joined == all && (stats.count == 0) == all);
    /* Nobody takes the update of a step in which all have joined: it is not taken out of the residual. */
    REQUIRE(gtopk_reducer_residual(reducer, 0, residual, 6) == GTOPK_OK);
    REQUIRE(a[3] == (all ? 0.0f : (float)((1 << size) - 1) / (float)size));
    REQUIRE(residual[3] == (all ? (float)(1 << rank) : 0.0f));
    gtopk_reducer_destroy(reducer);
}

static void test_joined_when_all_have(void **state)
{
    (void)state;
    for (int size = 1; size <= 6; size++)
        for (int algorithm = 0; algorithm < 4; algorithm++)
            for (int joined = 0; joined <= size; joined++) {
                flags_job_t job = {.algorithm = algorithm, .joined = joined};
                ranks_run(size, run_joined, &job);
            }
}

/* ---- ranks that disagree ---- */

enum {
    OTHER_DENSITY,
    OTHER_LENGTHS,
    OTHER_ALGORITHM,
    OTHER_TYPE,
    OTHER_COUNT,
    OTHER_GROWTH,
    OTHER_ROLLBACK,
    BAD_DENSITY,
    DIFFERENCES
};

static void run_mismatch(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const int difference = *(const int *)context;
    const int odd = rank == size - 1;
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    uint64_t lengths[2] = {6, 4};
    gtopk_reducer_t *reducer;
    config.density = !odd ? 0.3 : difference == OTHER_DENSITY ? 0.2 : difference == BAD_DENSITY ? -1.0 : 0.3;
    if (odd && difference == OTHER_LENGTHS)
        lengths[0] = 4, lengths[1] = 6;
    if (odd && difference == OTHER_ALGORITHM)
        config.algorithm = GTOPK_ALGORITHM_TOPK;
    if (odd && difference == OTHER_TYPE)
        config.value_type = GTOPK_VALUE_I8;
    if (odd && difference == OTHER_GROWTH)
        config.merge_growth = 2.0;
    if (odd && difference == OTHER_ROLLBACK)
        config.rollback = 1;
    const gtopk_status_t status = gtopk_reducer_create(&reducer, comm, &config, lengths,
                                                       odd && difference == OTHER_COUNT ? 1 : 2);
    REQUIRE(status == (odd && difference == BAD_DENSITY ? GTOPK_ERR_INVALID : GTOPK_ERR_MISMATCH));
    REQUIRE(reducer == NULL);
    char other[32];
    (void)snprintf(other, sizeof other, "rank %d", odd ? 0 : size - 1);
    REQUIRE(status == GTOPK_ERR_INVALID || strstr(gtopk_last_error(), other));

    /* The communicator is well: the same call with the same arguments works. */
    config = (gtopk_reducer_config_t)GTOPK_REDUCER_CONFIG_INIT;
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, two_segments, 2) == GTOPK_OK);
    const double density = odd ? 0.7 : 0.6;
    REQUIRE(gtopk_reducer_set_density(reducer, density) == GTOPK_ERR_MISMATCH);
    REQUIRE(gtopk_reducer_set_density(reducer, odd ? 2.0 : 0.6) != GTOPK_OK);
    REQUIRE(gtopk_reducer_set_density(reducer, 0.5) == GTOPK_OK);
    float a[6] = {1, 2, 3, 4, 5, 6}, b[4] = {7, 8, 9, 10};
    const gtopk_tensor_t tensors[2] = {{a, 6, GTOPK_F32, 0}, {b, 4, GTOPK_F32, 0}};
    gtopk_stats_t stats = {.struct_size = sizeof stats};
    REQUIRE(gtopk_reducer_accumulate(reducer, NULL, tensors, 2, 1, 0, NULL) == GTOPK_OK);
    REQUIRE(step_reduce(reducer, tensors, 2, 0, &stats) == GTOPK_OK);
    REQUIRE(stats.k == 5 && b[3] == 10.0f && a[4] == 0.0f);
    gtopk_reducer_destroy(reducer);
}

static void test_ranks_that_disagree_are_told(void **state)
{
    (void)state;
    for (int difference = 0; difference < DIFFERENCES; difference++)
        for (int size = 2; size <= 4; size++)
            ranks_run(size, run_mismatch, &difference);
}

/* Calls in another order: an error on every rank, then the same error again. */
static void run_desync(gtopk_comm_t *comm, int rank, int size, void *context)
{
    gtopk_reducer_t *const first = create(comm, GTOPK_ALGORITHM_GTOPK, 0.001);
    gtopk_reducer_t *const second = create(comm, GTOPK_ALGORITHM_GTOPK, 0.001);
    (void)context;
    (void)size;
    float a[6] = {1, 2, 3, 4, 5, 6}, b[4] = {0}, residual[6];
    const float kept[6] = {1, 2, 3, 4, 5, 6};
    const gtopk_tensor_t tensors[2] = {{a, 6, GTOPK_F32, 0}, {b, 4, GTOPK_F32, 0}};
    gtopk_reducer_t *mine = rank == 0 ? first : second;
    REQUIRE(gtopk_reducer_accumulate(mine, NULL, tensors, 2, 1, 0, NULL) == GTOPK_OK);
    const gtopk_status_t status = step_reduce(mine, tensors, 2, 0, NULL);
    REQUIRE(status == GTOPK_ERR_DESYNC || status == GTOPK_ERR_ABORTED);
    REQUIRE(gtopk_reducer_residual(mine, 0, residual, 6) == GTOPK_OK);
    REQUIRE(memcmp(residual, kept, sizeof kept) == 0);
    REQUIRE(gtopk_barrier(comm) == status);
    REQUIRE(strstr(gtopk_last_error(), "broken"));
    REQUIRE(gtopk_reducer_accumulate(mine, NULL, tensors, 2, 1, 0, NULL) == status);

    /* The residual can still be saved, as that of the step that did not happen. */
    uint8_t state[256];
    gtopk_state_info_t info = {.struct_size = sizeof info};
    const size_t bytes = gtopk_reducer_state_size(mine);
    REQUIRE(bytes <= sizeof state && gtopk_reducer_state_save(mine, state, bytes) == GTOPK_OK);
    REQUIRE(gtopk_state_inspect(state, bytes, &info) == GTOPK_OK && info.step == 0);
    gtopk_reducer_destroy(first);
    gtopk_reducer_destroy(second);
}

static void test_other_order_of_calls(void **state)
{
    (void)state;
    for (int size = 2; size <= 5; size++)
        ranks_run(size, run_desync, NULL);
}

/* Another reducer breaks the communicator in the middle of this one's step: what it holds can still be saved. */
static void run_broken_by_another(gtopk_comm_t *comm, int rank, int size, void *context)
{
    gtopk_reducer_t *const first = create(comm, GTOPK_ALGORITHM_GTOPK, 0.001);
    gtopk_reducer_t *const second = create(comm, GTOPK_ALGORITHM_GTOPK, 0.001);
    uint8_t state[256];
    (void)size;
    (void)context;
    float a[6] = {1, 2, 3, 4, 5, 6}, b[4] = {0};
    const gtopk_tensor_t tensors[2] = {{a, 6, GTOPK_F32, 0}, {b, 4, GTOPK_F32, 0}};
    REQUIRE(gtopk_reducer_accumulate(second, NULL, tensors, 2, 1, 0, NULL) == GTOPK_OK);
    const size_t bytes = gtopk_reducer_state_size(second);
    REQUIRE(bytes <= sizeof state && gtopk_reducer_state_save(second, state, bytes) == GTOPK_ERR_STATE);
    const gtopk_status_t status = rank == 0 ? gtopk_barrier(comm) : step_reduce(first, tensors, 2, 0, NULL);
    /* Where barriers and exchanges go different ways, they never meet. */
    REQUIRE(status == GTOPK_ERR_DESYNC || status == GTOPK_ERR_ABORTED ||
            (status == GTOPK_ERR_TIMEOUT && ordered_wanted()));
    REQUIRE(step_reduce(second, tensors, 2, 0, NULL) == status);
    REQUIRE(gtopk_reducer_state_save(second, state, bytes) == GTOPK_OK);
    gtopk_reducer_destroy(first);
    gtopk_reducer_destroy(second);
}

static void test_broken_by_another_reducer(void **state)
{
    (void)state;
    for (int size = 2; size <= 4; size++)
        ranks_run_flags(size, run_broken_by_another, NULL, 60.0, GTOPK_THREAD_VIRTUAL_CLOCK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nonfinite_reaches_every_rank), cmocka_unit_test(test_overflow_of_a_sum),
        cmocka_unit_test(test_joined_when_all_have),         cmocka_unit_test(test_ranks_that_disagree_are_told),
        cmocka_unit_test(test_other_order_of_calls),         cmocka_unit_test(test_broken_by_another_reducer),
    };
    return cmocka_run_group_tests_name("reducer_ranks", tests, NULL, NULL);
}
