/* The CUDA device against the reference, bit for bit, without a GPU: its own host code on a stand-in for the driver, its own
 * kernels compiled as C and emulated. The steps are those of test_device.c, which are the same for all devices. */
int test_device_main(void);
#define main test_device_main
#include "test_device.c"
#undef main

#include "support/elf_for_90.h"
#include "support/standin.h"

enum { CUDA_RUNS_DEFAULT = 25 };

static const standin_control_t *standin;

static int open_standin(void **state)
{
    (void)state;
    standin = standin_open();
    return 0;
}

static void test_cuda_agrees(void **state)
{
    (void)state;
    const uint64_t seed = environment("GTOPK_TEST_SEED", 1), runs = environment("GTOPK_TEST_RUNS", CUDA_RUNS_DEFAULT);
    world.side_count = 0;
    world.takes_bf16 = 1;
    add_side(&world, "reference", "reference");
    standin->gpu(90, 1, 1);
    add_side(&world, "cuda, one block", "cuda");
    standin->gpu(90, 3, 1);
    add_side(&world, "cuda, three blocks", "cuda");
    standin->gpu(90, 2, 2); /* what the stand-in itself goes by from here on: the largest */
    add_side(&world, "cuda, four blocks", "cuda");
    for (uint64_t run = 0; run < runs; run++) {
        standin->seed(seed + run);
        world_begin(&world, seed + run);
        const int steps = world.dim > 20000 ? 2 : 3 + (int)random_below(&world.random, 4);
        for (world.step = 0; world.step < steps; world.step++)
            step(&world);
        world_end(&world);
    }
    check_misses(&world);
    halt_everywhere(&world);
    for (size_t s = 0; s < world.side_count; s++)
        side_close(&world.sides[s]);
    assert_int_equal(standin->live(), 0);
}

/* A part of a residual in bf16 is set: each entry draws by its index, wherever the part begins. */
static void test_parts_that_are_set(void **state)
{
    (void)state;
    static float values[SIDE_DIM_MAX];
    world.side_count = 0;
    world.takes_bf16 = 1;
    add_side(&world, "reference", "reference");
    add_side(&world, "cuda", "cuda");
    for (uint64_t i = 0; i < SIDE_DIM_MAX; i++)
        values[i] = 1.0f + (float)(i % 997) * 0x1p-20f;
    for (uint64_t seed = 3; seed <= 30; seed += 3) { /* of these residuals are in bf16 */
        world_begin(&world, seed);
        assert_true(world.with_bf16);
        const uint64_t offset = world.dim / 3, length = world.dim - offset;
        WORLD_CALL_OK(&world, ops->store_write(side->store, DEVICE_RESIDUAL, offset, length, values, NULL));
        world_compare_store(&world);
        world_end(&world);
    }
    for (size_t s = 0; s < world.side_count; s++)
        side_close(&world.sides[s]);
    assert_int_equal(standin->live(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_parts_that_are_set), cmocka_unit_test(test_cuda_agrees)};
    (void)test_devices_agree;
    return cmocka_run_group_tests_name("cuda", tests, open_standin, NULL);
}
