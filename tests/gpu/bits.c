/* A GPU's bits against the CPU's, for `make gpu-check`: the random steps that test all devices, every 16-bit value, a long
 * chain of operations on many entries with hints that are right, too low and too high, and indices up to 2^32 - 2.
 *
 * GTOPK_TEST_LARGE: entries of the long chain. GTOPK_TEST_FAR=0 leaves out the last, which takes 26 GB. */
int test_device_main(void);
#define main test_device_main
#include "../property/test_device.c"
#undef main

#include "wire/convert.h"

enum { GPU_RUNS_DEFAULT = 150 };

static void test_gpu_agrees(void **state)
{
    (void)state;
    const uint64_t seed = environment("GTOPK_TEST_SEED", 1), runs = environment("GTOPK_TEST_RUNS", GPU_RUNS_DEFAULT);
    world.side_count = 0;
    world.takes_bf16 = 1;
    add_side(&world, "reference", "reference");
    add_side(&world, "cpu", "cpu");
    add_side(&world, "cuda", "cuda");
    if (world.side_count != 3)
        fail_msg("the GPU does not open: %s", gtopk_last_error());
    for (uint64_t run = 0; run < runs; run++) {
        world_begin(&world, seed + run);
        const int steps = world.dim > 20000 ? 2 : 3 + (int)random_below(&world.random, 4);
        for (world.step = 0; world.step < steps; world.step++)
            step(&world);
        world_end(&world);
    }
    check_misses(&world);
    for (size_t s = 0; s < world.side_count; s++)
        side_close(&world.sides[s]);
}

/* ---- two devices, with what a chain of operations needs ---- */

typedef enum chain_set { FOUND, SENT, OTHER, ALL, KEPT, BACK, CHAIN_SETS } chain_set_t;

typedef struct chain {
    device_t *device;
    device_store_t *store;
    device_words_t *words, *told;
    char *gradients;
    uint8_t *messages[2];
    device_set_t sets[CHAIN_SETS];
} chain_t;

enum { CPU, GPU, CHAINS };

static const char *const chain_names[CHAINS] = {"cpu", "cuda"};
static uint64_t message_bytes;

/* with: as for store_create. */
static void chain_open(chain_t *chain, const char *name, uint64_t dim, uint64_t k, int with, size_t gradient_bytes)
{
    void *block;
    memset(chain, 0, sizeof *chain);
    SIDE_OK(device_open(name, &chain->device));
    const device_ops_t *ops = chain->device->ops;
    SIDE_OK(ops->store_create(chain->device, dim, k, with, NULL, &chain->store));
#define CHAIN_ALLOCATE(to, bytes)                                                  \
    do {                                                                           \
        SIDE_OK(ops->allocate(chain->device, (bytes), "a test's memory", &block)); \
        (to) = block;                                                              \
    } while (0)
    CHAIN_ALLOCATE(chain->words, sizeof *chain->words);
    CHAIN_ALLOCATE(chain->gradients, gradient_bytes);
    message_bytes = wire_message_capacity(dim, k, GTOPK_VALUE_I8) + 4 * k;
    for (int m = 0; m < 2; m++)
        CHAIN_ALLOCATE(chain->messages[m], (size_t)message_bytes);
    for (int s = 0; s < CHAIN_SETS; s++) {
        CHAIN_ALLOCATE(chain->sets[s].index, (size_t)(8 * k));
        CHAIN_ALLOCATE(chain->sets[s].value, (size_t)(8 * k));
        CHAIN_ALLOCATE(chain->sets[s].count, 4);
        chain->sets[s].capacity = (uint32_t)(2 * k);
    }
    SIDE_OK(ops->allocate_pinned(chain->device, sizeof *chain->told, "a test's words", &block));
    chain->told = block;
#undef CHAIN_ALLOCATE
}

static void chain_close(chain_t *chain)
{
    const device_ops_t *ops = chain->device->ops;
    for (int s = 0; s < CHAIN_SETS; s++) {
        ops->release(chain->device, chain->sets[s].index);
        ops->release(chain->device, chain->sets[s].value);
        ops->release(chain->device, chain->sets[s].count);
    }
    ops->release(chain->device, chain->messages[0]);
    ops->release(chain->device, chain->messages[1]);
    ops->release(chain->device, chain->gradients);
    ops->release(chain->device, chain->words);
    ops->release_pinned(chain->device, chain->told);
    ops->store_destroy(chain->store);
    ops->close(chain->device);
}

static void chain_copy(const chain_t *chain, void *to, const void *from, size_t bytes)
{
    SIDE_OK(chain->device->ops->copy(chain->device, to, from, bytes, NULL));
    SIDE_OK(chain->device->ops->synchronize(chain->device, NULL));
}

static void *scratch_of(size_t bytes)
{
    void *block = calloc(bytes ? bytes : 1, 1);
    assert_non_null(block);
    return block;
}

/* Both have the same bytes at `at`: says where the first difference is. */
static void compare(const chain_t *chains, const void *cpu, const void *gpu, size_t bytes, const char *what)
{
    uint32_t *a = scratch_of(bytes + 4), *b = scratch_of(bytes + 4);
    size_t wrong = 0, first = 0;
    chain_copy(&chains[CPU], a, cpu, bytes);
    chain_copy(&chains[GPU], b, gpu, bytes);
    for (size_t i = 0; i < (bytes + 3) / 4; i++)
        if (a[i] != b[i] && wrong++ == 0)
            first = i;
    if (wrong > 0)
        fail_msg("%s: %zu of %zu words differ, the first is %zu: %08x on the GPU, %08x on the CPU", what, wrong,
                 (bytes + 3) / 4, first, b[first], a[first]);
    free(a);
    free(b);
}

static uint32_t compare_sets(const chain_t *chains, chain_set_t which, const char *what)
{
    uint32_t counts[CHAINS];
    for (int c = 0; c < CHAINS; c++)
        chain_copy(&chains[c], &counts[c], chains[c].sets[which].count, sizeof counts[c]);
    if (counts[CPU] != counts[GPU])
        fail_msg("%s: %u entries on the GPU, %u on the CPU", what, counts[GPU], counts[CPU]);
    const size_t bytes = 4 * (size_t)counts[CPU];
    compare(chains, chains[CPU].sets[which].index, chains[GPU].sets[which].index, bytes, what);
    compare(chains, chains[CPU].sets[which].value, chains[GPU].sets[which].value, bytes, what);
    return counts[CPU];
}

static void compare_residuals(const chain_t *chains, uint64_t dim, const char *what)
{
    float *values[CHAINS];
    for (int c = 0; c < CHAINS; c++) {
        values[c] = scratch_of((size_t)dim * 4);
        SIDE_OK(chains[c].device->ops->store_read(chains[c].store, DEVICE_RESIDUAL, 0, dim, values[c], NULL));
    }
    for (uint64_t i = 0; i < dim; i++)
        if (memcmp(&values[CPU][i], &values[GPU][i], 4) != 0)
            fail_msg("%s: entry %llu is %a on the GPU, %a on the CPU", what, (unsigned long long)i,
                     (double)values[GPU][i], (double)values[CPU][i]);
    free(values[CPU]);
    free(values[GPU]);
}

/* ---- every 16-bit value ---- */

static void test_every_half(void **state)
{
    enum { N = 1 << 16 };
    static const float scales[] = {1.0f, 0.25f, 1.0f / 3.0f, 0x1p-120f, 0x1p100f};
    static uint16_t values[N];
    chain_t chains[CHAINS];
    (void)state;
    for (uint32_t i = 0; i < N; i++)
        values[i] = (uint16_t)i;
    for (int c = 0; c < CHAINS; c++)
        chain_open(&chains[c], chain_names[c], N, N / 2, 0, sizeof values);
    for (int32_t dtype = GTOPK_F16; dtype <= GTOPK_BF16; dtype++)
        for (size_t s = 0; s < sizeof scales / sizeof scales[0]; s++) {
            const device_accumulate_t params = {.scale = scales[s], .zero_input = (int)s % 2};
            for (int c = 0; c < CHAINS; c++) {
                const device_ops_t *ops = chains[c].device->ops;
                const device_span_t span = {.length = N, .data = chains[c].gradients, .dtype = dtype};
                chain_copy(&chains[c], chains[c].gradients, values, sizeof values);
                SIDE_OK(ops->step_begin(chains[c].store, chains[c].words, NULL));
                SIDE_OK(ops->accumulate(chains[c].store, &span, 1, &params, chains[c].words, NULL));
            }
            compare(chains, chains[CPU].gradients, chains[GPU].gradients, sizeof values, "gradients");
            compare_residuals(chains, N, "residuals");
            compare(chains, chains[CPU].words, chains[GPU].words, 2 * sizeof(uint32_t), "ok and nonfinite");
        }
    chain_close(&chains[CPU]);
    chain_close(&chains[GPU]);
}

/* ---- a long chain ---- */

enum { CHAIN_SPANS = 230, CHAIN_STEPS = 6 };

static float laplace(random_state_t *random)
{
    const double u = ((double)(random_u64(random) >> 11) + 0.5) * 0x1p-53;
    return (float)(u < 0.5 ? log(2.0 * u) : -log(2.0 * (1.0 - u)));
}

/* Lengths of every kind, the last takes what is left; places with every alignment. Returns the bytes of all. */
static size_t chain_spans(random_state_t *random, uint64_t dim, int32_t dtype, device_span_t *spans, size_t *at)
{
    uint64_t offset = 0;
    size_t used = 0;
    for (int s = 0; s < CHAIN_SPANS; s++) {
        const uint64_t left = dim - offset, most = s % 3 == 0 ? dim / 40 : 700;
        uint64_t length = random_below(random, most < left ? most + 1 : left + 1);
        length = s == CHAIN_SPANS - 1 ? left : s % 5 == 0 ? length / 4 * 4 : length;
        spans[s] = (device_span_t){.offset = offset, .length = length, .dtype = s % 7 == 6 ? GTOPK_F32 : dtype};
        const size_t size = dtype_size(spans[s].dtype);
        at[s] = (used + 511) / 512 * 512 + (s % 4 == 3 ? size * (size_t)random_below(random, 8) : 0);
        used = at[s] + size * (size_t)length;
        offset += length;
    }
    return used;
}

/* What a rank does in a step with two ranks, its peer being itself. */
static void chain_step(chain_t *chain, const device_span_t *spans, const size_t *at, uint64_t dim, uint64_t k,
                       int value_type, int step)
{
    const device_ops_t *ops = chain->device->ops;
    device_span_t own[CHAIN_SPANS];
    device_set_t *sets = chain->sets;
    const device_accumulate_t params = {.scale = step % 2 ? 0.5f : 1.0f, .zero_input = 1};
    const wire_header_t header = {.value_type = (uint8_t)value_type,
                                  .algorithm = GTOPK_ALGORITHM_GTOPK,
                                  .k = (uint32_t)k,
                                  .dim = (uint32_t)dim,
                                  .step = (uint64_t)step};
    const wire_expect_t expect = {.value_type = (uint8_t)value_type,
                                  .algorithm = GTOPK_ALGORITHM_GTOPK,
                                  .k = (uint32_t)k,
                                  .dim = (uint32_t)dim,
                                  .step = (uint64_t)step};
    for (int s = 0; s < CHAIN_SPANS; s++) {
        own[s] = spans[s];
        own[s].data = chain->gradients + at[s];
    }
    SIDE_OK(ops->store_seed(chain->store, 1000 + (uint64_t)step, NULL)); /* for a residual in bf16 */
    SIDE_OK(ops->step_begin(chain->store, chain->words, NULL));
    SIDE_OK(ops->accumulate(chain->store, own, CHAIN_SPANS / 2, &params, chain->words, NULL));
    SIDE_OK(ops->accumulate(chain->store, own + CHAIN_SPANS / 2, CHAIN_SPANS - CHAIN_SPANS / 2, &params, chain->words,
                            NULL));
    SIDE_OK(ops->words_join(chain->device, &chain->words, 1, 0, NULL));
    SIDE_OK(ops->select(chain->store, k, &sets[FOUND], chain->words, NULL));
    SIDE_OK(ops->encode(chain->device, &sets[FOUND], &header, chain->messages[0], &sets[SENT], chain->words, NULL));
    SIDE_OK(ops->decode(chain->device, chain->messages[0], (size_t)message_bytes, &expect, &sets[OTHER], chain->words,
                        NULL));
    SIDE_OK(
        ops->merge(chain->device, &sets[SENT], &sets[OTHER], k / 2 + 1, &sets[KEPT], &sets[ALL], chain->words, NULL));
    SIDE_OK(ops->deposit(chain->device, &sets[ALL], &sets[KEPT], 0.5f, &sets[BACK], chain->words, NULL));
    const device_outcome_t outcome = {chain->words, &sets[KEPT], chain->told};
    const device_target_t target = {.spans = own, .count = CHAIN_SPANS, .are_zero = 1};
    const device_journal_t journal = {.selected = sets[FOUND],
                                      .first = sets[SENT],
                                      .deposits = &sets[BACK],
                                      .deposit_count = 1,
                                      .final = sets[KEPT],
                                      .divisor = 3};
    SIDE_OK(ops->verdict(chain->device, &outcome, 1, NULL));
    SIDE_OK(ops->commit(chain->store, &journal, &target, chain->words, NULL));
    SIDE_OK(ops->synchronize(chain->device, NULL));
}

static void run_chain(uint64_t dim, int32_t dtype, int value_type, int with)
{
    /* The gradient's size, step by step: nothing is known, a good hint, all entries are above it, none is, then good ones. */
    static const float factors[CHAIN_STEPS] = {1.0f, 1.0f, 300.0f, 1e-3f, 1.0f, 1.0f};
    const uint64_t k = dim / 300 + 1;
    random_state_t random = {(uint64_t)dtype + 7};
    device_span_t spans[CHAIN_SPANS];
    size_t at[CHAIN_SPANS];
    chain_t chains[CHAINS];
    const size_t bytes = chain_spans(&random, dim, dtype, spans, at);
    char *gradients = scratch_of(bytes);
    for (int c = 0; c < CHAINS; c++)
        chain_open(&chains[c], chain_names[c], dim, k, with, bytes);
    for (int step = 0; step < CHAIN_STEPS; step++) {
        char text[64];
        for (int s = 0; s < CHAIN_SPANS; s++)
            for (uint64_t i = 0; i < spans[s].length; i++)
                dtype_store(gradients + at[s] + i * dtype_size(spans[s].dtype), spans[s].dtype,
                            laplace(&random) * factors[step]);
        for (int c = 0; c < CHAINS; c++) {
            chain_copy(&chains[c], chains[c].gradients, gradients, bytes);
            chain_step(&chains[c], spans, at, dim, k, value_type, step);
        }
        const device_words_t *cpu = chains[CPU].told, *gpu = chains[GPU].told;
        print_message("  n %llu, dtype %d, step %d: %llu candidates%s\n", (unsigned long long)dim, (int)dtype, step,
                      (unsigned long long)gpu->candidates, gpu->misses ? ", read again" : "");
        if (cpu->ok != gpu->ok || cpu->error != gpu->error || cpu->selected != gpu->selected ||
            cpu->nonfinite != gpu->nonfinite || cpu->count != gpu->count)
            fail_msg(
                "step %d: the GPU says ok %u, error %u, selected %u, count %llu; the CPU ok %u, error %u, %u, %llu",
                step, gpu->ok, gpu->error, gpu->selected, (unsigned long long)gpu->count, cpu->ok, cpu->error,
                cpu->selected, (unsigned long long)cpu->count);
        static const char *const names[CHAIN_SETS] = {"selected", "decoded", "received", "all", "kept", "deposits"};
        for (int s = 0; s < CHAIN_SETS; s++) {
            (void)snprintf(text, sizeof text, "step %d, %s", step, names[s]);
            (void)compare_sets(chains, (chain_set_t)s, text);
        }
        (void)snprintf(text, sizeof text, "step %d", step);
        compare(chains, chains[CPU].messages[0], chains[GPU].messages[0], WIRE_HEADER_SIZE, text);
        compare(chains, chains[CPU].gradients, chains[GPU].gradients, bytes, text);
        compare_residuals(chains, dim, text);
    }
    chain_close(&chains[CPU]);
    chain_close(&chains[GPU]);
    free(gradients);
}

static void test_large(void **state)
{
    const uint64_t dim = environment("GTOPK_TEST_LARGE", 6000011);
    (void)state;
    run_chain(dim, GTOPK_F32, GTOPK_VALUE_BF16, 0);
    run_chain(dim / 2, GTOPK_BF16, GTOPK_VALUE_I8, 0);
    run_chain(dim / 2 + 1, GTOPK_F16, GTOPK_VALUE_F16, 0);
    run_chain(dim / 2 + 1, GTOPK_F32, GTOPK_VALUE_BF16, DEVICE_WITH_BF16);
    run_chain(dim / 4, GTOPK_BF16, GTOPK_VALUE_F32, DEVICE_WITH_BF16);
}

/* ---- what nodes take ---- */

/* What two ranks give, one of them in two parts, and its sum. */
static void run_sum(uint64_t dim, int32_t dtype)
{
    enum { PARTS = 3 };
    const size_t stride = (size_t)(dim + 3) / 4 * 4;
    random_state_t random = {(uint64_t)dtype + 70};
    device_span_t spans[CHAIN_SPANS], own[CHAIN_SPANS];
    size_t at[CHAIN_SPANS];
    chain_t chains[CHAINS];
    float *out[CHAINS];
    const size_t bytes = chain_spans(&random, dim, dtype, spans, at);
    char *gradients = scratch_of(bytes);
    for (int s = 0; s < CHAIN_SPANS; s++)
        for (uint64_t i = 0; i < spans[s].length; i++)
            dtype_store(gradients + at[s] + i * dtype_size(spans[s].dtype), spans[s].dtype, laplace(&random));
    for (int c = 0; c < CHAINS; c++) {
        chain_open(&chains[c], chain_names[c], dim, 1, 0, bytes);
        const device_ops_t *ops = chains[c].device->ops;
        void *block;
        SIDE_OK(ops->allocate(chains[c].device, PARTS * stride * sizeof(float), "a test's floats", &block));
        out[c] = block;
        chain_copy(&chains[c], chains[c].gradients, gradients, bytes);
        for (int s = 0; s < CHAIN_SPANS; s++) {
            own[s] = spans[s];
            own[s].data = s % 11 == 10 ? NULL : chains[c].gradients + at[s];
        }
        for (int part = 0; part < PARTS; part++) {
            const device_stage_t params = {
                .scale = part == 1 ? 1.0f / 3.0f : 1.0f, .add = part == 2, .zero_input = part == 2};
            SIDE_OK(ops->stage(chains[c].device, own, CHAIN_SPANS, &params, out[c] + (part > 0) * stride, NULL));
        }
        SIDE_OK(ops->add_up(chains[c].device, out[c], stride, 2, out[c] + 2 * stride, dim, NULL));
        SIDE_OK(ops->synchronize(chains[c].device, NULL));
    }
    compare(chains, out[CPU], out[GPU], PARTS * stride * sizeof(float), "staged floats and their sum");
    compare(chains, chains[CPU].gradients, chains[GPU].gradients, bytes, "gradients");
    for (int c = 0; c < CHAINS; c++) {
        chains[c].device->ops->release(chains[c].device, out[c]);
        chain_close(&chains[c]);
    }
    free(gradients);
}

static void test_sums(void **state)
{
    const uint64_t dim = environment("GTOPK_TEST_LARGE", 6000011);
    (void)state;
    for (int32_t dtype = GTOPK_F32; dtype <= GTOPK_BF16; dtype++)
        run_sum(dim / 2 + (uint64_t)dtype, dtype);
}

/* ---- the last indices ---- */

/* A few entries among zeros, in a vector as long as it may be: these are selected, twice. */
static void test_far(void **state)
{
    enum { ENTRIES = 1500 };
    const uint64_t dim = 0xffffffffu;
    device_t *device;
    device_store_t *store = NULL;
    void *gradient = NULL, *words = NULL, *told = NULL, *index = NULL, *value = NULL, *count = NULL;
    random_state_t random = {3};
    static uint32_t indices[ENTRIES], got[ENTRIES];
    static float values[ENTRIES], got_values[ENTRIES];
    (void)state;
    if (!environment("GTOPK_TEST_FAR", 1))
        skip();
    SIDE_OK(device_open("cuda", &device));
    const device_ops_t *ops = device->ops;
    gtopk_status_t status = ops->store_create(device, dim, ENTRIES, 0, NULL, &store);
    if (status == GTOPK_OK)
        status = ops->allocate(device, 2 * (size_t)dim, "a gradient", &gradient);
    if (status != GTOPK_OK) {
        print_message("skipped: %s\n", gtopk_last_error());
        ops->store_destroy(store);
        ops->close(device);
        skip();
    }
    SIDE_OK(ops->allocate(device, sizeof(device_words_t), "words", &words));
    SIDE_OK(ops->allocate_pinned(device, sizeof(device_words_t), "words", &told));
    SIDE_OK(ops->allocate(device, sizeof indices, "indices", &index));
    SIDE_OK(ops->allocate(device, sizeof values, "values", &value));
    SIDE_OK(ops->allocate(device, 4, "a count", &count));
    random_indices(&random, indices, ENTRIES, dim);
    indices[0] = 0;
    indices[ENTRIES - 1] = (uint32_t)(dim - 1);
    for (int step = 0; step < 2; step++) {
        const device_span_t span = {.length = dim, .data = gradient, .dtype = GTOPK_BF16};
        const device_accumulate_t params = {.scale = 1.0f, .zero_input = 1};
        device_set_t set = {index, value, count, ENTRIES};
        uint32_t found = 0;
        for (int i = 0; i < ENTRIES; i++) {
            const uint16_t half = (uint16_t)(0x3f80 + i % 64);
            SIDE_OK(ops->copy(device, (char *)gradient + 2 * (size_t)indices[i], &half, sizeof half, NULL));
            values[i] = convert_float_from_bf16(half) * (float)(step + 1);
        }
        SIDE_OK(ops->step_begin(store, words, NULL));
        SIDE_OK(ops->accumulate(store, &span, 1, &params, words, NULL));
        SIDE_OK(ops->select(store, ENTRIES, &set, words, NULL));
        SIDE_OK(ops->copy(device, &found, count, sizeof found, NULL));
        SIDE_OK(ops->copy(device, got, index, sizeof got, NULL));
        SIDE_OK(ops->copy(device, got_values, value, sizeof got_values, NULL));
        SIDE_OK(ops->synchronize(device, NULL));
        assert_int_equal(found, ENTRIES);
        assert_memory_equal(got, indices, sizeof indices);
        assert_memory_equal(got_values, values, sizeof values);
    }
    ops->release(device, count);
    ops->release(device, value);
    ops->release(device, index);
    ops->release_pinned(device, told);
    ops->release(device, words);
    ops->release(device, gradient);
    ops->store_destroy(store);
    ops->close(device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_half), cmocka_unit_test(test_gpu_agrees), cmocka_unit_test(test_large),
        cmocka_unit_test(test_sums),       cmocka_unit_test(test_far),
    };
    (void)test_devices_agree;
    return cmocka_run_group_tests_name("gpu bits", tests, NULL, NULL);
}
