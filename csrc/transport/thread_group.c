#include "transport/thread_group.h"

#include <math.h>

#include "transport/condition.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/memory.h"

void thread_queue_push(thread_queue_t *queue, thread_message_t *message)
{
    if (queue->last)
        queue->last->next = message;
    else
        queue->first = message;
    queue->last = message;
}

thread_message_t *thread_queue_pop(thread_queue_t *queue)
{
    thread_message_t *message = queue->first;
    queue->first = message->next;
    if (!queue->first)
        queue->last = NULL;
    return message;
}

/* ---- the clock ---- */

double thread_group_now(const gtopk_thread_group_t *group)
{
    return group->virtual_clock ? group->now : clock_now();
}

static int may_act(const gtopk_thread_group_t *group, const thread_rank_t *rank)
{
    return rank->state == RANK_RUNS || (rank->state == RANK_CLOSED && rank->life < group->life);
}

void thread_group_advance(gtopk_thread_group_t *group)
{
    double earliest = INFINITY;
    if (!group->virtual_clock)
        return;
    for (int32_t r = 0; r < group->size; r++) {
        if (may_act(group, &group->ranks[r]))
            return;
        if (group->ranks[r].state == RANK_WAITS)
            earliest = fmin(earliest, group->ranks[r].deadline);
    }
    if (isinf(earliest))
        return;
    group->now = fmax(group->now, earliest);
    for (int32_t r = 0; r < group->size; r++)
        if (group->ranks[r].state == RANK_WAITS && group->ranks[r].deadline <= group->now) {
            group->ranks[r].state = RANK_RUNS;
            (void)pthread_cond_signal(&group->ranks[r].wake);
        }
}

/* The one who wakes a rank sets its state, so that the clock cannot pass over one that is about to run. */
void thread_group_sleep(gtopk_thread_group_t *group, thread_rank_t *rank, double deadline)
{
    rank->state = RANK_WAITS;
    rank->deadline = deadline;
    thread_group_advance(group);
    if (group->virtual_clock)
        while (rank->state == RANK_WAITS)
            (void)pthread_cond_wait(&rank->wake, &group->mutex);
    else
        while (rank->state == RANK_WAITS && condition_wait(&rank->wake, &group->mutex, deadline))
            continue;
    rank->state = RANK_RUNS;
}

void thread_rank_wake(thread_rank_t *rank)
{
    if (rank->state == RANK_WAITS) {
        rank->state = RANK_RUNS;
        (void)pthread_cond_signal(&rank->wake);
    }
}

/* ---- life ---- */

gtopk_status_t gtopk_thread_group_create(gtopk_thread_group_t **out, int32_t size, uint32_t flags)
{
    gtopk_thread_group_t *group = NULL;
    int32_t ready = 0;
    if (!out)
        return status_set(GTOPK_ERR_INVALID, "gtopk_thread_group_create needs a place for the handle");
    *out = NULL;
    if (size < 1)
        return status_set(GTOPK_ERR_INVALID, "a thread group of %d ranks: it needs at least one", (int)size);
    if (flags & ~(uint32_t)GTOPK_THREAD_VIRTUAL_CLOCK)
        return status_set(GTOPK_ERR_INVALID, "unknown thread group flags 0x%x", (unsigned)flags);
    gtopk_status_t status = memory_alloc(&group, 1, sizeof *group, "a thread group");
    if (status == GTOPK_OK)
        status = memory_alloc(&group->ranks, (size_t)size, sizeof *group->ranks, "the ranks of a thread group");
    if (status == GTOPK_OK)
        status = memory_alloc(&group->queues, (size_t)size, (size_t)size * sizeof *group->queues,
                              "the queues of a thread group");
    if (status != GTOPK_OK)
        goto cleanup;
    while (ready < size && condition_init(&group->ranks[ready].wake))
        ready++;
    if (ready < size || pthread_mutex_init(&group->mutex, NULL) != 0) {
        status = status_set(GTOPK_ERR_NOMEM, "a thread group of %d ranks: no more condition variables", (int)size);
        goto cleanup;
    }
    group->size = size;
    group->virtual_clock = (flags & GTOPK_THREAD_VIRTUAL_CLOCK) != 0;
    *out = group;
    return GTOPK_OK;

cleanup:
    for (int32_t r = 0; r < ready; r++)
        (void)pthread_cond_destroy(&group->ranks[r].wake);
    if (group) {
        memory_free(group->queues);
        memory_free(group->ranks);
    }
    memory_free(group);
    return status;
}

void gtopk_thread_group_destroy(gtopk_thread_group_t *group)
{
    if (!group)
        return;
    for (int32_t r = 0; r < group->size; r++)
        if (group->ranks[r].state != RANK_CLOSED) {
            LOG(GTOPK_LOG_ERROR,
                "a thread group is destroyed while rank %d is open: its memory is left behind; destroy the "
                "communicators first",
                (int)r);
            return;
        }
    for (size_t i = 0; i < (size_t)group->size * (size_t)group->size; i++)
        while (group->queues[i].first)
            memory_free(thread_queue_pop(&group->queues[i]));
    for (int32_t r = 0; r < group->size; r++)
        (void)pthread_cond_destroy(&group->ranks[r].wake);
    (void)pthread_mutex_destroy(&group->mutex);
    memory_free(group->queues);
    memory_free(group->ranks);
    memory_free(group);
}
