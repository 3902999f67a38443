/* The cost model against values worked out by hand, and what gtopk_predict refuses. Bytes of a set of k = 1024 of n = 2^20
 * entries in bf16: low bits of 10 an entry, a unary part of k + (n - 1) / 1024 = 2047 bits, two bytes a value, a header: 64 + 1280 +
 * 256 + 2048 = 3648. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "gtopk.h"

#define DIM (1u << 20)
#define BYTES 3648.0

static double predict_with(const gtopk_costs_t *costs, int32_t algorithm, int32_t size, int32_t hierarchy)
{
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    double seconds = -1.0;
    config.algorithm = algorithm;
    config.density = 1.0 / 1024.0;
    config.hierarchy = hierarchy;
    assert_int_equal(gtopk_predict(costs, &config, DIM, size, &seconds), GTOPK_OK);
    return seconds;
}

static double predict(const gtopk_costs_t *costs, int32_t algorithm, int32_t size)
{
    return predict_with(costs, algorithm, size, GTOPK_HIERARCHY_OFF);
}

static void assert_close(double value, double expected)
{
    if (fabs(value - expected) > 1e-9 * fabs(expected))
        fail_msg("%.12g where %.12g is right", value, expected);
}

/* Seconds a message alone: how many messages follow each other. */
static void test_latencies(void **state)
{
    const struct {
        int32_t algorithm, size;
        double messages;
    } cases[] = {
        {GTOPK_ALGORITHM_GTOPK, 1, 0},       {GTOPK_ALGORITHM_GTOPK, 2, 1},       {GTOPK_ALGORITHM_GTOPK, 8, 3},
        {GTOPK_ALGORITHM_GTOPK, 5, 4},       {GTOPK_ALGORITHM_GTOPK, 7, 4},       {GTOPK_ALGORITHM_GTOPK_TREE, 1, 0},
        {GTOPK_ALGORITHM_GTOPK_TREE, 8, 6},  {GTOPK_ALGORITHM_GTOPK_TREE, 5, 6},  {GTOPK_ALGORITHM_GTOPK_SPLIT, 2, 2},
        {GTOPK_ALGORITHM_GTOPK_SPLIT, 8, 6}, {GTOPK_ALGORITHM_GTOPK_SPLIT, 5, 6}, {GTOPK_ALGORITHM_TOPK, 1, 0},
        {GTOPK_ALGORITHM_TOPK, 5, 4},        {GTOPK_ALGORITHM_TOPK, 8, 7},        {GTOPK_ALGORITHM_DENSE, 8, 3},
        {GTOPK_ALGORITHM_DENSE, 5, 4},
    };
    gtopk_costs_t costs = GTOPK_COSTS_INIT;
    (void)state;
    costs.message_s = 0.25;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_close(predict(&costs, cases[i].algorithm, cases[i].size), 0.25 * cases[i].messages);
    costs.gathers = 1;
    assert_close(predict(&costs, GTOPK_ALGORITHM_TOPK, 8), 0.25 * 3);
    assert_close(predict(&costs, GTOPK_ALGORITHM_TOPK, 5), 0.25 * 3);
    costs.message_s = 0.0;
    costs.sum_message_s = 0.5;
    assert_close(predict(&costs, GTOPK_ALGORITHM_DENSE, 8), 0.5 * 14);
    assert_close(predict(&costs, GTOPK_ALGORITHM_GTOPK, 8), 0.0);
}

/* Seconds a byte alone. A half of 512 entries of 2^19 indices: 64 + 640 + 128 + 1024. */
static void test_bytes(void **state)
{
    gtopk_costs_t costs = GTOPK_COSTS_INIT;
    (void)state;
    costs.byte_s = 1.0;
    assert_close(predict(&costs, GTOPK_ALGORITHM_GTOPK, 2), BYTES);
    assert_close(predict(&costs, GTOPK_ALGORITHM_GTOPK, 8), 3 * BYTES);
    assert_close(predict(&costs, GTOPK_ALGORITHM_GTOPK, 3), 3 * BYTES);
    assert_close(predict(&costs, GTOPK_ALGORITHM_GTOPK_TREE, 8), 6 * BYTES);
    assert_close(predict(&costs, GTOPK_ALGORITHM_TOPK, 4), 3 * BYTES);
    assert_close(predict(&costs, GTOPK_ALGORITHM_GTOPK_SPLIT, 2), 2 * 1856.0);
    assert_close(predict(&costs, GTOPK_ALGORITHM_GTOPK_SPLIT, 4), 2 * (1856.0 + 960.0));
    assert_close(predict(&costs, GTOPK_ALGORITHM_GTOPK_SPLIT, 3), 2 * 1856.0 + 2 * BYTES);
    assert_close(predict(&costs, GTOPK_ALGORITHM_DENSE, 4), 2 * 64.0);
    costs.byte_s = 0.0;
    costs.sum_byte_s = 1.0;
    assert_close(predict(&costs, GTOPK_ALGORITHM_DENSE, 4), 2.0 * 3 / 4 * 4 * DIM);
    assert_close(predict(&costs, GTOPK_ALGORITHM_DENSE, 1), 0.0);
}

static void test_this_machine(void **state)
{
    gtopk_costs_t costs = GTOPK_COSTS_INIT;
    (void)state;
    costs.accumulate_s = 1.0;
    assert_close(predict(&costs, GTOPK_ALGORITHM_GTOPK, 4), DIM);
    assert_close(predict(&costs, GTOPK_ALGORITHM_DENSE, 4), 0.0);
    costs.accumulate_s = 0.0;
    costs.dense_s = 1.0;
    assert_close(predict(&costs, GTOPK_ALGORITHM_DENSE, 4), DIM);
    assert_close(predict(&costs, GTOPK_ALGORITHM_TOPK, 4), 0.0);
    costs.dense_s = 0.0;
    costs.merge_s = 1.0;
    assert_close(predict(&costs, GTOPK_ALGORITHM_GTOPK, 4), 2 * 1024.0);
    assert_close(predict(&costs, GTOPK_ALGORITHM_TOPK, 2), 1024.0);
    assert_close(predict(&costs, GTOPK_ALGORITHM_TOPK, 4), (2 + 3 + 4) / 2.0 * 1024.0);
    assert_close(predict(&costs, GTOPK_ALGORITHM_GTOPK_SPLIT, 4), 2 * (512.0 + 256.0));
    costs.merge_s = 0.0;
    costs.select_s = 1.0;
    assert_close(predict(&costs, GTOPK_ALGORITHM_GTOPK, 1), 1024.0);
    assert_close(predict(&costs, GTOPK_ALGORITHM_GTOPK, 4), 1024.0 + 2 * 512.0);
    assert_close(predict(&costs, GTOPK_ALGORITHM_TOPK, 4), 1024.0 + 3 * 512.0);
}

/* Growth: rounds of 1024, 2048, and at most 4096 entries. */
static void test_growth(void **state)
{
    gtopk_costs_t costs = GTOPK_COSTS_INIT;
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    double seconds;
    (void)state;
    costs.merge_s = 1.0;
    config.density = 1.0 / 1024.0;
    config.merge_growth = 2.0;
    assert_int_equal(gtopk_predict(&costs, &config, DIM, 16, &seconds), GTOPK_OK);
    assert_close(seconds, 1024.0 + 2048.0 + 4096.0 + 4096.0);
}

/* Four ranks on each of two nodes: distances 1 and 2 are near. */
static void test_nodes(void **state)
{
    gtopk_costs_t costs = GTOPK_COSTS_INIT;
    (void)state;
    costs.each_node = 4;
    costs.message_s = 1.0;
    costs.near_message_s = 0.01;
    assert_close(predict(&costs, GTOPK_ALGORITHM_GTOPK, 8), 1.02);
    assert_close(predict(&costs, GTOPK_ALGORITHM_GTOPK_SPLIT, 8), 2.04);
    assert_close(predict(&costs, GTOPK_ALGORITHM_GTOPK, 4), 0.02);
    /* The node's sum and its update: three messages each; between the nodes one. */
    assert_close(predict_with(&costs, GTOPK_ALGORITHM_GTOPK, 8, GTOPK_HIERARCHY_NODE), 1.0 + 6 * 0.01);
    costs.message_s = costs.near_message_s = 0.0;
    costs.near_byte_s = 1.0;
    /* A share of 2^18 entries, of which k / 4 are in the update. */
    const double update = 64 + 256 * 10 / 8 + 64 + 4 * 256;
    assert_close(predict_with(&costs, GTOPK_ALGORITHM_GTOPK, 8, GTOPK_HIERARCHY_NODE), 3 * (DIM + update));
    costs.near_byte_s = 0.0;
    costs.byte_s = 1.0;
    assert_close(predict_with(&costs, GTOPK_ALGORITHM_GTOPK, 8, GTOPK_HIERARCHY_NODE), 64 + 320 + 64 + 512);
    assert_close(predict_with(&costs, GTOPK_ALGORITHM_DENSE, 8, GTOPK_HIERARCHY_NODE), 64.0);
}

static void expect_invalid(const gtopk_costs_t *costs, const gtopk_reducer_config_t *config, uint64_t dim, int32_t size,
                           const char *words)
{
    double seconds;
    assert_int_equal(gtopk_predict(costs, config, dim, size, &seconds), GTOPK_ERR_INVALID);
    if (!strstr(gtopk_last_error(), words))
        fail_msg("'%s' does not say '%s'", gtopk_last_error(), words);
}

static void test_refused(void **state)
{
    const gtopk_costs_t none = GTOPK_COSTS_INIT;
    gtopk_costs_t costs = none;
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    (void)state;
    assert_int_equal(gtopk_predict(&costs, &config, 1, 1, NULL), GTOPK_ERR_INVALID);
    expect_invalid(NULL, &config, 1, 1, "GTOPK_COSTS_INIT");
    expect_invalid(&costs, &config, 1, 0, "0 ranks");
    expect_invalid(&costs, &config, 0, 1, "0 entries");
    expect_invalid(&costs, &config, (uint64_t)1 << 32, 1, "out of range");
    costs.byte_s = -1.0;
    expect_invalid(&costs, &config, 1, 1, "-1 s");
    costs.byte_s = NAN;
    expect_invalid(&costs, &config, 1, 1, "nan s");
    costs = none;
    costs.dense_s = INFINITY;
    expect_invalid(&costs, &config, 1, 1, "inf s");
    costs = none;
    costs.each_node = 0;
    expect_invalid(&costs, &config, 1, 1, "each_node 0");
    costs.each_node = 2;
    config.hierarchy = GTOPK_HIERARCHY_NODE;
    expect_invalid(&costs, &config, 1, 3, "3 ranks on nodes of 2");
    config.algorithm = GTOPK_ALGORITHM_AUTO;
    expect_invalid(&none, &config, 1, 1, "one algorithm");
    config.algorithm = 5;
    expect_invalid(&none, &config, 1, 1, "algorithm 5");
    config.algorithm = 0;
    config.density = 0.0;
    expect_invalid(&none, &config, 1, 1, "density");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_latencies), cmocka_unit_test(test_bytes), cmocka_unit_test(test_this_machine),
        cmocka_unit_test(test_growth),    cmocka_unit_test(test_nodes), cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
