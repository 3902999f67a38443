/* What is the same on all devices whose memory is the host's: memory, words, and the judgement of a header. */
#ifndef GTOPK_DEVICE_HOST_H
#define GTOPK_DEVICE_HOST_H

#include "device/device.h"

gtopk_status_t host_allocate(device_t *device, size_t bytes, const char *what, void **out);
void host_release(device_t *device, void *block);
gtopk_status_t host_copy(device_t *device, void *to, const void *from, size_t bytes, void *stream);
gtopk_status_t host_widen(device_t *device, device_set_t *set, device_range_t range, void *stream);
gtopk_status_t host_synchronize(device_t *device, void *stream);

/* What step_begin makes of the words. */
void host_words_begin(device_words_t *words);

/* Notes the first error of a step. */
void host_words_fail(device_words_t *words, device_error_t error);

/* 1 when a set has room for `needed` entries; otherwise it is emptied and the words say so. */
int host_has_room(const device_set_t *set, uint64_t needed, device_words_t *words);

gtopk_status_t host_words_join(device_t *device, device_words_t *const *words, size_t count, int joined, void *stream);
gtopk_status_t host_verdict(device_t *device, const device_outcome_t *outcomes, size_t count, void *stream);

gtopk_status_t host_stage(device_t *device, const device_span_t *spans, size_t count, const device_stage_t *params,
                          float *out, void *stream);
gtopk_status_t host_add_up(device_t *device, const float *parts, size_t stride, uint32_t count, float *out,
                           uint64_t length, void *stream);
gtopk_status_t host_append(device_t *device, const device_set_t *set, uint32_t offset, device_set_t *to,
                           device_words_t *words, void *stream);

gtopk_status_t host_address(device_t *device, uint8_t *message, uint32_t sender, uint16_t round, uint32_t k,
                            const device_words_t *words, void *stream);

/* What the words say in the header of a message: its flags. After a failure it is a last word, so that nobody takes in what
 * this rank makes of a step that it is going to drop. */
void host_mark(const device_words_t *words, wire_header_t *header);

/* Reads and judges the header of a message. 1: it is the awaited one, and its flags are in the words. */
int host_judge(const uint8_t *message, size_t capacity, const wire_expect_t *expect, wire_header_t *header,
               device_words_t *words);

/* The payload of a judged message is no set: what words hold of the header says which. */
void host_blame(const uint8_t *message, size_t capacity, const wire_expect_t *expect, device_error_t error,
                device_words_t *words);

#endif
