/* The guarded device: what it does to a host that takes it for the host's own memory, or for one that is done when a call
 * returns. That it computes like the others, the property test of devices shows. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "support/check.h"
#include "support/guarded.h"
#include "util/status.h"

static device_t *device;
static const device_ops_t *ops;

/* 1 when the process ends badly that calls it. */
static int is_fatal(void (*call)(void *block), void *block)
{
    int status = 0;
    (void)fflush(NULL);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        (void)signal(SIGSEGV, SIG_DFL); /* cmocka's goes on with the next test */
        (void)signal(SIGABRT, SIG_DFL);
        (void)freopen("/dev/null", "w", stderr);
        call(block);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    return !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void *allocate(size_t bytes)
{
    void *block;
    ASSERT_OK(ops->allocate(device, bytes, "a test's block", &block));
    return block;
}

static void read_it(void *block)
{
    volatile uint32_t *words = block;
    (void)words[0];
}

static void write_it(void *block)
{
    *(volatile uint32_t *)block = 1;
}

static void do_nothing(void *block)
{
    (void)block;
}

static void test_memory_is_not_the_hosts(void **state)
{
    (void)state;
    void *block = allocate(64), *pinned;
    assert_false(is_fatal(do_nothing, block));
    assert_true(is_fatal(read_it, block));
    assert_true(is_fatal(write_it, block));
    ops->release(device, block);
    ASSERT_OK(ops->allocate_pinned(device, 64, "a test's block", &pinned));
    assert_int_equal(*(uint32_t *)pinned, 0);
    ops->release_pinned(device, pinned);
    assert_null(allocate(0));
}

/* Blocks are zero, also where another one was, and do not overlap. */
static void test_blocks(void **state)
{
    (void)state;
    uint8_t ones[1000], back[1000], zeros[1000] = {0};
    memset(ones, 1, sizeof ones);
    for (int round = 0; round < 3; round++) {
        void *a = allocate(1000), *b = allocate(1), *c = allocate(1000);
        ASSERT_OK(ops->copy(device, back, c, 1000, NULL));
        ASSERT_OK(ops->synchronize(device, NULL));
        assert_memory_equal(back, zeros, sizeof back);
        ASSERT_OK(ops->copy(device, a, ones, 1000, NULL));
        ASSERT_OK(ops->copy(device, c, ones, 1000, NULL));
        ASSERT_OK(ops->copy(device, back, b, 1, NULL));
        ASSERT_OK(ops->synchronize(device, NULL));
        assert_int_equal(back[0], 0);
        ops->release(device, round == 1 ? c : a);
        ops->release(device, b);
        ops->release(device, round == 1 ? a : c);
    }
}

static void test_streams_queue(void **state)
{
    (void)state;
    int first, second;
    uint32_t value = 7, back = 0, other = 0;
    void *block = allocate(sizeof value);
    ASSERT_OK(ops->copy(device, block, &value, sizeof value, &first));
    ASSERT_OK(ops->copy(device, &other, block, sizeof other, &second));
    ASSERT_OK(ops->copy(device, &back, block, sizeof back, &first));
    assert_int_equal(guarded_queued(), 3);
    value = 8; /* the caller's memory is read when the stream gets there */
    ASSERT_OK(ops->synchronize(device, &second));
    assert_int_equal(guarded_queued(), 2);
    assert_int_equal(other, 0);
    assert_int_equal(back, 0);
    ASSERT_OK(ops->synchronize(device, &first));
    assert_int_equal(back, 8);
    ops->release(device, block);
}

/* What arguments point to is read when the call is made. */
static void test_arguments_are_copied(void **state)
{
    (void)state;
    const float residual[3] = {1.0f, 2.0f, 3.0f};
    float x[3] = {10.0f, 20.0f, 30.0f}, after[3];
    device_store_t *store;
    device_words_t *words = allocate(sizeof *words);
    device_span_t spans[2] = {{0, 1, x, GTOPK_F32}, {1, 2, x + 1, GTOPK_F32}};
    device_accumulate_t params = {.scale = 1.0f};
    ASSERT_OK(ops->store_create(device, 3, 2, 0, NULL, &store));
    ASSERT_OK(ops->store_write(store, 0, 0, 3, residual, NULL));
    ASSERT_OK(ops->step_begin(store, words, NULL));
    ASSERT_OK(ops->accumulate(store, spans, 2, &params, words, NULL));
    memset(spans, 0xff, sizeof spans);
    memset(&params, 0xff, sizeof params);
    ASSERT_OK(ops->store_read(store, 0, 0, 3, after, NULL)); /* waits */
    assert_true(after[0] == 11.0f && after[1] == 22.0f && after[2] == 33.0f);
    ops->store_destroy(store);
    ops->release(device, words);
}

static device_store_t *the_store;

static void release_it(void *block)
{
    ops->release(device, block);
}

static void resize_the_store(void *block)
{
    (void)block;
    (void)ops->store_resize(the_store, 1);
}

static void test_what_is_queued_needs_its_memory(void **state)
{
    (void)state;
    device_words_t *words = allocate(sizeof *words);
    void *unused = allocate(64);
    ASSERT_OK(ops->store_create(device, 3, 2, 0, NULL, &the_store));
    ASSERT_OK(ops->step_begin(the_store, words, NULL));
    assert_true(is_fatal(release_it, words));
    assert_false(is_fatal(release_it, unused));
    assert_true(is_fatal(resize_the_store, NULL));
    ASSERT_OK(ops->synchronize(device, NULL));
    ASSERT_OK(ops->store_resize(the_store, 1));
    ops->release(device, words);
    ops->release(device, unused);
    ops->store_destroy(the_store);
}

/* The second of three copies fails. */
static void test_faults(void **state)
{
    (void)state;
    for (int at_run = 0; at_run < 2; at_run++) {
        const uint32_t value = 7;
        uint32_t back[3] = {0};
        gtopk_status_t status[3];
        void *block = allocate(sizeof value);
        ASSERT_OK(ops->copy(device, block, &value, sizeof value, NULL));
        ASSERT_OK(ops->synchronize(device, NULL));
        guarded_arm(at_run ? GUARDED_AT_RUN : GUARDED_AT_QUEUE, 1);
        for (int i = 0; i < 3; i++)
            status[i] = ops->copy(device, &back[i], block, sizeof value, NULL);
        assert_true(status[0] == GTOPK_OK && status[2] == GTOPK_OK);
        assert_int_equal(status[1], at_run ? GTOPK_OK : GTOPK_ERR_DEVICE);
        assert_int_equal(ops->synchronize(device, NULL), at_run ? GTOPK_ERR_DEVICE : GTOPK_OK);
        assert_int_equal(guarded_counted(), 4);
        assert_int_equal(guarded_queued(), 0);
        assert_true(back[0] == 7 && back[1] == 0 && back[2] == (at_run ? 0 : 7));
        /* A device that has failed takes nothing more. */
        assert_int_equal(ops->copy(device, back, block, sizeof value, NULL), at_run ? GTOPK_ERR_DEVICE : GTOPK_OK);
        guarded_arm(GUARDED_NO_FAULT, 0);
        ASSERT_OK(ops->synchronize(device, NULL));
        ops->release(device, block);
    }
}

static gtopk_status_t third_time(void *arg, double deadline)
{
    int *asked = arg;
    (void)deadline;
    return ++*asked < 3 ? status_set(GTOPK_ERR_TIMEOUT, "not yet") : GTOPK_OK;
}

static void test_work_of_the_host(void **state)
{
    (void)state;
    int asked = 0, pending = 1;
    const uint32_t value = 7;
    uint32_t back = 0;
    void *block = allocate(sizeof value);
    assert_true(guarded_owns(block) && !guarded_owns(&back) && guarded_reach(&back) == &back);
    ASSERT_OK(guarded_enqueue(NULL, third_time, NULL, &asked));
    ASSERT_OK(ops->copy(device, block, &value, sizeof value, NULL));
    ASSERT_OK(ops->copy(device, &back, block, sizeof value, NULL));
    assert_int_equal(guarded_run(NULL, 0.0, &pending), GTOPK_ERR_TIMEOUT);
    assert_int_equal(guarded_run(NULL, 0.0, &pending), GTOPK_ERR_TIMEOUT);
    assert_int_equal(guarded_queued(), 3);
    assert_int_equal(guarded_run(NULL, 0.0, &pending), GTOPK_OK);
    assert_int_equal(back, 7);
    assert_int_equal(*(uint32_t *)guarded_reach(block), 7);
    ops->release(device, block);
}

static int open_guarded(void **state)
{
    (void)state;
    if (device_open("guarded", &device) != GTOPK_OK)
        return -1;
    ops = device->ops;
    return 0;
}

static int close_guarded(void **state)
{
    (void)state;
    ops->close(device);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory_is_not_the_hosts),
        cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_streams_queue),
        cmocka_unit_test(test_arguments_are_copied),
        cmocka_unit_test(test_what_is_queued_needs_its_memory),
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_work_of_the_host),
    };
    return cmocka_run_group_tests_name("guarded", tests, open_guarded, close_guarded);
}
