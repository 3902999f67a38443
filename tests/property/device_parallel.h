/* Parallel-fors that a caller might pass: parts of any size, in any order, on two threads. */
#ifndef GTOPK_TESTS_DEVICE_PARALLEL_H
#define GTOPK_TESTS_DEVICE_PARALLEL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "gtopk.h"
#include "support/random.h"

enum { PARALLEL_PARTS = 12 };

typedef struct parallel_job {
    int64_t cut[PARALLEL_PARTS + 1]; /* part i is [cut[i], cut[i + 1]) */
    int order[PARALLEL_PARTS];
    atomic_int next;
    gtopk_parallel_body_fn body;
    void *arg;
} parallel_job_t;

static int parallel_compare(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Random cuts, parts in random order. The grain is a wish that is not granted: parts may be smaller, and empty. */
static void parallel_cut(parallel_job_t *job, random_state_t *random, int64_t begin, int64_t end)
{
    job->cut[0] = begin;
    job->cut[PARALLEL_PARTS] = end;
    for (int i = 1; i < PARALLEL_PARTS; i++)
        job->cut[i] = begin + (int64_t)random_below(random, (uint64_t)(end - begin) + 1);
    qsort(job->cut, PARALLEL_PARTS + 1, sizeof job->cut[0], parallel_compare);
    for (int i = 0; i < PARALLEL_PARTS; i++) {
        const int j = (int)random_below(random, (uint64_t)i + 1);
        job->order[i] = job->order[j];
        job->order[j] = i;
    }
}

static void *parallel_work(void *argument)
{
    parallel_job_t *job = argument;
    for (int i; (i = atomic_fetch_add(&job->next, 1)) < PARALLEL_PARTS;) {
        const int part = job->order[i];
        if (job->cut[part] < job->cut[part + 1])
            job->body(job->cut[part], job->cut[part + 1], job->arg);
    }
    return NULL;
}

static void parallel_run(random_state_t *random, int64_t begin, int64_t end, int threads, gtopk_parallel_body_fn body,
                         void *arg)
{
    parallel_job_t job = {.body = body, .arg = arg};
    pthread_t helper;
    parallel_cut(&job, random, begin, end);
    atomic_init(&job.next, 0);
    const int helped = threads > 1 && pthread_create(&helper, NULL, parallel_work, &job) == 0;
    (void)parallel_work(&job);
    if (helped)
        (void)pthread_join(helper, NULL);
}

/* context: a random_state_t. */
static void parallel_shuffled(void *context, int64_t begin, int64_t end, int64_t grain, gtopk_parallel_body_fn body,
                              void *arg)
{
    (void)grain;
    parallel_run(context, begin, end, 1, body, arg);
}

static void parallel_two_threads(void *context, int64_t begin, int64_t end, int64_t grain, gtopk_parallel_body_fn body,
                                 void *arg)
{
    (void)grain;
    parallel_run(context, begin, end, 2, body, arg);
}

#endif
