/* The caller's interrupt: whatever waits for a peer ends soon after it asks to, as a fault does. The other ranks hear
 * of it, the residual is what it was, every later call fails with the same error. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "support/step.h"
#include "transport/transport.h"
#include "util/clock.h"

#define DIM 100
#define TIMEOUT 120.0
#define SOON 60.0 /* seconds, on a loaded machine */

/* Goes on `left` times, then asks to stop; -1: never. */
static int countdown(void *context)
{
    atomic_int *left = context;
    if (atomic_load(left) < 0)
        return 0;
    return atomic_fetch_sub(left, 1) == 0;
}

/* ---- ranks that are threads: rank 1 comes to the step only when rank 0 has given up ---- */

typedef struct pair {
    gtopk_thread_group_t *group;
    int algorithm, at_creation;
    atomic_int left, gave_up;
    gtopk_status_t status[2], later;
    int kept;
    double seconds;
} pair_t;

static void *run_rank(pair_t *pair, int rank)
{
    const uint64_t length = DIM;
    gtopk_comm_config_t net = GTOPK_COMM_CONFIG_INIT;
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_comm_t *comm = NULL;
    gtopk_reducer_t *reducer = NULL;
    float x[DIM], before[DIM] = {0}, after[DIM] = {1.0f};
    const gtopk_tensor_t tensor = {x, DIM, GTOPK_F32, 0};
    net.transport = "thread";
    net.group = pair->group;
    net.rank = rank;
    net.size = 2;
    net.timeout = TIMEOUT;
    if (rank == 0) {
        net.interrupt = countdown;
        net.interrupt_context = &pair->left;
    }
    config.algorithm = pair->algorithm;
    for (int i = 0; i < DIM; i++)
        x[i] = (float)(i - 30);
    if (rank == 1 && pair->at_creation)
        return NULL;
    const double begin = clock_now();
    pair->status[rank] = gtopk_comm_create(&comm, &net);
    if (pair->status[rank] == GTOPK_OK)
        pair->status[rank] = gtopk_reducer_create(&reducer, comm, &config, &length, 1);
    if (pair->status[rank] != GTOPK_OK)
        goto cleanup;
    if (rank == 1)
        while (!atomic_load(&pair->gave_up))
            (void)usleep(1000);
    else
        atomic_store(&pair->left, 3);
    if (gtopk_reducer_accumulate(reducer, NULL, &tensor, 1, 1.0, 0, NULL) != GTOPK_OK ||
        gtopk_reducer_residual(reducer, 0, before, DIM) != GTOPK_OK)
        abort();
    pair->status[rank] = step_reduce(reducer, &tensor, 1, 0, NULL);
    if (gtopk_reducer_residual(reducer, 0, after, DIM) != GTOPK_OK)
        abort();
    if (rank == 0) {
        pair->kept = memcmp(before, after, sizeof before) == 0;
        pair->later = gtopk_barrier(comm);
    } else if (pair->status[rank] ==
               GTOPK_OK) { /* it had this rank's message, and learns of the end in the next call */
        pair->status[rank] = gtopk_barrier(comm);
    }

cleanup:
    if (rank == 0) {
        pair->seconds = clock_now() - begin;
        atomic_store(&pair->gave_up, 1);
    }
    gtopk_reducer_destroy(reducer);
    gtopk_comm_destroy(comm);
    return NULL;
}

static void *run_second(void *argument)
{
    return run_rank(argument, 1);
}

static void run_pair(pair_t *pair)
{
    pthread_t second;
    assert_int_equal(gtopk_thread_group_create(&pair->group, 2, 0), GTOPK_OK);
    assert_int_equal(pthread_create(&second, NULL, run_second, pair), 0);
    (void)run_rank(pair, 0);
    assert_int_equal(pthread_join(second, NULL), 0);
    gtopk_thread_group_destroy(pair->group);
    assert_int_equal(pair->status[0], GTOPK_ERR_INTERRUPTED);
    assert_true(pair->seconds < SOON);
}

static void test_a_step_ends(void **state)
{
    (void)state;
    for (int algorithm = 0; algorithm < 4; algorithm++) {
        pair_t pair = {.algorithm = algorithm, .left = -1};
        run_pair(&pair);
        assert_true(pair.kept);
        assert_int_equal(pair.later, GTOPK_ERR_INTERRUPTED);
        assert_int_equal(pair.status[1], GTOPK_ERR_ABORTED);
    }
}

static void test_the_creation_of_a_communicator_ends(void **state)
{
    (void)state;
    pair_t pair = {.at_creation = 1, .left = 3};
    run_pair(&pair);
}

/* ---- functions of the caller that do not return ---- */

typedef struct blocked {
    atomic_int entered, release, gone;
} blocked_t;

static int block(void *context)
{
    blocked_t *blocked = context;
    atomic_store(&blocked->entered, 1);
    while (!atomic_load(&blocked->release))
        (void)usleep(1000);
    atomic_store(&blocked->gone, 1);
    return 1;
}

static int stuck_exchange(void *context, int32_t to, const void *send, size_t send_bytes, int32_t from, void *receive,
                          size_t receive_bytes, double timeout, char *error)
{
    (void)to, (void)send, (void)send_bytes, (void)from, (void)receive, (void)receive_bytes, (void)timeout, (void)error;
    return block(context);
}

static int stuck_allreduce(void *context, float *buffer, size_t count, double timeout, char *error)
{
    (void)buffer, (void)count, (void)timeout, (void)error;
    return block(context);
}

static int stop_once_entered(void *context)
{
    return atomic_load(&((blocked_t *)context)->entered);
}

static gtopk_comm_config_t callback_config(blocked_t *blocked, const gtopk_callbacks_t *callbacks)
{
    gtopk_comm_config_t net = GTOPK_COMM_CONFIG_INIT;
    net.transport = "callback";
    net.size = 2;
    net.rank = 0;
    net.timeout = TIMEOUT;
    net.callbacks = callbacks;
    net.interrupt = stop_once_entered;
    net.interrupt_context = blocked;
    return net;
}

static void let_go(blocked_t *blocked)
{
    atomic_store(&blocked->release, 1);
    while (!atomic_load(&blocked->gone))
        (void)usleep(1000);
}

/* Buffers that a call which was given up may still write to stay, so this leak is meant. For LeakSanitizer. */
__attribute__((visibility("default"))) const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:gtopk_comm_create\n";
}

static void test_an_exchange_that_does_not_return(void **state)
{
    (void)state;
    static blocked_t blocked;
    const gtopk_callbacks_t callbacks = {
        .struct_size = sizeof callbacks, .context = &blocked, .exchange = stuck_exchange};
    const gtopk_comm_config_t net = callback_config(&blocked, &callbacks);
    gtopk_comm_t *comm;
    const double begin = clock_now();
    assert_int_equal(gtopk_comm_create(&comm, &net), GTOPK_ERR_INTERRUPTED);
    assert_true(clock_now() - begin < SOON);
    let_go(&blocked);
}

static void test_an_allreduce_that_does_not_return(void **state)
{
    (void)state;
    static blocked_t blocked;
    const gtopk_callbacks_t callbacks = {
        .struct_size = sizeof callbacks, .context = &blocked, .exchange = stuck_exchange, .allreduce = stuck_allreduce};
    const gtopk_comm_config_t net = callback_config(&blocked, &callbacks);
    transport_t *transport;
    static float buffer[4];
    const double begin = clock_now();
    assert_int_equal(transport_open(&net, &transport), GTOPK_OK);
    assert_int_equal(transport->ops->allreduce(transport, buffer, 4, begin + TIMEOUT, NULL), GTOPK_ERR_INTERRUPTED);
    assert_true(clock_now() - begin < SOON);
    transport->ops->close(transport);
    let_go(&blocked);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_step_ends),
        cmocka_unit_test(test_the_creation_of_a_communicator_ends),
        cmocka_unit_test(test_an_exchange_that_does_not_return),
        cmocka_unit_test(test_an_allreduce_that_does_not_return),
    };
    return cmocka_run_group_tests_name("interrupt", tests, NULL, NULL);
}
