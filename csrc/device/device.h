/* The device joint: the place where sets live and the one that does all arithmetic on them.
 *
 * A device knows nothing of ranks, rounds or transports. Every operation takes a stream; on a device with streams it
 * returns when the work is queued, the CPU ignores the stream and returns when it is done. Sets have their count in
 * the device's memory, so that one operation can follow another without the host knowing the count.
 *
 * `reference` and `cpu` are host devices: all memory is host memory, and results can be read when a call returns. */
#ifndef GTOPK_DEVICE_DEVICE_H
#define GTOPK_DEVICE_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#include "util/status.h"
#include "wire/wire.h"

typedef struct device device_t;
typedef struct device_store device_store_t;

/* Strictly increasing indices, finite non-zero values. All three pointers are device memory. */
typedef struct device_set {
    uint32_t *index;
    float *value;
    uint32_t *count;
    uint32_t capacity;
} device_set_t;

/* Words in device memory that operations set and commit reads; one a reducer. */
typedef struct device_words {
    uint32_t ok;        /* 1 at the start of a step; 0: something failed, commit changes nothing */
    uint32_t nonfinite; /* 1: a sum was not finite; commit writes NaN to the outputs and changes nothing else */
    uint32_t joined;    /* 1: this rank, and everybody merged so far, has JOINED; in commit: all ranks; commit writes
                           zero to the outputs and changes nothing else */
    uint32_t reserved;
} device_words_t;

/* `length` entries from `offset` of the concatenation. data NULL: nothing arrived, the residual is only scanned. */
typedef struct device_span {
    uint64_t offset;
    uint64_t length;
    void *data;
    int32_t dtype;
} device_span_t;

typedef struct device_accumulate {
    float scale;
    int zero_input;
    float momentum; /* for a store with velocity */
    int nesterov;
} device_accumulate_t;

/* What a step will change at commit. */
typedef struct device_journal {
    device_set_t selected;        /* what the rank chose: index and residual value v */
    device_set_t first;           /* what the others decode of it; its indices are a subset of selected's */
    const device_set_t *deposits; /* added in this order */
    uint32_t deposit_count;
    device_set_t final;   /* the sum over the ranks: the same everywhere */
    int clear_final_only; /* 0: residual[selected] = v - first for all selected entries (0 where first has
                                     none); 1: only for those that are in final too (residual policy `paper`) */
    uint32_t size;        /* mean = value / size */
} device_journal_t;

typedef struct device_parallel {
    gtopk_parallel_for_fn parallel_for; /* NULL: run on this thread */
    void *context;
} device_parallel_t;

typedef struct device_ops {
    const char *name;
    int host_memory; /* 1: device memory is host memory */

    void (*close)(device_t *device);

    /* Zeroed memory of the device, or pinned host memory that it can copy to and from. */
    gtopk_status_t (*allocate)(device_t *device, size_t bytes, const char *what, void **out);
    void (*release)(device_t *device, void *block);
    gtopk_status_t (*allocate_pinned)(device_t *device, size_t bytes, const char *what, void **out);
    void (*release_pinned)(device_t *device, void *block);

    /* ---- the store: residual, velocity, candidates and hint of one reducer ---- */

    /* Residual of `dim` zeros (and velocity). k: the entries that select will be asked for. */
    gtopk_status_t (*store_create)(device_t *device, uint64_t dim, uint64_t k, int with_velocity,
                                   const device_parallel_t *parallel, device_store_t **store);
    void (*store_destroy)(device_store_t *store);

    /* Another k from the next step on. On failure nothing has changed. */
    gtopk_status_t (*store_resize)(device_store_t *store, uint64_t k);

    /* Starts a step: no candidates, no span seen. */
    void (*step_begin)(device_store_t *store);

    /* residual = fma(scale, x, residual) in float, a plain add when scale is 1; entries whose sum is not finite are
     * left alone and set words->nonfinite. With a velocity: t = scale * x; velocity = fma(momentum, velocity, t);
     * residual += nesterov ? fma(momentum, velocity, t) : velocity; an entry for which either is not finite is left
     * alone in both and sets words->nonfinite. With zero_input x becomes zero, also where nothing was stored. Offers
     * every entry of the spans to the candidates. Spans of one step never overlap. */
    gtopk_status_t (*accumulate)(device_store_t *store, const device_span_t *spans, size_t count,
                                 const device_accumulate_t *params, device_words_t *words, void *stream);

    /* The exact k entries of largest key of the residual, k <= the store's k, sorted by index; key: bits of |v|, then
     * the lower index; zeros never. Every entry was offered in this step (accumulate with data NULL does it for spans
     * without a gradient). Does not change the residual. *candidates and *misses (0 or 1) are for the statistics. */
    gtopk_status_t (*select)(device_store_t *store, uint64_t k, device_set_t *out, void *stream, uint64_t *candidates,
                             uint64_t *misses);

    /* The k entries of largest key of x[0..n), which is only read; NaN and Inf count as the largest. For the public
     * block: no store. */
    gtopk_status_t (*array_select)(device_t *device, const float *x, uint64_t n, uint64_t k,
                                   const device_parallel_t *parallel, device_set_t *out, void *stream);

    /* If words->ok and neither words->nonfinite nor words->joined: clears, adds the deposits (entries that become non-finite keep their old
     * value), zeroes the velocity of entries in both selected and final, and writes final / size (correctly rounded,
     * then converted; what a 16-bit output cannot hold, mean - converted with converted clamped to the largest finite
     * value, is added to the residual). `outputs` cover [0, dim) in order, or count 0: no dense output. Outputs are
     * zeroed first unless outputs_are_zero. If nonfinite: fills the outputs with NaN; else if joined: with zero. */
    gtopk_status_t (*commit)(device_store_t *store, const device_journal_t *journal, const device_span_t *outputs,
                             size_t count, int outputs_are_zero, const device_words_t *words, void *stream);

    /* Dense step: copies the residual to `out` (dim floats of device memory). */
    gtopk_status_t (*dense_gather)(device_store_t *store, float *out, void *stream);

    /* Dense step: sum holds the all-reduced residuals; one that is not finite sets words->nonfinite. */
    gtopk_status_t (*dense_check)(device_store_t *store, const float *sum, device_words_t *words, void *stream);

    /* Dense step, as commit: residual = 0 (plus what a 16-bit output cannot hold), outputs = sum / size, the velocity
     * stays; `sum`, which dense_check found finite, becomes the mean. */
    gtopk_status_t (*dense_commit)(device_store_t *store, float *sum, uint32_t size, const device_span_t *outputs,
                                   size_t count, const device_words_t *words, void *stream);

    /* Copies parts of the residual (which = 0) or velocity (which = 1) between the store and host memory. Synchronous.
     * A write resets what the hint was learnt from. */
    gtopk_status_t (*store_read)(device_store_t *store, int which, uint64_t offset, uint64_t length, float *out);
    gtopk_status_t (*store_write)(device_store_t *store, int which, uint64_t offset, uint64_t length, const float *in);

    /* ---- sets ---- */

    /* Writes a whole message: header (fields of `header`, with count, low width, index bytes and scale filled in, and
     * flags from words: NONFINITE, JOINED), indices, values. No CRC. message has wire_message_capacity(dim,
     * set->capacity, value type) bytes. decoded (not overlapping set; may be NULL) gets what a decoder will see: entries
     * that decode to zero are left out of it, and of the message. With words->nonfinite the message has count 0. */
    gtopk_status_t (*encode)(device_t *device, const device_set_t *set, const wire_header_t *header, uint8_t *message,
                             device_set_t *decoded, const device_words_t *words, void *stream);

    /* The set of a message whose header was read and checked. Checks the payload: order and range of indices, padding,
     * finite non-zero values; a bad one gives CORRUPT (on a host device) and clears words->ok. out->capacity >=
     * header->count. Flags of the header are taken into words. words may be NULL. */
    gtopk_status_t (*decode)(device_t *device, const uint8_t *message, const wire_header_t *header, device_set_t *out,
                             device_words_t *words, void *stream);

    /* all = a + b over the union, entries that sum to zero left out (capacity >= a.count + b.count); kept = the k
     * entries of largest key of it (capacity >= min(k, a.count + b.count)). A sum that is not finite is left out and
     * sets words->nonfinite. `all` may be NULL. Nothing overlaps. */
    gtopk_status_t (*merge)(device_t *device, const device_set_t *a, const device_set_t *b, uint64_t k,
                            device_set_t *kept, device_set_t *all, device_words_t *words, void *stream);

    /* out = (all - sent) * share for each index of all, sent 0 where it has none; zeros left out. sent's indices are a
     * subset of all's. share is a power of two. */
    gtopk_status_t (*deposit)(device_t *device, const device_set_t *all, const device_set_t *sent, float share,
                              device_set_t *out, void *stream);

    gtopk_status_t (*copy)(device_t *device, void *to, const void *from, size_t bytes, void *stream);
    gtopk_status_t (*copy_set)(device_t *device, const device_set_t *from, device_set_t *to, void *stream);

    /* Events of a stream; on the CPU they are no-ops. */
    gtopk_status_t (*synchronize)(device_t *device, void *stream);
} device_ops_t;

struct device {
    const device_ops_t *ops;
};

/* Opens a device by name: "cpu", "reference". NULL: GTOPK_DEVICE, else "cpu". UNSUPPORTED with the names that exist. */
gtopk_status_t device_open(const char *name, device_t **device);

/* Each device's own open function, called by device_open alone. */
gtopk_status_t device_reference_open(device_t **device);
gtopk_status_t device_cpu_open(device_t **device);

#endif
