/* Threads, for ThreadSanitizer: reducers of several communicators work at once, each sharing out its passes over memory
 * to threads of the caller, and every rank of every group gets the update that one thread alone gets. The segments are
 * long enough for several parts. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/check.h"
#include "gtopk.h"
#include "support/step.h"

enum { GROUPS = 2, RANKS = 2, WORKERS = 3, STEPS = 3, SEGMENTS = 3, SEGMENT = 200001, DIM = SEGMENTS * SEGMENT };

/* ---- a parallel_for as a program has it: threads that take the next part ---- */

typedef struct loop {
    gtopk_parallel_body_fn body;
    void *arg;
    int64_t end, grain;
    atomic_long next;
} loop_t;

static void *work(void *argument)
{
    loop_t *loop = argument;
    for (;;) {
        const int64_t begin = atomic_fetch_add(&loop->next, loop->grain);
        if (begin >= loop->end)
            return NULL;
        loop->body(begin, begin + loop->grain < loop->end ? begin + loop->grain : loop->end, loop->arg);
    }
}

static void parallel_for(void *context, int64_t begin, int64_t end, int64_t grain, gtopk_parallel_body_fn body,
                         void *arg)
{
    pthread_t threads[WORKERS];
    loop_t loop = {.body = body, .arg = arg, .end = end, .grain = grain > 0 ? grain : 1};
    atomic_init(&loop.next, begin);
    atomic_fetch_add((atomic_int *)context, 1);
    for (int i = 0; i < WORKERS; i++)
        REQUIRE(pthread_create(&threads[i], NULL, work, &loop) == 0);
    for (int i = 0; i < WORKERS; i++)
        REQUIRE(pthread_join(threads[i], NULL) == 0);
}

/* ---- ranks ---- */

typedef struct rank {
    pthread_t thread;
    gtopk_thread_group_t *group;
    int rank, threaded;
    atomic_int loops;
    float update[STEPS][DIM], residual[DIM];
} rank_t;

static void fill(float *x, int rank, int step)
{
    uint32_t seed = (uint32_t)(rank * 1000 + step) * 2654435761u + 1u;
    for (int i = 0; i < DIM; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float)(int32_t)seed * 1e-9f;
    }
}

static void *run_rank(void *argument)
{
    rank_t *self = argument;
    uint64_t lengths[SEGMENTS];
    uint32_t order[SEGMENTS];
    gtopk_comm_config_t net = GTOPK_COMM_CONFIG_INIT;
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_comm_t *comm;
    gtopk_reducer_t *reducer;
    net.transport = "thread";
    net.group = self->group;
    net.rank = self->rank;
    net.size = RANKS;
    net.timeout = 300.0;
    config.density = 0.01;
    if (self->threaded) {
        config.parallel_for = parallel_for;
        config.parallel_context = &self->loops;
    }
    for (int s = 0; s < SEGMENTS; s++) {
        lengths[s] = SEGMENT;
        order[s] = (uint32_t)(SEGMENTS - 1 - s);
    }
    REQUIRE(gtopk_comm_create(&comm, &net) == GTOPK_OK);
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, lengths, SEGMENTS) == GTOPK_OK);
    for (int step = 0; step < STEPS; step++) {
        gtopk_tensor_t outputs[SEGMENTS], inputs[SEGMENTS];
        fill(self->update[step], self->rank, step);
        for (int s = 0; s < SEGMENTS; s++)
            outputs[s] = (gtopk_tensor_t){self->update[step] + (size_t)s * SEGMENT, SEGMENT, GTOPK_F32, 0};
        for (int s = 0; s < SEGMENTS; s++)
            inputs[s] = outputs[order[s]];
        REQUIRE(gtopk_reducer_accumulate(reducer, order, inputs, SEGMENTS, 1.0, GTOPK_ZERO_INPUT, NULL) == GTOPK_OK);
        REQUIRE(step_reduce(reducer, outputs, SEGMENTS, GTOPK_OUTPUT_IS_ZERO, NULL) == GTOPK_OK);
    }
    for (uint32_t s = 0; s < SEGMENTS; s++)
        REQUIRE(gtopk_reducer_residual(reducer, s, self->residual + (size_t)s * SEGMENT, SEGMENT) == GTOPK_OK);
    gtopk_reducer_destroy(reducer);
    gtopk_comm_destroy(comm);
    return NULL;
}

static void run_groups(rank_t *ranks, int groups, int threaded)
{
    gtopk_thread_group_t *group[GROUPS];
    for (int g = 0; g < groups; g++)
        REQUIRE(gtopk_thread_group_create(&group[g], RANKS, 0) == GTOPK_OK);
    for (int i = 0; i < groups * RANKS; i++) {
        ranks[i].group = group[i / RANKS];
        ranks[i].rank = i % RANKS;
        ranks[i].threaded = threaded;
        REQUIRE(pthread_create(&ranks[i].thread, NULL, run_rank, &ranks[i]) == 0);
    }
    for (int i = 0; i < groups * RANKS; i++)
        REQUIRE(pthread_join(ranks[i].thread, NULL) == 0);
    for (int g = 0; g < groups; g++)
        gtopk_thread_group_destroy(group[g]);
}

static void test_reducers_at_once(void **state)
{
    (void)state;
    rank_t *alone = calloc(RANKS, sizeof *alone), *together = calloc(GROUPS * RANKS, sizeof *together);
    assert_true(alone && together);
    run_groups(alone, 1, 0);
    run_groups(together, GROUPS, 1);
    for (int i = 0; i < GROUPS * RANKS; i++) {
        assert_true(atomic_load(&together[i].loops) > 0);
        assert_memory_equal(together[i].update, alone[0].update, sizeof alone[0].update);
        assert_memory_equal(together[i].residual, alone[i % RANKS].residual, sizeof alone[0].residual);
    }
    free(together);
    free(alone);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reducers_at_once)};
    return cmocka_run_group_tests_name("threads", tests, NULL, NULL);
}
