/* Which part of which span a warp takes, and reading and writing its entries. */
#ifndef GTOPK_DEVICE_CUDA_SPANS_H
#define GTOPK_DEVICE_CUDA_SPANS_H

#include "device/cuda/kernel.h"
#include "device/dither.h"

/* Entries [begin, begin + CUDA_CHUNK) of a span, of which those below 0 or from `length` on do not exist. */
typedef struct chunk {
    void *data;
    int64_t begin;
    uint32_t offset, length;
    int aligned; /* fours of entries from `begin` on can be read as vectors, here and in the residual */
} chunk_t;

static inline uint32_t span_skew(uint32_t offset)
{
    return offset % 4;
}

static inline int span_is_aligned(const void *data, uint32_t offset, uint32_t size)
{
    return ((uintptr_t)data - (uintptr_t)span_skew(offset) * size) % (4 * (uintptr_t)size) == 0;
}

/* The last of the spans whose first[] is not above `value`. */
static inline uint32_t spans_find(const uint32_t *first, uint32_t count, uint32_t value)
{
    uint32_t low = 0, high = count;
    while (high - low > 1) {
        const uint32_t middle = (low + high) / 2;
        if (first[middle] <= value)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* size: bytes of an entry. */
static inline chunk_t spans_chunk(const cuda_spans_t *spans, uint32_t number, uint32_t size)
{
    const uint32_t s = spans_find(spans->first, spans->count, number);
    chunk_t chunk;
    chunk.data = spans->data[s];
    chunk.offset = spans->offset[s];
    chunk.length = spans->offset[s + 1] - spans->offset[s];
    chunk.aligned = !chunk.data || span_is_aligned(chunk.data, chunk.offset, size);
    chunk.begin = (int64_t)(number - spans->first[s]) * CUDA_CHUNK - span_skew(chunk.offset);
    return chunk;
}

/* Entry `at` of a span of 16-bit floats or floats. */
static inline float entry_read(const void *data, uint32_t dtype, uint64_t at)
{
    if (dtype == GTOPK_F32)
        return ((const float *)data)[at];
    return dtype == GTOPK_F16 ? float_from_half(((const uint16_t *)data)[at])
                              : convert_float_from_bf16(((const uint16_t *)data)[at]);
}

/* Writes what the type can hold of a finite value, and returns the rest. */
static inline float entry_write(void *data, uint32_t dtype, uint64_t at, float value)
{
    uint16_t *half = (uint16_t *)data;
    if (dtype == GTOPK_F32) {
        ((float *)data)[at] = value;
        return 0.0f;
    }
    if (dtype == GTOPK_F16) {
        half[at] = convert_fp16_from_float(value);
        return value - convert_float_from_fp16(half[at]);
    }
    half[at] = convert_bf16_from_float(value);
    return value - convert_float_from_bf16(half[at]);
}

static inline float residual_get(const cuda_residual_t *residual, uint64_t at)
{
    return residual->narrow ? convert_float_from_bf16(residual->narrow[at]) : residual->wide[at];
}

/* place: where in a step, as dither.h counts. */
static inline void residual_put(const cuda_residual_t *residual, uint64_t at, float value, uint32_t place)
{
    if (residual->narrow)
        residual->narrow[at] = dither_bf16(value, (uint32_t)at, dither_key(residual->seed, place));
    else
        residual->wide[at] = value;
}

/* What is no finite sum is not stored: the residual stays finite. */
static inline void residual_add(const cuda_residual_t *residual, uint64_t at, float value, uint32_t place)
{
    const float sum = residual_get(residual, at) + value;
    if (is_finite(sum))
        residual_put(residual, at, sum, place);
}

#endif
