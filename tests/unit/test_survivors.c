/* A communicator of the ranks that are left of another one (survivors_of): what core asks of a transport that goes on without
 * those that were lost, and how long it waits. That of these tests is transport thread, whose `survivors` are ranks 0 and 1 of
 * three; MPI's own is under tests/python/test_elastic.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "support/check.h"
#include "support/ranks.h"
#include "transport/transport.h"

enum { RANKS = 3, LEFT = 2 };
#define TIMEOUT 600.0

/* What core did on this rank. */
typedef struct seen {
    transport_t *of;       /* whose survivors it asked for */
    double setup, limit;   /* seconds that it would have waited: for the latest message; for the agreement */
    int asked, told, open; /* agreements; what was told in the latest; transports */
} seen_t;

static _Thread_local seen_t seen;
static gtopk_thread_group_t *second;     /* of those who are left */
static int fails_on = -1, agrees_not_on; /* a rank whose version is another; one that says that it failed */
static const transport_ops_t *thread_ops;

static gtopk_status_t lossy_post(transport_t *transport, const transport_exchange_t *exchange, double deadline,
                                 void *stream)
{
    seen.setup = deadline - transport->ops->now(transport);
    return thread_ops->post(transport, exchange, deadline, stream);
}

static void lossy_close(transport_t *transport)
{
    seen.open--;
    thread_ops->close(transport);
}

static gtopk_status_t lossy_agree(transport_t *transport, gtopk_status_t mine, double deadline)
{
    seen.asked++;
    seen.told = mine;
    seen.limit = deadline - transport->ops->now(transport);
    return mine == GTOPK_OK && agrees_not_on ? status_set(GTOPK_ERR_TRANSPORT, "another of the ranks failed") : mine;
}

static gtopk_status_t lossy_survivors(transport_t *transport, const gtopk_comm_config_t *config, transport_t **left);

static transport_ops_t lossy_ops;

/* Limits are far apart, so half of one tells which it was, on a loaded machine too. */
static int is_left_of(double limit, double seconds)
{
    return seconds > limit / 2 && seconds <= limit;
}

static gtopk_status_t lossy_open(gtopk_thread_group_t *group, int rank, int size, transport_t **transport)
{
    gtopk_comm_config_t config = GTOPK_COMM_CONFIG_INIT;
    config.transport = "thread";
    config.group = group;
    config.rank = rank;
    config.size = size;
    config.timeout = TIMEOUT;
    const gtopk_status_t status = transport_thread_open(&config, transport);
    if (status != GTOPK_OK)
        return status;
    (*transport)->ops = &lossy_ops;
    (*transport)->survives = 1;
    seen.open++;
    return GTOPK_OK;
}

static gtopk_status_t lossy_survivors(transport_t *transport, const gtopk_comm_config_t *config, transport_t **left)
{
    (void)config;
    seen.of = transport;
    return lossy_open(second, transport->rank, LEFT, left);
}

static void prepare(void)
{
    transport_t *thread;
    gtopk_thread_group_t *group;
    gtopk_comm_config_t config = GTOPK_COMM_CONFIG_INIT;
    REQUIRE(gtopk_thread_group_create(&group, 1, 0) == GTOPK_OK);
    config.transport = "thread";
    config.group = group;
    config.rank = 0;
    config.size = 1;
    config.timeout = TIMEOUT;
    REQUIRE(transport_thread_open(&config, &thread) == GTOPK_OK);
    thread_ops = thread->ops;
    thread->ops->close(thread);
    gtopk_thread_group_destroy(group);
    lossy_ops = *thread_ops;
    lossy_ops.name = "lossy";
    lossy_ops.post = lossy_post;
    lossy_ops.close = lossy_close;
    lossy_ops.survivors = lossy_survivors;
    lossy_ops.agree = lossy_agree;
}

static gtopk_comm_config_t config_of(gtopk_comm_t *before)
{
    gtopk_comm_config_t config = GTOPK_COMM_CONFIG_INIT;
    config.transport = "lossy";
    config.survivors_of = before;
    config.timeout = TIMEOUT;
    return config;
}

/* A communicator of all three. Of these rank 2 is lost. */
static gtopk_comm_t *open_first(const ranks_thread_t *self)
{
    gtopk_comm_config_t config = config_of(NULL);
    transport_t *transport;
    gtopk_comm_t *comm;
    config.setup_timeout = 50.0;
    seen = (seen_t){0};
    REQUIRE(lossy_open(self->group, self->rank, RANKS, &transport) == GTOPK_OK);
    REQUIRE(comm_open(&comm, transport, NULL, &config) == GTOPK_OK);
    REQUIRE(seen.asked == 0 && is_left_of(50.0, seen.setup));
    REQUIRE(gtopk_comm_survives(comm) == 1);
    return comm;
}

static void close_all(gtopk_comm_t *before, gtopk_comm_t *left, const ranks_thread_t *self)
{
    (void)pthread_barrier_wait(self->end);
    gtopk_comm_destroy(left);
    gtopk_comm_destroy(before);
    REQUIRE(seen.open == 0);
}

static void play(void *(*part)(void *self))
{
    REQUIRE(gtopk_thread_group_create(&second, LEFT, 0) == GTOPK_OK);
    ranks_play((ranks_thread_t){.size = RANKS, .timeout = TIMEOUT}, part, 0);
    gtopk_thread_group_destroy(second);
}

/* ---- it works ---- */

static void *go_on(void *argument)
{
    ranks_thread_t *self = argument;
    gtopk_comm_t *before = open_first(self), *left = NULL;
    gtopk_comm_config_t config = config_of(before);
    config.setup_timeout = self->rank == 1 ? 0.0 : 20.0; /* 0: the timeout */
    const double setup = self->rank == 1 ? TIMEOUT : 20.0;
    if (self->rank < LEFT) {
        REQUIRE(gtopk_comm_create(&left, &config) == GTOPK_OK);
        REQUIRE(seen.of == before->link.control && seen.asked == 1 && seen.told == GTOPK_OK);
        REQUIRE(is_left_of(setup, seen.setup) && is_left_of(setup, seen.limit));
        REQUIRE(gtopk_comm_rank(left) == self->rank && gtopk_comm_size(left) == LEFT);
        REQUIRE(gtopk_barrier(left) == GTOPK_OK);
        REQUIRE(is_left_of(TIMEOUT, seen.setup) && seen.asked == 1); /* from then on */
    }
    close_all(before, left, self);
    return NULL;
}

static void test_those_who_are_left_have_a_communicator(void **state)
{
    (void)state;
    play(go_on);
}

/* ---- it fails: on all of them ---- */

static void *fail_to(void *argument)
{
    ranks_thread_t *self = argument;
    gtopk_comm_t *before = open_first(self), *left = NULL;
    const gtopk_comm_config_t config = config_of(before);
    if (self->rank < LEFT) {
        REQUIRE(gtopk_comm_create(&left, &config) == GTOPK_ERR_TRANSPORT);
        REQUIRE(left == NULL && seen.open == 1 && seen.asked == 1);
        REQUIRE(strstr(gtopk_last_error(), "another of the ranks failed"));
    }
    close_all(before, left, self);
    return NULL;
}

/* Those who have their communicator hear that another has not. */
static void test_what_fails_on_one_fails_on_all(void **state)
{
    (void)state;
    agrees_not_on = 1;
    play(fail_to);
    agrees_not_on = 0;
}

static void *end_early(void *argument)
{
    ranks_thread_t *self = argument;
    gtopk_comm_t *before = open_first(self), *left = NULL;
    const gtopk_comm_config_t config = config_of(before);
    transport_t *transport = NULL;
    if (self->rank == fails_on) { /* it is lost, too: it opens the transport, and says goodbye */
        REQUIRE(lossy_open(second, self->rank, LEFT, &transport) == GTOPK_OK);
        transport->ops->close(transport);
    } else if (self->rank < LEFT) {
        REQUIRE(gtopk_comm_create(&left, &config) != GTOPK_OK);
        REQUIRE(left == NULL && seen.open == 1);
        REQUIRE(seen.asked == 1 && seen.told != GTOPK_OK); /* the others are told */
    }
    close_all(before, left, self);
    return NULL;
}

static void test_a_failure_is_told(void **state)
{
    (void)state;
    fails_on = 1;
    play(end_early);
}

/* ---- what is refused, before anything is asked of the transport ---- */

static void *refuse(void *argument)
{
    ranks_thread_t *self = argument;
    gtopk_comm_t *before = open_first(self), *left = NULL, *alone;
    gtopk_comm_config_t config = config_of(before);
    REQUIRE(gtopk_comm_create(&alone, NULL) == GTOPK_OK);
    REQUIRE(gtopk_comm_survives(alone) == 0 && gtopk_comm_survives(NULL) == 0);
    config.transport = NULL;
    REQUIRE(gtopk_comm_create(&left, &config) == GTOPK_ERR_UNSUPPORTED);
    REQUIRE(strstr(gtopk_last_error(), "here are self and lossy"));
    config.transport = "thread";
    REQUIRE(gtopk_comm_create(&left, &config) == GTOPK_ERR_UNSUPPORTED);
    config = config_of(alone);
    config.transport = "self";
    REQUIRE(gtopk_comm_create(&left, &config) == GTOPK_ERR_UNSUPPORTED);
    REQUIRE(strstr(gtopk_last_error(), "here are self and self"));
    config = config_of(before);
    config.data = "nccl";
    REQUIRE(gtopk_comm_create(&left, &config) == GTOPK_ERR_UNSUPPORTED && strstr(gtopk_last_error(), "NCCL"));
    config = config_of(before);
    config.setup_timeout = -1.0;
    REQUIRE(gtopk_comm_create(&left, &config) == GTOPK_ERR_INVALID);
    REQUIRE(strstr(gtopk_last_error(), "setup_timeout -1 s"));
    config.setup_timeout = 1.0 / 0.0;
    REQUIRE(gtopk_comm_create(&left, &config) == GTOPK_ERR_INVALID);
    REQUIRE(seen.of == NULL && seen.asked == 0 && left == NULL);
    gtopk_comm_destroy(alone);
    close_all(before, left, self);
    return NULL;
}

static void test_what_cannot_be_is_refused(void **state)
{
    (void)state;
    play(refuse);
}

static void test_not_of_the_parent_process(void **state)
{
    (void)state;
    gtopk_comm_t *before, *left;
    ASSERT_OK(gtopk_comm_create(&before, NULL));
    const pid_t child = fork();
    if (child == 0) {
        gtopk_comm_config_t config = config_of(before);
        _exit(gtopk_comm_create(&left, &config) == GTOPK_ERR_STATE ? 0 : 1);
    }
    int result;
    assert_int_equal(waitpid(child, &result, 0), child);
    assert_int_equal(result, 0);
    gtopk_comm_destroy(before);
}

/* Messages that travel by NCCL do not survive, whatever the other transport does. */
static void *with_data(void *argument)
{
    ranks_thread_t *self = argument;
    gtopk_comm_config_t config = config_of(NULL);
    transport_t *control, *data;
    gtopk_comm_t *comm;
    seen = (seen_t){0};
    REQUIRE(lossy_open(self->group, self->rank, RANKS, &control) == GTOPK_OK);
    config.transport = "self";
    config.size = config.rank = -1;
    REQUIRE(transport_open(&config, &data) == GTOPK_OK);
    REQUIRE(comm_open(&comm, control, data, &config) == GTOPK_OK);
    REQUIRE(gtopk_comm_survives(comm) == 0);
    close_all(comm, NULL, self);
    return NULL;
}

static void test_a_second_transport_does_not_survive(void **state)
{
    (void)state;
    play(with_data);
}

int main(void)
{
    prepare();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_those_who_are_left_have_a_communicator),
        cmocka_unit_test(test_what_fails_on_one_fails_on_all),
        cmocka_unit_test(test_a_failure_is_told),
        cmocka_unit_test(test_what_cannot_be_is_refused),
        cmocka_unit_test(test_not_of_the_parent_process),
        cmocka_unit_test(test_a_second_transport_does_not_survive),
    };
    return cmocka_run_group_tests_name("survivors", tests, NULL, NULL);
}
