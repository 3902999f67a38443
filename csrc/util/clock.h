/* Monotonic time in seconds, and the middle one of some times. */
#ifndef GTOPK_UTIL_CLOCK_H
#define GTOPK_UTIL_CLOCK_H

#include <stddef.h>
#include <time.h>

static inline double clock_now(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Sorts them, at least one. The median is what something usually takes on a machine that others use, too. */
static inline double clock_median(double *seconds, size_t count)
{
    for (size_t i = 1; i < count; i++)
        for (size_t j = i; j > 0 && seconds[j] < seconds[j - 1]; j--) {
            const double swap = seconds[j];
            seconds[j] = seconds[j - 1];
            seconds[j - 1] = swap;
        }
    return seconds[count / 2];
}

#endif
