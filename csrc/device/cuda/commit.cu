/* The end of a sparse step: outputs are filled, what was sent leaves the residual and deposits come in, the mean goes to
 * the outputs. All of it looks at the words first, because the host may not have. */
#include "device/cuda/block.h"
#include "device/cuda/sets.h"
#include "device/cuda/spans.h"

/* ---- filling spans ---- */

static inline uint32_t nan_bits(uint32_t dtype)
{
    return dtype == GTOPK_F32 ? 0x7fc00000u : dtype == GTOPK_F16 ? 0x7e007e00u : 0x7fc07fc0u;
}

/* All entries of the spans become `bits`: twice, of a type of 16 bits. */
FUNCTION void fill_spans(const cuda_spans_t *spans, uint32_t size, uint32_t bits)
{
    uint4 four;
    uint2 two;
    four.x = four.y = four.z = four.w = two.x = two.y = bits;
    ROLLED
    for (uint32_t number = grid_warp(); number < spans->chunks; number += grid_warps()) {
        const chunk_t chunk = spans_chunk(spans, number, size);
        ROLLED
        for (uint32_t i = 4 * lane_id(); i < CUDA_CHUNK; i += 4 * CUDA_WARP) {
            const int64_t at = chunk.begin + i;
            if (chunk.aligned && at >= 0 && at + 4 <= (int64_t)chunk.length) {
                if (size == 4)
                    __stcs((uint4 *)((float *)chunk.data + at), four);
                else
                    __stcs((uint2 *)((uint16_t *)chunk.data + at), two);
                continue;
            }
            ROLLED
            for (int64_t j = at; j < at + 4; j++) {
                if (j < 0 || j >= (int64_t)chunk.length)
                    continue;
                if (size == 4)
                    ((uint32_t *)chunk.data)[j] = bits;
                else
                    ((uint16_t *)chunk.data)[j] = (uint16_t)bits;
            }
        }
    }
}

/* What the outputs of a step become that changes nothing: NaN, or zero where all have joined. */
static inline void fill_unchanged(const cuda_spans_t *spans, uint32_t dtype, const device_words_t *words)
{
    if (words->ok && (words->nonfinite || words->joined))
        fill_spans(spans, dtype == GTOPK_F32 ? 4 : 2, words->nonfinite ? nan_bits(dtype) : 0);
}

/* zero: also of a step that is committed. */
KERNEL(fill, fill_args)
{
    if (args.zero && words_commit(args.words))
        fill_spans(&args.spans, args.dtype == GTOPK_F32 ? 4 : 2, 0);
    else
        fill_unchanged(&args.spans, args.dtype, args.words);
}

/* ---- the residual ---- */

/* The value of `first` at the index of selected entry i: mostly at the same place, because few are left out. */
static inline float first_at(const journal_args_t *args, uint32_t firsts, uint64_t i, uint32_t index)
{
    const device_set_t *first = &args->first;
    return i < firsts && first->index[i] == index ? first->value[i] : value_at(first, 0, firsts, index);
}

/* residual[selected] = v - first; with clear_final_only, where final has the index. Velocity of what is in both: 0. */
static inline void clear_selected(const journal_args_t *args)
{
    const uint32_t count = *args->selected.count, firsts = *args->first.count, finals = *args->final.count;
    ROLLED
    for (uint64_t i = grid_thread(); i < count; i += grid_threads()) {
        const uint32_t index = args->selected.index[i];
        const int looks = args->clear_final_only || args->velocity;
        const int in_final = looks && value_at(&args->final, 0, finals, index) != 0.0f;
        if (in_final && args->velocity)
            args->velocity[index] = 0.0f;
        if (in_final || !args->clear_final_only)
            residual_put(&args->residual, index, args->selected.value[i] - first_at(args, firsts, i, index),
                         DITHER_CLEAR);
    }
}

KERNEL(journal, journal_args)
{
    if (!words_commit(args.words))
        return;
    if (args.clear)
        clear_selected(&args);
    ROLLED
    for (uint32_t d = 0; d < args.deposit_count; d++) {
        const device_set_t *deposit = &args.deposits[d];
        const uint32_t count = *deposit->count;
        if (d > 0 || args.clear)
            grid_sync(args.scratch); /* an entry's sums have a fixed order */
        ROLLED
        for (uint64_t i = grid_thread(); i < count; i += grid_threads())
            residual_add(&args.residual, deposit->index[i], deposit->value[i],
                         DITHER_DEPOSIT + args.deposits_before + d);
    }
}

/* ---- the mean ---- */

/* The outputs hold zeros, or are filled here. */
KERNEL(mean, mean_args)
{
    const cuda_spans_t *spans = &args.spans;
    if (!words_commit(args.words)) {
        fill_unchanged(spans, args.dtype, args.words);
        return;
    }
    const uint32_t count = *args.final.count;
    /* Entries that these spans cover. */
    uint32_t begin = 0, end = count;
    if (spans->count > 0) {
        const uint32_t limit = spans->offset[spans->count];
        if (spans->offset[0] > 0)
            begin = lower_bound(args.final.index, 0, count, spans->offset[0]);
        if (count > 0 && args.final.index[count - 1] >= limit)
            end = lower_bound(args.final.index, begin, count, limit);
    }
    ROLLED
    for (uint64_t i = (args.indices ? 0 : begin) + grid_thread(); i < (args.indices ? count : end);
         i += grid_threads()) {
        const uint32_t index = args.final.index[i];
        const float mean = args.final.value[i] / (float)args.divisor;
        if (args.indices) {
            args.indices[i] = index;
            args.values[i] = mean;
        }
        if (spans->count == 0 || i < begin || i >= end)
            continue;
        const uint32_t s = spans_find(spans->offset, spans->count, index);
        if (!spans->data[s])
            continue;
        const float rest = entry_write(spans->data[s], args.dtype, index - spans->offset[s], mean);
        if (rest != 0.0f && (args.residual.wide || args.residual.narrow))
            residual_add(&args.residual, index, rest * (float)args.ranks, DITHER_MEAN);
    }
}
