/* What the host tells the kernels: one struct a kernel, passed by value (at most 4 KB), and what lies in device memory
 * between two kernels. Read by both sides. */
#ifndef GTOPK_DEVICE_CUDA_ARGS_H
#define GTOPK_DEVICE_CUDA_ARGS_H

#include "device/device.h"

enum {
    CUDA_THREADS = 256, /* of every block */
    CUDA_WARP = 32,
    CUDA_WARPS = CUDA_THREADS / CUDA_WARP,
    CUDA_GRID_MAX = 512,    /* blocks of a kernel that has barriers of the grid */
    CUDA_MEETING_BLOCKS = 2 /* of them on a multiprocessor: more would wait for each other longer than they work */
};

/* ---- memory that operations share ---- */

/* Digits of a key, from the highest bit down (keys.h). */
enum { CUDA_LEVELS = 6, CUDA_BINS = 4096 };

/* One a device. Operations on one stream follow each other, so all can use it. Whoever uses a histogram, `largest`,
 * `faults` or `finished` leaves it zero. */
typedef struct cuda_scratch {
    uint32_t pool_bins[CUDA_LEVELS][CUDA_BINS]; /* first: histograms are read in vectors */
    uint32_t scan_bins[CUDA_LEVELS][CUDA_BINS];
    uint32_t sample_bins[CUDA_BINS];
    uint32_t near_bins[2][CUDA_BINS];
    const uint32_t *halt; /* pinned: not zero when the device was halted. NULL: it never is */
    uint32_t barrier;     /* where the blocks of a grid meet */
    uint32_t finished;    /* blocks that have come to the end */
    uint32_t largest;
    uint32_t faults;
    uint32_t halted;                /* what decode saw of `halt` at its beginning */
    uint64_t total;                 /* of entries, when arrays are written */
    uint32_t counts[CUDA_GRID_MAX]; /* each block's own */
    uint32_t kept[CUDA_GRID_MAX];   /* the same, of what is counted next */
    double squares[CUDA_GRID_MAX];
} cuda_scratch_t;

/* How the threshold is predicted: see cpu/hint.h. */
typedef struct cuda_hint {
    float last, recent, before;
    uint32_t age, unwanted;
} cuda_hint_t;

/* Candidates are counted once for each pass that may look for them. */
enum { CUDA_PASS_ACCUMULATE = 0, CUDA_PASS_SAMPLED = 1, CUDA_PASS_EXACT = 2, CUDA_PASSES = 3 };

typedef struct cuda_pool_state {
    uint32_t offered[CUDA_PASSES];
    uint32_t floor; /* smaller magnitudes are no candidates; at least 1 */
    cuda_hint_t hint;
} cuda_pool_state_t;

/* The candidates of a step, in any order. More may be offered than fit: they are counted. */
typedef struct cuda_pool {
    uint64_t *keys;
    cuda_pool_state_t *state;
    uint32_t capacity;
} cuda_pool_t;

/* A residual: floats, or bf16, rounded as device/dither.h says. */
typedef struct cuda_residual {
    float *wide;
    uint16_t *narrow; /* in place of the other; NULL: none */
    uint64_t seed;    /* of the roundings */
} cuda_residual_t;

/* ---- spans ---- */

enum { CUDA_NO_TYPE = 99 };                   /* in place of a gtopk_dtype_t */
enum { CUDA_SPANS = 240, CUDA_CHUNK = 1024 }; /* a chunk is what a warp takes at a time */

/* Chunks are counted through all spans. Where a span's memory and the residual can both be read in vectors of four
 * entries, its chunks begin at such a vector: the first one `skew` entries before the span. A span ends where the next one
 * begins; what lies between two that are not neighbours is one without data and chunks. */
typedef struct cuda_spans {
    void *data[CUDA_SPANS]; /* NULL: nothing arrived */
    uint32_t offset[CUDA_SPANS + 1];
    uint32_t first[CUDA_SPANS]; /* chunk */
    uint32_t count, chunks;
} cuda_spans_t;

/* ---- arguments ---- */

typedef struct begin_args {
    cuda_pool_state_t *state;
    device_words_t *words; /* NULL: the pool alone */
    uint32_t fits;         /* the pool has room for everything */
} begin_args_t;

typedef struct accumulate_args {
    cuda_spans_t spans;
    const float *residual, *velocity;
    float *to, *velocity_to; /* where their sums go: the same memory, or other */
    const uint16_t *narrow;  /* for narrow: the residual, in place of floats */
    uint16_t *narrow_to;
    uint32_t narrow_key; /* of its roundings */
    cuda_pool_t pool;
    device_words_t *words;
    float scale, momentum;
    uint32_t nesterov, zero_input;
    uint32_t dtype; /* for momentum and narrow: each other type has a kernel of its own */
} accumulate_args_t;

/* The k largest of x[0..n): those of the pool, when it has them, otherwise found in x itself. */
typedef struct select_args {
    const float *x;
    const uint16_t *narrow; /* x in bf16, in place of floats; NULL: none */
    uint64_t n;
    uint32_t k;
    uint32_t whole; /* 1: no pass has filled the pool; NaN and Inf count as the largest; no words, no hint */
    cuda_pool_t pool;
    uint32_t *buckets;    /* 2 * CUDA_BUCKETS words */
    uint32_t bucket_bits; /* 2^bits neighbouring indices are a bucket */
    uint64_t *chosen;     /* room for k keys */
    device_set_t out;
    device_words_t *words;
    cuda_scratch_t *scratch;
} select_args_t;

/* A block finds where all of the buckets begin; a warp sorts 2^CUDA_PART_BITS indices of one at a time. */
enum { CUDA_BUCKETS = 4096, CUDA_PART_BITS = 13, CUDA_PART = 1 << CUDA_PART_BITS };

typedef struct encode_args {
    device_set_t set;
    wire_header_t header;
    uint8_t *message; /* aligned to 8 */
    device_set_t decoded;
    uint32_t most;        /* entries that there is room for */
    uint64_t index_words; /* of 32 bits, that the index part of up to so many can have */
    device_words_t *words;
    cuda_scratch_t *scratch;
} encode_args_t;

typedef struct address_args {
    uint8_t *message;
    uint32_t sender, round, k;
    const device_words_t *words;
} address_args_t;

typedef struct decode_args {
    const uint8_t *message;
    uint64_t capacity;
    wire_expect_t expect;
    device_set_t out;
    device_words_t *words;
    cuda_scratch_t *scratch;
} decode_args_t;

enum { CUDA_MERGE_EACH = 2, CUDA_MERGE_TILE = CUDA_THREADS * CUDA_MERGE_EACH }; /* entries of a thread, of a block */

typedef struct merge_args {
    device_set_t a, b, kept, all;
    uint32_t k;
    device_words_t *words;
    cuda_scratch_t *scratch;
} merge_args_t;

typedef struct deposit_args {
    device_set_t all, sent, out;
    float share;
    device_words_t *words;
    cuda_scratch_t *scratch;
} deposit_args_t;

typedef struct cut_args {
    device_set_t set, out;
    device_range_t range;
    device_words_t *words;
    cuda_scratch_t *scratch;
} cut_args_t;

typedef struct widen_args {
    device_set_t set;
    device_range_t range;
} widen_args_t;

typedef struct copy_set_args {
    device_set_t from, to;
    device_words_t *words;
} copy_set_args_t;

/* Commit is: fill (unless the outputs hold zeros), journal, mean; each in as many launches as its spans or deposits need. */
typedef struct fill_args {
    cuda_spans_t spans;
    const device_words_t *words;
    uint32_t dtype;
    uint32_t zero; /* 1: also when the step is committed */
} fill_args_t;

enum { CUDA_DEPOSITS = 64 };

typedef struct journal_args {
    cuda_residual_t residual;
    float *velocity; /* NULL: none, or it was done */
    device_set_t selected, first, final;
    device_set_t deposits[CUDA_DEPOSITS];
    uint32_t deposit_count, deposits_before, clear, clear_final_only;
    const device_words_t *words;
    cuda_scratch_t *scratch;
} journal_args_t;

typedef struct mean_args {
    cuda_spans_t spans;
    cuda_residual_t residual; /* none: what a type cannot hold goes nowhere */
    device_set_t final;
    uint32_t *indices; /* NULL: no arrays */
    float *values;
    const device_words_t *words;
    uint32_t dtype, divisor, ranks; /* whose values lie in the residual */
} mean_args_t;

typedef struct gather_args {
    cuda_residual_t residual;
    float *out;
    uint64_t dim;
} gather_args_t;

typedef struct dense_check_args {
    const float *sum;
    uint64_t dim;
    device_words_t *words;
} dense_check_args_t;

/* sum becomes the mean, the residual zero. */
typedef struct dense_mean_args {
    float *sum;
    cuda_residual_t residual;
    uint64_t dim;
    cuda_pool_state_t *state;
    uint32_t *indices; /* NULL: no arrays */
    float *values;
    device_words_t *words;
    cuda_scratch_t *scratch;
    uint32_t divisor;
} dense_mean_args_t;

typedef struct dense_spans_args {
    cuda_spans_t spans;
    const float *mean;
    cuda_residual_t residual;
    const device_words_t *words;
    uint32_t dtype;
} dense_spans_args_t;

/* To spans of one type, which `out` has at their offsets. */
typedef struct stage_args {
    cuda_spans_t spans;
    float *out;
    float scale;
    uint32_t add, zero_input;
} stage_args_t;

typedef struct add_up_args {
    const float *parts;
    float *out;
    uint64_t stride, length;
    uint32_t count;
} add_up_args_t;

typedef struct append_args {
    device_set_t set, to;
    uint32_t offset;
    device_words_t *words;
    cuda_scratch_t *scratch;
} append_args_t;

typedef struct square_args {
    cuda_residual_t x;
    uint64_t n;
    double *sum;
    cuda_scratch_t *scratch;
} square_args_t;

enum { CUDA_REDUCERS = 64 };
enum { CUDA_GATHER = 1, CUDA_APPLY = 2, CUDA_LAST = 4 };

/* Words of reducers that take a step together. Many take several launches: all gather, then all apply. At most
 * CUDA_THREADS at a time. */
typedef struct join_args {
    device_words_t *words[CUDA_REDUCERS];
    uint32_t count, joined, phases;
    cuda_scratch_t *scratch;
} join_args_t;

typedef struct verdict_args {
    device_words_t *words[CUDA_REDUCERS];
    const uint32_t *final_count[CUDA_REDUCERS]; /* NULL: dense */
    device_words_t *host[CUDA_REDUCERS];
    uint32_t count, phases;
    cuda_scratch_t *scratch;
} verdict_args_t;

typedef struct flag_args {
    device_words_t *words;
} flag_args_t;

/* The store was written to, resized, or a dense step ended. */
typedef struct forget_args {
    cuda_pool_state_t *state;
    uint32_t unwanted;
} forget_args_t;

/* ---- the kernels ---- */

/* name, arguments, whether its blocks meet at barriers of the grid */
#define CUDA_KERNELS(X)                    \
    X(begin, begin_args, 0)                \
    X(forget, forget_args, 0)              \
    X(nonfinite, flag_args, 0)             \
    X(accumulate_f32, accumulate_args, 0)  \
    X(accumulate_f16, accumulate_args, 0)  \
    X(accumulate_bf16, accumulate_args, 0) \
    X(momentum, accumulate_args, 0)        \
    X(scan, accumulate_args, 0)            \
    X(narrow, accumulate_args, 0)          \
    X(select, select_args, 1)              \
    X(encode, encode_args, 1)              \
    X(address, address_args, 0)            \
    X(decode, decode_args, 1)              \
    X(merge, merge_args, 1)                \
    X(deposit, deposit_args, 1)            \
    X(cut, cut_args, 1)                    \
    X(widen, widen_args, 0)                \
    X(copy_set, copy_set_args, 0)          \
    X(fill, fill_args, 0)                  \
    X(journal, journal_args, 1)            \
    X(mean, mean_args, 0)                  \
    X(gather, gather_args, 0)              \
    X(dense_check, dense_check_args, 0)    \
    X(dense_mean, dense_mean_args, 1)      \
    X(dense_spans, dense_spans_args, 0)    \
    X(stage_f32, stage_args, 0)            \
    X(stage_f16, stage_args, 0)            \
    X(stage_bf16, stage_args, 0)           \
    X(stage_nothing, stage_args, 0)        \
    X(add_up, add_up_args, 0)              \
    X(append, append_args, 1)              \
    X(square, square_args, 1)              \
    X(join, join_args, 0)                  \
    X(verdict, verdict_args, 0)

typedef enum cuda_kernel {
#define CUDA_KERNEL_ENUM(name, args, meets) CUDA_KERNEL_##name,
    CUDA_KERNELS(CUDA_KERNEL_ENUM)
#undef CUDA_KERNEL_ENUM
        CUDA_KERNEL_COUNT
} cuda_kernel_t;

#define CUDA_ARGUMENTS_MAX 4096u

#endif
