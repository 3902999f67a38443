/* Which algorithm a reducer of GTOPK_ALGORITHM_AUTO takes, and when it is looked at again. Choosing is pure: every rank has the
 * same numbers and comes to the same answer. */
#ifndef GTOPK_CORE_CHOICE_H
#define GTOPK_CORE_CHOICE_H

#include "core/reducer.h"

/* One rank by itself has nothing to choose: it stays with gtopk. */
static inline int choice_is_open(const gtopk_reducer_t *reducer)
{
    return reducer->record.open && comm_size(reducer->comm) > 1;
}

/* The algorithm to take in place of `current`: the one of least seconds, measured where that is known, else predicted; but
 * `current` unless that one takes at least 5 % less. Once `current` is measured, predictions of the others count for two thirds
 * of what they are beside its own, at most for what they are: so each that may be faster is tried. An algorithm predicted as 0 or
 * INFINITY is not among the choices. */
int32_t choice_pick(const double *predicted, const double *measured, int32_t current);

/* Predictions for a density, nothing measured; returns the algorithm to take: gtopk unless another one takes 5 % less. */
int32_t choice_predict(const gtopk_reducer_t *reducer, double density, choice_t *choice);

/* Collective. Of a new reducer whose choice is open: measures, once a communicator, and takes the algorithm of the least
 * predicted time. */
gtopk_status_t choice_begin(gtopk_reducer_t *reducer, const gtopk_reducer_config_t *config);

/* Collective. After a step that all ranks have taken, which the communicator is still taken for: notes how long it took, and
 * where it is time, compares with the other ranks and takes another algorithm. An error breaks the communicator, for the next
 * step to find. */
void choice_review(gtopk_reducer_t *reducer);

/* Says at level info what is predicted, and what was taken. */
void choice_log(const gtopk_reducer_t *reducer, const char *why);

#endif
