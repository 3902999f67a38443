/* What the two halves of a step share: accumulate.c and step.c. */
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

#endif
