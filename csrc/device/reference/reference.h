/* The reference device: every operation of device.h as obviously as possible, on host memory and one thread, with no
 * hint and no candidates. Other devices must give its bits. Slow: selection sorts everything.
 *
 * The operations run between fpenv_enter and fpenv_leave: float arithmetic here is IEEE, nearest even, denormals kept,
 * so that `value == 0.0f` means +0 and -0 and nothing else. */
#ifndef GTOPK_DEVICE_REFERENCE_H
#define GTOPK_DEVICE_REFERENCE_H

#include "device/device.h"

struct device_store {
    uint64_t dim;
    float *residual;
    float *velocity;                 /* NULL without momentum correction */
    float *second, *second_velocity; /* NULL: accumulate writes where it reads */
    int in_bf16;                     /* the residual is rounded to bf16 wherever it changes. Kept in floats here */
    uint64_t seed;                   /* of that */
};

/* What a residual becomes when it changes to `value`, which is finite. place: DITHER_* */
float reference_rounded(const device_store_t *store, uint64_t index, float value, uint32_t place);

/* ---- reference_store.c ---- */

gtopk_status_t reference_store_create(device_t *device, uint64_t dim, uint64_t k, int with,
                                      const device_parallel_t *parallel, device_store_t **store);
void reference_store_destroy(device_store_t *store);
gtopk_status_t reference_store_resize(device_store_t *store, uint64_t k);
gtopk_status_t reference_store_read(device_store_t *store, int which, uint64_t offset, uint64_t length, float *out,
                                    void *stream);
gtopk_status_t reference_store_write(device_store_t *store, int which, uint64_t offset, uint64_t length,
                                     const float *in, void *stream);
gtopk_status_t reference_store_square(device_store_t *store, double *sum, void *stream);
gtopk_status_t reference_store_seed(device_store_t *store, uint64_t seed, void *stream);
gtopk_status_t reference_step_begin(device_store_t *store, device_words_t *words, void *stream);
gtopk_status_t reference_accumulate(device_store_t *store, const device_span_t *spans, size_t count,
                                    const device_accumulate_t *params, device_words_t *words, void *stream);
gtopk_status_t reference_swap(device_store_t *store, void *stream);
gtopk_status_t reference_array_select(device_t *device, const float *x, uint64_t n, uint64_t k,
                                      const device_parallel_t *parallel, device_set_t *out, void *stream);
gtopk_status_t reference_select(device_store_t *store, uint64_t k, device_set_t *out, device_words_t *words,
                                void *stream);

/* ---- reference_commit.c ---- */

gtopk_status_t reference_commit(device_store_t *store, const device_journal_t *journal, const device_target_t *target,
                                const device_words_t *words, void *stream);
gtopk_status_t reference_write(device_t *device, const device_set_t *final, uint32_t divisor,
                               const device_target_t *target, const device_words_t *words, void *stream);
gtopk_status_t reference_dense_gather(device_store_t *store, float *out, void *stream);
gtopk_status_t reference_dense_check(device_store_t *store, const float *sum, device_words_t *words, void *stream);
gtopk_status_t reference_dense_commit(device_store_t *store, float *sum, uint32_t divisor,
                                      const device_target_t *target, device_words_t *words, void *stream);

/* ---- reference_sets.c ---- */

gtopk_status_t reference_merge(device_t *device, const device_set_t *a, const device_set_t *b, uint64_t k,
                               device_set_t *kept, device_set_t *all, device_words_t *words, void *stream);
gtopk_status_t reference_deposit(device_t *device, const device_set_t *all, const device_set_t *sent, float share,
                                 device_set_t *out, device_words_t *words, void *stream);
gtopk_status_t reference_cut(device_t *device, const device_set_t *set, device_range_t range, device_set_t *out,
                             device_words_t *words, void *stream);
gtopk_status_t reference_copy_set(device_t *device, const device_set_t *from, device_set_t *to, device_words_t *words,
                                  void *stream);

/* Positions of the k largest of values[0..count) in ascending order: by magnitude, on equal magnitude the earlier one,
 * zeros never. *taken is min(k, the number of non-zeros). */
gtopk_status_t reference_largest(const float *values, uint64_t count, uint64_t k, uint32_t *positions, uint32_t *taken);

/* The value that a set has at an index; 0 where it has none. */
float reference_value_at(const device_set_t *set, uint32_t index);

/* Adds an entry at the end. */
void reference_append(device_set_t *set, uint32_t index, float value);

/* ---- reference_message.c ---- */

gtopk_status_t reference_encode(device_t *device, const device_set_t *set, const wire_header_t *header,
                                uint8_t *message, device_set_t *decoded, device_words_t *words, void *stream);
gtopk_status_t reference_decode(device_t *device, const uint8_t *message, size_t capacity, const wire_expect_t *expect,
                                device_set_t *out, device_words_t *words, void *stream);

#endif
