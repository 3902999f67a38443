/* Broadcast, all-gather, all-reduce and barrier of the public API. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "support/check.h"
#include "support/ranks.h"

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
        cmocka_unit_test(test_collectives),
        cmocka_unit_test(test_collective_of_other_lengths),
    };
    return cmocka_run_group_tests_name("collectives", tests, NULL, NULL);
}
