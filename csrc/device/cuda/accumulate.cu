/* The pass that matters: residual and gradient are read and written once, and while a sum is in a register it is compared
 * with the floor of the pool.
 *
 * A warp takes a chunk of 1024 entries at a time, in groups of 128, two at once so that enough loads are under way;
 * gradients stream past the cache. Where both arrays allow it a lane moves vectors of four entries; elsewhere the lanes of a
 * warp take neighbouring entries. Only the ends of a span are taken one by one. Halves are moved by vectors of eight bytes:
 * with sixteen, each lane's part of the residual would be 32 bytes, of which one instruction moves half. */
#include "device/cuda/fours.h"
#include "device/cuda/pool.h"

enum { SCAN_ONLY = CUDA_NO_TYPE }; /* there is no gradient */

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
        sum = fmaf(args->scale, x, *residual); /* with a scale of 1 the bits of the plain sum */
    }
    if (!is_finite(v) || !is_finite(sum))
        return 1;
    *velocity = v;
    *residual = sum;
    return 0;
}

/* ---- a group ---- */

/* Lanes offer four entries from `first` on, which are `apart`. Rare, and so a function of its own. Returns what the writer
 * holds. */
FUNCTION uint32_t offer_found(const cuda_pool_t *pool, uint64_t *keys, uint32_t held, uint32_t floor, uint4 bits,
                              uint32_t first, uint32_t apart)
{
    pool_writer_t writer;
    writer.keys = keys;
    writer.held = held;
    pool_make_room(&writer, pool, CUDA_PASS_ACCUMULATE);
    ROLLED
    for (uint32_t j = 0; j < POOL_OFFERS; j++) {
        const uint32_t magnitude = (j == 0 ? bits.x : j == 1 ? bits.y : j == 2 ? bits.z : bits.w) & MAGNITUDE;
        pool_offer(&writer, magnitude >= floor, key_make(first + j * apart, magnitude));
    }
    return writer.held;
}

static inline void offer_four(pool_writer_t *writer, const cuda_pool_t *pool, uint32_t floor, uint4 bits,
                              uint32_t first, int apart)
{
    const int any = (bits.x & MAGNITUDE) >= floor || (bits.y & MAGNITUDE) >= floor || (bits.z & MAGNITUDE) >= floor ||
                    (bits.w & MAGNITUDE) >= floor;
    if (__any_sync(ALL_LANES, any))
        writer->held = offer_found(pool, writer->keys, writer->held, floor, bits, first, (uint32_t)apart);
}

/* Groups that are read before the first is written; GROUPS_AT_ONCE would take too many registers with a velocity. */
static inline uint32_t groups_together(int with_velocity)
{
    return with_velocity ? 1 : GROUPS_AT_ONCE;
}

/* groups_together groups from entry `begin` of the span, all of them there. */
static inline uint32_t accumulate_whole(const accumulate_args_t *args, const chunk_t *chunk, int64_t begin,
                                        uint32_t dtype, int with_velocity, int apart, pool_writer_t *writer,
                                        uint32_t floor)
{
    float x[GROUPS_AT_ONCE][4], sums[GROUPS_AT_ONCE][4], v[GROUPS_AT_ONCE][4];
    const int64_t at = begin + (apart == NEXT ? 4 : 1) * lane_id(), place = chunk->offset + at;
    const float *residual = args->residual + place, *velocity = with_velocity ? args->velocity + place : NULL;
    uint32_t bad = 0;
    UNROLL
    for (uint32_t g = 0; g < groups_together(with_velocity); g++) {
        if (dtype != SCAN_ONLY)
            read_four(chunk->data, dtype, apart, at + g * GROUP, x[g]);
        get_four(residual + g * GROUP, apart, sums[g]);
        if (with_velocity)
            get_four(velocity + g * GROUP, apart, v[g]);
    }
    UNROLL
    for (uint32_t g = 0; g < groups_together(with_velocity); g++) {
        if (dtype != SCAN_ONLY) {
            UNROLL
            for (uint32_t j = 0; j < 4; j++)
                bad |= add_entry(args, with_velocity, x[g][j], &sums[g][j], &v[g][j]);
            put_four(args->to + place + g * GROUP, apart, sums[g]);
            if (with_velocity)
                put_four(args->velocity_to + place + g * GROUP, apart, v[g]);
            if (args->zero_input)
                zero_four(chunk->data, dtype, apart, at + g * GROUP);
        }
        offer_four(writer, &args->pool, floor, pack(sums[g]), chunk->offset + (uint32_t)(at + g * GROUP), apart);
    }
    return bad;
}

/* One group, any part of which may be missing. */
static inline uint32_t accumulate_singly(const accumulate_args_t *args, const chunk_t *chunk, int64_t begin,
                                         uint32_t dtype, int with_velocity, int narrow, pool_writer_t *writer,
                                         uint32_t floor)
{
    uint32_t bad = 0;
    pool_make_room(writer, &args->pool, CUDA_PASS_ACCUMULATE);
    ROLLED
    for (uint32_t j = 0; j < POOL_OFFERS; j++) {
        const int64_t at = begin + lane_id() + j * CUDA_WARP;
        const int exists = at >= 0 && at < (int64_t)chunk->length;
        const uint64_t place = chunk->offset + (uint64_t)at;
        float sum = 0.0f;
        if (exists)
            sum = narrow ? convert_float_from_bf16(args->narrow[place]) : args->residual[place];
        if (exists && dtype != SCAN_ONLY) {
            float v = with_velocity ? args->velocity[place] : 0.0f;
            bad |= add_entry(args, with_velocity, entry_read(chunk->data, dtype, (uint64_t)at), &sum, &v);
            if (narrow) {
                args->narrow_to[place] = dither_bf16(sum, (uint32_t)place, args->narrow_key);
                sum = convert_float_from_bf16(args->narrow_to[place]);
            } else {
                args->to[place] = sum;
            }
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
static inline void carry_over(const accumulate_args_t *args, const chunk_t *chunk, int narrow)
{
    for (int64_t at = chunk->begin + lane_id(); at < chunk->begin + CUDA_CHUNK && at < (int64_t)chunk->length;
         at += CUDA_WARP) {
        const int64_t place = chunk->offset + at;
        if (at < 0)
            continue;
        if (narrow)
            args->narrow_to[place] = args->narrow[place];
        else
            args->to[place] = args->residual[place];
        if (args->velocity)
            args->velocity_to[place] = args->velocity[place];
    }
}

/* ---- the pass ---- */

/* narrow: the residual is in bf16, and entries are taken one by one. */
static inline void accumulate(const accumulate_args_t *args, uint32_t dtype, int with_velocity, int narrow)
{
    const uint32_t floor = args->pool.state->floor, size = dtype == GTOPK_F16 || dtype == GTOPK_BF16 ? 2u : 4u;
    pool_writer_t writer = pool_writer();
    uint32_t bad = 0;
    for (uint32_t number = grid_warp(); number < args->spans.chunks; number += grid_warps()) {
        const chunk_t chunk = spans_chunk(&args->spans, number, size);
        if (dtype == SCAN_ONLY && (narrow ? args->narrow_to != args->narrow : args->to != args->residual))
            carry_over(args, &chunk, narrow);
        for (int64_t begin = chunk.begin; begin < chunk.begin + CUDA_CHUNK; begin += GROUPS_AT_ONCE * GROUP) {
            if (begin >= (int64_t)chunk.length)
                break;
            if (!narrow && begin >= 0 && begin + GROUPS_AT_ONCE * GROUP <= (int64_t)chunk.length) {
                for (uint32_t g = 0; g < GROUPS_AT_ONCE; g += groups_together(with_velocity)) {
                    const int64_t at = begin + g * GROUP;
                    bad |= chunk.aligned
                               ? accumulate_whole(args, &chunk, at, dtype, with_velocity, NEXT, &writer, floor)
                               : accumulate_whole(args, &chunk, at, dtype, with_velocity, APART, &writer, floor);
                }
                continue;
            }
            ROLLED
            for (uint32_t g = 0; g < GROUPS_AT_ONCE && begin + g * GROUP < (int64_t)chunk.length; g++)
                bad |= accumulate_singly(args, &chunk, begin + g * GROUP, dtype, with_velocity, narrow, &writer, floor);
        }
    }
    pool_finish(&writer, &args->pool, CUDA_PASS_ACCUMULATE);
    if (__any_sync(ALL_LANES, bad) && lane_id() == 0)
        (void)atomicOr(&args->words->nonfinite, 1u);
}

KERNEL(accumulate_f32, accumulate_args)
{
    accumulate(&args, GTOPK_F32, 0, 0);
}

KERNEL(accumulate_f16, accumulate_args)
{
    accumulate(&args, GTOPK_F16, 0, 0);
}

KERNEL(accumulate_bf16, accumulate_args)
{
    accumulate(&args, GTOPK_BF16, 0, 0);
}

KERNEL(momentum, accumulate_args)
{
    accumulate(&args, args.dtype, 1, 0);
}

/* Spans for which nothing arrived. */
KERNEL(scan, accumulate_args)
{
    accumulate(&args, SCAN_ONLY, 0, 0);
}

/* A residual in bf16: all types, with and without a velocity, and spans for which nothing arrived. */
KERNEL(narrow, accumulate_args)
{
    accumulate(&args, args.dtype, args.velocity != NULL, 1);
}
