/* Runs a function on P ranks, each a thread of this process with a communicator of its own, whose exchanges go over the
 * transport that GTOPK_TEST_TRANSPORT names: thread, ordered, or nccl, which is a stand-in. For tests. */
#ifndef TESTS_SUPPORT_RANKS_H
#define TESTS_SUPPORT_RANKS_H

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/comm.h"
#include "support/nccl.h"
#include "support/ordered.h"
#include "transport/thread.h"

#define RANKS_MAX 64

typedef void (*ranks_fn)(gtopk_comm_t *comm, int rank, int size, void *context);

typedef struct ranks_thread {
    pthread_t thread;
    gtopk_thread_group_t *group;
    ordered_group_t *ordered; /* NULL: the thread transport does everything */
    ranks_fn fn;
    void *context;
    double timeout;
    int rank, size, each;
    pthread_barrier_t *end; /* of all ranks: see ranks_stay */
} ranks_thread_t;

/* The name of a rank's node. each: ranks of a node, which follow each other; below 0: that many nodes, whose ranks take
 * turns; 0: the machine's own. */
static inline const char *ranks_node(int rank, int each, char text[16])
{
    if (each == 0)
        return NULL;
    (void)snprintf(text, 16, "node-%d", each > 0 ? rank / each : rank % -each);
    return text;
}

/* What a communicator is made of. ordered: NULL without a group. */
static inline gtopk_status_t ranks_transports(const gtopk_comm_config_t *config, ordered_group_t *group,
                                              transport_t **thread, transport_t **ordered)
{
    *ordered = NULL;
    gtopk_status_t status = transport_thread_open(config, thread);
    if (status != GTOPK_OK || !group)
        return status;
    status = ordered_create(group, *thread, ordered);
    if (status != GTOPK_OK)
        (*thread)->ops->close(*thread);
    return status;
}

static gtopk_status_t ranks_open(gtopk_comm_t **comm, const gtopk_comm_config_t *config, ordered_group_t *group)
{
    transport_t *thread, *ordered;
    gtopk_comm_config_t with_data = *config;
    if (nccl_wanted())
        with_data.data = "nccl";
    if (!group)
        return gtopk_comm_create(comm, &with_data);
    const gtopk_status_t status = ranks_transports(config, group, &thread, &ordered);
    return status == GTOPK_OK ? comm_open(comm, thread, ordered, config) : status;
}

/* For parts of ranks_play: closing tells the others, so nobody does before all are done. On a virtual clock a rank that stays
 * keeps no deadline from passing. */
static inline void ranks_stay(const ranks_thread_t *self, transport_t *thread)
{
    transport_thread_idle(thread, 1);
    (void)pthread_barrier_wait(self->end);
}

/* P threads, each with a copy of `common` that has its own rank; `part` opens communicators itself. */
static inline void ranks_play(ranks_thread_t common, void *(*part)(void *self), uint32_t flags)
{
    ranks_thread_t threads[RANKS_MAX];
    pthread_barrier_t end;
    const int size = common.size;
    if (size > RANKS_MAX || gtopk_thread_group_create(&common.group, size, flags) != GTOPK_OK ||
        pthread_barrier_init(&end, NULL, (unsigned)size) != 0)
        abort();
    common.ordered = ordered_wanted() ? ordered_group_create(size) : NULL;
    common.end = &end;
    for (int r = 0; r < size; r++) {
        threads[r] = common;
        threads[r].rank = r;
        if (pthread_create(&threads[r].thread, NULL, part, &threads[r]) != 0)
            abort();
    }
    for (int r = 0; r < size; r++)
        (void)pthread_join(threads[r].thread, NULL);
    (void)pthread_barrier_destroy(&end);
    ordered_group_destroy(common.ordered);
    gtopk_thread_group_destroy(common.group);
}

static void *ranks_main(void *argument)
{
    ranks_thread_t *self = argument;
    gtopk_comm_config_t config = GTOPK_COMM_CONFIG_INIT;
    gtopk_comm_t *comm;
    char node[16];
    config.transport = "thread";
    config.group = self->group;
    config.rank = self->rank;
    config.size = self->size;
    config.timeout = self->timeout;
    config.node = ranks_node(self->rank, self->each, node);
    if (ranks_open(&comm, &config, self->ordered) != GTOPK_OK) {
        (void)fprintf(stderr, "rank %d: %s\n", self->rank, gtopk_last_error());
        abort();
    }
    self->fn(comm, self->rank, self->size, self->context);
    gtopk_comm_destroy(comm);
    return NULL;
}

static inline void ranks_run_on(int size, int each, ranks_fn fn, void *context, double timeout, uint32_t flags)
{
    if (nccl_wanted())
        (void)nccl_standin_open();
    ranks_play((ranks_thread_t){.fn = fn, .context = context, .timeout = timeout, .size = size, .each = each},
               ranks_main, flags);
}

static inline void ranks_run_flags(int size, ranks_fn fn, void *context, double timeout, uint32_t flags)
{
    ranks_run_on(size, 0, fn, context, timeout, flags);
}

/* A deadline of 60 s: a deadlock fails the test in place of hanging it. */
static inline void ranks_run(int size, ranks_fn fn, void *context)
{
    ranks_run_flags(size, fn, context, 60.0, 0);
}

/* The same on nodes: see ranks_node. */
static inline void ranks_run_nodes(int size, int each, ranks_fn fn, void *context)
{
    ranks_run_on(size, each, fn, context, 60.0, 0);
}

#endif
