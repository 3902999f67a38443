/* The reducer through the public API, on one rank: a step, wrong arguments that change nothing, one call at a time. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "support/check.h"
#include "support/step.h"
#include "util/fpenv.h"

static const uint64_t two_segments[2] = {6, 4};

static gtopk_comm_t *open_self(void)
{
    gtopk_comm_t *comm;
    ASSERT_OK(gtopk_comm_create(&comm, NULL));
    return comm;
}

static gtopk_reducer_t *open_reducer(gtopk_comm_t *comm, double density)
{
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    config.density = density;
    ASSERT_OK(gtopk_reducer_create(&reducer, comm, &config, two_segments, 2));
    return reducer;
}

/* ---- one rank ---- */

static void test_step_of_one_rank(void **state)
{
    (void)state;
    gtopk_comm_t *comm = open_self();
    gtopk_reducer_t *reducer = open_reducer(comm, 0.3); /* k = 3 */
    float a[6] = {1, -5, 0, 2, -2, 0.5f}, b[4] = {2, 3, 0, -1};
    gtopk_tensor_t tensors[2] = {{a, 6, GTOPK_F32, 0}, {b, 4, GTOPK_F32, 0}};
    gtopk_stats_t stats = {.struct_size = sizeof stats};
    ASSERT_OK(gtopk_reducer_accumulate(reducer, NULL, tensors, 2, 2.0, GTOPK_ZERO_INPUT, NULL));
    ASSERT_OK(gtopk_reducer_wait(reducer, NULL));
    for (int i = 0; i < 6; i++)
        assert_true(a[i] == 0.0f);
    ASSERT_OK(step_reduce(reducer, tensors, 2, GTOPK_OUTPUT_IS_ZERO, &stats));
    const float expected_a[6] = {0, -10, 0, 4, 0, 0}, expected_b[4] = {0, 6, 0, 0}; /* of three 4s the lowest index */
    assert_memory_equal(a, expected_a, sizeof a);
    assert_memory_equal(b, expected_b, sizeof b);
    assert_int_equal(stats.k, 3);
    assert_int_equal(stats.selected, 3);
    assert_int_equal(stats.count, 3);
    assert_int_equal(stats.bytes_sent, 0);
    const float rest_a[6] = {2, 0, 0, 0, -4, 1};
    float residual[6];
    double norm;
    ASSERT_OK(gtopk_reducer_residual(reducer, 0, residual, 6));
    assert_memory_equal(residual, rest_a, sizeof residual);
    ASSERT_OK(gtopk_reducer_residual_norm(reducer, &norm));
    assert_true(fabs(norm - sqrt(4 + 16 + 1 + 16 + 4)) < 1e-12);
    gtopk_reducer_destroy(reducer);
    gtopk_comm_destroy(comm);
}

#if defined(__x86_64__)
#define CALLERS_FLAGS 0xc040u /* FTZ, DAZ, round upwards */
#elif defined(__aarch64__)
#define CALLERS_FLAGS 0x1400000u /* FZ, round upwards */
#endif

#ifdef CALLERS_FLAGS
/* A denormal goes through a step, an update as a set and a message; a scale is rounded to nearest; and the flags are the
 * caller's again. */
static void test_the_callers_flags_change_nothing(void **state)
{
    (void)state;
    gtopk_comm_t *comm = open_self();
    gtopk_reducer_t *reducer = open_reducer(comm, 1.0);
    const uint32_t denormal = 0x00010000u; /* exact in bf16 */
    float a[6] = {0}, b[4] = {1.0f}, residual[4], values[10];
    uint32_t indices[10], bits;
    uint8_t message[256];
    size_t bytes = sizeof message;
    memcpy(&a[5], &denormal, sizeof denormal);
    const gtopk_tensor_t tensors[2] = {{a, 6, GTOPK_F32, 0}, {b, 4, GTOPK_F32, 0}};
    gtopk_set_t set = {indices, values, 10, 0};
    const fpenv_t saved = fpenv_enter();
    fpenv_leave(saved | CALLERS_FLAGS);
    const gtopk_status_t first = gtopk_reducer_accumulate(reducer, NULL, tensors, 1, 1.0, 0, NULL);
    const gtopk_status_t second = gtopk_reducer_accumulate(reducer, &(uint32_t){1}, tensors + 1, 1, 0.7, 0, NULL);
    const gtopk_status_t read = gtopk_reducer_residual(reducer, 1, residual, 4);
    const gtopk_status_t reduced = step_reduce_sparse(reducer, &set, 0, NULL);
    const gtopk_status_t encoded = gtopk_encode(&set, 10, GTOPK_VALUE_BF16, message, &bytes);
    const fpenv_t flags = fpenv_enter();
    fpenv_leave(saved);
    ASSERT_OK(first);
    ASSERT_OK(second);
    ASSERT_OK(read);
    assert_true(residual[0] == 0.7f); /* which is below 0.7 */
    ASSERT_OK(reduced);
    ASSERT_OK(encoded);
    assert_int_equal(set.count, 2);
    assert_int_equal(indices[0], 5);
    memcpy(&bits, values, sizeof bits);
    assert_int_equal(bits, denormal);
    assert_int_equal(flags & CALLERS_FLAGS, CALLERS_FLAGS);
    gtopk_reducer_destroy(reducer);
    gtopk_comm_destroy(comm);
}
#endif

static void test_wrong_arguments_change_nothing(void **state)
{
    (void)state;
    gtopk_comm_t *comm = open_self();
    gtopk_reducer_t *reducer = open_reducer(comm, 0.3);
    float a[6] = {1, 2, 3, 4, 5, 6}, b[4] = {7, 8, 9, 10}, residual[6];
    const float zeros[6] = {0};
    gtopk_tensor_t good[2] = {{a, 6, GTOPK_F32, 0}, {b, 4, GTOPK_F32, 0}}, bad[2];
    const uint32_t twice[2] = {0, 0}, outside[2] = {0, 7};

    memcpy(bad, good, sizeof bad);
    bad[1].length = 5;
    assert_says(gtopk_reducer_accumulate(reducer, NULL, bad, 2, 1, 0, NULL), GTOPK_ERR_INVALID, "segment 1 has 5");
    memcpy(bad, good, sizeof bad);
    bad[1].dtype = GTOPK_F64;
    assert_says(gtopk_reducer_accumulate(reducer, NULL, bad, 2, 1, 0, NULL), GTOPK_ERR_INVALID, "dtype 3");
    memcpy(bad, good, sizeof bad);
    bad[0].data = NULL;
    assert_says(gtopk_reducer_accumulate(reducer, NULL, bad, 2, 1, 0, NULL), GTOPK_ERR_INVALID, "NULL");
    bad[0].data = (char *)a + 1;
    assert_says(gtopk_reducer_accumulate(reducer, NULL, bad, 2, 1, 0, NULL), GTOPK_ERR_INVALID, "aligned");
    bad[0].data = a;
    bad[1] = good[0];
    assert_says(gtopk_reducer_accumulate(reducer, twice, bad, 2, 1, 0, NULL), GTOPK_ERR_STATE, "accumulated already");
    assert_says(gtopk_reducer_accumulate(reducer, outside, good, 2, 1, 0, NULL), GTOPK_ERR_INVALID, "segment 7");
    assert_says(gtopk_reducer_accumulate(reducer, NULL, good, 3, 1, 0, NULL), GTOPK_ERR_INVALID, "3 tensors");
    assert_says(gtopk_reducer_accumulate(reducer, NULL, good, 2, NAN, 0, NULL), GTOPK_ERR_INVALID, "scale");
    assert_says(gtopk_reducer_accumulate(reducer, NULL, good, 2, 1e300, 0, NULL), GTOPK_ERR_INVALID, "scale");
    assert_says(gtopk_reducer_accumulate(reducer, NULL, good, 2, 1, GTOPK_JOINED, NULL), GTOPK_ERR_INVALID, "flags");
    assert_says(gtopk_reducer_reduce(reducer, good, 1, 0, NULL, NULL), GTOPK_ERR_INVALID, "1 outputs");
    ASSERT_OK(gtopk_reducer_residual(reducer, 0, residual, 6));
    assert_memory_equal(residual, zeros, sizeof residual);

    /* Nothing above began a step, or left a mark behind. */
    ASSERT_OK(gtopk_reducer_set_density(reducer, 0.5));
    ASSERT_OK(gtopk_reducer_accumulate(reducer, NULL, good, 2, 1, 0, NULL));
    assert_says(gtopk_reducer_accumulate(reducer, NULL, good, 1, 1, 0, NULL), GTOPK_ERR_STATE, "step 0");
    assert_says(gtopk_reducer_set_density(reducer, 0.5), GTOPK_ERR_STATE, "between accumulate and reduce");
    ASSERT_OK(step_reduce(reducer, good, 2, 0, NULL));
    gtopk_reducer_destroy(reducer);
    gtopk_comm_destroy(comm);
}

static void test_a_cancelled_step_keeps_what_was_accumulated(void **state)
{
    (void)state;
    gtopk_comm_t *comm = open_self();
    gtopk_reducer_t *reducer = open_reducer(comm, 0.1);
    float a[6] = {1, 2, 3, 4, 5, 6}, b[4] = {INFINITY, 0, 0, 0}, residual[6];
    gtopk_tensor_t tensors[2] = {{a, 6, GTOPK_F32, 0}, {b, 4, GTOPK_F32, 0}};
    gtopk_stats_t stats = {.struct_size = sizeof stats};
    ASSERT_OK(gtopk_reducer_cancel(reducer));
    ASSERT_OK(gtopk_reducer_accumulate(reducer, NULL, tensors, 2, 1, 0, NULL));
    assert_int_equal(gtopk_reducer_set_density(reducer, 0.2), GTOPK_ERR_STATE);
    ASSERT_OK(gtopk_reducer_cancel(reducer));
    ASSERT_OK(gtopk_reducer_set_density(reducer, 0.2));
    b[0] = 0;
    ASSERT_OK(gtopk_reducer_accumulate(reducer, NULL, tensors, 2, 1, 0, NULL));
    ASSERT_OK(step_reduce(reducer, tensors, 2, 0, &stats));
    assert_true(stats.step == 0 && stats.nonfinite == 0 && a[5] == 12.0f && a[4] == 10.0f && a[3] == 0.0f);
    ASSERT_OK(gtopk_reducer_residual(reducer, 0, residual, 6));
    assert_true(residual[3] == 8.0f && residual[5] == 0.0f);
    gtopk_reducer_destroy(reducer);
    gtopk_comm_destroy(comm);
}

static void test_wrong_configurations(void **state)
{
    (void)state;
    gtopk_comm_t *comm = open_self();
    gtopk_reducer_t *reducer;
    const uint64_t none[1] = {0}, huge[2] = {UINT32_MAX, 1};
    const double densities[] = {0.0, -0.1, 1.1, NAN, INFINITY};
    for (size_t i = 0; i < sizeof densities / sizeof *densities; i++) {
        gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
        config.density = densities[i];
        assert_says(gtopk_reducer_create(&reducer, comm, &config, two_segments, 2), GTOPK_ERR_INVALID, "density");
        assert_null(reducer);
    }
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    assert_says(gtopk_reducer_create(&reducer, comm, &config, none, 1), GTOPK_ERR_INVALID, "without any entry");
    assert_says(gtopk_reducer_create(&reducer, comm, &config, huge, 2), GTOPK_ERR_INVALID, "more reducers");
    config.algorithm = 9;
    assert_says(gtopk_reducer_create(&reducer, comm, &config, two_segments, 2), GTOPK_ERR_INVALID, "algorithm 9");
    config = (gtopk_reducer_config_t)GTOPK_REDUCER_CONFIG_INIT;
    config.merge_growth = 0.5;
    assert_says(gtopk_reducer_create(&reducer, comm, &config, two_segments, 2), GTOPK_ERR_INVALID, "merge_growth");
    config = (gtopk_reducer_config_t)GTOPK_REDUCER_CONFIG_INIT;
    config.device = "tpu";
    assert_says(gtopk_reducer_create(&reducer, comm, &config, two_segments, 2), GTOPK_ERR_UNSUPPORTED, "tpu");
    config = (gtopk_reducer_config_t)GTOPK_REDUCER_CONFIG_INIT;
    config.struct_size = 4096;
    assert_says(gtopk_reducer_create(&reducer, comm, &config, two_segments, 2), GTOPK_ERR_INVALID, "struct_size");

    gtopk_comm_t *other;
    gtopk_comm_config_t net = GTOPK_COMM_CONFIG_INIT;
    net.transport = "pigeon";
    assert_says(gtopk_comm_create(&other, &net), GTOPK_ERR_INVALID, "pigeon");
    net = (gtopk_comm_config_t)GTOPK_COMM_CONFIG_INIT;
    net.timeout = -1;
    assert_says(gtopk_comm_create(&other, &net), GTOPK_ERR_INVALID, "timeout");
    assert_null(other);
    gtopk_comm_destroy(comm);
}

static void test_null_handles(void **state)
{
    (void)state;
    gtopk_reducer_destroy(NULL);
    gtopk_comm_destroy(NULL);
    assert_int_equal(gtopk_reducer_accumulate(NULL, NULL, NULL, 0, 1, 0, NULL), GTOPK_ERR_INVALID);
    assert_int_equal(gtopk_reducer_reduce(NULL, NULL, 0, 0, NULL, NULL), GTOPK_ERR_INVALID);
    assert_int_equal(gtopk_reducer_cancel(NULL), GTOPK_ERR_INVALID);
    assert_int_equal(gtopk_barrier(NULL), GTOPK_ERR_INVALID);
    assert_int_equal(gtopk_comm_size(NULL), -1);
    assert_int_equal(gtopk_reducer_dim(NULL), 0);
}

/* A reducer keeps what it needs of its communicator. */
static void test_destroy_in_any_order(void **state)
{
    (void)state;
    gtopk_comm_t *comm = open_self();
    gtopk_reducer_t *reducer = open_reducer(comm, 0.5);
    gtopk_comm_destroy(comm);
    float a[6] = {1, 2, 3, 4, 5, 6}, b[4] = {0};
    gtopk_tensor_t tensors[2] = {{a, 6, GTOPK_F32, 0}, {b, 4, GTOPK_F32, 0}};
    ASSERT_OK(gtopk_reducer_accumulate(reducer, NULL, tensors, 2, 1, 0, NULL));
    ASSERT_OK(step_reduce(reducer, tensors, 2, 0, NULL));
    gtopk_reducer_destroy(reducer);
}

static void test_handles_do_not_survive_fork(void **state)
{
    (void)state;
    gtopk_comm_t *comm = open_self();
    gtopk_reducer_t *reducer = open_reducer(comm, 0.5);
    const pid_t child = fork();
    if (child == 0) {
        const int refused = gtopk_barrier(comm) == GTOPK_ERR_STATE &&
                            gtopk_reducer_accumulate(reducer, NULL, NULL, 0, 1, 0, NULL) == GTOPK_ERR_STATE;
        _exit(refused ? 0 : 1);
    }
    int result;
    assert_int_equal(waitpid(child, &result, 0), child);
    assert_int_equal(result, 0);
    gtopk_reducer_destroy(reducer);
    gtopk_comm_destroy(comm);
}

/* What a step left in a queue is done by then. */
static void test_destroyed_right_after_a_step(void **state)
{
    (void)state;
    gtopk_comm_t *comm = open_self();
    gtopk_reducer_t *reducer = open_reducer(comm, 0.3);
    float a[6] = {1, -5, 0, 2, -2, 0.5f}, b[4] = {2, 3, 0, -1};
    const gtopk_tensor_t tensors[2] = {{a, 6, GTOPK_F32, 0}, {b, 4, GTOPK_F32, 0}};
    ASSERT_OK(gtopk_reducer_accumulate(reducer, NULL, tensors, 2, 1.0, 0, NULL));
    ASSERT_OK(gtopk_reducer_reduce(reducer, tensors, 2, 0, NULL, NULL));
    gtopk_reducer_destroy(reducer);
    assert_true(a[0] == 0.0f && a[1] == -5.0f && b[1] == 3.0f);
    gtopk_comm_destroy(comm);
}

/* A parallel-for that calls the reducer again: as another thread would. */
static gtopk_reducer_t *reentered;
static gtopk_status_t reentry;

static void reentering_for(void *context, int64_t begin, int64_t end, int64_t grain, gtopk_parallel_body_fn body,
                           void *arg)
{
    (void)context;
    (void)grain;
    reentry = gtopk_reducer_accumulate(reentered, NULL, NULL, 0, 1, 0, NULL);
    body(begin, end, arg);
}

static void test_one_call_at_a_time(void **state)
{
    (void)state;
    enum { LENGTH = 1000000 }; /* enough that the work is split */
    const char *device = getenv("GTOPK_DEVICE");
    if (device && (strcmp(device, "reference") == 0 || strcmp(device, "cuda") == 0))
        skip(); /* they split no work, so nothing calls in between */
    gtopk_comm_t *comm = open_self();
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    const uint64_t length = LENGTH;
    config.parallel_for = reentering_for;
    float *x = calloc(LENGTH, sizeof *x);
    ASSERT_OK(gtopk_reducer_create(&reentered, comm, &config, &length, 1));
    const gtopk_tensor_t tensor = {x, LENGTH, GTOPK_F32, 0};
    reentry = GTOPK_OK;
    ASSERT_OK(gtopk_reducer_accumulate(reentered, NULL, &tensor, 1, 1, 0, NULL));
    ASSERT_OK(gtopk_reducer_wait(reentered, NULL));
    assert_int_equal(reentry, GTOPK_ERR_STATE);
    gtopk_reducer_destroy(reentered);
    gtopk_comm_destroy(comm);
    free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_step_of_one_rank),
#ifdef CALLERS_FLAGS
        cmocka_unit_test(test_the_callers_flags_change_nothing),
#endif
        cmocka_unit_test(test_wrong_arguments_change_nothing),
        cmocka_unit_test(test_a_cancelled_step_keeps_what_was_accumulated),
        cmocka_unit_test(test_wrong_configurations),
        cmocka_unit_test(test_null_handles),
        cmocka_unit_test(test_destroy_in_any_order),
        cmocka_unit_test(test_destroyed_right_after_a_step),
        cmocka_unit_test(test_handles_do_not_survive_fork),
        cmocka_unit_test(test_one_call_at_a_time),
    };
    return cmocka_run_group_tests_name("reducer", tests, NULL, NULL);
}
