/* The two halves of a step, accumulate.c and step.c, and what they share. */
#ifndef GTOPK_CORE_STEP_H
#define GTOPK_CORE_STEP_H

#include "core/reducer.h"

/* Opens the step unless it is open. */
gtopk_status_t step_begin(gtopk_reducer_t *reducer, void *stream);

/* Closes it, settled: every segment may be accumulated again. Nothing outside of a step. */
gtopk_status_t step_end(gtopk_reducer_t *reducer);

/* No more gradients come: segments without one are offered to the selection as they are, and the residual is what
 * accumulate made of it. */
gtopk_status_t step_settle(gtopk_reducer_t *reducer, void *stream);

/* After the commit of a settled step that turned out to be non-finite: with rollback the residual is as before it. */
gtopk_status_t step_undo(gtopk_reducer_t *reducer, void *stream);

/* Where the update of a reducer goes: dense outputs, a set of the caller, or nowhere. */
typedef struct step_target {
    const gtopk_tensor_t *outputs;
    size_t count;
    gtopk_set_t *set;
} step_target_t;

/* Some reducers of one communicator and what they do in this step. */
typedef struct step_group {
    gtopk_reducer_t *const *reducers;
    const step_target_t *targets;
    size_t count;
    uint32_t flags;
    void *stream;
    exchange_step_t *steps; /* one a reducer */
} step_group_t;

/* From select to commit: it happens in all of them, or after an error in none. */
gtopk_status_t step_take(const step_group_t *group);

#endif
