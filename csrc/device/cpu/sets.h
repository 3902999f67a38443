/* Operations of the CPU device on sets: sets.c (merge, deposit, cut, copy), rank.c (the k largest of a sorted set),
 * message.c (encode, decode). */
#ifndef GTOPK_DEVICE_CPU_SETS_H
#define GTOPK_DEVICE_CPU_SETS_H

#include "device/cpu/kernels.h"
#include "device/device.h"

/* Copies the k entries of largest key of `count` sorted ones, count > k >= 1. */
void rank_keep_largest(const kernels_t *kernels, const uint32_t *index, const float *value, size_t count, size_t k,
                       uint32_t *out_index, float *out_value);

gtopk_status_t sets_merge(device_t *device, const device_set_t *a, const device_set_t *b, uint64_t k,
                          device_set_t *kept, device_set_t *all, device_words_t *words, void *stream);
gtopk_status_t sets_deposit(device_t *device, const device_set_t *all, const device_set_t *sent, float share,
                            device_set_t *out, device_words_t *words, void *stream);
gtopk_status_t sets_cut(device_t *device, const device_set_t *set, device_range_t range, device_set_t *out,
                        device_words_t *words, void *stream);
gtopk_status_t sets_copy(device_t *device, const device_set_t *from, device_set_t *to, device_words_t *words,
                         void *stream);

gtopk_status_t message_encode(device_t *device, const device_set_t *set, const wire_header_t *header, uint8_t *message,
                              device_set_t *decoded, device_words_t *words, void *stream);
gtopk_status_t message_decode(device_t *device, const uint8_t *message, size_t capacity, const wire_expect_t *expect,
                              device_set_t *out, device_words_t *words, void *stream);

#endif
