/* The public blocks: select on both devices against a sort, arrays that are only read, arguments that are refused. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gtopk.h"
#include "wire/wire.h"
#include "support/random.h"

#define N_MAX 30000

static float x[N_MAX], copy[N_MAX];
static uint32_t order[N_MAX], indices[N_MAX];
static float values[N_MAX];

static uint32_t magnitude(uint32_t i)
{
    uint32_t bits;
    memcpy(&bits, &x[i], sizeof bits);
    return bits & 0x7fffffffu;
}

static int by_key(const void *a, const void *b)
{
    const uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    if (magnitude(i) != magnitude(j))
        return magnitude(i) > magnitude(j) ? -1 : 1;
    return i < j ? -1 : i > j;
}

static int by_index(const void *a, const void *b)
{
    const uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    return i < j ? -1 : i > j;
}

static void check_select(uint32_t n, uint32_t k)
{
    gtopk_set_t set = {indices, values, N_MAX, 0};
    memcpy(copy, x, sizeof x);
    if (gtopk_select(x, n, k, &set) != GTOPK_OK)
        fail_msg("%s", gtopk_last_error());
    assert_memory_equal(x, copy, sizeof x);
    uint32_t nonzero = 0;
    for (uint32_t i = 0; i < n; i++)
        nonzero += magnitude(i) != 0;
    uint32_t expected = k < nonzero ? k : nonzero;
    assert_int_equal(set.count, expected);
    for (uint32_t i = 0; i < n; i++)
        order[i] = i;
    qsort(order, n, sizeof *order, by_key);
    qsort(order, expected, sizeof *order, by_index);
    assert_memory_equal(indices, order, expected * sizeof *order);
    for (uint32_t i = 0; i < expected; i++)
        assert_memory_equal(&values[i], &x[indices[i]], sizeof *values);
}

static void fill(random_state_t *random, int kind)
{
    for (uint32_t i = 0; i < N_MAX; i++) {
        const float uniform = (float)random_below(random, 1u << 20) * 0x1p-19f - 1.0f;
        switch (kind) {
        case 0: x[i] = uniform; break;
        case 1: x[i] = 1.0f; break;                                        /* ties everywhere */
        case 2: x[i] = (float)((int)random_below(random, 7) - 3); break;   /* many ties, zeros */
        case 3: x[i] = i % 1000 ? 0.0f : uniform; break;                   /* fewer than k non-zeros */
        case 4: x[i] = uniform * 1e-40f; break;                            /* denormals */
        case 5: x[i] = i % 2 ? -0.0f : (float)i; break;                    /* rising, minus zeros */
        default: x[i] = uniform * (i < N_MAX / 2 ? 1e-20f : 1e20f); break; /* two scales */
        }
    }
}

static void test_select(void **state)
{
    (void)state;
    const char *const devices[] = {"cpu", "reference"};
    const uint32_t sizes[] = {1, 2, 63, 4096, 4097, N_MAX};
    const char *before = getenv("GTOPK_DEVICE");
    char *kept = before ? strdup(before) : NULL;
    random_state_t random = {7};
    for (int d = 0; d < 2; d++) {
        assert_int_equal(setenv("GTOPK_DEVICE", devices[d], 1), 0);
        for (int kind = 0; kind < 7; kind++) {
            fill(&random, kind);
            for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
                for (uint32_t k = 0; k <= sizes[s]; k = k * 9 + 1)
                    check_select(sizes[s], k);
        }
        const float bad[] = {NAN, INFINITY, -INFINITY};
        for (int i = 0; i < 3; i++) {
            fill(&random, 0);
            x[1234] = bad[i];
            gtopk_set_t set = {indices, values, N_MAX, 0};
            assert_int_equal(gtopk_select(x, N_MAX, 5, &set), GTOPK_ERR_INVALID);
            assert_int_equal(set.count, 0);
        }
    }
    if (kept)
        (void)setenv("GTOPK_DEVICE", kept, 1);
    else
        (void)unsetenv("GTOPK_DEVICE");
    free(kept);
}

/* Parts of `grain` items, the last first. */
static void run_parts(void *context, int64_t begin, int64_t end, int64_t grain, gtopk_parallel_body_fn body, void *arg)
{
    int *parts = context;
    for (int64_t part = (end - begin - 1) / grain; part >= 0; part--) {
        const int64_t from = begin + part * grain;
        body(from, end - from < grain ? end : from + grain, arg);
        ++*parts;
    }
}

static void test_select_in_parts(void **state)
{
    (void)state;
    static float large[1 << 20], other_values[1000];
    static uint32_t other_indices[1000];
    random_state_t random = {11};
    int parts = 0;
    for (size_t i = 0; i < sizeof large / sizeof *large; i++)
        large[i] = (float)random_below(&random, 1u << 20) - 0x1p19f;
    gtopk_set_t alone = {indices, values, 1000, 0}, together = {other_indices, other_values, 1000, 0};
    assert_int_equal(gtopk_select(large, 1 << 20, 1000, &alone), GTOPK_OK);
    assert_int_equal(gtopk_select_parallel(large, 1 << 20, 1000, &together, run_parts, &parts), GTOPK_OK);
    assert_true(parts > 1);
    assert_int_equal(together.count, alone.count);
    assert_memory_equal(other_indices, indices, alone.count * sizeof *indices);
    assert_memory_equal(other_values, values, alone.count * sizeof *values);
}

static void test_refusals(void **state)
{
    (void)state;
    gtopk_set_t room = {indices, values, 2, 0}, none = {NULL, NULL, 0, 0};
    uint32_t falling[2] = {5, 5}, rising[2] = {5, 6};
    float fine[2] = {1.0f, 2.0f}, zero[2] = {1.0f, 0.0f}, huge[2] = {3e38f, 1.0f};
    const gtopk_set_t disorder = {falling, fine, 2, 2}, with_zero = {rising, zero, 2, 2}, good = {rising, fine, 2, 2},
                      large = {rising, huge, 2, 2};
    uint8_t buffer[256];
    size_t bytes = sizeof buffer;
    assert_int_equal(gtopk_select(x, 10, 3, &room), GTOPK_ERR_INVALID);
    assert_int_equal(gtopk_select(NULL, 10, 1, &room), GTOPK_ERR_INVALID);
    assert_int_equal(gtopk_select(x, 10, 1, &none), GTOPK_ERR_INVALID);
    assert_int_equal(gtopk_select(x, (uint64_t)UINT32_MAX + 1, 1, &room), GTOPK_ERR_INVALID);
    assert_int_equal(gtopk_merge(&disorder, &good, 2, &room), GTOPK_ERR_INVALID);
    assert_int_equal(gtopk_merge(&good, &with_zero, 2, &room), GTOPK_ERR_INVALID);
    assert_int_equal(gtopk_merge(&large, &large, 2, &room), GTOPK_ERR_INVALID);
    assert_non_null(strstr(gtopk_last_error(), "too large"));
    assert_int_equal(gtopk_merge(&good, &good, 3, &room), GTOPK_ERR_INVALID);
    assert_int_equal(gtopk_merge(&good, &good, 2, &room), GTOPK_OK);
    assert_int_equal(room.count, 2);
    assert_int_equal(gtopk_encode(&good, 6, GTOPK_VALUE_F32, buffer, &bytes), GTOPK_ERR_INVALID);
    assert_int_equal(gtopk_encode(&good, 7, 9, buffer, &bytes), GTOPK_ERR_INVALID);
    bytes = 10;
    assert_int_equal(gtopk_encode(&good, 7, GTOPK_VALUE_F32, buffer, &bytes), GTOPK_ERR_INVALID);
}

/* A message that a rank sent when it gave up is told apart from a damaged one. */
static void test_last_words_hold_no_set(void **state)
{
    (void)state;
    uint32_t index[2] = {5, 6};
    float value[2] = {1.0f, 2.0f};
    gtopk_set_t set = {index, value, 2, 2}, out = {indices, values, 2, 0};
    uint8_t buffer[256];
    size_t bytes = sizeof buffer;
    uint64_t dim = 0;
    assert_int_equal(gtopk_encode(&set, 7, GTOPK_VALUE_F32, buffer, &bytes), GTOPK_OK);
    assert_int_equal(gtopk_decode(buffer, bytes, &out, &dim), GTOPK_OK);
    assert_true(out.count == 2 && dim == 7);
    wire_make_last_word(buffer, 1);
    wire_seal(buffer, bytes - WIRE_HEADER_SIZE);
    assert_int_equal(gtopk_decode(buffer, bytes, &out, &dim), GTOPK_ERR_CORRUPT);
    assert_non_null(strstr(gtopk_last_error(), "last word"));
    assert_int_equal(out.count, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_select), cmocka_unit_test(test_select_in_parts),
                                       cmocka_unit_test(test_refusals), cmocka_unit_test(test_last_words_hold_no_set)};
    return cmocka_run_group_tests_name("blocks", tests, NULL, NULL);
}
