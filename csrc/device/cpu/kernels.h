/* The loops that are worth SIMD code by hand, once an instruction set: kernels_<isa>.c each give the same table. Three
 * go over a block of the residual, the others over sets. A kernel knows nothing of pools, hints, threads or devices.
 * All give the same bits. */
#ifndef GTOPK_DEVICE_CPU_KERNELS_H
#define GTOPK_DEVICE_CPU_KERNELS_H

#include <stddef.h>
#include <stdint.h>

/* Entries a call at most: residual, velocity and input of a block stay in the first-level cache. */
#define KERNEL_BLOCK 4096u

/* As `above` of a job it lets nothing pass: the bits of the largest finite value. */
#define KERNEL_LARGEST 0x7f7fffffu

/* Kernels store whole vectors behind the last entry that they found. */
#define KERNEL_SLACK 16u

/* Where a kernel appends entries: there is always room for a block. bits: of the value, with its sign. */
typedef struct kernel_found {
    uint32_t count;
    uint32_t index[2 * KERNEL_BLOCK + KERNEL_SLACK];
    uint32_t bits[2 * KERNEL_BLOCK + KERNEL_SLACK];
} kernel_found_t;

typedef struct kernel_job {
    const float *residual, *velocity;
    float *to, *velocity_to; /* where their sums go: the same memory, or other */
    void *input;
    size_t length;  /* <= KERNEL_BLOCK */
    uint32_t first; /* index of residual[0] */
    uint32_t above; /* entries are found whose bits of |v| are greater; at most those of the largest finite value */
    float scale, momentum;
    int zero_input, nesterov;
    int streams; /* 1: `to` and `velocity_to` are other memory, aligned to 64 bytes: to be written around the cache */
} kernel_job_t;

/* Room for `capacity` entries; kernels write nothing behind it. */
typedef struct kernel_entries {
    uint32_t *index;
    float *value;
    size_t capacity;
} kernel_entries_t;

typedef struct kernels {
    const char *name;

    /* By gtopk_dtype_t. to = fma(scale, input, residual); returns 1 when a sum was not finite: that entry keeps
     * its residual and is not found. */
    int (*accumulate[3])(const kernel_job_t *job, kernel_found_t *found);

    /* The same with a velocity: t = scale * input; velocity_to = fma(momentum, velocity, t); to = residual +
     * (nesterov ? fma(momentum, velocity_to, t) : velocity_to). A velocity that is not finite makes the residual's sum so too, whence one
     * test serves both. */
    int (*momentum[3])(const kernel_job_t *job, kernel_found_t *found);

    /* Reads the residual only. */
    void (*scan)(const kernel_job_t *job, kernel_found_t *found);

    /* A block of a residual in bf16: to floats, and back, rounded as dither.h says; the floats become what was stored. */
    void (*widen)(const uint16_t *from, size_t count, float *to);
    void (*narrow)(float *value, size_t count, uint32_t first, uint32_t key, uint16_t *to);

    /* In place: entries sorted by index, in which an index stands once or twice, become the sums over equal indices.
     * Sums that are zero or not finite are left out; *nonfinite is set to 1 for the latter. Returns how many there are.
     */
    size_t (*join)(uint32_t *index, float *value, size_t count, int *nonfinite);

    /* `count` values of a message of this gtopk_value_type_t, scale as in its header; wire/convert.h says what they
     * are. Encoding gives back what a decoder will see; value and decoded may be the same. */
    void (*encode_values)(int type, const float *value, size_t count, float scale, uint8_t *codes, float *decoded);
    void (*decode_values)(int type, const uint8_t *codes, size_t count, float scale, float *value);

    /* Copies the values with low <= bits of |v| <= high, in order, until fewer than KERNEL_SLACK places are free;
     * returns how many. *above: how many have bits above high. */
    size_t (*within)(const float *value, size_t count, uint32_t low, uint32_t high, float *out, size_t capacity,
                     size_t *above);

    /* Copies the entries whose bits of |v| are above `least`, and the first `ties` of those that have just these. */
    void (*keep)(const uint32_t *index, const float *value, size_t count, uint32_t least, size_t ties,
                 kernel_entries_t out);
} kernels_t;

extern const kernels_t kernels_scalar;
#if defined(__x86_64__)
extern const kernels_t kernels_avx2, kernels_avx512;
#elif defined(__aarch64__)
extern const kernels_t kernels_neon;
#endif

#endif
