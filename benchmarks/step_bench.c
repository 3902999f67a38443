/* The time of one step (accumulate and reduce) of a reducer, for comparing two builds of the library: no options but
 * these, no checks, one line out. compare_builds.py runs it in turns with the other build's.
 *
 *   step_bench TRANSPORT N STEPS [RANKS]       TRANSPORT: self, thread (RANKS threads) or mpi (under mpirun)
 *
 * Prints the smallest and the median time of a step in microseconds; a step's time is that of the rank that takes longest
 * from a common start. Uses the public interface alone. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "gtopk.h"

#define RANKS_MAX 64
#define WARMUP 5

typedef struct job {
    gtopk_thread_group_t *group;
    const char *transport;
    uint64_t n;
    int steps, rank, size;
    double *times; /* [steps], microseconds; this rank's */
} job_t;

static void check(gtopk_status_t status)
{
    if (status == GTOPK_OK)
        return;
    (void)fprintf(stderr, "step_bench: %s\n", gtopk_last_error());
    exit(1);
}

static double now_us(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e6 * (double)t.tv_sec + 1e-3 * (double)t.tv_nsec;
}

static void fill(float *gradient, uint64_t n, uint64_t seed)
{
    for (uint64_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        const float x = (float)(seed >> 40) * 0x1p-23f - 1.0f;
        gradient[i] = x * x * x * x * x;
    }
}

static void *run(void *argument)
{
    job_t *job = argument;
    gtopk_comm_config_t net = GTOPK_COMM_CONFIG_INIT;
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_comm_t *comm;
    gtopk_reducer_t *reducer;
    net.transport = job->transport;
    if (job->group) {
        net.group = job->group;
        net.rank = job->rank;
        net.size = job->size;
    }
    check(gtopk_comm_create(&comm, &net));
    job->rank = gtopk_comm_rank(comm);
    job->size = gtopk_comm_size(comm);
    check(gtopk_reducer_create(&reducer, comm, &config, &job->n, 1));
    float *source = malloc(job->n * sizeof *source), *gradient = malloc(job->n * sizeof *gradient);
    if (!source || !gradient)
        exit(1);
    fill(source, job->n, (uint64_t)job->rank + 1);
    const gtopk_tensor_t tensor = {gradient, job->n, GTOPK_F32, 0};
    for (int step = -WARMUP; step < job->steps; step++) {
        memcpy(gradient, source, job->n * sizeof *gradient);
        check(gtopk_barrier(comm));
        const double start = now_us();
        check(gtopk_reducer_accumulate(reducer, NULL, &tensor, 1, 1.0, GTOPK_ZERO_INPUT, NULL));
        check(gtopk_reducer_reduce(reducer, &tensor, 1, GTOPK_OUTPUT_IS_ZERO, NULL, NULL));
        const double mine = now_us() - start;
        double all[RANKS_MAX], longest = 0.0;
        check(gtopk_allgather(comm, &mine, sizeof mine, all));
        for (int r = 0; r < job->size; r++)
            longest = all[r] > longest ? all[r] : longest;
        if (step >= 0)
            job->times[step] = longest;
    }
    free(source);
    free(gradient);
    gtopk_reducer_destroy(reducer);
    gtopk_comm_destroy(comm);
    return NULL;
}

static void run_threads(job_t *first, int size)
{
    job_t jobs[RANKS_MAX];
    pthread_t threads[RANKS_MAX];
    check(gtopk_thread_group_create(&first->group, size, 0));
    for (int r = 0; r < size; r++) {
        jobs[r] = *first;
        jobs[r].rank = r;
        jobs[r].size = size;
        jobs[r].times = r ? malloc((size_t)first->steps * sizeof *first->times) : first->times;
        if (!jobs[r].times || pthread_create(&threads[r], NULL, run, &jobs[r]) != 0)
            exit(1);
    }
    for (int r = 0; r < size; r++) {
        (void)pthread_join(threads[r], NULL);
        if (r)
            free(jobs[r].times);
    }
    gtopk_thread_group_destroy(first->group);
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int count, char **arguments)
{
    if (count < 4 || count > 5) {
        (void)fprintf(stderr, "step_bench TRANSPORT N STEPS [RANKS]\n");
        return 2;
    }
    job_t job = {.transport = arguments[1], .n = strtoull(arguments[2], NULL, 10), .steps = atoi(arguments[3])};
    const int ranks = count == 5 ? atoi(arguments[4]) : 1;
    if (job.n < 1 || job.steps < 1 || ranks < 1 || ranks > RANKS_MAX)
        return 2;
    job.times = malloc((size_t)job.steps * sizeof *job.times);
    if (!job.times)
        return 1;
    if (strcmp(job.transport, "thread") == 0)
        run_threads(&job, ranks);
    else
        (void)run(&job);
    qsort(job.times, (size_t)job.steps, sizeof *job.times, compare);
    if (job.rank == 0)
        (void)printf("%.3f %.3f\n", job.times[0], job.times[job.steps / 2]);
    free(job.times);
    return gtopk_finalize() == GTOPK_OK ? 0 : 1;
}
