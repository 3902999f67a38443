/* The pass that matters: residual and gradient are read and written once, and while a sum is in a register it is compared
 * with the floor of the pool.
 *
 * A warp takes a chunk of 1024 entries at a time, in groups of 128. Where both arrays allow it a lane moves vectors of
 * four entries, several groups at once so that enough loads are under way; gradients stream past the cache. Elsewhere
 * the lanes of a group take neighbouring entries one by one. */
#include "device/cuda/pool.h"
#include "device/cuda/spans.h"

#define GROUP 128u
#define GROUPS_AT_ONCE 2u

enum { SCAN_ONLY = 99 }; /* in place of a type: there is no gradient */

/* Sets *residual, and *velocity, to what they become. Returns 1, and leaves them, when that is not finite. */
static inline uint32_t add_entry(const accumulate_args_t *args, int with_velocity, float x, float *residual,
                                 float *velocity)
{
    float sum, v = 0.0f;
    if (with_velocity) {
        const float t = args->scale * x;
        v = fmaf(args->momentum, *velocity, t);
        sum = *residual + (args->nesterov ? fmaf(args->momentum, v, t) : v);
    } else {
        sum = args->scale == 1.0f ? *residual + x : fmaf(args->scale, x, *residual);
    }
    if (!is_finite(v) || !is_finite(sum))
        return 1;
    *velocity = v;
    *residual = sum;
    return 0;
}

/* ---- four entries in registers ---- */

static inline void unpack(uint4 vector, float *values)
{
    values[0] = convert_float(vector.x);
    values[1] = convert_float(vector.y);
    values[2] = convert_float(vector.z);
    values[3] = convert_float(vector.w);
}

static inline uint4 pack(const float *values)
{
    uint4 vector;
    vector.x = convert_bits(values[0]);
    vector.y = convert_bits(values[1]);
    vector.z = convert_bits(values[2]);
    vector.w = convert_bits(values[3]);
    return vector;
}

static inline float half_to_float(uint32_t dtype, uint32_t bits)
{
    return dtype == GTOPK_F16 ? convert_float_from_fp16((uint16_t)bits) : convert_float_from_bf16((uint16_t)bits);
}

static inline void read_four(const void *data, uint32_t dtype, int64_t at, float *values)
{
    if (dtype == GTOPK_F32) {
        unpack(__ldcs((const uint4 *)((const float *)data + at)), values);
    } else {
        const uint2 halves = __ldcs((const uint2 *)((const uint16_t *)data + at));
        values[0] = half_to_float(dtype, halves.x & 0xffffu);
        values[1] = half_to_float(dtype, halves.x >> 16);
        values[2] = half_to_float(dtype, halves.y & 0xffffu);
        values[3] = half_to_float(dtype, halves.y >> 16);
    }
}

static inline void zero_four(void *data, uint32_t dtype, int64_t at)
{
    if (dtype == GTOPK_F32) {
        const float zeros[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        __stcs((uint4 *)((float *)data + at), pack(zeros));
    } else {
        uint2 zero;
        zero.x = zero.y = 0;
        __stcs((uint2 *)((uint16_t *)data + at), zero);
    }
}

/* ---- a group ---- */

/* Lanes offer four entries from `first` on. Rare, and so a function of its own. Returns what the writer holds. */
FUNCTION uint32_t offer_found(const cuda_pool_t *pool, uint64_t *keys, uint32_t held, uint32_t floor, uint4 bits,
                              uint32_t first)
{
    pool_writer_t writer;
    writer.keys = keys;
    writer.held = held;
    pool_make_room(&writer, pool, CUDA_PASS_ACCUMULATE);
    ROLLED
    for (uint32_t j = 0; j < POOL_OFFERS; j++) {
        const uint32_t magnitude = (j == 0 ? bits.x : j == 1 ? bits.y : j == 2 ? bits.z : bits.w) & MAGNITUDE;
        pool_offer(&writer, magnitude >= floor, key_make(first + j, magnitude));
    }
    return writer.held;
}

static inline void offer_four(pool_writer_t *writer, const cuda_pool_t *pool, uint32_t floor, uint4 bits,
                              uint32_t first)
{
    const int any = (bits.x & MAGNITUDE) >= floor || (bits.y & MAGNITUDE) >= floor || (bits.z & MAGNITUDE) >= floor ||
                    (bits.w & MAGNITUDE) >= floor;
    if (__any_sync(ALL_LANES, any))
        writer->held = offer_found(pool, writer->keys, writer->held, floor, bits, first);
}

/* GROUPS_AT_ONCE groups from entry `begin` of the span, all there and aligned. */
static inline uint32_t accumulate_vectors(const accumulate_args_t *args, const chunk_t *chunk, int64_t begin,
                                          uint32_t dtype, int with_velocity, pool_writer_t *writer, uint32_t floor)
{
    float x[GROUPS_AT_ONCE][4], sums[GROUPS_AT_ONCE][4], v[GROUPS_AT_ONCE][4];
    const int64_t at = begin + 4 * lane_id(), place = chunk->offset + at;
    const float *residual = args->residual + place, *velocity = with_velocity ? args->velocity + place : NULL;
    uint32_t bad = 0;
    UNROLL
    for (uint32_t g = 0; g < GROUPS_AT_ONCE; g++) {
        if (dtype != SCAN_ONLY)
            read_four(chunk->data, dtype, at + g * GROUP, x[g]);
        unpack(*(const uint4 *)(residual + g * GROUP), sums[g]);
        if (with_velocity)
            unpack(*(const uint4 *)(velocity + g * GROUP), v[g]);
    }
    UNROLL
    for (uint32_t g = 0; g < GROUPS_AT_ONCE; g++) {
        if (dtype != SCAN_ONLY) {
            UNROLL
            for (uint32_t j = 0; j < 4; j++)
                bad |= add_entry(args, with_velocity, x[g][j], &sums[g][j], &v[g][j]);
            *(uint4 *)(args->to + place + g * GROUP) = pack(sums[g]);
            if (with_velocity)
                *(uint4 *)(args->velocity_to + place + g * GROUP) = pack(v[g]);
            if (args->zero_input)
                zero_four(chunk->data, dtype, at + g * GROUP);
        }
        offer_four(writer, &args->pool, floor, pack(sums[g]), chunk->offset + (uint32_t)(at + g * GROUP));
    }
    return bad;
}

/* One group, any part of which may be missing. */
static inline uint32_t accumulate_singly(const accumulate_args_t *args, const chunk_t *chunk, int64_t begin,
                                         uint32_t dtype, int with_velocity, pool_writer_t *writer, uint32_t floor)
{
    uint32_t bad = 0;
    pool_make_room(writer, &args->pool, CUDA_PASS_ACCUMULATE);
    ROLLED
    for (uint32_t j = 0; j < POOL_OFFERS; j++) {
        const int64_t at = begin + lane_id() + j * CUDA_WARP;
        const int exists = at >= 0 && at < (int64_t)chunk->length;
        const uint64_t place = chunk->offset + (uint64_t)at;
        float sum = exists ? args->residual[place] : 0.0f;
        if (exists && dtype != SCAN_ONLY) {
            float v = with_velocity ? args->velocity[place] : 0.0f;
            bad |= add_entry(args, with_velocity, entry_read(chunk->data, dtype, (uint64_t)at), &sum, &v);
            args->to[place] = sum;
            if (with_velocity)
                args->velocity_to[place] = v;
            if (args->zero_input)
                (void)entry_write(chunk->data, dtype, (uint64_t)at, 0.0f);
        }
        const uint32_t magnitude = convert_bits(sum) & MAGNITUDE;
        pool_offer(writer, exists && magnitude >= floor, key_make((uint32_t)place, magnitude));
    }
    return bad;
}

/* What nothing arrived for, in a step that may be undone. */
static inline void carry_over(const accumulate_args_t *args, const chunk_t *chunk)
{
    for (int64_t at = chunk->begin + lane_id(); at < chunk->begin + CUDA_CHUNK && at < (int64_t)chunk->length;
         at += CUDA_WARP) {
        const int64_t place = chunk->offset + at;
        if (at < 0)
            continue;
        args->to[place] = args->residual[place];
        if (args->velocity)
            args->velocity_to[place] = args->velocity[place];
    }
}

/* ---- the pass ---- */

static inline void accumulate(const accumulate_args_t *args, uint32_t dtype, int with_velocity)
{
    const uint32_t floor = args->pool.state->floor, size = dtype == GTOPK_F16 || dtype == GTOPK_BF16 ? 2u : 4u;
    pool_writer_t writer = pool_writer();
    uint32_t bad = 0;
    for (uint32_t number = grid_warp(); number < args->spans.chunks; number += grid_warps()) {
        const chunk_t chunk = spans_chunk(&args->spans, number, size);
        if (dtype == SCAN_ONLY && args->to != args->residual)
            carry_over(args, &chunk);
        for (int64_t begin = chunk.begin; begin < chunk.begin + CUDA_CHUNK; begin += GROUPS_AT_ONCE * GROUP) {
            if (begin >= (int64_t)chunk.length)
                break;
            if (chunk.aligned && begin >= 0 && begin + GROUPS_AT_ONCE * GROUP <= (int64_t)chunk.length) {
                bad |= accumulate_vectors(args, &chunk, begin, dtype, with_velocity, &writer, floor);
                continue;
            }
            ROLLED
            for (uint32_t g = 0; g < GROUPS_AT_ONCE && begin + g * GROUP < (int64_t)chunk.length; g++)
                bad |= accumulate_singly(args, &chunk, begin + g * GROUP, dtype, with_velocity, &writer, floor);
        }
    }
    pool_flush(&writer, &args->pool, CUDA_PASS_ACCUMULATE);
    if (__any_sync(ALL_LANES, bad) && lane_id() == 0)
        (void)atomicOr(&args->words->nonfinite, 1u);
}

KERNEL(accumulate_f32, accumulate_args)
{
    accumulate(&args, GTOPK_F32, 0);
}

KERNEL(accumulate_f16, accumulate_args)
{
    accumulate(&args, GTOPK_F16, 0);
}

KERNEL(accumulate_bf16, accumulate_args)
{
    accumulate(&args, GTOPK_BF16, 0);
}

KERNEL(momentum, accumulate_args)
{
    accumulate(&args, args.dtype, 1);
}

/* Spans for which nothing arrived. */
KERNEL(scan, accumulate_args)
{
    accumulate(&args, SCAN_ONLY, 0);
}
