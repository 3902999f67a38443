/* CLOCK_MONOTONIC in place of the wall clock, which may be set back. */
#include "transport/condition.h"

#include <math.h>
#include <time.h>

/* A deadline that no timespec needs to hold. */
#define FOREVER 1e15

int condition_init(pthread_cond_t *condition)
{
    pthread_condattr_t attributes;
    if (pthread_condattr_init(&attributes) != 0)
        return 0;
    const int done = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC) == 0 &&
                     pthread_cond_init(condition, &attributes) == 0;
    (void)pthread_condattr_destroy(&attributes);
    return done;
}

int condition_wait(pthread_cond_t *condition, pthread_mutex_t *mutex, double deadline)
{
    if (deadline > FOREVER)
        return pthread_cond_wait(condition, mutex) == 0;
    if (!(deadline > 0.0))
        return 0;
    const struct timespec until = {(time_t)floor(deadline), (long)(1e9 * (deadline - floor(deadline)))};
    return pthread_cond_timedwait(condition, mutex, &until) == 0;
}
