/* Threads for select_bench: a parallel-for with helpers that wait for work, as a training framework has them. */
#ifndef GTOPK_BENCHMARKS_SELECT_TEAM_H
#define GTOPK_BENCHMARKS_SELECT_TEAM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "gtopk.h"
#include "select_data.h"

enum { TEAM_MAX = 64 };

typedef struct team team_t;

typedef struct seat {
    team_t *team;
    int place;
} seat_t;

struct team {
    pthread_t helpers[TEAM_MAX];
    seat_t seats[TEAM_MAX];
    int size; /* this thread included */
    atomic_uint round, left;
    atomic_int quit;
    int64_t begin, end;
    gtopk_parallel_body_fn body;
    void *arg;
};

static inline void team_share(const team_t *team, int place)
{
    int64_t items = team->end - team->begin;
    int64_t from = team->begin + items * place / team->size, to = team->begin + items * (place + 1) / team->size;
    if (from < to)
        team->body(from, to, team->arg);
}

static inline void *helper_main(void *arg)
{
    const seat_t *seat = arg;
    team_t *team = seat->team;
    for (unsigned seen = 0;;) {
        while (atomic_load(&team->round) == seen)
            if (atomic_load(&team->quit))
                return NULL;
        seen++;
        team_share(team, seat->place);
        atomic_fetch_sub(&team->left, 1);
    }
}

static inline void team_open(team_t *team, int size)
{
    *team = (team_t){.size = size};
    for (int i = 1; i < size; i++) {
        team->seats[i] = (seat_t){team, i};
        if (pthread_create(&team->helpers[i], NULL, helper_main, &team->seats[i]) != 0)
            bench_fail("thread", "cannot be started");
    }
}

static inline void team_close(team_t *team)
{
    atomic_store(&team->quit, 1);
    for (int i = 1; i < team->size; i++)
        (void)pthread_join(team->helpers[i], NULL);
}

static inline void team_run(void *context, int64_t begin, int64_t end, int64_t grain, gtopk_parallel_body_fn body,
                            void *arg)
{
    team_t *team = context;
    (void)grain;
    team->begin = begin;
    team->end = end;
    team->body = body;
    team->arg = arg;
    atomic_store(&team->left, (unsigned)team->size - 1);
    atomic_fetch_add(&team->round, 1);
    team_share(team, 0);
    while (atomic_load(&team->left) != 0) {
    }
}

#endif
