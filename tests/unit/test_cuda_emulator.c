/* The emulator of CUDA: what kernels compute in every order, and that it finds what a GPU would not forgive. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/cuda_emulator.h"

enum { THREADS = 64, BLOCKS = 4, WARP_SIZE = 32, SEEDS = 20 };

typedef struct args {
    uint32_t *out; /* BLOCKS * THREADS */
    uint32_t *counter;
} args_t;

static uint32_t out[BLOCKS * THREADS], counter[4];

static unsigned self(void)
{
    return blockIdx.x * blockDim.x + threadIdx.x;
}

static int run(emulator_kernel_fn kernel, int cooperative, emulator_order_t order, uint64_t seed)
{
    const args_t args = {out, counter};
    memset(out, 0, sizeof out);
    memset(counter, 0, sizeof counter);
    return emulator_run(kernel, &args, BLOCKS, THREADS, cooperative, order, seed);
}

static void run_well(emulator_kernel_fn kernel, int cooperative, emulator_order_t order, uint64_t seed)
{
    if (run(kernel, cooperative, order, seed) != 0)
        fail_msg("%s", emulator_error());
}

/* ---- kernels that are right ---- */

static void kernel_places(const void *arguments)
{
    const args_t *args = arguments;
    args->out[self()] = 1000 * blockIdx.x + threadIdx.x + gridDim.x * 1000000;
}

static void test_places(void **state)
{
    (void)state;
    for (int order = 0; order < EMULATOR_ORDERS; order++) {
        run_well(kernel_places, 0, (emulator_order_t)order, 1);
        for (unsigned i = 0; i < BLOCKS * THREADS; i++)
            assert_int_equal(out[i], 1000 * (i / THREADS) + i % THREADS + 1000000 * BLOCKS);
    }
}

/* Each shuffle, and a ballot. */
static void kernel_lanes(const void *arguments)
{
    const args_t *args = arguments;
    const uint32_t lane = threadIdx.x % WARP_SIZE;
    uint32_t sum = lane;
    for (uint32_t by = 16; by > 0; by /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, by);
    const uint32_t up = __shfl_up_sync(0xffffffffu, lane, 3), down = __shfl_down_sync(0xffffffffu, lane, 5);
    const uint32_t from = __shfl_sync(0xffffffffu, lane * lane, 7), odd = __ballot_sync(0xffffffffu, lane & 1);
    args->out[self()] = sum + 1000 * up + 100000 * down + (from == 49 ? 10000000 : 0) +
                        (odd == 0xaaaaaaaau ? 20000000 : 0);
}

static void test_lanes(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        run_well(kernel_lanes, 0, (emulator_order_t)(seed % EMULATOR_ORDERS), seed);
        for (unsigned i = 0; i < BLOCKS * THREADS; i++) {
            const unsigned lane = i % WARP_SIZE;
            assert_int_equal(out[i], 31 * 16 + 1000 * (lane < 3 ? lane : lane - 3) +
                                         100000 * (lane + 5 < 32 ? lane + 5 : lane) + 30000000);
        }
    }
}

/* Half of a warp alone. */
static void kernel_some_lanes(const void *arguments)
{
    const args_t *args = arguments;
    const uint32_t lane = threadIdx.x % WARP_SIZE;
    if (lane < 16)
        args->out[self()] = __ballot_sync(0xffffu, lane < 4) + __shfl_xor_sync(0xffffu, lane, 1) * 256;
}

static void test_some_lanes(void **state)
{
    (void)state;
    run_well(kernel_some_lanes, 0, EMULATOR_SHUFFLED, 3);
    for (unsigned i = 0; i < BLOCKS * THREADS; i++)
        assert_int_equal(out[i], i % WARP_SIZE < 16 ? 15 + 256 * (i % WARP_SIZE ^ 1) : 0);
}

/* The reverse of a block through shared memory, twice. */
static void kernel_reverse(const void *arguments)
{
    const args_t *args = arguments;
    __shared__ uint32_t shared[THREADS];
    for (uint32_t round = 0; round < 2; round++) {
        shared[threadIdx.x] = self() + round;
        __syncthreads();
        args->out[self()] += shared[THREADS - 1 - threadIdx.x];
        __syncthreads();
    }
}

static void test_shared_memory(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        run_well(kernel_reverse, (int)seed % 2, (emulator_order_t)(seed % EMULATOR_ORDERS), seed);
        for (unsigned i = 0; i < BLOCKS * THREADS; i++)
            assert_int_equal(out[i], 2 * (i / THREADS * THREADS + THREADS - 1 - i % THREADS) + 1);
    }
}

static void kernel_count(const void *arguments)
{
    const args_t *args = arguments;
    args->out[atomicAdd(args->counter, 1)] = 1;
    (void)atomicMax(args->counter + 1, self());
    (void)atomicOr(args->counter + 2, 1u << threadIdx.x % WARP_SIZE);
}

static void test_atomics(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        run_well(kernel_count, 0, EMULATOR_SHUFFLED, seed);
        for (unsigned i = 0; i < BLOCKS * THREADS; i++)
            assert_int_equal(out[i], 1);
        assert_int_equal(counter[0], BLOCKS * THREADS);
        assert_int_equal(counter[1], BLOCKS * THREADS - 1);
        assert_int_equal(counter[2], 0xffffffffu);
    }
}

/* What one block writes another one reads behind a barrier of the grid. */
static void kernel_grid(const void *arguments)
{
    const args_t *args = arguments;
    __shared__ uint32_t sum;
    args->out[self()] = self();
    __syncthreads();
    if (threadIdx.x == 0) {
        (void)atomicAdd(args->counter, 1);
        while (*(volatile uint32_t *)args->counter < gridDim.x)
            emulator_spin();
        sum = args->out[(blockIdx.x + 1) % gridDim.x * THREADS];
    }
    __syncthreads();
    if (threadIdx.x == 1)
        args->out[self()] = sum;
}

static void test_grid_barrier(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        run_well(kernel_grid, 1, (emulator_order_t)(seed % EMULATOR_ORDERS), seed);
        for (unsigned b = 0; b < BLOCKS; b++)
            assert_int_equal(out[b * THREADS + 1], (b + 1) % BLOCKS * THREADS);
    }
    assert_int_equal(run(kernel_grid, 0, EMULATOR_FORWARD, 1), -1);
    assert_non_null(strstr(emulator_error(), "spins"));
}

/* ---- kernels that are wrong, and in some order seem right ---- */

/* In how many of the runs the kernel leaves out[i] = expected(i). */
static int right_runs(emulator_kernel_fn kernel, emulator_order_t order, uint32_t (*expected)(unsigned i))
{
    int right = 0;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        int good = 1;
        run_well(kernel, 0, order, seed);
        for (unsigned i = 0; i < BLOCKS * THREADS; i++)
            good &= out[i] == expected(i);
        right += good;
    }
    return right;
}

/* A barrier is missing: the neighbour may not have written yet. */
static void kernel_race_below(const void *arguments)
{
    const args_t *args = arguments;
    __shared__ uint32_t shared[THREADS];
    shared[threadIdx.x] = threadIdx.x;
    args->out[self()] = threadIdx.x == 0 ? 0 : shared[threadIdx.x - 1] + 1;
}

static void kernel_race_above(const void *arguments)
{
    const args_t *args = arguments;
    __shared__ uint32_t shared[THREADS];
    shared[threadIdx.x] = threadIdx.x;
    args->out[self()] = threadIdx.x == THREADS - 1 ? threadIdx.x : shared[threadIdx.x + 1] - 1;
}

static uint32_t expect_thread(unsigned i)
{
    return i % THREADS;
}

static void test_missing_barrier(void **state)
{
    (void)state;
    assert_int_equal(right_runs(kernel_race_below, EMULATOR_FORWARD, expect_thread), SEEDS);
    assert_int_equal(right_runs(kernel_race_below, EMULATOR_BACKWARD, expect_thread), 0);
    assert_int_equal(right_runs(kernel_race_above, EMULATOR_BACKWARD, expect_thread), SEEDS);
    assert_int_equal(right_runs(kernel_race_above, EMULATOR_FORWARD, expect_thread), 0);
    assert_int_equal(right_runs(kernel_race_below, EMULATOR_SHUFFLED, expect_thread), 0);
    assert_int_equal(right_runs(kernel_race_above, EMULATOR_SHUFFLED, expect_thread), 0);
}

/* The second barrier is missing: a fast thread writes for the next round what a slow one has still to read. */
static void kernel_race_reuse(const void *arguments)
{
    const args_t *args = arguments;
    __shared__ uint32_t shared[THREADS];
    uint32_t sum = 0;
    for (uint32_t round = 0; round < 3; round++) {
        shared[threadIdx.x] = round;
        __syncthreads();
        sum += shared[THREADS - 1 - threadIdx.x];
    }
    args->out[self()] = sum;
}

static uint32_t expect_three(unsigned i)
{
    (void)i;
    return 3;
}

static void test_missing_second_barrier(void **state)
{
    (void)state;
    assert_int_equal(right_runs(kernel_race_reuse, EMULATOR_SHUFFLED, expect_three), 0);
}

/* The same where each warp must first do something together: one that is far ahead overwrites what another has to read. */
static void kernel_race_ahead(const void *arguments)
{
    const args_t *args = arguments;
    __shared__ uint32_t shared[THREADS / WARP_SIZE];
    uint32_t sum = 0;
    for (uint32_t round = 0; round < 8; round++) {
        const uint32_t agreed = __shfl_sync(0xffffffffu, round, 0);
        if (threadIdx.x % WARP_SIZE == 0)
            shared[threadIdx.x / WARP_SIZE] = agreed;
        __syncthreads();
        sum += shared[(threadIdx.x / WARP_SIZE + 1) % (THREADS / WARP_SIZE)];
    }
    args->out[self()] = sum;
}

static uint32_t expect_twenty_eight(unsigned i)
{
    (void)i;
    return 28;
}

static void test_warps_apart(void **state)
{
    (void)state;
    assert_true(right_runs(kernel_race_ahead, EMULATOR_SHUFFLED, expect_twenty_eight) < SEEDS / 2);
}

/* Takes it that threads get their tickets in order: up or down, both look right. */
static void kernel_race_tickets(const void *arguments)
{
    const args_t *args = arguments;
    __shared__ uint32_t owner[THREADS], count;
    if (threadIdx.x == 0)
        count = 0;
    __syncthreads();
    const uint32_t ticket = atomicAdd(&count, 1);
    owner[ticket] = threadIdx.x;
    __syncthreads();
    const uint32_t last = owner[ticket == 0 ? 1 : ticket - 1];
    args->out[self()] = last > threadIdx.x ? last - threadIdx.x : threadIdx.x - last;
}

static uint32_t expect_one(unsigned i)
{
    (void)i;
    return 1;
}

static void test_order_of_tickets(void **state)
{
    (void)state;
    assert_int_equal(right_runs(kernel_race_tickets, EMULATOR_FORWARD, expect_one), SEEDS);
    assert_int_equal(right_runs(kernel_race_tickets, EMULATOR_BACKWARD, expect_one), SEEDS);
    assert_int_equal(right_runs(kernel_race_tickets, EMULATOR_SHUFFLED, expect_one), 0);
}

/* A block that relies on the one before having ended. */
static void kernel_race_blocks(const void *arguments)
{
    const args_t *args = arguments;
    args->out[self()] = blockIdx.x == 0 ? 1 : args->out[self() - THREADS];
}

static void test_order_of_blocks(void **state)
{
    (void)state;
    assert_int_equal(right_runs(kernel_race_blocks, EMULATOR_FORWARD, expect_one), SEEDS);
    assert_int_equal(right_runs(kernel_race_blocks, EMULATOR_BACKWARD, expect_one), 0);
    assert_true(right_runs(kernel_race_blocks, EMULATOR_SHUFFLED, expect_one) < SEEDS / 2);
}

/* Reads before it writes, and then adds: an update is lost where another thread comes in between. */
static void kernel_race_update(const void *arguments)
{
    const args_t *args = arguments;
    const uint32_t seen = args->counter[0];
    (void)atomicAdd(args->counter + 1, 1);
    args->counter[0] = seen + 1;
    args->out[self()] = 1;
}

static void test_lost_update(void **state)
{
    (void)state;
    int lost = 0;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        run_well(kernel_race_update, 0, EMULATOR_SHUFFLED, seed);
        lost += counter[0] != BLOCKS * THREADS;
    }
    assert_int_equal(lost, SEEDS);
}

/* Shared memory is not zero, nor what the block before left. */
static void kernel_uninitialised(const void *arguments)
{
    const args_t *args = arguments;
    __shared__ uint32_t shared[THREADS];
    args->out[self()] = shared[threadIdx.x];
    shared[threadIdx.x] = 0;
}

static uint32_t expect_zero(unsigned i)
{
    (void)i;
    return 0;
}

static void test_uninitialised(void **state)
{
    (void)state;
    for (int order = 0; order < EMULATOR_ORDERS; order++)
        assert_int_equal(right_runs(kernel_uninitialised, (emulator_order_t)order, expect_zero), 0);
}

/* ---- kernels that would hang, or are undefined ---- */

static void kernel_exits(const void *arguments)
{
    (void)arguments;
    if (threadIdx.x >= 40)
        return;
    __syncthreads();
}

static void kernel_two_barriers(const void *arguments)
{
    (void)arguments;
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

static void kernel_lanes_leave(const void *arguments)
{
    (void)arguments;
    if (threadIdx.x % WARP_SIZE != 5)
        (void)__ballot_sync(0xffffffffu, 1);
}

static void kernel_lanes_differ(const void *arguments)
{
    (void)arguments;
    if (threadIdx.x % 2)
        (void)__ballot_sync(0xffffffffu, 1);
    else
        (void)__shfl_sync(0xffffffffu, 1, 0);
}

static void kernel_not_in_mask(const void *arguments)
{
    (void)arguments;
    (void)__ballot_sync(0xffffu, 1);
}

static void kernel_from_nobody(const void *arguments)
{
    (void)arguments;
    if (threadIdx.x % WARP_SIZE < 16)
        (void)__shfl_sync(0xffffu, 1, 20);
}

static void test_undefined(void **state)
{
    static const struct {
        emulator_kernel_fn kernel;
        const char *says;
    } cases[] = {
        {kernel_exits, "hangs"},
        {kernel_two_barriers, "barrier of line"},
        {kernel_lanes_leave, "do not come"},
        {kernel_lanes_differ, "differ"},
        {kernel_not_in_mask, "own mask"},
        {kernel_from_nobody, "takes no part"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int order = 0; order < EMULATOR_ORDERS; order++) {
            assert_int_equal(run(cases[i].kernel, 0, (emulator_order_t)order, i), -1);
            if (!strstr(emulator_error(), cases[i].says))
                fail_msg("'%s' does not say '%s'", emulator_error(), cases[i].says);
        }
    run_well(kernel_reverse, 0, EMULATOR_SHUFFLED, 1); /* and it goes on working */
    assert_int_equal(emulator_run(kernel_reverse, NULL, 0, THREADS, 0, EMULATOR_FORWARD, 1), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_places),          cmocka_unit_test(test_lanes),
        cmocka_unit_test(test_some_lanes),      cmocka_unit_test(test_shared_memory),
        cmocka_unit_test(test_atomics),         cmocka_unit_test(test_grid_barrier),
        cmocka_unit_test(test_missing_barrier), cmocka_unit_test(test_missing_second_barrier),
        cmocka_unit_test(test_warps_apart),     cmocka_unit_test(test_order_of_tickets),
        cmocka_unit_test(test_order_of_blocks), cmocka_unit_test(test_lost_update),
        cmocka_unit_test(test_uninitialised),   cmocka_unit_test(test_undefined),
    };
    return cmocka_run_group_tests_name("cuda emulator", tests, NULL, NULL);
}
