/* The reducer through the public API: wrong arguments change nothing, states are kept, flags reach every rank, ranks that
 * disagree are told so. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "support/ranks.h"
#include "util/fpenv.h"

#define ASSERT_OK(call)                                    \
    do {                                                   \
        if ((call) != GTOPK_OK)                            \
            fail_msg("%s: %s", #call, gtopk_last_error()); \
    } while (0)

/* Checks on a rank's thread, where cmocka's jumps must not be used. */
#define REQUIRE(condition)                                                                                 \
    do {                                                                                                   \
        if (!(condition)) {                                                                                \
            (void)fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, gtopk_last_error()); \
            abort();                                                                                       \
        }                                                                                                  \
    } while (0)

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

static void assert_says(gtopk_status_t status, gtopk_status_t expected, const char *part)
{
    if (status != expected)
        fail_msg("%s in place of %s: %s", gtopk_status_name(status), gtopk_status_name(expected), gtopk_last_error());
    if (!strstr(gtopk_last_error(), part))
        fail_msg("the error does not say '%s': %s", part, gtopk_last_error());
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
    for (int i = 0; i < 6; i++)
        assert_true(a[i] == 0.0f);
    ASSERT_OK(gtopk_reducer_reduce(reducer, tensors, 2, GTOPK_OUTPUT_IS_ZERO, NULL, &stats));
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
    const gtopk_status_t reduced = gtopk_reducer_reduce_sparse(reducer, &set, 0, NULL, NULL);
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
    ASSERT_OK(gtopk_reducer_reduce(reducer, good, 2, 0, NULL, NULL));
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
    ASSERT_OK(gtopk_reducer_reduce(reducer, tensors, 2, 0, NULL, NULL));
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
    gtopk_comm_t *comm = open_self();
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    const uint64_t length = LENGTH;
    config.parallel_for = reentering_for;
    float *x = calloc(LENGTH, sizeof *x);
    ASSERT_OK(gtopk_reducer_create(&reentered, comm, &config, &length, 1));
    const gtopk_tensor_t tensor = {x, LENGTH, GTOPK_F32, 0};
    reentry = GTOPK_OK;
    ASSERT_OK(gtopk_reducer_accumulate(reentered, NULL, &tensor, 1, 1, 0, NULL));
    assert_int_equal(reentry, GTOPK_ERR_STATE);
    gtopk_reducer_destroy(reentered);
    gtopk_comm_destroy(comm);
    free(x);
}

/* ---- flags over several ranks ---- */

typedef struct flags_job {
    int algorithm;
    int bad_rank; /* its gradient holds an Inf, or it has found_inf */
    int by_flag;
    int joined; /* that many ranks are without data */
} flags_job_t;

static void run_nonfinite(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const flags_job_t *job = context;
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    gtopk_stats_t stats = {.struct_size = sizeof stats};
    config.algorithm = job->algorithm;
    config.density = 0.3;
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, two_segments, 2) == GTOPK_OK);
    float a[6] = {1, 2, 3, 4, 5, 6}, b[4] = {1, 1, 1, 1}, residual[6];
    gtopk_tensor_t tensors[2] = {{a, 6, GTOPK_F32, 0}, {b, 4, GTOPK_F32, 0}};
    const int bad = rank == job->bad_rank;
    if (bad && !job->by_flag)
        a[2] = INFINITY;
    REQUIRE(gtopk_reducer_accumulate(reducer, NULL, tensors, 2, 1, bad && job->by_flag ? GTOPK_FOUND_INF : 0, NULL) ==
            GTOPK_OK);
    REQUIRE(gtopk_reducer_reduce(reducer, tensors, 2, 0, NULL, &stats) == GTOPK_OK);
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
    REQUIRE(gtopk_reducer_reduce(reducer, tensors, 2, 0, NULL, &stats) == GTOPK_OK);
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
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    gtopk_stats_t stats = {.struct_size = sizeof stats};
    config.algorithm = job->algorithm;
    config.density = 0.3;
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, two_segments, 2) == GTOPK_OK);
    float a[6] = {rank >= size - 2 ? 3e38f : 0.0f, 1}, b[4] = {0}, residual[6];
    gtopk_tensor_t tensors[2] = {{a, 6, GTOPK_F32, 0}, {b, 4, GTOPK_F32, 0}};
    REQUIRE(gtopk_reducer_accumulate(reducer, NULL, tensors, 2, 1, 0, NULL) == GTOPK_OK);
    REQUIRE(gtopk_reducer_reduce(reducer, tensors, 2, 0, NULL, &stats) == GTOPK_OK);
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
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    gtopk_stats_t stats = {.struct_size = sizeof stats};
    config.algorithm = job->algorithm;
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, two_segments, 2) == GTOPK_OK);
    float a[6] = {0}, b[4] = {0};
    const gtopk_tensor_t tensors[2] = {{a, 6, GTOPK_F32, 0}, {b, 4, GTOPK_F32, 0}};
    REQUIRE(gtopk_reducer_reduce(reducer, tensors, 2, rank < job->joined ? GTOPK_JOINED : 0, NULL, &stats) == GTOPK_OK);
    REQUIRE(stats.all_joined == (job->joined == size));
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

enum { OTHER_DENSITY, OTHER_LENGTHS, OTHER_ALGORITHM, OTHER_TYPE, OTHER_COUNT, OTHER_GROWTH, BAD_DENSITY, DIFFERENCES };

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
    REQUIRE(gtopk_reducer_reduce(reducer, tensors, 2, 0, NULL, &stats) == GTOPK_OK);
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
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *first, *second;
    (void)context;
    (void)size;
    REQUIRE(gtopk_reducer_create(&first, comm, &config, two_segments, 2) == GTOPK_OK);
    REQUIRE(gtopk_reducer_create(&second, comm, &config, two_segments, 2) == GTOPK_OK);
    float a[6] = {1, 2, 3, 4, 5, 6}, b[4] = {0}, residual[6];
    const float kept[6] = {1, 2, 3, 4, 5, 6};
    const gtopk_tensor_t tensors[2] = {{a, 6, GTOPK_F32, 0}, {b, 4, GTOPK_F32, 0}};
    gtopk_reducer_t *mine = rank == 0 ? first : second;
    REQUIRE(gtopk_reducer_accumulate(mine, NULL, tensors, 2, 1, 0, NULL) == GTOPK_OK);
    const gtopk_status_t status = gtopk_reducer_reduce(mine, tensors, 2, 0, NULL, NULL);
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

/* ---- collectives ---- */

static void run_collectives(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const size_t count = *(const size_t *)context;
    float *values = calloc(count + 1, sizeof *values);
    double *doubles = calloc(count + 1, sizeof *doubles);
    uint8_t *bytes = calloc(count * (size_t)size + 1, 1), *mine = calloc(count + 1, 1);
    REQUIRE(values && doubles && bytes && mine);
    for (int root = 0; root < size; root++) {
        for (size_t i = 0; i < count; i++)
            mine[i] = (uint8_t)(rank == root ? i * 7 + (size_t)root : 0);
        REQUIRE(gtopk_broadcast(comm, mine, count, root) == GTOPK_OK);
        for (size_t i = 0; i < count; i++)
            REQUIRE(mine[i] == (uint8_t)(i * 7 + (size_t)root));
    }
    for (size_t i = 0; i < count; i++) {
        mine[i] = (uint8_t)((size_t)rank * 31 + i);
        values[i] = (float)(rank + 1) * (float)(i % 100);
        doubles[i] = (double)(rank + 1) * (double)(i % 100) + 1e-12;
    }
    REQUIRE(gtopk_allgather(comm, mine, count, bytes) == GTOPK_OK);
    for (size_t i = 0; i < count * (size_t)size; i++)
        REQUIRE(bytes[i] == (uint8_t)(i / count * 31 + i % count));
    REQUIRE(gtopk_allreduce(comm, values, count, GTOPK_F32) == GTOPK_OK);
    REQUIRE(gtopk_allreduce(comm, doubles, count, GTOPK_F64) == GTOPK_OK);
    const double factor = size * (size + 1) / 2.0;
    for (size_t i = 0; i < count; i++) {
        REQUIRE(values[i] == (float)(factor * (double)(i % 100)));
        REQUIRE(fabs(doubles[i] - factor * (double)(i % 100) - size * 1e-12) < 1e-11);
    }
    REQUIRE(gtopk_barrier(comm) == GTOPK_OK);
    REQUIRE(gtopk_broadcast(comm, mine, count, size) == GTOPK_ERR_INVALID);
    REQUIRE(gtopk_allreduce(comm, values, count, GTOPK_F16) == GTOPK_ERR_INVALID);
    free(values);
    free(doubles);
    free(bytes);
    free(mine);
}

static void test_collectives(void **state)
{
    (void)state;
    const size_t counts[] = {0, 1, 5, 1000, 1200001}; /* the last is more than one piece */
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        for (int size = 1; size <= 5; size++) {
            size_t count = counts[i];
            ranks_run(size, run_collectives, &count);
        }
}

static void run_other_lengths(gtopk_comm_t *comm, int rank, int size, void *context)
{
    uint8_t buffer[64] = {0}, all[64 * RANKS_MAX];
    (void)size;
    (void)context;
    const gtopk_status_t status = gtopk_allgather(comm, buffer, rank == 1 ? 32 : 64, all);
    REQUIRE(status == GTOPK_ERR_DESYNC || status == GTOPK_ERR_ABORTED);
}

/* One rank broadcasts less than the others: nobody must think that it went well. */
static void run_shorter_broadcast(gtopk_comm_t *comm, int rank, int size, void *context)
{
    uint8_t buffer[64] = {0};
    (void)context;
    const gtopk_status_t status = gtopk_broadcast(comm, buffer, rank == size - 1 ? 4 : 8, 0);
    REQUIRE(status == GTOPK_ERR_DESYNC || status == GTOPK_ERR_ABORTED || (size > 2 && status == GTOPK_OK));
    REQUIRE(rank != size - 1 || status != GTOPK_OK);
    REQUIRE(size > 2 || status != GTOPK_OK);
}

/* Another reducer breaks the communicator in the middle of this one's step: what it holds can still be saved. */
static void run_broken_by_another(gtopk_comm_t *comm, int rank, int size, void *context)
{
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *first, *second;
    uint8_t state[256];
    (void)size;
    (void)context;
    REQUIRE(gtopk_reducer_create(&first, comm, &config, two_segments, 2) == GTOPK_OK);
    REQUIRE(gtopk_reducer_create(&second, comm, &config, two_segments, 2) == GTOPK_OK);
    float a[6] = {1, 2, 3, 4, 5, 6}, b[4] = {0};
    const gtopk_tensor_t tensors[2] = {{a, 6, GTOPK_F32, 0}, {b, 4, GTOPK_F32, 0}};
    REQUIRE(gtopk_reducer_accumulate(second, NULL, tensors, 2, 1, 0, NULL) == GTOPK_OK);
    const size_t bytes = gtopk_reducer_state_size(second);
    REQUIRE(bytes <= sizeof state && gtopk_reducer_state_save(second, state, bytes) == GTOPK_ERR_STATE);
    const gtopk_status_t status = rank == 0 ? gtopk_barrier(comm)
                                            : gtopk_reducer_reduce(first, tensors, 2, 0, NULL, NULL);
    REQUIRE(status == GTOPK_ERR_DESYNC || status == GTOPK_ERR_ABORTED);
    REQUIRE(gtopk_reducer_reduce(second, tensors, 2, 0, NULL, NULL) == status);
    REQUIRE(gtopk_reducer_state_save(second, state, bytes) == GTOPK_OK);
    gtopk_reducer_destroy(first);
    gtopk_reducer_destroy(second);
}

static void test_broken_by_another_reducer(void **state)
{
    (void)state;
    for (int size = 2; size <= 4; size++)
        ranks_run(size, run_broken_by_another, NULL);
}

static void test_collective_of_other_lengths(void **state)
{
    (void)state;
    for (int size = 2; size <= 4; size++) {
        ranks_run(size, run_other_lengths, NULL);
        ranks_run(size, run_shorter_broadcast, NULL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_step_of_one_rank),
#ifdef CALLERS_FLAGS
        cmocka_unit_test(test_the_callers_flags_change_nothing),
#endif
        cmocka_unit_test(test_wrong_arguments_change_nothing),
        cmocka_unit_test(test_wrong_configurations),
        cmocka_unit_test(test_null_handles),
        cmocka_unit_test(test_destroy_in_any_order),
        cmocka_unit_test(test_handles_do_not_survive_fork),
        cmocka_unit_test(test_one_call_at_a_time),
        cmocka_unit_test(test_nonfinite_reaches_every_rank),
        cmocka_unit_test(test_overflow_of_a_sum),
        cmocka_unit_test(test_joined_when_all_have),
        cmocka_unit_test(test_ranks_that_disagree_are_told),
        cmocka_unit_test(test_other_order_of_calls),
        cmocka_unit_test(test_collectives),
        cmocka_unit_test(test_collective_of_other_lengths),
        cmocka_unit_test(test_broken_by_another_reducer),
    };
    return cmocka_run_group_tests_name("reducer", tests, NULL, NULL);
}
