/* Transport nccl on its stand-in, with ranks that are processes: the bits are those of the CPU over another transport, and
 * a rank that is killed is an error of the others, in time. The control transport is sockets, by callbacks. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/comm.h"
#include "support/check.h"
#include "support/elf_for_90.h"
#include "support/nccl.h"
#include "support/random.h"
#include "support/sizes.h"
#include "support/step.h"
#include "util/clock.h"

enum { SIZE = 8, DIM = 500, STEPS = 2 };

#define TIMEOUT 1.0
#define LATE 30.0 /* machines may be busy */

typedef struct job {
    int size, rank;
    const char *device;
    int killed, tells; /* the rank that is killed, -1: none; whether NCCL notices */
    int sockets[SIZE]; /* to each rank */
} job_t;

/* ---- the control transport ---- */

static int is_over(ssize_t done)
{
    return done == 0 || (done < 0 && errno != EAGAIN && errno != EINTR);
}

static int exchange(void *context, int32_t to, const void *send_at, size_t send_bytes, int32_t from, void *receive_at,
                    size_t receive_bytes, double timeout, char *error)
{
    const job_t *job = context;
    const char *out = send_at;
    char *in = receive_at;
    size_t sent = to < 0 ? send_bytes : 0, got = from < 0 ? receive_bytes : 0;
    const double limit = clock_now() + timeout;
    while (sent < send_bytes || got < receive_bytes) {
        struct pollfd ready[2] = {{.fd = sent < send_bytes ? job->sockets[to] : -1, .events = POLLOUT},
                                  {.fd = got < receive_bytes ? job->sockets[from] : -1, .events = POLLIN}};
        (void)poll(ready, 2, 50);
        ssize_t done = 1;
        if (ready[0].fd >= 0 && ready[0].revents) {
            done = send(ready[0].fd, out + sent, send_bytes - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
            sent += done > 0 ? (size_t)done : 0;
        }
        if (!is_over(done) && ready[1].fd >= 0 && ready[1].revents) {
            done = recv(ready[1].fd, in + got, receive_bytes - got, MSG_DONTWAIT);
            got += done > 0 ? (size_t)done : 0;
        }
        if (is_over(done) || clock_now() > limit) {
            (void)snprintf(error, 256, "the socket is closed, or nothing comes");
            return 1;
        }
    }
    return 0;
}

static gtopk_comm_t *open_comm(job_t *job, const char *data)
{
    gtopk_comm_config_t config = GTOPK_COMM_CONFIG_INIT;
    const gtopk_callbacks_t callbacks = {.struct_size = sizeof callbacks, .context = job, .exchange = exchange};
    gtopk_comm_t *comm;
    config.transport = "callback";
    config.callbacks = &callbacks;
    config.size = job->size;
    config.rank = job->rank;
    config.timeout = 60.0;
    config.data = data;
    if (gtopk_comm_create(&comm, &config) != GTOPK_OK) {
        (void)fprintf(stderr, "rank %d: %s\n", job->rank, gtopk_last_error());
        _exit(2);
    }
    return comm;
}

/* ---- steps ---- */

static gtopk_reducer_t *make(gtopk_comm_t *comm, int algorithm, int type, const char *device)
{
    const uint64_t length = DIM;
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    config.algorithm = algorithm;
    config.value_type = type;
    config.density = 0.05;
    config.device = device;
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, &length, 1) == GTOPK_OK);
    return reducer;
}

/* Sums of integers are exact in any order: an all-reduce has one of its own. */
static void fill(float *gradient, uint64_t seed, int integers)
{
    random_state_t random = {seed};
    for (int i = 0; i < DIM; i++) {
        const int value = (int)random_below(&random, 2001) - 1000;
        gradient[i] = integers ? (float)value : (float)value * 0.37f;
    }
}

/* Device memory is the driver's in one case: the gradient goes there by the reducer's own residual. */
static gtopk_status_t step(gtopk_reducer_t *reducer, uint64_t seed, int integers, float *update)
{
    float gradient[DIM], residual[DIM];
    uint32_t indices[DIM];
    float values[DIM];
    gtopk_set_t set = {indices, values, DIM, 0};
    fill(gradient, seed, integers);
    REQUIRE(gtopk_reducer_residual(reducer, 0, residual, DIM) == GTOPK_OK);
    for (int i = 0; i < DIM; i++)
        residual[i] += gradient[i];
    REQUIRE(gtopk_reducer_set_residual(reducer, 0, residual, DIM) == GTOPK_OK);
    const gtopk_status_t status = step_reduce_sparse(reducer, &set, 0, NULL);
    memset(update, 0, DIM * sizeof *update);
    for (uint64_t i = 0; i < set.count && status == GTOPK_OK; i++)
        update[indices[i]] = values[i];
    return status;
}

static void compare(job_t *job, gtopk_comm_t *gpu, gtopk_comm_t *cpu, int algorithm, int type)
{
    gtopk_reducer_t *there = make(gpu, algorithm, type, NULL), *here = make(cpu, algorithm, type, "cpu");
    for (int number = 0; number < STEPS; number++) {
        const uint64_t seed = (uint64_t)(number * 1000 + job->rank * 10 + algorithm);
        const int integers = algorithm == GTOPK_ALGORITHM_DENSE;
        float theirs[DIM], ours[DIM];
        REQUIRE(step(there, seed, integers, theirs) == GTOPK_OK);
        REQUIRE(step(here, seed, integers, ours) == GTOPK_OK);
        REQUIRE(memcmp(theirs, ours, sizeof ours) == 0);
        REQUIRE(gtopk_reducer_residual(there, 0, theirs, DIM) == GTOPK_OK);
        REQUIRE(gtopk_reducer_residual(here, 0, ours, DIM) == GTOPK_OK);
        REQUIRE(memcmp(theirs, ours, sizeof ours) == 0);
    }
    gtopk_reducer_destroy(there);
    gtopk_reducer_destroy(here);
}

static void run_all(job_t *job)
{
    gtopk_comm_t *gpu = open_comm(job, "nccl"), *cpu = open_comm(job, NULL);
    REQUIRE(strstr(gtopk_comm_describe(gpu), "nccl (NCCL 2.21.5)") != NULL);
    for (int algorithm = 0; algorithm < 4; algorithm++)
        for (int type = 0; type < 4; type++)
            if (strcmp(job->device, "guarded") == 0 || type == algorithm)
                compare(job, gpu, cpu, algorithm, type);
    /* A reducer on the host's memory goes over the control transport of the same communicator. */
    compare(job, cpu, gpu, GTOPK_ALGORITHM_GTOPK, GTOPK_VALUE_BF16);
    gtopk_comm_destroy(gpu);
    gtopk_comm_destroy(cpu);
}

/* Another rank is gone: an error by the deadline, the residual as it was, and so in every later step. */
static void run_killed(job_t *job)
{
    float update[DIM], before[DIM], after[DIM];
    gtopk_comm_t *comm = open_comm(job, "nccl");
    gtopk_reducer_t *reducer = make(comm, job->killed % 4, GTOPK_VALUE_BF16, NULL);
    REQUIRE(step(reducer, 1, 1, update) == GTOPK_OK);
    if (job->rank == job->killed)
        (void)raise(SIGKILL);
    comm->link.timeout = TIMEOUT; /* of the step that is going to miss it */
    const double start = clock_now();
    const gtopk_status_t status = step(reducer, 2, 1, update);
    const double took = clock_now() - start;
    REQUIRE(status == GTOPK_ERR_TRANSPORT || status == GTOPK_ERR_TIMEOUT);
    REQUIRE(took < TIMEOUT + LATE);
    REQUIRE(gtopk_reducer_residual(reducer, 0, before, DIM) == GTOPK_OK);
    REQUIRE(step(reducer, 3, 1, update) == status);
    fill(update, 3, 1);
    REQUIRE(gtopk_reducer_residual(reducer, 0, after, DIM) == GTOPK_OK);
    for (int i = 0; i < DIM; i++)
        REQUIRE(after[i] == before[i] + update[i]);
    gtopk_reducer_destroy(reducer);
    gtopk_comm_destroy(comm);
}

static void run_rank(job_t *job)
{
    REQUIRE(setenv("GTOPK_DEVICE", job->device, 1) == 0);
    const nccl_standin_control_t *standin = nccl_standin_open();
    standin->notice(job->tells);
    if (job->killed < 0)
        run_all(job);
    else
        run_killed(job);
}

/* ---- processes ---- */

static void run(const char *device, int size, int killed, int tells)
{
    int pairs[SIZE][SIZE];
    pid_t children[SIZE];
    for (int a = 0; a < size; a++)
        for (int b = a + 1; b < size; b++) {
            int both[2];
            assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, both), 0);
            pairs[a][b] = both[0];
            pairs[b][a] = both[1];
        }
    for (int r = 0; r < size; r++) {
        children[r] = fork();
        if (children[r] != 0)
            continue;
        job_t job = {.size = size, .rank = r, .device = device, .killed = killed, .tells = tells};
        for (int a = 0; a < size; a++)
            for (int b = 0; b < size; b++)
                if (a == r && b != r)
                    job.sockets[b] = pairs[a][b];
                else if (a != b)
                    (void)close(pairs[a][b]);
        run_rank(&job);
        (void)fflush(NULL);
        _exit(0);
    }
    for (int a = 0; a < size; a++)
        for (int b = 0; b < size; b++)
            if (a != b)
                (void)close(pairs[a][b]);
    int failed = 0;
    for (int r = 0; r < size; r++) {
        int status = -1;
        (void)waitpid(children[r], &status, 0);
        if (r == killed ? !WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL : status != 0)
            failed |= 1 << r;
    }
    if (failed)
        fail_msg("%d ranks on %s, of which %d is killed: ranks %#x failed", size, device, killed, (unsigned)failed);
}

static void test_bits_of_the_cpu(void **state)
{
    (void)state;
    for (int size = 2; size <= sizes_up_to(SIZE); size++)
        run("guarded", size, -1, 1);
}

static void test_on_the_driver_s_stand_in(void **state)
{
    (void)state;
    run("cuda", 3, -1, 1);
}

static void test_a_rank_is_killed(void **state)
{
    (void)state;
    for (int killed = 0; killed < 4; killed++)
        for (int tells = 0; tells < 2; tells++)
            run("guarded", 4 - killed % 2, killed % (4 - killed % 2), tells);
}

static int prepare(void **state)
{
    (void)state;
    return setenv("GTOPK_NCCL_LIBRARY", NCCL_STANDIN_FILE, 1) | setenv("GTOPK_CUDA_DRIVER", STANDIN_FILE, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bits_of_the_cpu),
        cmocka_unit_test(test_on_the_driver_s_stand_in),
        cmocka_unit_test(test_a_rank_is_killed),
    };
    return cmocka_run_group_tests_name("nccl_processes", tests, prepare, NULL);
}
