/* The mpi transport under mpirun, any number of ranks from 1: built with mpicc and linked with libgtopk.a.
 *
 *     mpirun -n 2 test_transport_mpi          gtopk starts and ends MPI
 *     mpirun -n 3 test_transport_mpi caller   this program does; the cases that break a transport are run too
 *
 * Ends with a number of failed checks other than zero, named on stderr. The module is found by GTOPK_MPI_MODULE. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "transport/transport.h"
#include "util/clock.h"

#define SOON 30.0 /* half of what is waited for at most: machines may be busy */

static int failures, my_rank = -1;

#define CHECK(condition, ...)                                                                       \
    do {                                                                                            \
        if (!(condition)) {                                                                         \
            failures++;                                                                             \
            (void)fprintf(stderr, "rank %d, %s:%d: %s: ", my_rank, __func__, __LINE__, #condition); \
            (void)fprintf(stderr, __VA_ARGS__);                                                     \
            (void)fprintf(stderr, " [%s]\n", gtopk_last_error());                                   \
        }                                                                                           \
    } while (0)

#define NEED(condition, ...)           \
    do {                               \
        CHECK(condition, __VA_ARGS__); \
        if (failures)                  \
            exit(1);                   \
    } while (0)

/* Between these two ranks, apart from the transport: what is to come first is waited for. */
static void tell(int rank)
{
    (void)MPI_Send(NULL, 0, MPI_BYTE, rank, 0, MPI_COMM_WORLD);
}

static void hear(int rank)
{
    (void)MPI_Recv(NULL, 0, MPI_BYTE, rank, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
}

static transport_t *open_mpi(void *mpi_comm)
{
    gtopk_comm_config_t config = GTOPK_COMM_CONFIG_INIT;
    transport_t *transport = NULL;
    config.transport = "mpi";
    config.timeout = 60.0;
    config.mpi_comm = mpi_comm;
    NEED(transport_open(&config, &transport) == GTOPK_OK, "open");
    return transport;
}

static double soon(transport_t *transport, double seconds)
{
    return transport->ops->now(transport) + seconds;
}

/* Posts and waits, at most 60 s. */
static gtopk_status_t exchange(transport_t *transport, int32_t to, const void *send, size_t send_bytes, int32_t from,
                               void *receive, size_t capacity, size_t *received)
{
    transport_exchange_t request = {.to = to,
                                    .from = from,
                                    .send = send,
                                    .send_bytes = send_bytes,
                                    .send_capacity = send_bytes,
                                    .receive = receive,
                                    .receive_capacity = capacity};
    size_t came = 0;
    gtopk_status_t status = transport->ops->post(transport, &request, soon(transport, 60.0), NULL);
    if (status == GTOPK_OK)
        status = transport->ops->wait(transport, soon(transport, 60.0), &came);
    if (received)
        *received = came;
    return status;
}

static void barrier(transport_t *transport)
{
    char *all = malloc((size_t)transport->size);
    NEED(all && transport->ops->allgather(transport, "", 1, all, soon(transport, 60.0), NULL) == GTOPK_OK, "barrier");
    free(all);
}

static unsigned char pattern(size_t place, int32_t rank)
{
    return (unsigned char)(place * 31u + place / 253u + (size_t)rank * 101u);
}

static void test_identity(transport_t *transport)
{
    CHECK(strncmp(transport->description, "mpi (", 5) == 0, "%s", transport->description);
    CHECK(transport->rank >= 0 && transport->rank < transport->size, "rank %d of %d", (int)transport->rank,
          (int)transport->size);
}

/* Each rank sends to the next and receives from the one before, in one exchange, with capacity to spare. */
static void test_ring(transport_t *transport)
{
    static const size_t LENGTHS[] = {0, 1, 64, 4097, 300001, 8u << 20};
    const int32_t size = transport->size, rank = transport->rank;
    const int32_t to = (rank + 1) % size, from = (rank + size - 1) % size;
    for (size_t i = 0; i < sizeof LENGTHS / sizeof LENGTHS[0]; i++) {
        const size_t bytes = LENGTHS[i];
        unsigned char *send = malloc(bytes + 1), *receive = malloc(bytes + 100);
        size_t received = 999, wrong = 0;
        for (size_t j = 0; j < bytes; j++)
            send[j] = pattern(j, rank);
        memset(receive, 0xee, bytes + 100);
        NEED(exchange(transport, to, send, bytes, from, receive, bytes + 100, &received) == GTOPK_OK, "%zu bytes",
             bytes);
        for (size_t j = 0; j < bytes; j++)
            wrong += receive[j] != pattern(j, from);
        CHECK(received == bytes && wrong == 0 && receive[bytes] == 0xee, "%zu of %zu bytes arrived, %zu wrong",
              received, bytes, wrong);
        free(send);
        free(receive);
    }
}

/* One-sided messages of mixed lengths from rank 0 to the last: whole and in order. */
static void test_order(transport_t *transport)
{
    enum { MESSAGES = 60, LONGEST = 40000 };
    const int32_t last = transport->size - 1;
    unsigned char *buffer = calloc(1, LONGEST);
    if (last > 0 && transport->rank == 0)
        for (unsigned i = 0; i < MESSAGES; i++) {
            buffer[0] = (unsigned char)i;
            NEED(exchange(transport, last, buffer, 1 + (size_t)i % 7 * 6000, TRANSPORT_NONE, NULL, 0, NULL) == GTOPK_OK,
                 "send %u", i);
        }
    if (last > 0 && transport->rank == last)
        for (unsigned i = 0; i < MESSAGES; i++) {
            size_t received = 0;
            NEED(exchange(transport, TRANSPORT_NONE, NULL, 0, 0, buffer, LONGEST, &received) == GTOPK_OK, "receive %u",
                 i);
            CHECK(buffer[0] == i && received == 1 + (size_t)i % 7 * 6000, "message %u: %u of %zu bytes", i, buffer[0],
                  received);
        }
    free(buffer);
}

/* The deadline passes while nothing came; waiting goes on afterwards. */
static void test_deadline(transport_t *transport)
{
    if (transport->size == 1)
        return;
    barrier(transport);
    if (transport->rank == 1) {
        hear(0);
        NEED(exchange(transport, 0, "late", 4, TRANSPORT_NONE, NULL, 0, NULL) == GTOPK_OK, "send");
    } else if (transport->rank == 0) {
        char text[8] = "";
        transport_exchange_t request = {
            .to = TRANSPORT_NONE, .from = 1, .receive = text, .receive_capacity = sizeof text};
        size_t came = 0;
        NEED(transport->ops->post(transport, &request, soon(transport, 60.0), NULL) == GTOPK_OK, "post");
        const double start = clock_now();
        CHECK(transport->ops->wait(transport, soon(transport, 0.05), &came) == GTOPK_ERR_TIMEOUT, "too early");
        CHECK(strstr(gtopk_last_error(), "rank 1"), "the text names the peer");
        const double waited = clock_now() - start;
        CHECK(waited > 0.04 && waited < SOON, "waited %g s for a deadline of .05", waited);
        tell(1);
        CHECK(transport->ops->wait(transport, soon(transport, 60.0), &came) == GTOPK_OK, "resumed");
        CHECK(came == 4 && strcmp(text, "late") == 0, "got '%s'", text);
    }
}

static void test_collectives(transport_t *transport)
{
    enum { COUNT = 100003 };
    const int32_t size = transport->size;
    float *values = malloc(COUNT * sizeof *values), *all = malloc((size_t)size * COUNT * sizeof *all);
    size_t wrong = 0;
    for (int i = 0; i < COUNT; i++)
        values[i] = (float)(i % 1000) * 0.1f + (float)transport->rank * 0.7f;
    NEED(transport->ops->allgather(transport, values, COUNT * sizeof *values, all, soon(transport, 60.0), NULL) ==
             GTOPK_OK,
         "allgather");
    for (int32_t r = 0; r < size; r++)
        for (int i = 0; i < COUNT; i++) {
            const float theirs = (float)(i % 1000) * 0.1f + (float)r * 0.7f;
            wrong += memcmp(&all[(size_t)r * COUNT + (size_t)i], &theirs, sizeof theirs) != 0;
        }
    CHECK(wrong == 0, "allgather: %zu values", wrong);

    free(values);
    free(all);
}

/* Short ones go by MPI's own, longer ones round a ring. Values that are rounded, so that another order has other bits. */
static void test_sum(transport_t *transport, size_t count)
{
    const int32_t size = transport->size;
    float *values = malloc(count * sizeof *values), *all = malloc((size_t)size * count * sizeof *all);
    size_t wrong = 0, different = 0;
    for (size_t i = 0; i < count; i++)
        values[i] = (float)(i % 1000) * 0.1f + (float)transport->rank * 0.7f;
    NEED(transport->ops->allreduce(transport, values, count, soon(transport, 60.0), NULL) == GTOPK_OK, "allreduce");
    for (size_t i = 0; i < count; i++) {
        const double sum = (double)(i % 1000) * 0.1 * size + 0.7 * size * (size - 1) / 2.0,
                     off = (double)values[i] - sum;
        wrong += off > 1e-4 * (sum + 1.0) || off < -1e-4 * (sum + 1.0);
    }
    CHECK(wrong == 0, "allreduce: %zu of %zu sums", wrong, count);
    NEED(transport->ops->allgather(transport, values, count * sizeof *values, all, soon(transport, 60.0), NULL) ==
             GTOPK_OK,
         "allgather");
    for (int32_t r = 0; r < size; r++)
        different += memcmp(all + (size_t)r * count, values, count * sizeof *values) != 0;
    CHECK(different == 0, "%zu of %zu: %zu ranks have other bits", count, count, different);
    free(values);
    free(all);
}

/* Around the number from which on there is a ring, whole and broken numbers of segments, and more than are under way at once. */
static void test_sums(transport_t *transport)
{
    const size_t size = (size_t)transport->size, segment = 16000;
    const size_t counts[] = {1,
                             7,
                             8192 * size - 1,
                             8192 * size,
                             8192 * size + 1,
                             segment * size,
                             segment * size + 1,
                             segment * size * 3 - 1,
                             100003,
                             segment * size * 40 + 17};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++)
        test_sum(transport, counts[i]);
}

/* Closing waits for nobody, and can be done for ever. */
static void test_lives(void)
{
    for (int i = 0; i < 20; i++) {
        transport_t *transport = open_mpi(NULL);
        barrier(transport);
        transport->ops->close(transport);
    }
    transport_t *transport = open_mpi(NULL);
    const int32_t rank = transport->rank, size = transport->size;
    barrier(transport);
    if (rank == 1)
        hear(0); /* that it has closed */
    const double start = clock_now();
    transport->ops->close(transport);
    CHECK(clock_now() - start < SOON, "closing took %g s", clock_now() - start);
    if (rank == 0 && size > 1)
        tell(1);
}

static void test_config(void)
{
    gtopk_comm_config_t config = GTOPK_COMM_CONFIG_INIT;
    transport_t *transport = NULL;
    config.transport = "mpi";
    config.size = 77;
    CHECK(transport_open(&config, &transport) == GTOPK_ERR_INVALID && !transport, "a size that is not MPI's");
    CHECK(strstr(gtopk_last_error(), "mpirun -n 77"), "what to do");
}

/* ---- cases that break a transport ---- */

static void test_subgroup(void)
{
    MPI_Comm half;
    int world_rank;
    (void)MPI_Comm_rank(MPI_COMM_WORLD, &world_rank);
    (void)MPI_Comm_split(MPI_COMM_WORLD, world_rank % 2, -world_rank, &half);
    transport_t *transport = open_mpi(&half);
    int size, rank;
    (void)MPI_Comm_size(half, &size);
    (void)MPI_Comm_rank(half, &rank);
    CHECK(transport->size == size && transport->rank == rank, "rank %d of %d", (int)transport->rank,
          (int)transport->size);
    test_ring(transport);
    transport->ops->close(transport);
    (void)MPI_Comm_free(&half);
}

/* The head of a message that does not fit is delivered, and no byte beyond the buffer is touched. */
static void test_too_long(size_t bytes)
{
    enum { FITS = 10 };
    transport_t *transport = open_mpi(NULL);
    unsigned char *buffer = malloc(bytes);
    for (size_t i = 0; i < bytes; i++)
        buffer[i] = transport->rank == 0 ? pattern(i, 0) : 0xee;
    if (transport->size > 1 && transport->rank == 0)
        CHECK(exchange(transport, 1, buffer, bytes, TRANSPORT_NONE, NULL, 0, NULL) == GTOPK_OK, "send");
    if (transport->rank == 1) {
        size_t received = 0, wrong = 0;
        char text[64];
        (void)snprintf(text, sizeof text, "rank 0 sent %zu bytes where %d fit", bytes, (int)FITS);
        CHECK(exchange(transport, TRANSPORT_NONE, NULL, 0, 0, buffer, FITS, &received) == GTOPK_ERR_CORRUPT,
              "too long for the buffer");
        CHECK(strstr(gtopk_last_error(), text), "the text names the peer and the lengths");
        for (size_t i = 0; i < bytes; i++)
            wrong += buffer[i] != (i < FITS ? pattern(i, 0) : 0xee);
        CHECK(received == bytes && wrong == 0, "%zu of %zu bytes, %zu wrong", received, bytes, wrong);
        CHECK(transport->ops->abandon(transport) == 1, "nothing is under way");
    }
    transport->ops->close(transport);
    free(buffer);
}

/* One that is longer than 64 MiB is not received for its head: it stays with its sender. */
static void test_far_too_long(void)
{
    transport_t *transport = open_mpi(NULL);
    const size_t bytes = ((size_t)64 << 20) + 1;
    if (transport->rank == 0 && transport->size > 1) {
        char *send = calloc(1, bytes); /* never freed: nobody takes it */
        transport_exchange_t request = {.to = 1, .from = TRANSPORT_NONE, .send = send, .send_bytes = bytes};
        size_t came;
        CHECK(transport->ops->post(transport, &request, soon(transport, 60.0), NULL) == GTOPK_OK, "post");
        CHECK(transport->ops->wait(transport, soon(transport, 0.3), &came) == GTOPK_ERR_TIMEOUT, "nobody receives");
        CHECK(transport->ops->abandon(transport) == 0, "its buffer is in use");
    } else if (transport->rank == 1) {
        char buffer[10];
        size_t received = 77;
        CHECK(exchange(transport, TRANSPORT_NONE, NULL, 0, 0, buffer, sizeof buffer, &received) == GTOPK_ERR_CORRUPT,
              "too long for the buffer");
        CHECK(received == 0, "no head, %zu bytes", received);
        CHECK(transport->ops->abandon(transport) == 1, "nothing is under way");
    }
    transport->ops->close(transport);
}

/* Rank 0 gives up waiting for the last rank and tells all; they take its last word for the message they wait for. */
static void test_giving_up(void)
{
    transport_t *transport = open_mpi(NULL);
    const int32_t size = transport->size;
    if (transport->rank == 0 && size > 1) {
        char *receive = malloc(100), word[64] = "I give up";
        transport_exchange_t request = {
            .to = TRANSPORT_NONE, .from = size - 1, .receive = receive, .receive_capacity = 100};
        size_t came;
        CHECK(transport->ops->post(transport, &request, soon(transport, 60.0), NULL) == GTOPK_OK, "post");
        CHECK(transport->ops->wait(transport, soon(transport, 0.05), &came) == GTOPK_ERR_TIMEOUT, "nobody sends");
        CHECK(transport->ops->abandon(transport) == 1, "an unmatched receive leaves its buffer at once");
        free(receive);
        for (int32_t r = 1; r < size; r++)
            transport->ops->notify(transport, r, word, sizeof word);
        memset(word, 0, sizeof word);
    } else if (size > 1) {
        char buffer[256] = "";
        size_t received = 0;
        CHECK(exchange(transport, TRANSPORT_NONE, NULL, 0, 0, buffer, sizeof buffer, &received) == GTOPK_OK,
              "last word");
        CHECK(received == 64 && strcmp(buffer, "I give up") == 0, "%zu bytes: '%s'", received, buffer);
    }
    transport->ops->close(transport);
}

/* A long message that nobody receives cannot be called back: its buffer stays. */
static void test_send_abandoned(void)
{
    transport_t *transport = open_mpi(NULL);
    if (transport->rank == 0 && transport->size > 1) {
        char *send = calloc(1, 16u << 20); /* never freed: see above */
        transport_exchange_t request = {.to = 1, .from = TRANSPORT_NONE, .send = send, .send_bytes = 16u << 20};
        size_t came;
        CHECK(transport->ops->post(transport, &request, soon(transport, 60.0), NULL) == GTOPK_OK, "post");
        CHECK(transport->ops->wait(transport, soon(transport, 0.05), &came) == GTOPK_ERR_TIMEOUT, "nobody receives");
        CHECK(strstr(gtopk_last_error(), "rank 1"), "the text names the peer");
        CHECK(transport->ops->abandon(transport) == 0, "its buffer is in use");
        tell(1);
    } else if (transport->rank == 1) {
        hear(0);
    }
    transport->ops->close(transport);
}

/* Of a short and of a long one; memory that may still be written to is never freed. */
static void test_collective_deadline(void)
{
    enum { LONG = 1 << 20 };
    static float values[LONG];
    for (size_t count = 1000; count <= LONG; count += LONG - 1000) {
        transport_t *transport = open_mpi(NULL);
        barrier(transport);
        if (transport->rank == 0 && transport->size > 1) {
            const double start = clock_now();
            CHECK(transport->ops->allreduce(transport, values, count, soon(transport, 0.05), NULL) == GTOPK_ERR_TIMEOUT,
                  "alone");
            CHECK(strstr(gtopk_last_error(), "an all-reduce did not end in time"), "text");
            CHECK(clock_now() - start < SOON, "waited %g s", clock_now() - start);
        }
        transport->ops->close(transport);
    }
}

int main(int argc, char **argv)
{
    const int caller = argc > 1 && strcmp(argv[1], "caller") == 0;
    int level;
    if (caller)
        (void)MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &level);
    transport_t *transport = open_mpi(NULL);
    my_rank = transport->rank;
    test_identity(transport);
    test_ring(transport);
    test_order(transport);
    test_deadline(transport);
    test_collectives(transport);
    test_sums(transport);
    CHECK(transport_finalize() == (caller ? GTOPK_OK : GTOPK_ERR_STATE), "a transport is open");
    transport->ops->close(transport);
    test_lives();
    test_config();
    if (caller) {
        test_subgroup();
        test_too_long(1000);
        test_too_long((size_t)1 << 20);
        test_far_too_long();
        test_giving_up();
        test_send_abandoned();
        test_collective_deadline();
    }

    int finalized;
    CHECK(transport_finalize() == GTOPK_OK, "finalize");
    (void)MPI_Finalized(&finalized);
    CHECK(finalized == !caller, "MPI is ended by the one who started it");
    if (caller) {
        /* Requests were left behind on purpose: MPI_Finalize might wait for them. */
        (void)fflush(NULL);
        (void)MPI_Barrier(MPI_COMM_WORLD);
        if (failures)
            MPI_Abort(MPI_COMM_WORLD, 1);
        (void)MPI_Finalize();
    } else {
        gtopk_comm_config_t config = GTOPK_COMM_CONFIG_INIT;
        config.transport = "mpi";
        CHECK(transport_open(&config, &transport) == GTOPK_ERR_STATE, "MPI cannot be started again");
    }
    return failures > 0;
}
