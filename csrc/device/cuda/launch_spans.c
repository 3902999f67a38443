/* Launches over spans: accumulate, and the ends of a step. A launch takes up to CUDA_SPANS spans of one type, whose
 * pointers travel in its arguments, so that nothing is uploaded. */
#include "device/cuda/blocks.h"
#include "device/dither.h"

/* What a launch can take together. */
typedef enum span_kind { KIND_F32 = GTOPK_F32, KIND_F16 = GTOPK_F16, KIND_BF16 = GTOPK_BF16, KIND_NONE } span_kind_t;

static span_kind_t kind_of(const device_span_t *span)
{
    return span->data ? (span_kind_t)span->dtype : KIND_NONE;
}

/* As spans.h has it for the kernels. */
static uint32_t skew_of(const device_span_t *span)
{
    return (uint32_t)(span->offset % 4);
}

static void span_add(cuda_spans_t *spans, void *data, uint64_t offset, uint64_t end, uint64_t chunks)
{
    spans->data[spans->count] = data;
    spans->offset[spans->count] = (uint32_t)offset;
    spans->first[spans->count++] = spans->chunks;
    spans->offset[spans->count] = (uint32_t)end;
    spans->chunks += (uint32_t)chunks;
}

/* Takes spans of a kind from *next on, until there is no more room. Returns 0 when there was none left. */
static int spans_take(const device_span_t *from, size_t count, span_kind_t kind, size_t *next, cuda_spans_t *spans)
{
    spans->count = spans->chunks = 0;
    for (; *next < count; (*next)++) {
        const device_span_t *span = &from[*next];
        if (span->length == 0 || kind_of(span) != kind)
            continue;
        const int apart = spans->count > 0 && spans->offset[spans->count] != span->offset;
        if (spans->count + (uint32_t)apart >= CUDA_SPANS)
            break;
        if (apart)
            span_add(spans, NULL, spans->offset[spans->count], span->offset, 0);
        span_add(spans, span->data, span->offset, span->offset + span->length,
                 (span->length + skew_of(span) + CUDA_CHUNK - 1) / CUDA_CHUNK);
    }
    return spans->count > 0;
}

/* ---- accumulate ---- */

static const cuda_kernel_t plain[] = {
    [KIND_F32] = CUDA_KERNEL_accumulate_f32,
    [KIND_F16] = CUDA_KERNEL_accumulate_f16,
    [KIND_BF16] = CUDA_KERNEL_accumulate_bf16,
};

static cuda_kernel_t kernel_for(span_kind_t kind, int with_velocity, int narrow)
{
    if (narrow)
        return CUDA_KERNEL_narrow;
    if (kind == KIND_NONE)
        return CUDA_KERNEL_scan;
    return with_velocity ? CUDA_KERNEL_momentum : plain[kind];
}

gtopk_status_t launch_accumulate(const cuda_queue_t *queue, const cuda_memory_t *memory, const device_span_t *spans,
                                 size_t count, const device_accumulate_t *params, device_words_t *words, void *stream)
{
    gtopk_status_t status = GTOPK_OK;
    if (params->found_inf) {
        const flag_args_t args = {.words = words};
        return LAUNCH(queue, nonfinite, 1, args, stream);
    }
    accumulate_args_t args = {
        .residual = memory->residual,
        .velocity = memory->velocity,
        .to = memory->second ? memory->second : memory->residual,
        .velocity_to = memory->second_velocity ? memory->second_velocity : memory->velocity,
        .narrow = memory->narrow,
        .narrow_to = memory->second_narrow ? memory->second_narrow : memory->narrow,
        .narrow_key = dither_key(memory->seed, DITHER_ACCUMULATE),
        .pool = memory->pool,
        .words = words,
        .scale = params->scale,
        .momentum = params->momentum,
        .nesterov = params->nesterov != 0,
        .zero_input = params->zero_input != 0,
    };
    for (span_kind_t kind = KIND_F32; kind <= KIND_NONE; kind++) {
        const cuda_kernel_t kernel = kernel_for(kind, memory->velocity != NULL, memory->narrow != NULL);
        size_t next = 0;
        args.dtype = kind == KIND_NONE ? CUDA_NO_TYPE : (uint32_t)kind;
        while (status == GTOPK_OK && spans_take(spans, count, kind, &next, &args.spans))
            status = queue->launch(queue->context, kernel, blocks_for(queue, kernel, args.spans.chunks, CUDA_WARPS),
                                   &args, sizeof args, stream);
    }
    return status;
}

/* ---- nodes ---- */

gtopk_status_t launch_stage(const cuda_queue_t *queue, const device_span_t *spans, size_t count,
                            const device_stage_t *params, float *out, void *stream)
{
    static const cuda_kernel_t kernels[] = {
        [KIND_F32] = CUDA_KERNEL_stage_f32,
        [KIND_F16] = CUDA_KERNEL_stage_f16,
        [KIND_BF16] = CUDA_KERNEL_stage_bf16,
        [KIND_NONE] = CUDA_KERNEL_stage_nothing,
    };
    const span_kind_t last = params->add ? KIND_BF16 : KIND_NONE;
    gtopk_status_t status = GTOPK_OK;
    stage_args_t args = {
        .out = out,
        .scale = params->scale,
        .add = params->add != 0,
        .zero_input = params->zero_input != 0,
    };
    for (span_kind_t kind = KIND_F32; kind <= last; kind++) {
        size_t next = 0;
        while (status == GTOPK_OK && spans_take(spans, count, kind, &next, &args.spans))
            status = queue->launch(queue->context, kernels[kind],
                                   blocks_for(queue, kernels[kind], args.spans.chunks, CUDA_WARPS), &args, sizeof args,
                                   stream);
    }
    return status;
}

/* ---- commit ---- */

static gtopk_status_t fill(const cuda_queue_t *queue, const device_target_t *target, int zero,
                           const device_words_t *words, void *stream)
{
    gtopk_status_t status = GTOPK_OK;
    fill_args_t args = {.words = words, .zero = zero != 0};
    for (span_kind_t kind = KIND_F32; kind < KIND_NONE; kind++) {
        size_t next = 0;
        args.dtype = (uint32_t)kind;
        while (status == GTOPK_OK && spans_take(target->spans, target->count, kind, &next, &args.spans))
            status = LAUNCH(queue, fill, blocks_for(queue, CUDA_KERNEL_fill, args.spans.chunks, CUDA_WARPS), args,
                            stream);
    }
    return status;
}

static gtopk_status_t change_residual(const cuda_queue_t *queue, const cuda_memory_t *memory,
                                      const device_journal_t *journal, const device_words_t *words, void *stream)
{
    gtopk_status_t status = GTOPK_OK;
    journal_args_t args = {
        .residual = cuda_residual_of(memory),
        .velocity = memory->velocity,
        .selected = journal->selected,
        .first = journal->first,
        .final = journal->final,
        .clear = 1,
        .clear_final_only = journal->clear_final_only != 0,
        .words = words,
        .scratch = queue->scratch,
    };
    uint32_t next = 0;
    do {
        uint64_t most = args.clear ? journal->selected.capacity : 0;
        args.deposits_before = next;
        for (args.deposit_count = 0; next < journal->deposit_count && args.deposit_count < CUDA_DEPOSITS; next++) {
            args.deposits[args.deposit_count++] = journal->deposits[next];
            most = journal->deposits[next].capacity > most ? journal->deposits[next].capacity : most;
        }
        status = LAUNCH(queue, journal, blocks_for(queue, CUDA_KERNEL_journal, most, CUDA_THREADS), args, stream);
        args.clear = 0;
    } while (status == GTOPK_OK && next < journal->deposit_count);
    return status;
}

/* No residual: what an output cannot hold goes nowhere; else there, for each of `ranks`. */
static gtopk_status_t write_mean(const cuda_queue_t *queue, cuda_residual_t residual, uint32_t ranks,
                                 const device_set_t *final, uint32_t divisor, const device_target_t *target,
                                 const device_words_t *words, void *stream)
{
    gtopk_status_t status = GTOPK_OK;
    const uint32_t blocks = blocks_for(queue, CUDA_KERNEL_mean, final->capacity, CUDA_THREADS);
    mean_args_t args = {
        .residual = residual,
        .final = *final,
        .indices = target->indices,
        .values = target->values,
        .words = words,
        .divisor = divisor,
        .ranks = ranks,
    };
    if (target->indices)
        status = LAUNCH(queue, mean, blocks, args, stream);
    args.indices = NULL;
    args.values = NULL;
    for (span_kind_t kind = KIND_F32; kind < KIND_NONE; kind++) {
        size_t next = 0;
        args.dtype = (uint32_t)kind;
        while (status == GTOPK_OK && spans_take(target->spans, target->count, kind, &next, &args.spans))
            status = LAUNCH(queue, mean, blocks, args, stream);
    }
    return status;
}

gtopk_status_t launch_commit(const cuda_queue_t *queue, const cuda_memory_t *memory, const device_journal_t *journal,
                             const device_target_t *target, const device_words_t *words, void *stream)
{
    gtopk_status_t status = target->are_zero ? GTOPK_OK : fill(queue, target, 1, words, stream);
    if (status == GTOPK_OK)
        status = change_residual(queue, memory, journal, words, stream);
    if (status != GTOPK_OK)
        return status;
    return write_mean(queue, cuda_residual_of(memory), 1 + journal->others, &journal->final, journal->divisor, target,
                      words, stream);
}

gtopk_status_t launch_write(const cuda_queue_t *queue, const device_set_t *final, uint32_t divisor,
                            const device_target_t *target, const device_words_t *words, void *stream)
{
    const gtopk_status_t status = target->are_zero ? GTOPK_OK : fill(queue, target, 1, words, stream);
    return status == GTOPK_OK
               ? write_mean(queue, (cuda_residual_t){.wide = NULL}, 0, final, divisor, target, words, stream)
               : status;
}

/* ---- dense ---- */

gtopk_status_t launch_gather(const cuda_queue_t *queue, const cuda_memory_t *memory, float *out, void *stream)
{
    const gather_args_t args = {.residual = cuda_residual_of(memory), .out = out, .dim = memory->dim};
    return LAUNCH(queue, gather, blocks_for(queue, CUDA_KERNEL_gather, memory->dim, 4 * CUDA_THREADS), args, stream);
}

gtopk_status_t launch_dense_check(const cuda_queue_t *queue, const cuda_memory_t *memory, const float *sum,
                                  device_words_t *words, void *stream)
{
    const dense_check_args_t args = {.sum = sum, .dim = memory->dim, .words = words};
    return LAUNCH(queue, dense_check, blocks_for(queue, CUDA_KERNEL_dense_check, memory->dim, 4 * CUDA_THREADS), args,
                  stream);
}

gtopk_status_t launch_dense_commit(const cuda_queue_t *queue, const cuda_memory_t *memory, float *sum, uint32_t divisor,
                                   const device_target_t *target, device_words_t *words, void *stream)
{
    const dense_mean_args_t mean = {
        .sum = sum,
        .residual = cuda_residual_of(memory),
        .dim = memory->dim,
        .state = memory->pool.state,
        .indices = target->indices,
        .values = target->values,
        .words = words,
        .scratch = queue->scratch,
        .divisor = divisor,
    };
    dense_spans_args_t args = {.mean = sum, .residual = cuda_residual_of(memory), .words = words};
    gtopk_status_t status = fill(queue, target, 0, words, stream); /* a whole step overwrites all of it */
    if (status == GTOPK_OK)
        status = LAUNCH(queue, dense_mean, blocks_for(queue, CUDA_KERNEL_dense_mean, memory->dim, 4 * CUDA_THREADS),
                        mean, stream);
    for (span_kind_t kind = KIND_F32; kind < KIND_NONE; kind++) {
        size_t next = 0;
        args.dtype = (uint32_t)kind;
        while (status == GTOPK_OK && spans_take(target->spans, target->count, kind, &next, &args.spans))
            status = LAUNCH(queue, dense_spans,
                            blocks_for(queue, CUDA_KERNEL_dense_spans, args.spans.chunks, CUDA_WARPS), args, stream);
    }
    return status;
}

gtopk_status_t launch_square(const cuda_queue_t *queue, const cuda_memory_t *memory, double *sum, void *stream)
{
    const square_args_t args = {.x = cuda_residual_of(memory), .n = memory->dim, .sum = sum, .scratch = queue->scratch};
    return LAUNCH(queue, square, blocks_for(queue, CUDA_KERNEL_square, memory->dim, 4 * CUDA_THREADS), args, stream);
}
