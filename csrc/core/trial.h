/* Which hierarchy is the faster one, found out by steps of both. */
#ifndef GTOPK_CORE_TRIAL_H
#define GTOPK_CORE_TRIAL_H

#include "core/reducer.h"

/* Collective. Takes some steps of a new reducer, with made-up gradients, and tells how long one takes on the slowest rank:
 * the same number on all. Its residual is not empty then. */
gtopk_status_t trial_time(gtopk_reducer_t *reducer, double *seconds);

#endif
