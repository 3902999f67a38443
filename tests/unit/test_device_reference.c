/* The reference device, which the property test of devices trusts, against other formulations of the same: ranks found
 * by counting, dense arrays, arithmetic that is exact in double. Its messages: test_device_reference_message.c. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "device/device.h"
#include "support/random.h"

enum { DIM = 60, ROUNDS = 400 };

static device_t *device;
static const device_ops_t *ops;

/* ---- helpers ---- */

typedef struct own_set {
    uint32_t index[2 * DIM];
    float value[2 * DIM];
    uint32_t count;
} own_set_t;

static device_set_t view(own_set_t *set)
{
    return (device_set_t){set->index, set->value, &set->count, 2 * DIM};
}

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static void assert_same_float(float got, float expected)
{
    if (bits_of(got) != bits_of(expected))
        fail_msg("%.9g (%08x), not %.9g (%08x)", (double)got, bits_of(got), (double)expected, bits_of(expected));
}

/* Small integers, with many ties and zeros of both signs. */
static float small_integer(random_state_t *random)
{
    const float value = (float)random_below(random, 17) - 8.0f;
    return value == 0.0f && random_below(random, 2) ? -0.0f : value;
}

/* A set, and the same as a dense array. */
static void draw_set(random_state_t *random, own_set_t *set, float *dense)
{
    set->count = 0;
    for (uint32_t i = 0; i < DIM; i++) {
        const float value = random_below(random, 2) ? small_integer(random) : 0.0f;
        dense[i] = value;
        if (value != 0.0f) {
            set->index[set->count] = i;
            set->value[set->count++] = value;
        }
    }
}

/* Whether dense[i] is one of its k largest: fewer than k entries have a greater key. */
static int is_among(const float *dense, uint32_t i, uint64_t k)
{
    uint64_t greater = 0;
    for (uint32_t j = 0; j < DIM; j++)
        greater += fabsf(dense[j]) > fabsf(dense[i]) || (fabsf(dense[j]) == fabsf(dense[i]) && j < i);
    return dense[i] != 0.0f && greater < k;
}

/* set holds exactly the non-zeros of dense that are among the k largest. */
static void assert_is_top(const own_set_t *set, const float *dense, uint64_t k)
{
    uint32_t at = 0;
    for (uint32_t i = 0; i < DIM; i++)
        if (is_among(dense, i, k)) {
            assert_true(at < set->count);
            assert_int_equal(set->index[at], i);
            assert_same_float(set->value[at++], dense[i]);
        }
    assert_int_equal(at, set->count);
}

static device_store_t *store_with(const float *residual, uint64_t dim, int with_velocity)
{
    device_store_t *store;
    assert_int_equal(ops->store_create(device, dim, dim, with_velocity, NULL, &store), GTOPK_OK);
    assert_int_equal(ops->store_write(store, 0, 0, dim, residual, NULL), GTOPK_OK);
    return store;
}

/* ---- selection and sets ---- */

static void test_select(void **state)
{
    (void)state;
    random_state_t random = {1};
    for (int round = 0; round < ROUNDS; round++) {
        float residual[DIM];
        own_set_t set;
        device_set_t out = view(&set);
        for (int i = 0; i < DIM; i++)
            residual[i] = small_integer(&random) * (random_below(&random, 8) ? 1.0f : 1e-44f);
        device_store_t *store = store_with(residual, DIM, 0);
        const uint64_t k = 1 + random_below(&random, DIM);
        device_words_t words = {.ok = 1};
        assert_int_equal(ops->select(store, k, &out, &words, NULL), GTOPK_OK);
        assert_is_top(&set, residual, k);
        assert_int_equal(words.selected, set.count);
        words.nonfinite = 1;
        assert_int_equal(ops->select(store, k, &out, &words, NULL), GTOPK_OK);
        assert_int_equal(set.count, 0);
        ops->store_destroy(store);
    }
}

static void test_merge(void **state)
{
    (void)state;
    random_state_t random = {2};
    for (int round = 0; round < ROUNDS; round++) {
        own_set_t a, b, kept, all;
        float dense_a[DIM], dense_b[DIM];
        draw_set(&random, &a, dense_a);
        draw_set(&random, &b, dense_b);
        for (int i = 0; i < DIM; i++)
            dense_a[i] += dense_b[i];
        device_words_t words = {.ok = 1};
        const device_set_t set_a = view(&a), set_b = view(&b);
        device_set_t set_kept = view(&kept), set_all = view(&all);
        const uint64_t k = 1 + random_below(&random, DIM);
        assert_int_equal(ops->merge(device, &set_a, &set_b, k, &set_kept, &set_all, &words, NULL), GTOPK_OK);
        assert_is_top(&kept, dense_a, k);
        assert_is_top(&all, dense_a, DIM);
        assert_int_equal(words.nonfinite, 0);
    }
}

static void test_merge_overflow(void **state)
{
    (void)state;
    own_set_t a = {{1, 2}, {FLT_MAX, 1.0f}, 2}, b = {{1, 3}, {FLT_MAX, 2.0f}, 2}, kept, all;
    const device_set_t set_a = view(&a), set_b = view(&b);
    device_set_t set_kept = view(&kept), set_all = view(&all);
    device_words_t words = {.ok = 1};
    assert_int_equal(ops->merge(device, &set_a, &set_b, 4, &set_kept, &set_all, &words, NULL), GTOPK_OK);
    assert_int_equal(words.nonfinite, 1);
    assert_int_equal(kept.count, 2);
    assert_int_equal(kept.index[0], 2);
    assert_int_equal(kept.index[1], 3);
}

static void test_deposit(void **state)
{
    (void)state;
    random_state_t random = {3};
    for (int round = 0; round < ROUNDS; round++) {
        own_set_t all, sent = {.count = 0}, out;
        float dense[DIM];
        draw_set(&random, &all, dense);
        for (uint32_t i = 0; i < all.count; i++)
            if (random_below(&random, 2)) {
                const float value = small_integer(&random);
                if (value == 0.0f)
                    continue;
                sent.index[sent.count] = all.index[i];
                sent.value[sent.count++] = value;
                dense[all.index[i]] -= value;
            }
        for (int i = 0; i < DIM; i++)
            dense[i] *= 0.25f;
        const device_set_t set_all = view(&all), set_sent = view(&sent);
        device_set_t set_out = view(&out);
        device_words_t words = {.ok = 1};
        assert_int_equal(ops->deposit(device, &set_all, &set_sent, 0.25f, &set_out, &words, NULL), GTOPK_OK);
        assert_is_top(&out, dense, DIM);
    }
}

/* The parts of a set, each under its places in its range, are the set when they have their indices again. */
static void test_cut(void **state)
{
    (void)state;
    random_state_t random = {5};
    for (int round = 0; round < ROUNDS; round++) {
        own_set_t all;
        float dense[DIM];
        draw_set(&random, &all, dense);
        const uint32_t bits = (uint32_t)random_below(&random, 6);
        const device_set_t set = view(&all);
        float again[DIM] = {0};
        for (uint32_t part = 0; part < 1u << bits; part++) {
            const device_range_t range = {bits, part};
            own_set_t out;
            device_set_t set_out = view(&out);
            device_words_t words = {.ok = 1};
            uint32_t place = 0, entry = 0;
            assert_int_equal(ops->cut(device, &set, range, &set_out, &words, NULL), GTOPK_OK);
            for (uint32_t i = 0; i < DIM; i++) { /* the indices of the range in order, counted */
                if (!range_has(range, i))
                    continue;
                if (entry < out.count && out.index[entry] == place) {
                    assert_true(out.value[entry] == dense[i] && dense[i] != 0.0f);
                    entry++;
                } else {
                    assert_true(dense[i] == 0.0f);
                }
                place++;
            }
            assert_int_equal(place, range_dim(range, DIM));
            assert_int_equal(entry, out.count);
            assert_int_equal(ops->widen(device, &set_out, range, NULL), GTOPK_OK);
            for (uint32_t i = 0; i < out.count; i++)
                again[out.index[i]] = out.value[i];
        }
        for (int i = 0; i < DIM; i++)
            assert_true(again[i] == dense[i]);
    }
}

/* ---- accumulate ---- */

static float between_half_and_two(random_state_t *random)
{
    return 0.5f + (float)(random_u64(random) >> 41) * 0x1.8p-23f;
}

/* Factors in [.5, 2): the product has 48 bits and its sum with the residual 51, so one rounding is all there is. */
static void test_accumulate_rounds_once(void **state)
{
    (void)state;
    random_state_t random = {4};
    for (int round = 0; round < ROUNDS; round++) {
        float before[DIM], x[DIM], after[DIM];
        for (int i = 0; i < DIM; i++) {
            before[i] = between_half_and_two(&random);
            x[i] = between_half_and_two(&random);
        }
        const device_accumulate_t params = {.scale = round % 4 ? between_half_and_two(&random) : 1.0f};
        const device_span_t span = {.length = DIM, .data = x, .dtype = GTOPK_F32};
        device_words_t words = {.ok = 1};
        device_store_t *store = store_with(before, DIM, 0);
        assert_int_equal(ops->accumulate(store, &span, 1, &params, &words, NULL), GTOPK_OK);
        assert_int_equal(ops->store_read(store, 0, 0, DIM, after, NULL), GTOPK_OK);
        for (int i = 0; i < DIM; i++)
            assert_same_float(after[i], (float)((double)params.scale * (double)x[i] + (double)before[i]));
        ops->store_destroy(store);
    }
}

/* Velocity, and nesterov's look ahead, with small dyadic numbers: exact. */
static void test_accumulate_momentum(void **state)
{
    (void)state;
    for (int nesterov = 0; nesterov < 2; nesterov++) {
        const float residual[3] = {16.0f, -8.0f, 1.0f}, velocity[3] = {4.0f, 2.0f, FLT_MAX};
        float x[3] = {3.0f, -5.0f, FLT_MAX}, out[3];
        const device_accumulate_t params = {.scale = 2.0f, .zero_input = 1, .momentum = 0.5f, .nesterov = nesterov};
        const device_span_t span = {.length = 3, .data = x, .dtype = GTOPK_F32};
        device_words_t words = {.ok = 1};
        device_store_t *store = store_with(residual, 3, 1);
        assert_int_equal(ops->store_write(store, 1, 0, 3, velocity, NULL), GTOPK_OK);
        assert_int_equal(ops->accumulate(store, &span, 1, &params, &words, NULL), GTOPK_OK);
        assert_int_equal(words.nonfinite, 1);
        assert_int_equal(ops->store_read(store, 1, 0, 3, out, NULL), GTOPK_OK);
        assert_same_float(out[0], 8.0f);
        assert_same_float(out[1], -9.0f);
        assert_same_float(out[2], FLT_MAX);
        assert_int_equal(ops->store_read(store, 0, 0, 3, out, NULL), GTOPK_OK);
        assert_same_float(out[0], nesterov ? 26.0f : 24.0f);
        assert_same_float(out[1], nesterov ? -22.5f : -17.0f);
        assert_same_float(out[2], 1.0f);
        for (int i = 0; i < 3; i++)
            assert_same_float(x[i], 0.0f);
        ops->store_destroy(store);
    }
}

/* What is not finite is not stored, 16-bit inputs are exact, a span without data changes nothing. */
static void test_accumulate_special_inputs(void **state)
{
    (void)state;
    const float residual[9] = {1, 2, FLT_MAX, 4, 5, 6, 7, 8, 9};
    float x[4] = {NAN, -INFINITY, FLT_MAX, 0.5f}, out[9];
    uint16_t fp16[2] = {0x7c00, 0x0001}, bf16[1] = {0x4049}; /* Inf and 2^-24; 3.140625 */
    const device_span_t spans[4] = {
        {5, 2, fp16, GTOPK_F16}, {0, 4, x, GTOPK_F32}, {7, 1, bf16, GTOPK_BF16}, {4, 1, NULL, GTOPK_F32}};
    const device_accumulate_t params = {.scale = 1.0f};
    device_words_t words = {.ok = 1};
    device_store_t *store = store_with(residual, 9, 0);
    assert_int_equal(ops->accumulate(store, spans + 2, 2, &params, &words, NULL), GTOPK_OK);
    assert_int_equal(words.nonfinite, 0);
    assert_int_equal(ops->accumulate(store, spans, 2, &params, &words, NULL), GTOPK_OK);
    assert_int_equal(words.nonfinite, 1);
    assert_int_equal(ops->store_read(store, 0, 0, 9, out, NULL), GTOPK_OK);
    const float expected[9] = {1, 2, FLT_MAX, 4.5f, 5, 6, 7.0f + 0x1p-24f, 8.0f + 3.140625f, 9};
    assert_memory_equal(out, expected, sizeof out);
    assert_true(isnan(x[0]) && x[3] == 0.5f && fp16[0] == 0x7c00);
    ops->store_destroy(store);
}

/* ---- commit ---- */

/* dim 4: 0 is selected, sent and in the final set, 1 selected and sent, 2 selected only, 3 in the final set only. */
static void test_commit(void **state)
{
    (void)state;
    for (int paper = 0; paper < 2; paper++) {
        const float residual[4] = {8.5f, 7.0f, 3.0f, 1.0f}, ones[4] = {1, 1, 1, 1};
        own_set_t selected = {{0, 1, 2}, {8.5f, 7.0f, 3.0f}, 3}, first = {{0, 1}, {8.0f, 6.0f}, 2},
                  final = {{0, 3}, {24.0f, -258.0f}, 2},
                  deposits[2] = {{{1, 3}, {0x1p24f, 2.0f}, 2}, {{1, 2}, {-0x1p24f, FLT_MAX}, 2}};
        const device_set_t deposit_sets[2] = {view(&deposits[0]), view(&deposits[1])};
        const device_journal_t journal = {.selected = view(&selected),
                                          .first = view(&first),
                                          .deposits = deposit_sets,
                                          .deposit_count = 2,
                                          .final = view(&final),
                                          .clear_final_only = paper,
                                          .divisor = 2};
        float out_low[2] = {NAN, NAN}, after[4];
        uint16_t out_high[2] = {0xffff, 0xffff};
        const device_span_t outputs[3] = {
            {0, 2, out_low, GTOPK_F32}, {2, 0, NULL, GTOPK_F32}, {2, 2, out_high, GTOPK_BF16}};
        const device_target_t target = {.spans = outputs, .count = 3};
        const device_words_t words = {.ok = 1};
        device_store_t *store = store_with(residual, 4, 1);
        assert_int_equal(ops->store_write(store, 1, 0, 4, ones, NULL), GTOPK_OK);
        assert_int_equal(ops->commit(store, &journal, &target, &words, NULL), GTOPK_OK);

        assert_same_float(out_low[0], 12.0f);
        assert_same_float(out_low[1], 0.0f);
        assert_int_equal(out_high[0], 0);
        assert_int_equal(out_high[1], 0xc301); /* -129 */
        assert_int_equal(ops->store_read(store, 0, 0, 4, after, NULL), GTOPK_OK);
        assert_same_float(after[0], 0.5f);
        /* 1 + 2^24 - 2^24 is 0 in this order; paper keeps 7, which 2^24 rounds to 8. */
        assert_same_float(after[1], paper ? 8.0f : 0.0f);
        assert_same_float(after[2], FLT_MAX);
        assert_same_float(after[3], 3.0f);
        assert_int_equal(ops->store_read(store, 1, 0, 4, after, NULL), GTOPK_OK);
        const float velocity[4] = {0, 1, 1, 1};
        assert_memory_equal(after, velocity, sizeof after);
        ops->store_destroy(store);
    }
}

/* -257.5 / 2 is no bf16: the nearest is -129, and .25 stays. 1e6 is no fp16: 65504, and the rest stays. A residual that
 * would become infinite is left alone. */
static void test_commit_keeps_what_outputs_cannot_hold(void **state)
{
    (void)state;
    const float residual[3] = {0.0f, 1.0f, FLT_MAX};
    own_set_t none = {.count = 0}, final = {{0, 1, 2}, {-257.5f, 2e6f, FLT_MAX}, 3};
    const device_journal_t journal = {
        .selected = view(&none), .first = view(&none), .final = view(&final), .divisor = 2};
    uint16_t bf16[1] = {0}, fp16[2] = {0, 0};
    const device_span_t outputs[2] = {{0, 1, bf16, GTOPK_BF16}, {1, 2, fp16, GTOPK_F16}};
    const device_target_t target = {.spans = outputs, .count = 2, .are_zero = 1};
    const device_words_t words = {.ok = 1};
    float after[3];
    device_store_t *store = store_with(residual, 3, 0);
    assert_int_equal(ops->commit(store, &journal, &target, &words, NULL), GTOPK_OK);
    assert_int_equal(ops->store_read(store, 0, 0, 3, after, NULL), GTOPK_OK);
    assert_int_equal(bf16[0], 0xc301);
    assert_same_float(after[0], 0.25f);
    assert_int_equal(fp16[0], 0x7bff);
    assert_same_float(after[1], 1.0f + (1e6f - 65504.0f));
    assert_int_equal(fp16[1], 0x7bff);
    assert_same_float(after[2], FLT_MAX);
    ops->store_destroy(store);
}

static void test_commit_of_a_failed_step(void **state)
{
    (void)state;
    own_set_t selected = {{0}, {3.0f}, 1}, none = {.count = 0};
    const device_journal_t journal = {
        .selected = view(&selected), .first = view(&selected), .final = view(&none), .divisor = 2};
    const float residual[2] = {3.0f, 1.0f};
    float out[2] = {5.0f, 5.0f}, after[2];
    const device_span_t outputs = {0, 2, out, GTOPK_F32};
    const device_target_t target = {.spans = &outputs, .count = 1};
    device_store_t *store = store_with(residual, 2, 0);

    const device_words_t failed = {.ok = 0, .nonfinite = 1}, nonfinite = {.ok = 1, .nonfinite = 1};
    assert_int_equal(ops->commit(store, &journal, &target, &failed, NULL), GTOPK_OK);
    assert_same_float(out[0], 5.0f);
    assert_int_equal(ops->commit(store, &journal, &target, &nonfinite, NULL), GTOPK_OK);
    assert_true(isnan(out[0]) && isnan(out[1]));
    assert_int_equal(ops->store_read(store, 0, 0, 2, after, NULL), GTOPK_OK);
    assert_memory_equal(after, residual, sizeof after);
    ops->store_destroy(store);
}

static void test_dense(void **state)
{
    (void)state;
    const float residual[3] = {3.0f, 1.0f, 2.0f}, zeros[3] = {0, 0, 0};
    float out[2], sum[3], after[3];
    uint16_t bf16[1];
    const device_span_t outputs[2] = {{0, 2, out, GTOPK_F32}, {2, 1, bf16, GTOPK_BF16}};
    const device_target_t target = {.spans = outputs, .count = 2};
    device_words_t words = {.ok = 1};
    device_store_t *store = store_with(residual, 3, 0);
    assert_int_equal(ops->dense_gather(store, sum, NULL), GTOPK_OK);
    assert_memory_equal(sum, residual, sizeof sum);

    assert_int_equal(ops->dense_check(store, sum, &words, NULL), GTOPK_OK);
    assert_int_equal(words.nonfinite, 0);
    assert_int_equal(words.count, 3);
    sum[1] = INFINITY;
    assert_int_equal(ops->dense_check(store, sum, &words, NULL), GTOPK_OK);
    assert_int_equal(words.nonfinite, 1);
    assert_int_equal(ops->dense_commit(store, sum, 4, &target, &words, NULL), GTOPK_OK);
    assert_true(isnan(out[0]) && isnan(out[1]) && bf16[0] == 0x7fc0);
    assert_int_equal(ops->store_read(store, 0, 0, 3, after, NULL), GTOPK_OK);
    assert_memory_equal(after, residual, sizeof after);

    words = (device_words_t){.ok = 1, .joined = 1};
    assert_int_equal(ops->dense_commit(store, sum, 4, &target, &words, NULL), GTOPK_OK);
    assert_true(out[0] == 0.0f && out[1] == 0.0f && bf16[0] == 0);
    assert_int_equal(ops->store_read(store, 0, 0, 3, after, NULL), GTOPK_OK);
    assert_memory_equal(after, residual, sizeof after);

    words.joined = 0;
    sum[1] = -6.0f;
    assert_int_equal(ops->dense_commit(store, sum, 4, &target, &words, NULL), GTOPK_OK);
    assert_true(out[0] == 0.75f && out[1] == -1.5f && bf16[0] == 0x3f00 && sum[0] == 0.75f);
    assert_int_equal(ops->store_read(store, 0, 0, 3, after, NULL), GTOPK_OK);
    assert_memory_equal(after, zeros, sizeof after);
    ops->store_destroy(store);
}

/* The update as arrays: everything of a sparse step, what is not zero of a dense one. */
static void test_commit_to_arrays(void **state)
{
    (void)state;
    const float residual[4] = {8.0f, 0.0f, 3.0f, 1.0f};
    own_set_t none = {.count = 0}, final = {{0, 3}, {24.0f, -6.0f}, 2};
    const device_journal_t journal = {
        .selected = view(&none), .first = view(&none), .final = view(&final), .divisor = 2};
    uint32_t indices[4] = {9, 9, 9, 9};
    float values[4] = {5, 5, 5, 5}, sum[4];
    const device_target_t target = {.indices = indices, .values = values};
    device_words_t words = {.ok = 1, .count = 7};
    device_store_t *store = store_with(residual, 4, 0);
    assert_int_equal(ops->commit(store, &journal, &target, &words, NULL), GTOPK_OK);
    assert_true(indices[0] == 0 && indices[1] == 3 && indices[2] == 9);
    assert_true(values[0] == 12.0f && values[1] == -3.0f && values[2] == 5.0f);

    assert_int_equal(ops->dense_gather(store, sum, NULL), GTOPK_OK);
    assert_int_equal(ops->dense_commit(store, sum, 2, &target, &words, NULL), GTOPK_OK);
    assert_int_equal(words.count, 3);
    assert_true(indices[0] == 0 && indices[1] == 2 && indices[2] == 3 && indices[3] == 9);
    assert_true(values[0] == 4.0f && values[1] == 1.5f && values[2] == 0.5f && values[3] == 5.0f);
    ops->store_destroy(store);
}

/* ---- words ---- */

static void test_words_of_reducers_together(void **state)
{
    (void)state;
    for (int cases = 0; cases < 16; cases++) {
        device_words_t a = {.ok = 1, .nonfinite = cases & 1}, b = {.ok = 1, .nonfinite = cases >> 1 & 1};
        device_words_t *const both[2] = {&a, &b};
        device_words_t told[2];
        own_set_t final = {.count = 5};
        const device_set_t final_set = view(&final);
        const device_outcome_t outcomes[2] = {{&a, &final_set, &told[0]}, {&b, NULL, &told[1]}};
        const uint32_t nonfinite = (cases & 3) != 0, joined = cases >> 2 & 1, ok = cases >> 3 & 1;
        assert_int_equal(ops->words_join(device, both, 2, (int)joined, NULL), GTOPK_OK);
        assert_true(a.nonfinite == nonfinite && b.nonfinite == nonfinite && a.joined == joined && b.joined == joined);
        a.ok = ok;
        b.count = 60; /* of a dense step */
        assert_int_equal(ops->verdict(device, outcomes, 2, NULL), GTOPK_OK);
        assert_true(told[0].ok == ok && told[1].ok == ok && a.ok == ok && b.ok == ok);
        assert_int_equal(told[0].count, nonfinite || joined ? 0 : 5);
        assert_int_equal(told[1].count, nonfinite || joined ? 0 : 60);
        assert_int_equal(told[1].nonfinite, nonfinite);
    }
}

static void test_step_begin_and_found_inf(void **state)
{
    (void)state;
    const float residual[2] = {3.0f, 1.0f};
    float x[2] = {1.0f, 1.0f}, after[2];
    const device_span_t span = {.length = 2, .data = x, .dtype = GTOPK_F32};
    const device_accumulate_t params = {.scale = 1.0f, .zero_input = 1, .found_inf = 1};
    device_words_t words;
    memset(&words, 0xff, sizeof words);
    device_store_t *store = store_with(residual, 2, 0);
    assert_int_equal(ops->step_begin(store, &words, NULL), GTOPK_OK);
    assert_true(words.ok == 1 && words.nonfinite == 0 && words.joined == 0 && words.error == 0 && words.count == 0);
    assert_int_equal(ops->accumulate(store, &span, 1, &params, &words, NULL), GTOPK_OK);
    assert_int_equal(words.nonfinite, 1);
    assert_true(x[0] == 1.0f && x[1] == 1.0f);
    assert_int_equal(ops->store_read(store, 0, 0, 2, after, NULL), GTOPK_OK);
    assert_memory_equal(after, residual, sizeof after);
    ops->store_destroy(store);
}

/* ---- opening ---- */

static void test_open(void **state)
{
    (void)state;
    device_t *other;
    (void)unsetenv("GTOPK_DEVICE");
    assert_int_equal(device_open(NULL, &other), GTOPK_OK);
    assert_string_equal(other->ops->name, "cpu");
    other->ops->close(other);

    assert_int_equal(setenv("GTOPK_DEVICE", "reference", 1), 0);
    assert_int_equal(device_open(NULL, &other), GTOPK_OK);
    assert_string_equal(other->ops->name, "reference");
    other->ops->close(other);

    assert_int_equal(setenv("GTOPK_DEVICE", "abacus", 1), 0);
    assert_int_equal(device_open(NULL, &other), GTOPK_ERR_UNSUPPORTED);
    assert_null(other);
    assert_non_null(strstr(gtopk_last_error(), "abacus"));
    assert_non_null(strstr(gtopk_last_error(), "GTOPK_DEVICE"));
    (void)unsetenv("GTOPK_DEVICE");
}

static int open_reference(void **state)
{
    (void)state;
    if (device_open("reference", &device) != GTOPK_OK)
        return -1;
    ops = device->ops;
    return 0;
}

static int close_reference(void **state)
{
    (void)state;
    ops->close(device);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_select),
        cmocka_unit_test(test_merge),
        cmocka_unit_test(test_merge_overflow),
        cmocka_unit_test(test_deposit),
        cmocka_unit_test(test_cut),
        cmocka_unit_test(test_accumulate_rounds_once),
        cmocka_unit_test(test_accumulate_momentum),
        cmocka_unit_test(test_accumulate_special_inputs),
        cmocka_unit_test(test_commit),
        cmocka_unit_test(test_commit_keeps_what_outputs_cannot_hold),
        cmocka_unit_test(test_commit_of_a_failed_step),
        cmocka_unit_test(test_dense),
        cmocka_unit_test(test_commit_to_arrays),
        cmocka_unit_test(test_words_of_reducers_together),
        cmocka_unit_test(test_step_begin_and_found_inf),
        cmocka_unit_test(test_open),
    };
    return cmocka_run_group_tests_name("device_reference", tests, open_reference, close_reference);
}
