/* Memory: every allocation fails in turn, and nothing is lost, leaked or left hanging; handles come and go without
 * growth; a reducer takes 4 bytes an entry and O(k log P). Linked with oom.c. GTOPK_TEST_CYCLES: creations (500). */
#include <malloc.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/reducer.h"
#include "support/check.h"
#include "support/costs.h"
#include "support/gpu.h"
#include "support/oom.h"
#include "support/ranks.h"
#include "support/step.h"

#define DIM 400

static const uint64_t length = DIM;

static long allocations_failed;

/* ---- one rank: every call of its life ---- */

/* Everything a program does, with errors let pass. Returns the number of calls that failed. */
static int live_alone(const char *device, int with, double *mass)
{
    gtopk_comm_t *comm = NULL;
    gtopk_reducer_t *reducer = NULL;
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    float x[DIM], residual[DIM];
    static uint8_t state[65536];
    int failures = 0;
    config.density = 0.05;
    config.device = device;
    config.momentum_correction = with & 1;
    config.rollback = with >> 1 & 1;
    config.residual_dtype = with & 4 ? GTOPK_BF16 : GTOPK_F32;
    for (int i = 0; i < DIM; i++)
        x[i] = (float)(i % 17) - 8.0f;
    *mass = 0.0;
    failures += gtopk_comm_create(&comm, NULL) != GTOPK_OK;
    if (comm)
        failures += gtopk_reducer_create(&reducer, comm, &config, &length, 1) != GTOPK_OK;
    if (reducer) {
        const gtopk_tensor_t tensor = {x, DIM, GTOPK_F32, 0};
        failures += gtopk_reducer_accumulate(reducer, NULL, &tensor, 1, 1, GTOPK_ZERO_INPUT, NULL) != GTOPK_OK;
        failures += step_reduce(reducer, &tensor, 1, GTOPK_OUTPUT_IS_ZERO, NULL) != GTOPK_OK;
        failures += gtopk_reducer_set_density(reducer, 0.5) != GTOPK_OK;
        const size_t bytes = gtopk_reducer_state_size(reducer);
        REQUIRE(bytes <= sizeof state);
        failures += gtopk_reducer_state_save(reducer, state, bytes) != GTOPK_OK;
        failures += gtopk_reducer_state_consolidate(reducer, state, bytes, 0) != GTOPK_OK;
        gtopk_oom_arm(-1);
        REQUIRE(gtopk_reducer_residual(reducer, 0, residual, DIM) == GTOPK_OK);
        for (int i = 0; i < DIM; i++)
            *mass += (double)residual[i] + (double)x[i];
    }
    gtopk_oom_arm(-1);
    gtopk_reducer_destroy(reducer);
    gtopk_comm_destroy(comm);
    return failures;
}

static void fail_each_allocation(const char *device, int with)
{
    double whole, mass;
    assert_int_equal(live_alone(device, with, &whole), 0);
    const long before = gtopk_oom_live();
    for (long n = 0;; n++) {
        gtopk_oom_arm(n);
        const int failures = live_alone(device, with, &mass);
        if (gtopk_oom_live() != before)
            fail_msg("allocation %ld failed and %ld blocks were leaked (device %s)", n, gtopk_oom_live() - before,
                     device);
        if (!gtopk_oom_fired()) {
            assert_int_equal(failures, 0);
            assert_true(n > 10);
            break;
        }
        allocations_failed++;
        if (failures == 0)
            fail_msg("allocation %ld failed and no call said so (device %s)", n, device);
        if (mass != whole && mass != 0.0) /* 0: there was no reducer */
            fail_msg("allocation %ld failed and mass was lost: %g of %g (device %s)", n, mass, whole, device);
    }
}

static void test_each_allocation_fails_alone(void **state)
{
    (void)state;
    const char *const devices[] = {on_gpu() ? "cuda" : "cpu", "reference"};
    for (int d = 0; d < (on_gpu() ? 1 : 2); d++)
        for (int with = 0; with < 8; with++)
            fail_each_allocation(devices[d], with);
}

/* ---- several ranks: one of them is short of memory ---- */

typedef struct shortage {
    int algorithm;
    int each; /* ranks of a node; 0: no nodes */
    int rank;
    long after;
    int fired;
} shortage_t;

/* What is pending on nodes is read by way of memory of the call's. */
static int may_read(gtopk_reducer_t *reducer, const shortage_t *shortage, float *out)
{
    const gtopk_status_t status = gtopk_reducer_residual(reducer, 0, out, DIM);
    return status == GTOPK_OK || (shortage->each > 0 && status == GTOPK_ERR_NOMEM);
}

static void run_short(gtopk_comm_t *comm, int rank, int size, void *context)
{
    shortage_t *shortage = context;
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    static uint8_t state[65536];
    float x[DIM], before[DIM], after[DIM];
    (void)size;
    config.density = 0.05;
    config.algorithm = shortage->algorithm;
    config.hierarchy = shortage->each > 0 ? GTOPK_HIERARCHY_NODE : GTOPK_HIERARCHY_OFF;
    for (int i = 0; i < DIM; i++)
        x[i] = (float)((i * 7 + rank) % 17) - 8.0f;
    comm->costs = next_to_nothing;
    if (rank == shortage->rank)
        gtopk_oom_arm(shortage->after);
    const gtopk_status_t created = gtopk_reducer_create(&reducer, comm, &config, &length, 1);
    if (created == GTOPK_OK) {
        reducer->choice.window = 1; /* auto: another algorithm after the step */
        reducer->choice.warm = 1;
        const gtopk_tensor_t tensor = {x, DIM, GTOPK_F32, 0};
        gtopk_status_t status = gtopk_reducer_accumulate(reducer, NULL, &tensor, 1, 1, 0, NULL);
        REQUIRE(may_read(reducer, shortage, before));
        if (status == GTOPK_OK)
            status = step_reduce(reducer, &tensor, 1, 0, NULL);
        REQUIRE(may_read(reducer, shortage, after));
        /* On nodes a step may have come as far as the sum of the node; test_faults.c says what is there then. */
        REQUIRE(status == GTOPK_OK || memcmp(before, after, sizeof before) == 0 || shortage->each > 0);
        (void)gtopk_reducer_set_density(reducer, 0.1);
        (void)gtopk_reducer_state_consolidate(reducer, rank == 0 ? state : NULL, gtopk_reducer_state_size(reducer), 0);
        (void)gtopk_barrier(comm);
    }
    if (rank == shortage->rank) {
        shortage->fired = gtopk_oom_fired();
        gtopk_oom_arm(-1);
    }
    gtopk_reducer_destroy(reducer);
}

static void fail_each_of_one_rank(int size, shortage_t shortage)
{
    shortage.fired = 1;
    for (long n = 0; shortage.fired; n++) {
        const long before = gtopk_oom_live();
        shortage.after = n;
        ranks_run_on(size, shortage.each, run_short, &shortage, 30.0, GTOPK_THREAD_VIRTUAL_CLOCK);
        allocations_failed += shortage.fired;
        if (gtopk_oom_live() != before)
            fail_msg("allocation %ld of rank %d failed and %ld blocks were leaked (algorithm %d, %d a node)", n,
                     shortage.rank, gtopk_oom_live() - before, shortage.algorithm, shortage.each);
    }
}

static void test_each_allocation_fails_on_one_of_three(void **state)
{
    (void)state;
    for (int algorithm = 0; algorithm <= 5; algorithm++)
        for (int rank = 0; rank < 3; rank++)
            fail_each_of_one_rank(
                3, (shortage_t){.algorithm = algorithm < 5 ? algorithm : GTOPK_ALGORITHM_AUTO, .rank = rank});
}

static void test_each_allocation_fails_on_one_of_two_nodes(void **state)
{
    (void)state;
    for (int rank = 0; rank < 4; rank += 3)
        fail_each_of_one_rank(4, (shortage_t){.algorithm = GTOPK_ALGORITHM_GTOPK, .rank = rank, .each = 2});
}

/* While hierarchies are tried, or costs are measured: nobody waits for a rank that has returned with an error of its own. */
typedef struct trial {
    int algorithm, rank, fired;
    long after;
    gtopk_status_t status[4];
} trial_t;

static void run_trial(gtopk_comm_t *comm, int rank, int size, void *context)
{
    trial_t *trial = context;
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    (void)size;
    config.hierarchy = trial->algorithm == GTOPK_ALGORITHM_AUTO ? GTOPK_HIERARCHY_OFF : GTOPK_HIERARCHY_AUTO;
    config.algorithm = trial->algorithm;
    if (rank == trial->rank)
        gtopk_oom_arm(trial->after);
    trial->status[rank] = gtopk_reducer_create(&reducer, comm, &config, &length, 1);
    if (rank == trial->rank) {
        trial->fired = gtopk_oom_fired();
        gtopk_oom_arm(-1);
    }
    gtopk_reducer_destroy(reducer);
}

/* Every one of them, or each `stride`th. */
static long fail_each_of_a_trial(int size, int algorithm, int stride)
{
    trial_t trial = {.algorithm = algorithm, .rank = 1, .fired = 1};
    for (; trial.fired; trial.after += stride) {
        const long before = gtopk_oom_live();
        ranks_run_on(size, 2, run_trial, &trial, 30.0, GTOPK_THREAD_VIRTUAL_CLOCK);
        allocations_failed += trial.fired;
        for (int r = 0; r < size; r++)
            if (trial.status[r] == GTOPK_ERR_TIMEOUT || trial.status[r] == GTOPK_ERR_TRANSPORT)
                fail_msg("allocation %ld of rank %d failed and rank %d waited: %s", trial.after, trial.rank, r,
                         gtopk_status_name(trial.status[r]));
        if (gtopk_oom_live() != before)
            fail_msg("allocation %ld failed and %ld blocks were leaked", trial.after, gtopk_oom_live() - before);
    }
    return trial.after;
}

static void test_each_allocation_of_a_trial_fails(void **state)
{
    (void)state;
    assert_true(fail_each_of_a_trial(4, GTOPK_ALGORITHM_GTOPK, 1) > 20);
    assert_true(fail_each_of_a_trial(2, GTOPK_ALGORITHM_AUTO, 5) > 20);
}

/* ---- growth ---- */

static void run_short_life(gtopk_comm_t *comm, int rank, int size, void *context)
{
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    (void)context;
    (void)rank;
    (void)size;
    for (int i = 0; i < 5; i++) {
        gtopk_reducer_t *reducer;
        float x[DIM] = {1.0f};
        const gtopk_tensor_t tensor = {x, DIM, GTOPK_F32, 0};
        REQUIRE(gtopk_reducer_create(&reducer, comm, &config, &length, 1) == GTOPK_OK);
        REQUIRE(gtopk_reducer_accumulate(reducer, NULL, &tensor, 1, 1, 0, NULL) == GTOPK_OK);
        REQUIRE(step_reduce(reducer, &tensor, 1, 0, NULL) == GTOPK_OK);
        gtopk_reducer_destroy(reducer);
    }
}

static void test_handles_come_and_go(void **state)
{
    (void)state;
    const char *text = getenv("GTOPK_TEST_CYCLES");
    const int cycles = (text ? atoi(text) : 500) / 5;
    for (int i = 0; i < 5; i++)
        ranks_run(2, run_short_life, NULL);
    const long blocks = gtopk_oom_live();
    const size_t bytes = mallinfo2().uordblks;
    for (int i = 0; i < cycles; i++)
        ranks_run(2, run_short_life, NULL);
    assert_int_equal(gtopk_oom_live(), blocks);
    if (!on_gpu() && mallinfo2().uordblks > bytes + 4096) /* the driver's memory is its own affair */
        fail_msg("%zu bytes more after %d reducers", mallinfo2().uordblks - bytes, 5 * cycles);
}

/* ---- how much a step takes ---- */

static long resident_kib(const char *field)
{
    char line[256];
    long value = -1;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, field, strlen(field)) == 0)
            value = atol(line + strlen(field) + 1);
    if (file)
        (void)fclose(file);
    return value;
}

static void run_large(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const uint64_t n = *(const uint64_t *)context;
    const uint32_t stays = size == 4 ? GTOPK_INPUT_STAYS : 0; /* two nodes */
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    config.hierarchy = stays ? GTOPK_HIERARCHY_NODE : GTOPK_HIERARCHY_OFF;
    float *x = malloc(n * sizeof *x);
    REQUIRE(x);
    for (uint64_t i = 0; i < n; i++)
        x[i] = (float)((i * 2654435761u + (uint64_t)rank) % 10007) - 5000.0f;
    const gtopk_tensor_t tensor = {x, n, GTOPK_F32, 0};
    REQUIRE(gtopk_barrier(comm) == GTOPK_OK); /* all gradients are there */
    const long before = resident_kib("VmRSS:");
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, &n, 1) == GTOPK_OK);
    for (int step = 0; step < 3; step++) {
        REQUIRE(gtopk_reducer_accumulate(reducer, NULL, &tensor, 1, 1, stays, NULL) == GTOPK_OK);
        REQUIRE(step_reduce(reducer, &tensor, 1, 0, NULL) == GTOPK_OK);
        for (uint64_t i = 0; i < n; i++)
            x[i] = (float)((i * 2654435761u + (uint64_t)rank) % 10007) - 5000.0f;
    }
    REQUIRE(gtopk_barrier(comm) == GTOPK_OK);
    if (rank == 0) {
        /* On two nodes of two ranks each has half a residual, and as much for the sum; and some messages of 1 MiB, or
         * of 4 where they are queued. */
        const int pieces = !stays ? 0 : ordered_wanted() || nccl_wanted() ? 24 : 6;
        const double residuals = size * 4.0 * (double)n / 1024.0, grown = (double)(resident_kib("VmHWM:") - before);
        (void)printf("peak of a step: %.3f bytes an entry more than the gradient (n %llu, k %.0f, %d ranks)\n",
                     grown * 1024.0 / size / (double)n, (unsigned long long)n, 0.001 * (double)n, size);
        REQUIRE(grown < 1.1 * residuals + size * pieces * 1024 + 4096);
    }
    REQUIRE(gtopk_barrier(comm) == GTOPK_OK);
    gtopk_reducer_destroy(reducer);
    free(x);
}

static void test_peak_of_a_step(void **state)
{
    (void)state;
    uint64_t n = 8000000;
    if (on_gpu()) /* its residual is not in the host's memory */
        skip();
    ranks_run(2, run_large, &n);
#ifndef __SANITIZE_ADDRESS__ /* it keeps for a while what was freed: here all messages of the nodes' sums */
    n /= 2;
    ranks_run_nodes(4, 2, run_large, &n);
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_peak_of_a_step),
        cmocka_unit_test(test_each_allocation_fails_alone),
        cmocka_unit_test(test_each_allocation_fails_on_one_of_three),
        cmocka_unit_test(test_each_allocation_fails_on_one_of_two_nodes),
        cmocka_unit_test(test_each_allocation_of_a_trial_fails),
        cmocka_unit_test(test_handles_come_and_go),
    };
    const int failed = cmocka_run_group_tests_name("memory", tests, NULL, NULL);
    (void)printf("{\"allocations_failed\": %ld}\n", allocations_failed);
    return failed;
}
