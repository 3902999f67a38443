/* Runs a function on P ranks, each a thread of this process with a communicator of its own, whose exchanges go over the
 * transport that GTOPK_TEST_TRANSPORT names: thread or ordered. For tests. */
#ifndef TESTS_SUPPORT_RANKS_H
#define TESTS_SUPPORT_RANKS_H

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/comm.h"
#include "support/ordered.h"

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

static gtopk_status_t ranks_open(gtopk_comm_t **comm, const gtopk_comm_config_t *config, ordered_group_t *group)
{
    transport_t *thread, *ordered;
    if (!group)
        return gtopk_comm_create(comm, config);
    gtopk_status_t status = transport_thread_open(config, &thread);
    if (status != GTOPK_OK)
        return status;
    status = ordered_create(group, thread, &ordered);
    if (status != GTOPK_OK) {
        thread->ops->close(thread);
        return status;
    }
    return comm_open(comm, thread, ordered, config);
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
    ranks_thread_t threads[RANKS_MAX];
    gtopk_thread_group_t *group;
    ordered_group_t *ordered = ordered_wanted() ? ordered_group_create(size) : NULL;
    if (size > RANKS_MAX || gtopk_thread_group_create(&group, size, flags) != GTOPK_OK)
        abort();
    for (int r = 0; r < size; r++) {
        threads[r] = (ranks_thread_t){.group = group,
                                      .ordered = ordered,
                                      .fn = fn,
                                      .context = context,
                                      .timeout = timeout,
                                      .rank = r,
                                      .size = size,
                                      .each = each};
        if (pthread_create(&threads[r].thread, NULL, ranks_main, &threads[r]) != 0)
            abort();
    }
    for (int r = 0; r < size; r++)
        (void)pthread_join(threads[r].thread, NULL);
    ordered_group_destroy(ordered);
    gtopk_thread_group_destroy(group);
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
