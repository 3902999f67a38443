/* The device joint: the place where sets live and the one that does all arithmetic on them.
 *
 * A device knows nothing of rounds or transports. Queue, then one verdict: every operation that takes a stream may return
 * when its work is queued there, and from then on only the device reads and writes what it was given. Sets have their
 * count in the device's memory, and what goes wrong there is noted in the words of the step, so one operation can follow
 * another without the host knowing anything. The host learns it all by `verdict`, once a step, before commit.
 *
 * What an operation is told by value, and the structs that its arguments point to (spans, sets, journal, header, expect),
 * it reads before it returns. Memory of the device, messages and the caller's tensors stay untouched until the stream
 * has passed. Status codes tell of bad arguments and of a device that takes no more work.
 *
 * `reference` and `cpu` are host devices: all memory is host memory, streams are ignored, and an operation is done when
 * it returns. */
#ifndef GTOPK_DEVICE_DEVICE_H
#define GTOPK_DEVICE_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#include "device/range.h"
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

/* What was met on the device that only the host can tell of. */
typedef enum device_error {
    DEVICE_NO_ERROR = 0,
    DEVICE_BAD_HEADER,  /* not the awaited one: words->expect, words->header */
    DEVICE_BAD_PAYLOAD, /* of the message that words->expect and words->header name */
    DEVICE_NO_ROOM,     /* a set is larger than its bounds: a fault of ours */
    DEVICE_BAD_TAIL,    /* the tail is not that of the header: only a part of the message was written */
    DEVICE_HALTED       /* the device was halted: what messages hold is nothing to go by */
} device_error_t;

/* What a step learns on the device; one block a reducer, in device memory. Everything up to `error` is also what the
 * operations after it go by. */
typedef struct device_words {
    uint32_t ok;        /* 1 at the start of a step; 0: something failed, commit changes nothing */
    uint32_t nonfinite; /* 1: a sum was not finite; commit writes NaN to the outputs and changes nothing else */
    uint32_t joined;    /* 1: this rank, and everybody merged so far, has JOINED; in commit: all ranks; commit writes
                           zero to the outputs and changes nothing else */
    uint32_t error;     /* device_error_t: the first that cleared ok */
    uint32_t selected;  /* entries that select found */
    uint32_t misses;    /* 1: select had to read the residual again */
    uint64_t candidates;
    uint64_t count; /* entries of the update: set by verdict, by dense_check, and by dense_commit to arrays */
    wire_expect_t expect;
    uint8_t header[WIRE_HEADER_SIZE];
} device_words_t;

/* `length` entries from `offset` of the concatenation. data NULL: nothing arrived, the residual is only scanned. */
typedef struct device_span {
    uint64_t offset;
    uint64_t length;
    void *data;
    int32_t dtype;
} device_span_t;

static inline size_t device_entry_size(int32_t dtype)
{
    return dtype == GTOPK_F32 ? 4 : 2;
}

/* What of a span is in [begin, end), with offsets from `begin`; length 0: nothing. */
static inline device_span_t device_span_part(const device_span_t *span, uint64_t begin, uint64_t end)
{
    const uint64_t from = span->offset > begin ? span->offset : begin;
    const uint64_t last = span->offset + span->length, to = last < end ? last : end;
    device_span_t part = *span; /* no compound literal: the kernels, in C++, read this header too */
    part.offset = from - begin;
    part.length = to > from ? to - from : 0;
    if (part.length == 0)
        part.data = NULL;
    else if (span->data)
        part.data = (char *)span->data + (from - span->offset) * device_entry_size(span->dtype);
    return part;
}

typedef struct device_accumulate {
    float scale;
    int zero_input;
    int found_inf;  /* touch neither the residual nor the spans: the step is non-finite */
    float momentum; /* for a store with velocity */
    int nesterov;
} device_accumulate_t;

typedef struct device_stage {
    float scale;
    int zero_input;
    int add; /* 1: to what is there; 0: in place of it */
} device_stage_t;

/* What a step will change at commit. */
typedef struct device_journal {
    device_set_t selected;        /* what the rank chose: index and residual value v */
    device_set_t first;           /* what the others decode of it; its indices are a subset of selected's */
    const device_set_t *deposits; /* added in this order */
    uint32_t deposit_count;
    device_set_t final;   /* the sum over the ranks: the same everywhere */
    int clear_final_only; /* 0: residual[selected] = v - first for all selected entries (0 where first has
                                     none); 1: only for those that are in final too (residual policy `paper`) */
    uint32_t divisor;     /* mean = value / divisor */
    uint32_t others;      /* ranks, beside this one, whose values lie in this residual: what a 16-bit output cannot hold
                             of the mean goes there for each of them, too */
} device_journal_t;

/* Where the mean goes: to dense outputs that cover [0, dim) in order, to arrays with room for every entry of the update,
 * or nowhere (spans and indices NULL). Any memory that the device reaches. */
typedef struct device_target {
    const device_span_t *spans;
    size_t count;
    int are_zero; /* the spans hold zeros already */
    uint32_t *indices;
    float *values;
} device_target_t;

/* One reducer's part of a verdict. */
typedef struct device_outcome {
    device_words_t *words;     /* in device memory */
    const device_set_t *final; /* the update; NULL: it is dense, and words->count is what it is */
    device_words_t *host;      /* out; pinned memory */
} device_outcome_t;

typedef struct device_parallel {
    gtopk_parallel_for_fn parallel_for; /* NULL: run on this thread */
    void *context;
} device_parallel_t;

/* Arrays of a store. */
enum { DEVICE_RESIDUAL = 0, DEVICE_VELOCITY = 1 };

/* What a store has beside a residual. */
enum {
    DEVICE_WITH_VELOCITY = 1,
    DEVICE_WITH_SECOND =
        2,               /* each array twice: accumulate reads one and writes the other, so that a step can be undone */
    DEVICE_WITH_BF16 = 4 /* the residual is kept in bf16, rounded as dither.h says wherever it changes */
};

typedef struct device_ops {
    const char *name;
    int host_memory; /* 1: device memory is host memory */

    void (*close)(device_t *device);

    /* Zeroed memory of the device, or pinned host memory that the device reads and writes as well. What is queued must
     * have passed before memory is released; NULL is accepted. */
    gtopk_status_t (*allocate)(device_t *device, size_t bytes, const char *what, void **out);
    void (*release)(device_t *device, void *block);
    gtopk_status_t (*allocate_pinned)(device_t *device, size_t bytes, const char *what, void **out);
    void (*release_pinned)(device_t *device, void *block);

    /* ---- the store: residual, velocity, candidates and hint of one reducer ---- */

    /* Residual of `dim` zeros (and velocity); with: DEVICE_WITH_*. k: the entries that select will be asked for. */
    gtopk_status_t (*store_create)(device_t *device, uint64_t dim, uint64_t k, int with,
                                   const device_parallel_t *parallel, device_store_t **store);
    void (*store_destroy)(device_store_t *store);

    /* Another k from the next step on. On failure nothing has changed. Between steps. */
    gtopk_status_t (*store_resize)(device_store_t *store, uint64_t k);

    /* Of a store in bf16, before a step begins: what its roundings draw from. */
    gtopk_status_t (*store_seed)(device_store_t *store, uint64_t seed, void *stream);

    /* Starts a step: no candidates, no span seen; words all zero but for ok. */
    gtopk_status_t (*step_begin)(device_store_t *store, device_words_t *words, void *stream);

    /* residual = fma(scale, x, residual) in float, a plain add when scale is 1; entries whose sum is not finite are
     * left alone and set words->nonfinite. With a velocity: t = scale * x; velocity = fma(momentum, velocity, t);
     * residual += nesterov ? fma(momentum, velocity, t) : velocity; an entry for which either is not finite is left
     * alone in both and sets words->nonfinite. With zero_input x becomes zero, also where nothing was stored. Offers
     * every entry of the spans to the candidates. Spans of one step never overlap. */
    gtopk_status_t (*accumulate)(device_store_t *store, const device_span_t *spans, size_t count,
                                 const device_accumulate_t *params, device_words_t *words, void *stream);

    /* Of a store with second arrays: these and the others change places. accumulate has read the residual (and velocity)
     * and written the second ones, for spans with data NULL as they are; so it is called when every span has come, and again
     * if the step turns out to be non-finite, after commit. */
    gtopk_status_t (*swap)(device_store_t *store, void *stream);

    /* The exact k entries of largest key of the residual, k <= the store's k, sorted by index; key: bits of |v|, then
     * the lower index; zeros never. Every entry was offered in this step (accumulate with data NULL does it for spans
     * without a gradient). Does not change the residual. None with words->nonfinite. Notes selected, candidates and
     * misses, for the statistics. */
    gtopk_status_t (*select)(device_store_t *store, uint64_t k, device_set_t *out, device_words_t *words, void *stream);

    /* The k entries of largest key of x[0..n), which is only read; NaN and Inf count as the largest. For the public
     * block: no store. */
    gtopk_status_t (*array_select)(device_t *device, const float *x, uint64_t n, uint64_t k,
                                   const device_parallel_t *parallel, device_set_t *out, void *stream);

    /* If words->ok and neither words->nonfinite nor words->joined: clears, adds the deposits (entries that become
     * non-finite keep their old value), zeroes the velocity of entries in both selected and final, and writes the mean,
     * final / divisor, to the target (correctly rounded, then converted; what a 16-bit output cannot hold, mean -
     * converted with converted clamped to the largest finite value, is added to the residual, 1 + others times). Spans are zeroed first
     * unless they are zero. If nonfinite: fills the spans with NaN; else if joined: with zero. */
    gtopk_status_t (*commit)(device_store_t *store, const device_journal_t *journal, const device_target_t *target,
                             const device_words_t *words, void *stream);

    /* Dense step: copies the residual to `out` (dim floats that the device reaches). */
    gtopk_status_t (*dense_gather)(device_store_t *store, float *out, void *stream);

    /* Dense step: sum holds the all-reduced residuals; one that is not finite sets words->nonfinite. words->count becomes
     * dim. */
    gtopk_status_t (*dense_check)(device_store_t *store, const float *sum, device_words_t *words, void *stream);

    /* Dense step, as commit: residual = 0 (plus what a 16-bit output cannot hold), the mean is sum / divisor, the velocity
     * stays; `sum`, which dense_check found finite, becomes the mean. To arrays go the entries that are not zero, and
     * their number to words->count. */
    gtopk_status_t (*dense_commit)(device_store_t *store, float *sum, uint32_t divisor, const device_target_t *target,
                                   device_words_t *words, void *stream);

    /* ---- the store as seen between steps: waits for the stream ---- */

    /* Copies parts of an array between the store and host memory. A write resets what the hint was learnt from. */
    gtopk_status_t (*store_read)(device_store_t *store, int which, uint64_t offset, uint64_t length, float *out,
                                 void *stream);
    gtopk_status_t (*store_write)(device_store_t *store, int which, uint64_t offset, uint64_t length, const float *in,
                                  void *stream);

    /* Sum of the squares of the residual, in double. The order of the sum is the device's own. */
    gtopk_status_t (*store_square)(device_store_t *store, double *sum, void *stream);

    /* ---- words ---- */

    /* Some reducers are about to take a step together: what is non-finite in one is so in all. joined: this rank has
     * JOINED. */
    gtopk_status_t (*words_join)(device_t *device, device_words_t *const *words, size_t count, int joined,
                                 void *stream);

    /* Makes ok and nonfinite those of all reducers together, notes the counts (0 of a step that is dropped), brings all words to the host and waits for
     * the stream. DEVICE when something that was queued there failed. */
    gtopk_status_t (*verdict)(device_t *device, const device_outcome_t *outcomes, size_t count, void *stream);

    /* ---- sets ---- */

    /* Writes a whole message: header (fields of `header`, with count, low width, index bytes and scale filled in, and
     * flags from words: NONFINITE, JOINED), indices, values, and the tail if flags say TAIL. No CRC. message is aligned to 8 bytes and has wire_message_capacity(dim,
     * set->capacity, value type) bytes. decoded (not overlapping set, room for set->capacity) gets what a decoder will
     * see: entries that decode to zero are left out of it, and of the message. With words->nonfinite the message has
     * count 0. So it has without words->ok, and it is a last word (ABORT): what follows an error goes to nobody. */
    gtopk_status_t (*encode)(device_t *device, const device_set_t *set, const wire_header_t *header, uint8_t *message,
                             device_set_t *decoded, device_words_t *words, void *stream);

    /* A message that was encoded or received goes out under another sender, round and k. Without words->ok it becomes a last
     * word, as in encode. */
    gtopk_status_t (*address)(device_t *device, uint8_t *message, uint32_t sender, uint16_t round, uint32_t k,
                              const device_words_t *words, void *stream);

    /* The set of a message in a buffer of `capacity` bytes. Its header must be what *expect says (wire_header_trust and
     * wire_header_matches), its tail that of the header where there is one, its indices in order and range, its padding zero, its values finite and not zero; otherwise
     * the set is empty, ok is cleared and the words say what came. Flags of a good header are taken into the words. */
    gtopk_status_t (*decode)(device_t *device, const uint8_t *message, size_t capacity, const wire_expect_t *expect,
                             device_set_t *out, device_words_t *words, void *stream);

    /* all = a + b over the union, entries that sum to zero left out (capacity >= a.count + b.count); kept = the k
     * entries of largest key of it (capacity >= min(k, a.count + b.count)); both are empty when one has no room. A sum
     * that is not finite is left out and sets words->nonfinite. Nothing overlaps. */
    gtopk_status_t (*merge)(device_t *device, const device_set_t *a, const device_set_t *b, uint64_t k,
                            device_set_t *kept, device_set_t *all, device_words_t *words, void *stream);

    /* out = (all - sent) * share for each index of all, sent 0 where it has none; zeros left out. sent's indices are a
     * subset of all's. share is a power of two. */
    gtopk_status_t (*deposit)(device_t *device, const device_set_t *all, const device_set_t *sent, float share,
                              device_set_t *out, device_words_t *words, void *stream);

    /* out = the entries of the set that are in the range, under their places in it. Nothing overlaps. */
    gtopk_status_t (*cut)(device_t *device, const device_set_t *set, device_range_t range, device_set_t *out,
                          device_words_t *words, void *stream);

    /* In place: a set of a range gets its indices back. */
    gtopk_status_t (*widen)(device_t *device, device_set_t *set, device_range_t range, void *stream);

    gtopk_status_t (*copy)(device_t *device, void *to, const void *from, size_t bytes, void *stream);
    gtopk_status_t (*copy_set)(device_t *device, const device_set_t *from, device_set_t *to, device_words_t *words,
                               void *stream);

    /* ---- for exchanges on nodes, whose stores hold a share of all entries ---- */

    /* out[offset + i] = scale * x[i] in float for each span, or is added to; zero for spans without data, or left alone. With
     * zero_input x becomes zero. Spans do not overlap. Which NaN a NaN becomes is the device's own. */
    gtopk_status_t (*stage)(device_t *device, const device_span_t *spans, size_t count, const device_stage_t *params,
                            float *out, void *stream);

    /* out[i] = ((part 0 + part 1) + ...)[i] of `count` parts, which begin `stride` floats apart. out is no part. */
    gtopk_status_t (*add_up)(device_t *device, const float *parts, size_t stride, uint32_t count, float *out,
                             uint64_t length, void *stream);

    /* Puts a set, `offset` added to its indices, behind the entries of another one: all of those are lower. */
    gtopk_status_t (*append)(device_t *device, const device_set_t *set, uint32_t offset, device_set_t *to,
                             device_words_t *words, void *stream);

    /* As commit, of the target alone: final / divisor is written, and what an output cannot hold is left to commit. */
    gtopk_status_t (*write)(device_t *device, const device_set_t *final, uint32_t divisor,
                            const device_target_t *target, const device_words_t *words, void *stream);

    /* Waits until the stream has passed. DEVICE when something that was queued there failed. */
    gtopk_status_t (*synchronize)(device_t *device, void *stream);

    /* ---- for a transport that queues on the device's streams ---- */

    /* Does not wait: *passed is 1 when the stream has passed. DEVICE as above. */
    gtopk_status_t (*passed)(device_t *device, void *stream, int *passed);

    /* In between the device is the one that other libraries find current on this thread. */
    gtopk_status_t (*enter)(device_t *device);
    void (*leave)(device_t *device);

    /* From any thread, at any time, for good: whatever decode, merge or verdict meets from now on, it clears ok. Commit
     * goes by ok alone, which the verdict has settled: a commit that looked again could end half done. */
    void (*halt)(device_t *device);
} device_ops_t;

/* Room for a device's name. */
#define DEVICE_NAME_SIZE 32

struct device {
    const device_ops_t *ops;
    char name[DEVICE_NAME_SIZE]; /* in full: "cpu", "cuda:1" */
    uint32_t halted;             /* of host devices; atomic */
};

/* The full name of what `name` names: NULL is GTOPK_DEVICE, else "cpu"; "cuda" is the GPU that is current in this thread.
 * UNSUPPORTED: there is no such device; NOT_FOUND, UNSUPPORTED, DEVICE: no GPU can be used here. */
gtopk_status_t device_resolve(const char *name, char full[DEVICE_NAME_SIZE]);

/* Opens a device by name. With an allocator, whose functions are copied, its memory (but for a fixed amount of scratch)
 * comes from there; host devices do without. Errors as device_resolve, and what the GPU cannot do. */
gtopk_status_t device_open_with(const char *name, const gtopk_allocator_t *allocator, device_t **device);

/* The same without an allocator. */
gtopk_status_t device_open(const char *name, device_t **device);

/* Waits for what is queued, whatever has come of it, so that memory can be released. Keeps the error text. */
void device_drain(device_t *device, void *stream);

/* One line on a device that opens: "NVIDIA H100 80GB HBM3, compute capability 9.0, CUDA 12.8". */
gtopk_status_t device_describe(const char *name, char *text, size_t bytes);

/* The instruction set that the CPU device computes with, and all that it could use here, as text. */
const char *device_instruction_set(void);
const char *device_instruction_sets(void);

/* Each device's own open function, called by device_open_with alone. `guarded` is there where the tests are linked in. */
gtopk_status_t device_reference_open(device_t **device);
gtopk_status_t device_cpu_open(device_t **device);
gtopk_status_t device_cuda_open(int ordinal, const gtopk_allocator_t *allocator, device_t **device);
gtopk_status_t device_guarded_open(device_t **device) __attribute__((weak));

/* The GPU whose context is current in this thread (PyTorch's, after torch.cuda.set_device), else the first one. */
gtopk_status_t device_cuda_current(int *ordinal);
gtopk_status_t device_cuda_describe(int ordinal, char *text, size_t bytes);

/* What GPUs this library has kernels for: "sm_75 sm_80 ... ptx_120", or "none". */
const char *device_cuda_architectures(void);

#endif
