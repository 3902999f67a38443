/* One step of each algorithm between simulated ranks: compiled with smpicc, run by smpirun (see scale.py).
 *
 *   smpirun -np P ... scale N DENSITY ALGORITHM [RANKS_OF_A_NODE]
 *
 * With ranks of a node they exchange with hierarchy NODE; which ranks share a host, smpirun's host file says.
 * The library is the one that is always built, with its checks, headers and arithmetic; what is simulated is the network. The
 * transport below hands messages to SMPI's MPI (the library's own MPI module asks for messages by probing, in a loop with a
 * clock, which would measure how often it asks). Setting up is not measured, and its messages go through memory: a ring of a
 * thousand ranks has a million of them. Computing takes no simulated time.
 *
 * All ranks are threads of execution of one process and one thread, so they share the memory of a gradient, and a gradient
 * touches the first 262,144 entries of the N at most (of a node's shares the first of each, as many in all): what nobody has
 * written takes no memory. The rest of the N counts as it does in training, in selection, in the code of the indices and in
 * the ranges of gtopk-split.
 *
 * Prints a line of JSON: the simulated seconds of the slowest rank, the bytes of the rank that sends
 * most, and what is wrong: ranks whose update has other bits than rank 0's, and whether mass is lost. Gradients are small
 * integers, so mass is compared exactly: a sum of all entries, each times a random 64-bit number of its index. */
#include <inttypes.h>
#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <simgrid/actor.h>
#include <unistd.h>

#include "core/comm.h"
#include "util/memory.h"

enum { TOUCHED = 1 << 18, PING_BYTES = 1 << 20, FREE_TURNS = 16, NODE_MOST = 64 };

static void check(gtopk_status_t status, const char *what)
{
    if (status == GTOPK_OK)
        return;
    (void)fprintf(stderr, "scale: %s: %s\n", what, gtopk_last_error());
    MPI_Abort(MPI_COMM_WORLD, 1);
}

/* ---- transports: over blocking calls of MPI for exchanges, through memory for the rest ---- */

typedef struct simulated {
    transport_t base;
    MPI_Request requests[2];
    int receives;
} simulated_t;

static double simulated_now(transport_t *transport)
{
    (void)transport;
    return MPI_Wtime();
}

static gtopk_status_t simulated_post(transport_t *transport, const transport_exchange_t *exchange, double deadline,
                                     void *stream)
{
    simulated_t *self = (simulated_t *)transport;
    (void)deadline;
    (void)stream;
    self->requests[0] = self->requests[1] = MPI_REQUEST_NULL;
    self->receives = exchange->from != TRANSPORT_NONE;
    if (self->receives)
        MPI_Irecv(exchange->receive, (int)exchange->receive_capacity, MPI_BYTE, exchange->from, 0, MPI_COMM_WORLD,
                  &self->requests[0]);
    if (exchange->to != TRANSPORT_NONE)
        MPI_Isend(exchange->send, (int)exchange->send_bytes, MPI_BYTE, exchange->to, 0, MPI_COMM_WORLD,
                  &self->requests[1]);
    return GTOPK_OK;
}

static gtopk_status_t simulated_wait(transport_t *transport, double deadline, size_t *received)
{
    simulated_t *self = (simulated_t *)transport;
    MPI_Status statuses[2];
    int bytes = 0;
    (void)deadline;
    MPI_Waitall(2, self->requests, statuses);
    if (self->receives)
        MPI_Get_count(&statuses[0], MPI_BYTE, &bytes);
    *received = (size_t)bytes;
    return GTOPK_OK;
}

static int simulated_abandon(transport_t *transport)
{
    (void)transport;
    return 1;
}

static void simulated_close(transport_t *transport)
{
    memory_free(transport);
}

static gtopk_status_t simulated_allgather(transport_t *transport, const void *in, size_t bytes, void *out,
                                          double deadline, void *stream)
{
    (void)transport;
    (void)deadline;
    (void)stream;
    MPI_Allgather((void *)in, (int)bytes, MPI_BYTE, out, (int)bytes, MPI_BYTE, MPI_COMM_WORLD);
    return GTOPK_OK;
}

static const transport_ops_t simulated_ops = {
    .name = "simulated",
    .close = simulated_close,
    .now = simulated_now,
    .post = simulated_post,
    .wait = simulated_wait,
    .abandon = simulated_abandon,
    .allgather = simulated_allgather,
};

typedef struct letter {
    struct letter *next;
    size_t bytes;
    uint8_t data[];
} letter_t;

static letter_t **boxes; /* [to][from]: all ranks share them */

typedef struct local {
    transport_t base;
    transport_exchange_t exchange;
} local_t;

static gtopk_status_t local_post(transport_t *transport, const transport_exchange_t *exchange, double deadline,
                                 void *stream)
{
    local_t *self = (local_t *)transport;
    letter_t *letter;
    (void)deadline;
    (void)stream;
    self->exchange = *exchange;
    if (exchange->to == TRANSPORT_NONE)
        return GTOPK_OK;
    check(memory_alloc(&letter, 1, sizeof *letter + exchange->send_bytes, "a message"), "memory");
    letter->bytes = exchange->send_bytes;
    memcpy(letter->data, exchange->send, letter->bytes);
    letter_t **end = &boxes[exchange->to * transport->size + transport->rank];
    while (*end)
        end = &(*end)->next;
    *end = letter;
    return GTOPK_OK;
}

static gtopk_status_t local_wait(transport_t *transport, double deadline, size_t *received)
{
    const transport_exchange_t *exchange = &((local_t *)transport)->exchange;
    (void)deadline;
    *received = 0;
    if (exchange->from == TRANSPORT_NONE)
        return GTOPK_OK;
    letter_t **box = &boxes[transport->rank * transport->size + exchange->from];
    for (int asked = 0; !*box; asked++) /* the others go on; some of them may need time to pass */
        if (asked < FREE_TURNS)
            sg_actor_yield();
        else
            usleep(20);
    letter_t *letter = *box;
    *received = letter->bytes;
    memcpy(exchange->receive, letter->data,
           letter->bytes < exchange->receive_capacity ? letter->bytes : exchange->receive_capacity);
    *box = letter->next;
    memory_free(letter);
    return GTOPK_OK;
}

static const transport_ops_t local_ops = {
    .name = "local",
    .close = simulated_close,
    .now = simulated_now,
    .post = local_post,
    .wait = local_wait,
    .abandon = simulated_abandon,
};

static gtopk_comm_t *open_comm(int rank, int size, int each_node)
{
    char node[32];
    gtopk_comm_config_t config = GTOPK_COMM_CONFIG_INIT;
    simulated_t *data;
    local_t *control;
    gtopk_comm_t *comm;
    if (!boxes)
        check(memory_alloc(&boxes, (size_t)size * (size_t)size, sizeof(letter_t *), "boxes"), "memory");
    check(memory_alloc(&data, 1, sizeof *data, "a transport"), "memory");
    check(memory_alloc(&control, 1, sizeof *control, "a transport"), "memory");
    data->base = (transport_t){.ops = &simulated_ops, .rank = rank, .size = size};
    control->base = (transport_t){.ops = &local_ops, .rank = rank, .size = size};
    (void)snprintf(node, sizeof node, "node %d", rank / each_node);
    config.node = node;
    config.timeout = 1e6;
    config.warn_after = 1e6;
    check(comm_open(&comm, &control->base, &data->base, &config), "communicator");
    return comm;
}

/* ---- gradients and what is checked ---- */

static float shared_gradient[TOUCHED]; /* each rank fills it and gives it away before it waits for another */

static uint64_t mix(uint64_t z)
{
    z = (z + 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Integers from -120 to 120, the large ones rare; a part is the same on all ranks, so that indices meet. */
static void fill(uint64_t length, int rank)
{
    for (uint64_t i = 0; i < length; i++) {
        const uint64_t both = mix(i), own = mix(i * 8192 + (uint64_t)rank + 1);
        const int common = 1 << (7 - (int)(63 - (unsigned)__builtin_clzll((both >> 40) % 255 + 1)));
        const int mine = (int)(own >> 33) % 57;
        shared_gradient[i] = (float)((own & 1 ? -mine : mine) + (both & 1 ? -common / 2 : common / 2));
    }
}

/* Of the N, those that a gradient has: `each` of every N / pieces, with as many behind them that it has not. */
typedef struct touched {
    uint64_t pieces, each, stride;
} touched_t;

static touched_t touched_of(uint64_t n, int pieces)
{
    const uint64_t count = (uint64_t)pieces, stride = n / count;
    return (touched_t){count, stride < TOUCHED / count ? stride : TOUCHED / count, stride};
}

/* All values are multiples of 2^-20. */
static uint64_t weigh(uint64_t index, double value)
{
    return mix(~index) * (uint64_t)(int64_t)rint(value * 0x1p20);
}

static uint64_t weigh_all(const float *values, touched_t touched)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < touched.pieces * touched.each; i++)
        sum += weigh(i / touched.each * touched.stride + i % touched.each, (double)values[i]);
    return sum;
}

/* ---- a step ---- */

/* Of all ranks, who share this memory; read after a barrier. (SMPI's own reductions set up a map of the nodes for a minute.) */
static struct {
    double latest, seconds;
    uint64_t bytes, hash, given, seen, wrong_ranks;
} shared;

static void note(const gtopk_set_t *set, uint64_t given, double seconds, uint64_t bytes)
{
    uint64_t hash = set->count;
    for (uint64_t i = 0; i < set->count; i++) {
        uint32_t bits;
        memcpy(&bits, &set->values[i], sizeof bits);
        hash = mix(hash ^ ((uint64_t)set->indices[i] << 32 | bits));
    }
    if (shared.seen++ == 0)
        shared.hash = hash;
    shared.wrong_ranks += hash != shared.hash;
    shared.given += given;
    shared.seconds = seconds > shared.seconds ? seconds : shared.seconds;
    shared.bytes = bytes > shared.bytes ? bytes : shared.bytes;
}

/* All leave at the same moment, which they leave a barrier not. */
static double meet(void)
{
    const double now = MPI_Wtime();
    shared.latest = now > shared.latest ? now : shared.latest;
    MPI_Barrier(MPI_COMM_WORLD);
    const struct timespec rest = {0, (long)((shared.latest + 0.1 - MPI_Wtime()) * 1e9)};
    nanosleep(&rest, NULL);
    return MPI_Wtime();
}

static void print(const char *name, uint64_t n, int size, const gtopk_set_t *set, uint32_t rounds)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < set->count; i++)
        sum += weigh(set->indices[i], (double)set->values[i] * size);
    printf("{\"algorithm\": \"%s\", \"ranks\": %d, \"n\": %" PRIu64 ", \"seconds\": %.9g, \"bytes\": %" PRIu64
           ", \"rounds\": %" PRIu32 ", \"count\": %" PRIu64 ", \"wrong_ranks\": %" PRIu64 ", \"mass_lost\": %s}\n",
           name, size, n, shared.seconds, shared.bytes, rounds, set->count, shared.wrong_ranks,
           shared.given != sum ? "true" : "false");
    memset(&shared, 0, sizeof shared);
}

static void step(gtopk_comm_t *comm, const char *name, int32_t algorithm, uint64_t n, double density, int each_node)
{
    const int rank = gtopk_comm_rank(comm), size = gtopk_comm_size(comm);
    const touched_t touched = touched_of(n, each_node);
    uint64_t lengths[2 * NODE_MOST];
    gtopk_tensor_t tensors[NODE_MOST];
    uint32_t which[NODE_MOST];
    for (uint64_t i = 0; i < touched.pieces; i++) {
        tensors[i] = (gtopk_tensor_t){shared_gradient + i * touched.each, touched.each, GTOPK_F32, 0};
        which[i] = (uint32_t)(2 * i);
        lengths[2 * i] = touched.each;
        lengths[2 * i + 1] = touched.stride - touched.each;
    }
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_stats_t stats = {.struct_size = sizeof stats};
    gtopk_reducer_t *reducer;
    gtopk_set_t set = {0};
    config.algorithm = algorithm;
    config.density = density;
    config.hierarchy = each_node > 1 ? GTOPK_HIERARCHY_NODE : GTOPK_HIERARCHY_OFF;
    check(gtopk_reducer_create(&reducer, comm, &config, lengths, 2 * touched.pieces), "reducer");
    set.capacity = gtopk_reducer_max_count(reducer);
    check(memory_alloc(&set.indices, set.capacity, sizeof *set.indices, "the update"), "memory");
    check(memory_alloc(&set.values, set.capacity, sizeof *set.values, "the update"), "memory");
    fill(touched.pieces * touched.each, rank);
    uint64_t given = weigh_all(shared_gradient, touched);
    check(gtopk_reducer_accumulate(reducer, which, tensors, touched.pieces, 1.0, 0, NULL), "accumulate");

    const double start = meet();
    check(gtopk_reducer_reduce_sparse(reducer, &set, 0, NULL, &stats), "reduce");
    const double seconds = MPI_Wtime() - start;

    for (uint64_t i = 0; i < touched.pieces; i++)
        check(gtopk_reducer_residual(reducer, which[i], shared_gradient + i * touched.each, touched.each), "residual");
    given -= weigh_all(shared_gradient, touched);
    gtopk_reducer_destroy(reducer);
    note(&set, given, seconds, stats.bytes_sent);
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0)
        print(name, n, size, &set, stats.rounds);
    MPI_Barrier(MPI_COMM_WORLD);
    memory_free(set.indices);
    memory_free(set.values);
}

/* Seconds of a message of `bytes` bytes from the first rank to the last one, the longest way: half of the second of two
 * round trips, as ranks leave a barrier one after the other. */
static double ping(int bytes, int rank, int size)
{
    static char message[PING_BYTES];
    double start = 0.0;
    for (int trip = 0; trip < 2; trip++) {
        start = MPI_Wtime();
        if (rank == 0) {
            MPI_Send(message, bytes, MPI_BYTE, size - 1, 1, MPI_COMM_WORLD);
            MPI_Recv(message, bytes, MPI_BYTE, size - 1, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        } else if (rank == size - 1) {
            MPI_Recv(message, bytes, MPI_BYTE, 0, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            MPI_Send(message, bytes, MPI_BYTE, 0, 1, MPI_COMM_WORLD);
        }
    }
    return (MPI_Wtime() - start) / 2;
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"dense", "topk", "gtopk", "gtopk-tree", "gtopk-split"};
    int rank, size;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (argc < 4 || argc > 5) {
        (void)fprintf(stderr, "usage: smpirun -np P ... scale N DENSITY ALGORITHM [RANKS_OF_A_NODE]\n");
        MPI_Abort(MPI_COMM_WORLD, 2);
    }
    const uint64_t n = strtoull(argv[1], NULL, 10);
    const double density = strtod(argv[2], NULL);
    const int each_node = argc == 5 ? (int)strtol(argv[4], NULL, 10) : 1;
    if (n < 1 || each_node < 1 || each_node > NODE_MOST || n % (uint64_t)each_node != 0 || size % each_node != 0) {
        (void)fprintf(stderr,
                      "scale: N and the ranks have to be multiples of the ranks of a node, which are 64 at most\n");
        MPI_Abort(MPI_COMM_WORLD, 2);
    }
    const double latency = ping(1, rank, size), longer = ping(PING_BYTES, rank, size);
    if (rank == 0)
        printf("{\"ranks\": %d, \"latency\": %.9g, \"seconds_a_byte\": %.9g}\n", size, latency,
               (longer - latency) / (PING_BYTES - 1));
    gtopk_comm_t *comm = open_comm(rank, size, each_node);
    for (int32_t algorithm = 0; algorithm < (int32_t)(sizeof names / sizeof *names); algorithm++)
        if (strcmp(names[algorithm], argv[3]) == 0)
            step(comm, names[algorithm], algorithm, n, density, each_node);
    gtopk_comm_destroy(comm);
    MPI_Finalize();
    return 0;
}
