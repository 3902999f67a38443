/* Ranges of indices and their owners, by counting. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "exchange/ranges.h"
#include "support/random.h"

#define DIM_MAX 3000

/* Every index is in one range, at the next place in it, and comes back from there. */
static void test_places_are_counted(void **state)
{
    random_state_t random = {1};
    (void)state;
    for (int round = 0; round < 300; round++) {
        const uint32_t bits = (uint32_t)random_below(&random, 6);
        const uint64_t dim = random_below(&random, DIM_MAX);
        uint64_t next[32] = {0};
        for (uint32_t i = 0; i < dim; i++) {
            int found = 0;
            for (uint32_t part = 0; part < 1u << bits; part++) {
                const device_range_t range = {bits, part};
                if (!range_has(range, i))
                    continue;
                found++;
                assert_int_equal(range_inside(range, i), next[part]++);
                assert_int_equal(range_outside(range, range_inside(range, i)), i);
            }
            assert_int_equal(found, 1);
        }
        for (uint32_t part = 0; part < 1u << bits; part++)
            assert_int_equal(range_dim((device_range_t){bits, part}, dim), next[part]);
    }
}

static void test_the_largest_index(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 32; bits++) {
        const device_range_t range = {bits, range_mix(UINT32_MAX) & ((1u << bits) - 1)};
        assert_true(range_has(range, UINT32_MAX));
        assert_int_equal(range_inside(range, UINT32_MAX), UINT32_MAX >> bits);
        assert_int_equal(range_outside(range, UINT32_MAX >> bits), UINT32_MAX);
        assert_int_equal(range_dim(range, UINT32_MAX), UINT32_MAX >> bits); /* 2^32 - 1 itself is not below */
    }
}

/* Strided entries, as the columns of a matrix are, spread over all ranges. */
static void test_columns_are_shared(void **state)
{
    (void)state;
    for (uint32_t shift = 0; shift <= 20; shift++)
        for (uint32_t owners = 2; owners <= 64; owners *= 2) {
            uint32_t found[64] = {0}, most = 0;
            for (uint32_t row = 0; row < 2048; row++)
                found[range_mix(5 + (row << shift)) % owners]++;
            for (uint32_t o = 0; o < owners; o++)
                most = found[o] > most ? found[o] : most;
            assert_true(most <= 3 * 2048 / owners);
        }
}

/* A half of a half is what the owners' bits say. */
static void test_halves_lead_to_owners(void **state)
{
    random_state_t random = {2};
    (void)state;
    for (int round = 0; round < 2000; round++) {
        const uint32_t levels = (uint32_t)random_below(&random, 12);
        const uint32_t index = (uint32_t)random_u64(&random);
        const uint32_t owner = range_mix(index) & ((1u << levels) - 1);
        uint32_t place = index;
        for (uint32_t level = 0; level < levels; level++) {
            assert_true(range_has(ranges_half(level, owner), place));
            assert_false(range_has(ranges_half(level, owner ^ (1u << level)), place));
            place = range_inside(ranges_half(level, owner), place);
            assert_int_equal(place, range_inside(ranges_at(level + 1, owner), index));
        }
        assert_true(range_has(ranges_at(levels, owner), index));
    }
}

static void test_budgets(void **state)
{
    random_state_t random = {3};
    (void)state;
    for (int round = 0; round < 2000; round++) {
        const uint32_t levels = (uint32_t)random_below(&random, 7), owners = 1u << levels;
        const uint64_t dim = 1 + random_below(&random, 1 + random_below(&random, 100000));
        const uint64_t k = 1 + random_below(&random, dim);
        uint64_t all = 0;
        for (uint32_t o = 0; o < owners; o++) {
            const uint64_t part = range_dim(ranges_at(levels, o), dim);
            const uint32_t budget = ranges_budget(dim, k, part);
            assert_true(budget <= part && (budget > 0 || part == 0)); /* whoever has entries can send one */
            assert_true((double)budget < (double)k * (double)part / (double)dim + 1.0);
            assert_int_equal(ranges_kept(dim, k, levels, levels, o), budget);
            all += budget;
        }
        assert_true(all >= k && all < k + owners);
        for (uint32_t level = 0; level <= levels; level++) {
            uint64_t sum = 0;
            for (uint32_t o = 0; o < 1u << level; o++)
                sum += ranges_kept(dim, k, levels, level, o);
            assert_int_equal(sum, all);
        }
    }
    assert_int_equal(ranges_budget(UINT32_MAX, UINT32_MAX, UINT32_MAX), UINT32_MAX);
    assert_int_equal(ranges_budget(UINT32_MAX, 1, 0), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_places_are_counted),
        cmocka_unit_test(test_the_largest_index),
        cmocka_unit_test(test_columns_are_shared),
        cmocka_unit_test(test_halves_lead_to_owners),
        cmocka_unit_test(test_budgets),
    };
    return cmocka_run_group_tests_name("ranges", tests, NULL, NULL);
}
