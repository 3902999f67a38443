/* What the CPU device does only with much data: second read passes that start from a sample, pools that are cut,
 * merges that look for the k-th magnitude with a sample. Samples are made to mislead. Each instruction set that this
 * machine runs gives the reference device's bits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "device/device.h"
#include "support/random.h"

enum { DIM = 700000, K = 700, SETS = 40000 };

static const char *const isas[] = {"scalar", "avx2", "avx512", "neon"};
enum { ISA_COUNT = sizeof isas / sizeof isas[0] };

#define CHECK_OK(call)                                     \
    do {                                                   \
        if ((call) != GTOPK_OK)                            \
            fail_msg("%s: %s", #call, gtopk_last_error()); \
    } while (0)

static device_t *devices[1 + ISA_COUNT]; /* the reference first */
static size_t device_count;

static int open_devices(void **state)
{
    (void)state;
    CHECK_OK(device_reference_open(&devices[device_count++]));
    for (size_t i = 0; i < ISA_COUNT; i++) {
        (void)setenv("GTOPK_ISA", isas[i], 1);
        if (device_cpu_open(&devices[device_count]) == GTOPK_OK)
            device_count++;
        else
            print_message("skipped: %s\n", gtopk_last_error());
    }
    (void)unsetenv("GTOPK_ISA");
    return 0;
}

static int close_devices(void **state)
{
    (void)state;
    for (size_t d = 0; d < device_count; d++)
        devices[d]->ops->close(devices[d]);
    return 0;
}

/* ---- sets ---- */

typedef struct set {
    uint32_t index[2 * SETS], count;
    float value[2 * SETS];
} set_t;

static device_set_t set_of(set_t *set)
{
    return (device_set_t){set->index, set->value, &set->count, 2 * SETS};
}

static void assert_same(const set_t *expected, const set_t *got)
{
    assert_int_equal(expected->count, got->count);
    assert_memory_equal(expected->index, got->index, expected->count * sizeof expected->index[0]);
    assert_memory_equal(expected->value, got->value, expected->count * sizeof expected->value[0]);
}

/* ---- selection ---- */

static float random_value(random_state_t *random)
{
    return (float)(random_u64(random) >> 40) * 0x1p-23f - 1.0f;
}

static float gradient[DIM], earlier[DIM], later[DIM];

/* One step on a device: accumulate, select, and put back nothing. Returns the misses. */
static uint64_t step(device_t *device, device_store_t *store, uint64_t k, set_t *selected)
{
    device_words_t words = {.ok = 1};
    device_accumulate_t params = {.scale = 1.0f};
    device_span_t span = {.offset = 0, .length = DIM, .data = gradient, .dtype = GTOPK_F32};
    device_set_t out = set_of(selected);
    CHECK_OK(device->ops->step_begin(store, &words, NULL));
    CHECK_OK(device->ops->accumulate(store, &span, 1, &params, &words, NULL));
    CHECK_OK(device->ops->select(store, k, &out, &words, NULL));
    return words.misses;
}

/* Two steps: the first leaves residual `first`, the second `second`. */
static void select_twice(const float *first, const float *second, uint64_t k, uint64_t expected_misses)
{
    static set_t expected, got;
    for (size_t d = 0; d < device_count; d++) {
        device_store_t *store;
        CHECK_OK(devices[d]->ops->store_create(devices[d], DIM, K, 0, NULL, &store));
        memcpy(gradient, first, sizeof gradient);
        (void)step(devices[d], store, k, &got);
        for (size_t i = 0; i < DIM; i++)
            gradient[i] = second[i] - first[i];
        uint64_t misses = step(devices[d], store, k, d == 0 ? &expected : &got);
        if (d > 0) {
            assert_int_equal(expected_misses, misses);
            assert_same(&expected, &got);
        }
        devices[d]->ops->store_destroy(store);
    }
}

static void test_a_fallen_threshold(void **state)
{
    (void)state;
    random_state_t random = {1};
    for (size_t i = 0; i < DIM; i++) {
        earlier[i] = random_value(&random);
        later[i] = earlier[i] * 0x1p-10f;
    }
    select_twice(earlier, later, K, 1);
}

/* Large values stand where a sample of evenly spread pieces looks: from it, the threshold seems far too high. */
static void test_a_sample_that_misleads(void **state)
{
    (void)state;
    random_state_t random = {2};
    for (size_t i = 0; i < DIM; i++) {
        earlier[i] = 64.0f * random_value(&random);
        later[i] = 0x1p-10f * random_value(&random);
    }
    for (size_t p = 0; p < 512; p++)
        later[p * (DIM / 512)] = 0x1p-2f;
    select_twice(earlier, later, K, 1);
}

/* Every entry is larger than all before it, or all are equal: the pool is full again and again. */
static void test_a_pool_that_overflows(void **state)
{
    (void)state;
    for (size_t i = 0; i < DIM; i++) {
        earlier[i] = (float)(i + 1) * 0x1p-10f;
        later[i] = i % 2 ? 1.0f : -1.0f;
    }
    select_twice(earlier, earlier, K, 0);
    select_twice(later, earlier, K, 0);
    select_twice(later, later, K / 2, 0);
}

/* ---- merging ---- */

static void merge_everywhere(const set_t *a, const set_t *b, uint64_t k)
{
    static set_t expected_kept, expected_all, kept, all, left, right;
    for (size_t d = 0; d < device_count; d++) {
        device_words_t words = {.ok = 1};
        left = *a;
        right = *b;
        device_set_t in_a = set_of(&left), in_b = set_of(&right);
        device_set_t out_kept = set_of(d ? &kept : &expected_kept), out_all = set_of(d ? &all : &expected_all);
        out_kept.capacity = (uint32_t)(k < 2 * SETS ? k : 2 * SETS);
        CHECK_OK(devices[d]->ops->merge(devices[d], &in_a, &in_b, k, &out_kept, &out_all, &words, NULL));
        if (d > 0) {
            assert_same(&expected_all, &all);
            assert_same(&expected_kept, &kept);
        }
        set_t *rest = d ? &left : &right; /* no longer needed */
        device_set_t out = set_of(rest);
        CHECK_OK(devices[d]->ops->deposit(devices[d], &out_all, &out_kept, 0.5f, &out, &words, NULL));
        if (d == 0)
            continue;
        static set_t first;
        out = set_of(&first);
        CHECK_OK(devices[0]->ops->deposit(devices[0], &out_all, &out_kept, 0.5f, &out, &words, NULL));
        assert_same(&first, rest);
    }
}

/* style 0: all different; 1: few magnitudes; 2: one; 3: all that a sample takes is large, for any even stride. */
static void fill(set_t *set, random_state_t *random, uint32_t count, int style)
{
    set->count = count;
    random_indices(random, set->index, count, 4 * (uint64_t)count);
    for (uint32_t i = 0; i < count; i++) {
        float value = random_value(random);
        value = value == 0.0f ? 1.0f : value;
        if (style == 1)
            value = (float)(1 + random_below(random, 3)) * (value < 0 ? -1.0f : 1.0f);
        if (style == 2)
            value = value < 0 ? -2.0f : 2.0f;
        if (style == 3)
            value = value * (i % 2 ? 0x1p-20f : 1.0f);
        set->value[i] = value;
    }
}

static void test_large_merges(void **state)
{
    (void)state;
    static set_t a, b;
    random_state_t random = {3};
    for (int style = 0; style < 4; style++)
        for (int run = 0; run < 6; run++) {
            uint32_t count = (uint32_t)(5000 + random_below(&random, SETS - 5000));
            fill(&a, &random, count, style);
            fill(&b, &random, run % 2 ? count : 1, style);
            merge_everywhere(&a, &b, 1 + random_below(&random, count));
            merge_everywhere(&a, &b, 1);
            merge_everywhere(&a, &b, 2 * SETS);
            merge_everywhere(&a, &b, count - random_below(&random, 100)); /* all but a few */
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_fallen_threshold),
        cmocka_unit_test(test_a_sample_that_misleads),
        cmocka_unit_test(test_a_pool_that_overflows),
        cmocka_unit_test(test_large_merges),
    };
    return cmocka_run_group_tests(tests, open_devices, close_devices);
}
