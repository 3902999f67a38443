/* Condition variables on the clock that deadlines are given in. */
#ifndef GTOPK_TRANSPORT_CONDITION_H
#define GTOPK_TRANSPORT_CONDITION_H

#include <pthread.h>

/* 1, or 0 when the system has no more of them. */
int condition_init(pthread_cond_t *condition);

/* Waits for a signal until `deadline` (seconds, as clock_now): 0 when it has passed. May wake without a cause. */
int condition_wait(pthread_cond_t *condition, pthread_mutex_t *mutex, double deadline);

#endif
