/* What the two halves of a step share: accumulate.c and step.c. */
#ifndef GTOPK_CORE_STEP_H
#define GTOPK_CORE_STEP_H

#include "core/reducer.h"

/* Opens the step unless it is open. */
void step_begin(gtopk_reducer_t *reducer);

/* Closes it: every segment may be accumulated again. */
void step_end(gtopk_reducer_t *reducer);

/* INVALID unless `tensor` can stand for segment s; `what` names it in the error. */
gtopk_status_t step_check_tensor(const gtopk_reducer_t *reducer, const char *what, size_t s,
                                 const gtopk_tensor_t *tensor);

/* spans[at] becomes the segment with this tensor; NULL: nothing arrived. */
void step_set_span(gtopk_reducer_t *reducer, size_t at, size_t segment, const gtopk_tensor_t *tensor);

/* Segments that no gradient came for are offered to the selection as they are. */
gtopk_status_t step_accumulate_missing(gtopk_reducer_t *reducer, void *stream);

#endif
