/* A rank that takes steps until one fails, and says when and how: for tests that kill and stop ranks. Public API only, but for memory on a GPU.
 *
 *   step_until_error SECONDS [stray | dense | nccl [ENTRIES]]      under mpirun; the deadline of an exchange
 *
 * nccl: gradients lie on a GPU, and exchanges go over NCCL; fewer entries, for where that is emulated.
 * stray: in step 60 rank 1 calls a barrier in place of a step, and everybody must hear of it long before the deadline.
 * dense: by all-reduce, of gradients so long that it is a ring for up to 8 ranks. Messages of the others are larger than what
 * an MPI sends without asking the receiver.
 *
 * Prints "rank R pid P", then every 50 steps (nccl: 10, or 3) "rank R step S", at the end "rank R failed STATUS at TIME kept K
 * later L": the clock's time, whether the residual is bit for bit what it was after accumulate, whether a later call failed
 * with the same error, and so without waiting. Ends without MPI_Finalize, as a program does that leaves with an error. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../../benchmarks/gpu_memory.h"
#include "gtopk.h"

#define DIM 20000
#define DIM_DENSE 80000

static double wall_clock(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void require(gtopk_status_t status)
{
    if (status == GTOPK_OK)
        return;
    (void)fprintf(stderr, "%s: %s\n", gtopk_status_name(status), gtopk_last_error());
    _exit(2);
}

static void fill(float *x, size_t dim, uint64_t seed)
{
    for (size_t i = 0; i < dim; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        x[i] = (float)(int32_t)(seed >> 32) * 1e-9f;
    }
}

int main(int argc, char **argv)
{
    static float x[DIM_DENSE], before[DIM_DENSE], after[DIM_DENSE];
    const int dense = argc > 2 && strcmp(argv[2], "dense") == 0;
    if (argc > 3 && strtoull(argv[3], NULL, 10) > DIM)
        return 2;
    const uint64_t length = argc > 3 ? strtoull(argv[3], NULL, 10) : dense ? DIM_DENSE : DIM;
    gtopk_comm_config_t net = GTOPK_COMM_CONFIG_INIT;
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_comm_t *comm;
    gtopk_reducer_t *reducer;
    const int stray = argc > 2 && strcmp(argv[2], "stray") == 0, nccl = argc > 2 && strcmp(argv[2], "nccl") == 0;
    const cuda_driver_t *driver = NULL;
    float *given = x; /* what gtopk gets */
    if (nccl) {
        if (!gpu_start(&driver) || !(given = gpu_allocate(driver, sizeof x))) {
            (void)fprintf(stderr, "no memory on a GPU: %s\n", gtopk_last_error());
            return 2;
        }
        net.data = "nccl";
        config.device = "cuda";
    }
    net.transport = "mpi";
    net.timeout = argc > 1 ? atof(argv[1]) : 2.0;
    net.setup_timeout = 120.0;
    require(gtopk_comm_create(&comm, &net));
    config.density = 0.5;
    config.algorithm = dense ? GTOPK_ALGORITHM_DENSE : GTOPK_ALGORITHM_GTOPK;
    require(gtopk_reducer_create(&reducer, comm, &config, &length, 1));
    const int rank = gtopk_comm_rank(comm);
    (void)printf("rank %d pid %ld\n", rank, (long)getpid());
    (void)fflush(stdout);

    const gtopk_tensor_t tensor = {given, length, GTOPK_F32, 0};
    const uint64_t often = length < DIM ? 3 : nccl ? 10 : 50;
    gtopk_status_t status = GTOPK_OK;
    for (uint64_t step = 0; status == GTOPK_OK; step++) {
        fill(x, length, step * 64 + (uint64_t)rank);
        if (driver && !gpu_copy(driver, given, x, length * sizeof *x))
            return 2;
        require(gtopk_reducer_accumulate(reducer, NULL, &tensor, 1, 1.0, 0, NULL));
        require(gtopk_reducer_residual(reducer, 0, before, length));
        if (stray && rank == 1 && step == 60)
            status = gtopk_barrier(comm);
        else
            status = gtopk_reducer_reduce(reducer, &tensor, 1, 0, NULL, NULL);
        if (step % often == 0) {
            (void)printf("rank %d step %llu\n", rank, (unsigned long long)step);
            (void)fflush(stdout);
        }
    }
    const double when = wall_clock();
    char text[1024];
    (void)snprintf(text, sizeof text, "%s", gtopk_last_error());
    (void)fprintf(stderr, "rank %d: %s\n", rank, text);
    require(gtopk_reducer_residual(reducer, 0, after, length));
    const gtopk_status_t later = gtopk_barrier(comm);
    (void)printf("rank %d failed %s at %.6f kept %d later %d\n", rank, gtopk_status_name(status), when,
                 memcmp(before, after, sizeof before) == 0,
                 later == status && strstr(gtopk_last_error(), text) != NULL);
    (void)fflush(stdout);
    gtopk_reducer_destroy(reducer);
    gtopk_comm_destroy(comm);
    (void)sleep(60); /* a rank that leaves with an error takes the others with it, also under --enable-recovery */
    _exit(3);
}
