/* For exchanges on nodes: what a rank gives for a range of entries, in float; the sum of what all gave; sets behind each
 * other. */
#include "device/cuda/block.h"
#include "device/cuda/fours.h"

/* ---- what a rank gives ---- */

/* GROUPS_AT_ONCE groups from entry `begin` of the span, all of them there. */
static inline void stage_whole(const stage_args_t *args, const chunk_t *chunk, int64_t begin, uint32_t dtype, int apart)
{
    float x[GROUPS_AT_ONCE][4], old[GROUPS_AT_ONCE][4];
    const int64_t at = begin + (apart == NEXT ? 4 : 1) * lane_id();
    float *out = args->out + chunk->offset + at;
    UNROLL
    for (uint32_t g = 0; g < GROUPS_AT_ONCE; g++) {
        read_four(chunk->data, dtype, apart, at + g * GROUP, x[g]);
        if (args->add)
            get_four(out + g * GROUP, apart, old[g]);
    }
    UNROLL
    for (uint32_t g = 0; g < GROUPS_AT_ONCE; g++) {
        UNROLL
        for (uint32_t j = 0; j < 4; j++) {
            x[g][j] = args->scale * x[g][j];
            if (args->add)
                x[g][j] = old[g][j] + x[g][j];
        }
        put_four(out + g * GROUP, apart, x[g]);
        if (args->zero_input)
            zero_four(chunk->data, dtype, apart, at + g * GROUP);
    }
}

/* As many entries, any of which may be missing. */
static inline void stage_singly(const stage_args_t *args, const chunk_t *chunk, int64_t begin, uint32_t dtype)
{
    ROLLED
    for (uint32_t i = lane_id(); i < GROUPS_AT_ONCE * GROUP; i += CUDA_WARP) {
        const int64_t at = begin + i;
        if (at < 0 || at >= (int64_t)chunk->length)
            continue;
        float *out = args->out + chunk->offset + at;
        const float x = args->scale * entry_read(chunk->data, dtype, (uint64_t)at);
        *out = args->add ? *out + x : x;
        if (args->zero_input)
            (void)entry_write(chunk->data, dtype, (uint64_t)at, 0.0f);
    }
}

static inline void stage(const stage_args_t *args, uint32_t dtype)
{
    const int aligned = (uintptr_t)args->out % sizeof(uint4) == 0;
    for (uint32_t number = grid_warp(); number < args->spans.chunks; number += grid_warps()) {
        const chunk_t chunk = spans_chunk(&args->spans, number, dtype == GTOPK_F32 ? 4 : 2);
        for (int64_t begin = chunk.begin; begin < chunk.begin + CUDA_CHUNK; begin += GROUPS_AT_ONCE * GROUP) {
            if (begin >= (int64_t)chunk.length)
                break;
            if (begin < 0 || begin + GROUPS_AT_ONCE * GROUP > (int64_t)chunk.length)
                stage_singly(args, &chunk, begin, dtype);
            else if (chunk.aligned && aligned)
                stage_whole(args, &chunk, begin, dtype, NEXT);
            else
                stage_whole(args, &chunk, begin, dtype, APART);
        }
    }
}

KERNEL(stage_f32, stage_args)
{
    stage(&args, GTOPK_F32);
}

KERNEL(stage_f16, stage_args)
{
    stage(&args, GTOPK_F16);
}

KERNEL(stage_bf16, stage_args)
{
    stage(&args, GTOPK_BF16);
}

/* Spans for which there is nothing: zero. */
KERNEL(stage_nothing, stage_args)
{
    ROLLED
    for (uint32_t number = grid_warp(); number < args.spans.chunks; number += grid_warps()) {
        const chunk_t chunk = spans_chunk(&args.spans, number, 4);
        ROLLED
        for (int64_t at = chunk.begin + lane_id(); at < chunk.begin + CUDA_CHUNK; at += CUDA_WARP)
            if (at >= 0 && at < (int64_t)chunk.length)
                args.out[chunk.offset + at] = 0.0f;
    }
}

/* ---- the sum ---- */

KERNEL(add_up, add_up_args)
{
    const int aligned = args.stride % 4 == 0 && ((uintptr_t)args.parts | (uintptr_t)args.out) % sizeof(uint4) == 0;
    const uint64_t whole = aligned ? args.length / 4 * 4 : 0;
    ROLLED
    for (uint64_t i = 4 * grid_thread(); i < whole; i += 4 * grid_threads()) {
        float sums[4], x[4];
        get_four(args.parts + i, NEXT, sums);
        ROLLED
        for (uint32_t part = 1; part < args.count; part++) {
            get_four(args.parts + part * args.stride + i, NEXT, x);
            UNROLL
            for (uint32_t j = 0; j < 4; j++)
                sums[j] += x[j];
        }
        put_four(args.out + i, NEXT, sums);
    }
    ROLLED
    for (uint64_t i = whole + grid_thread(); i < args.length; i += grid_threads()) {
        float sum = args.parts[i];
        ROLLED
        for (uint32_t part = 1; part < args.count; part++)
            sum += args.parts[part * args.stride + i];
        args.out[i] = sum;
    }
}

/* ---- sets behind each other ---- */

KERNEL(append, append_args)
{
    const uint32_t count = *args.set.count, before = *args.to.count;
    const int room = (uint64_t)before + count <= args.to.capacity;
    ROLLED
    for (uint64_t i = grid_thread(); room && i < count; i += grid_threads()) {
        args.to.index[before + i] = args.set.index[i] + args.offset;
        args.to.value[before + i] = args.set.value[i];
    }
    grid_sync(args.scratch); /* all have read how many there were */
    if (is_first_thread()) {
        *args.to.count = room ? before + count : 0;
        if (!room)
            words_fail(args.words, DEVICE_NO_ROOM);
    }
}
