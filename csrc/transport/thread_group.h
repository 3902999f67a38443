/* The ranks of transport thread: who is there, the messages between them, and their clock. Everything but creating the group
 * is done under its mutex.
 *
 * Lives. A rank may close its transport and open it again, as a program does that creates communicators in a loop. Its
 * n-th opening talks to the n-th openings of the others: messages carry the life of their sender, so that a fast rank's
 * next life is not mixed up with a slow rank's present one.
 *
 * Virtual clock. Time stands still as long as some rank can do anything: it runs, or it has not yet opened a life that
 * another rank is in. When all ranks wait, are idle or have left, time jumps to the earliest deadline, and those whose
 * deadline it is go on. So what happens does not depend on how fast the threads run. */
#ifndef GTOPK_TRANSPORT_THREAD_GROUP_H
#define GTOPK_TRANSPORT_THREAD_GROUP_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "gtopk.h"

typedef struct thread_message {
    struct thread_message *next;
    uint64_t life; /* of the sender */
    size_t bytes;
    unsigned char payload[];
} thread_message_t;

typedef struct thread_queue {
    thread_message_t *first, *last;
} thread_queue_t;

typedef enum thread_state { RANK_CLOSED, RANK_RUNS, RANK_WAITS, RANK_IDLE } thread_state_t;

typedef struct thread_rank {
    thread_state_t state;
    uint64_t life;   /* times opened */
    double deadline; /* while it waits */
    uint64_t gone;   /* the life in which it said its last word, 0: none */
    pthread_cond_t wake;
} thread_rank_t;

struct gtopk_thread_group {
    int32_t size;
    int virtual_clock;
    pthread_mutex_t mutex;
    double now;    /* virtual clock */
    uint64_t life; /* the highest of any rank */
    thread_rank_t *ranks;
    thread_queue_t *queues; /* [to * size + from] */
};

void thread_queue_push(thread_queue_t *queue, thread_message_t *message);
thread_message_t *thread_queue_pop(thread_queue_t *queue);

double thread_group_now(const gtopk_thread_group_t *group);

/* To be called whenever a rank stops running. */
void thread_group_advance(gtopk_thread_group_t *group);

/* Sleeps until somebody wakes this rank or the deadline passes. */
void thread_group_sleep(gtopk_thread_group_t *group, thread_rank_t *rank, double deadline);

void thread_rank_wake(thread_rank_t *rank);

#endif
