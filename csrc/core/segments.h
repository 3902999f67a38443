/* The segments of a reducer: which entries belong to which tensor, and which of them were accumulated in this step. */
#ifndef GTOPK_CORE_SEGMENTS_H
#define GTOPK_CORE_SEGMENTS_H

#include "device/device.h"

typedef struct segments {
    size_t count;
    uint64_t *lengths, *offsets;
    device_span_t *spans; /* scratch: one a segment */
    uint8_t *seen;        /* accumulated in this step */
} segments_t;

gtopk_status_t segments_create(segments_t *segments, const uint64_t *lengths, size_t count);
void segments_destroy(segments_t *segments);

/* INVALID unless the tensor can stand for segment s; `what` names it in the error. */
gtopk_status_t segments_check_tensor(const segments_t *segments, const char *what, size_t s,
                                     const gtopk_tensor_t *tensor);

/* Spans of tensors for accumulate: tensors[i] belongs to segment which[i] (NULL: i), and these are seen from now on. On an
 * error (`step` is for its text) nothing is. */
gtopk_status_t segments_claim(segments_t *segments, const uint32_t *which, const gtopk_tensor_t *tensors, size_t count,
                              uint64_t step);

/* Nothing came for them after all. */
void segments_disclaim(segments_t *segments, const uint32_t *which, size_t count);

/* Spans without a tensor for the segments that were not seen; their number. */
size_t segments_missing(segments_t *segments);

/* Spans of one tensor for each segment, in order. */
void segments_fill(segments_t *segments, const gtopk_tensor_t *tensors);

/* Every segment may be accumulated again. */
void segments_forget(segments_t *segments);

#endif
