/* What the two halves of a step share: accumulate.c and step.c. */
#ifndef GTOPK_CORE_STEP_H
#define GTOPK_CORE_STEP_H

#include "core/reducer.h"

/* Opens the step unless it is open. */
gtopk_status_t step_begin(gtopk_reducer_t *reducer, void *stream);

/* Closes it: every segment may be accumulated again. */
void step_end(gtopk_reducer_t *reducer);

/* Segments that no gradient came for are offered to the selection as they are. */
gtopk_status_t step_accumulate_missing(gtopk_reducer_t *reducer, void *stream);

#endif
