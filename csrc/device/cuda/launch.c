/* Launches of single kernels on sets, messages and words; those with spans are in launch_spans.c. */
#include "device/cuda/launch.h"

#include "device/cuda/blocks.h"

_Static_assert(sizeof(accumulate_args_t) <= CUDA_ARGUMENTS_MAX, "arguments of a kernel");
_Static_assert(sizeof(fill_args_t) <= CUDA_ARGUMENTS_MAX, "arguments of a kernel");
_Static_assert(sizeof(mean_args_t) <= CUDA_ARGUMENTS_MAX, "arguments of a kernel");
_Static_assert(sizeof(dense_spans_args_t) <= CUDA_ARGUMENTS_MAX, "arguments of a kernel");
_Static_assert(sizeof(journal_args_t) <= CUDA_ARGUMENTS_MAX, "arguments of a kernel");
_Static_assert(sizeof(stage_args_t) <= CUDA_ARGUMENTS_MAX, "arguments of a kernel");
_Static_assert(sizeof(verdict_args_t) <= CUDA_ARGUMENTS_MAX, "arguments of a kernel");
_Static_assert(sizeof(device_words_t) % 4 == 0, "kernels clear it word by word");

/* Room beyond 4k: a hint that is low is no reason to read everything again. While a residual grows in the first steps of a
 * training, some three candidates come for each entry that is wanted. */
#define POOL_ROOM 32768u

uint32_t cuda_pool_capacity(uint64_t dim, uint64_t k)
{
    const uint64_t capacity = 4 * k + POOL_ROOM;
    return (uint32_t)(capacity < dim ? capacity : dim);
}

static uint32_t bucket_bits(uint64_t dim)
{
    uint32_t bits = CUDA_PART_BITS;
    while (dim > 0 && (dim - 1) >> bits >= CUDA_BUCKETS)
        bits++;
    return bits;
}

uint32_t blocks_for(const cuda_queue_t *queue, cuda_kernel_t kernel, uint64_t items, uint64_t each)
{
    static const uint8_t meets[] = {
#define KERNEL_MEETS(name, args, meets) meets,
        CUDA_KERNELS(KERNEL_MEETS)
#undef KERNEL_MEETS
    };
    uint32_t most = queue->resident[kernel];
    if (meets[kernel] && most > CUDA_MEETING_BLOCKS * queue->processors)
        most = CUDA_MEETING_BLOCKS * queue->processors;
    if (meets[kernel] && most > CUDA_GRID_MAX)
        most = CUDA_GRID_MAX;
    const uint64_t wanted = (items + each - 1) / each;
    return wanted < 1 || most < 1 ? 1 : (uint32_t)(wanted < most ? wanted : most);
}

/* ---- selection ---- */

gtopk_status_t launch_begin(const cuda_queue_t *queue, const cuda_memory_t *memory, device_words_t *words, void *stream)
{
    const begin_args_t args = {
        .state = memory->pool.state,
        .words = words,
        .fits = memory->pool.capacity >= memory->dim,
    };
    return LAUNCH(queue, begin, 1, args, stream);
}

gtopk_status_t launch_forget(const cuda_queue_t *queue, const cuda_memory_t *memory, int unwanted, void *stream)
{
    const forget_args_t args = {.state = memory->pool.state, .unwanted = unwanted != 0};
    return LAUNCH(queue, forget, 1, args, stream);
}

static select_args_t select_of(const cuda_queue_t *queue, const cuda_memory_t *memory, const float *x, uint64_t k,
                               const device_set_t *out)
{
    return (select_args_t){
        .x = x,
        .n = memory->dim,
        .k = (uint32_t)(k < memory->dim ? k : memory->dim),
        .pool = memory->pool,
        .buckets = memory->buckets,
        .bucket_bits = bucket_bits(memory->dim),
        .chosen = memory->chosen,
        .out = *out,
        .scratch = queue->scratch,
    };
}

gtopk_status_t launch_select(const cuda_queue_t *queue, const cuda_memory_t *memory, uint64_t k,
                             const device_set_t *out, device_words_t *words, void *stream)
{
    if (k > memory->k || out->capacity < k)
        return status_set(GTOPK_ERR_INTERNAL, "select of %llu entries from a store made for %llu into a set of %u",
                          (unsigned long long)k, (unsigned long long)memory->k, out->capacity);
    select_args_t args = select_of(queue, memory, memory->residual, k, out);
    args.narrow = memory->narrow;
    args.words = words;
    uint32_t blocks = blocks_for(queue, CUDA_KERNEL_select, memory->dim, 4 * CUDA_THREADS);
    /* Blocks that have few candidates wait for each other; without a hint some more would be faster. */
    const uint32_t enough = memory->pool.capacity / (4 * CUDA_THREADS);
    const uint32_t most = enough > queue->processors ? enough : queue->processors;
    if (blocks > most && most > 0)
        blocks = most;
    return LAUNCH(queue, select, blocks, args, stream);
}

gtopk_status_t launch_array_select(const cuda_queue_t *queue, const cuda_memory_t *memory, const float *x, uint64_t k,
                                   const device_set_t *out, void *stream)
{
    select_args_t args = select_of(queue, memory, x, k, out);
    args.whole = 1;
    return LAUNCH(queue, select, blocks_for(queue, CUDA_KERNEL_select, memory->dim, 4 * CUDA_THREADS), args, stream);
}

/* ---- messages ---- */

gtopk_status_t launch_encode(const cuda_queue_t *queue, const device_set_t *set, const wire_header_t *header,
                             uint8_t *message, const device_set_t *decoded, device_words_t *words, void *stream)
{
    if ((uintptr_t)message % 8 != 0)
        return status_set(GTOPK_ERR_INTERNAL, "a GPU encodes into memory that is aligned to 8 bytes, not to %p",
                          (void *)message);
    const uint32_t held = set->capacity < decoded->capacity ? set->capacity : decoded->capacity;
    const uint32_t most = held < header->k ? held : header->k;
    const encode_args_t args = {
        .set = *set,
        .header = *header,
        .message = message,
        .decoded = *decoded,
        .most = most,
        .index_words = wire_index_capacity(header->dim, most) / 4,
        .words = words,
        .scratch = queue->scratch,
    };
    return LAUNCH(queue, encode, blocks_for(queue, CUDA_KERNEL_encode, set->capacity, CUDA_THREADS), args, stream);
}

gtopk_status_t launch_address(const cuda_queue_t *queue, uint8_t *message, uint32_t sender, uint16_t round, uint32_t k,
                              const device_words_t *words, void *stream)
{
    const address_args_t args = {.message = message, .sender = sender, .round = round, .k = k, .words = words};
    return LAUNCH(queue, address, 1, args, stream);
}

gtopk_status_t launch_decode(const cuda_queue_t *queue, const uint8_t *message, size_t capacity,
                             const wire_expect_t *expect, const device_set_t *out, device_words_t *words, void *stream)
{
    const decode_args_t args = {
        .message = message,
        .capacity = capacity,
        .expect = *expect,
        .out = *out,
        .words = words,
        .scratch = queue->scratch,
    };
    /* A thread takes four bits of the unary part, in which there is an entry or two. */
    return LAUNCH(queue, decode, blocks_for(queue, CUDA_KERNEL_decode, out->capacity, CUDA_THREADS), args, stream);
}

/* ---- sets ---- */

gtopk_status_t launch_merge(const cuda_queue_t *queue, const device_set_t *a, const device_set_t *b, uint64_t k,
                            const device_set_t *kept, const device_set_t *all, device_words_t *words, void *stream)
{
    const merge_args_t args = {
        .a = *a,
        .b = *b,
        .kept = *kept,
        .all = *all,
        .k = (uint32_t)(k < UINT32_MAX ? k : UINT32_MAX),
        .words = words,
        .scratch = queue->scratch,
    };
    const uint64_t most = (uint64_t)a->capacity + b->capacity;
    return LAUNCH(queue, merge, blocks_for(queue, CUDA_KERNEL_merge, most, CUDA_MERGE_TILE), args, stream);
}

gtopk_status_t launch_deposit(const cuda_queue_t *queue, const device_set_t *all, const device_set_t *sent, float share,
                              const device_set_t *out, device_words_t *words, void *stream)
{
    const deposit_args_t args = {
        .all = *all, .sent = *sent, .out = *out, .share = share, .words = words, .scratch = queue->scratch};
    return LAUNCH(queue, deposit, blocks_for(queue, CUDA_KERNEL_deposit, all->capacity, CUDA_THREADS), args, stream);
}

gtopk_status_t launch_cut(const cuda_queue_t *queue, const device_set_t *set, device_range_t range,
                          const device_set_t *out, device_words_t *words, void *stream)
{
    const cut_args_t args = {.set = *set, .out = *out, .range = range, .words = words, .scratch = queue->scratch};
    return LAUNCH(queue, cut, blocks_for(queue, CUDA_KERNEL_cut, set->capacity, 2 * CUDA_THREADS), args, stream);
}

gtopk_status_t launch_widen(const cuda_queue_t *queue, const device_set_t *set, device_range_t range, void *stream)
{
    const widen_args_t args = {.set = *set, .range = range};
    return LAUNCH(queue, widen, blocks_for(queue, CUDA_KERNEL_widen, set->capacity, CUDA_THREADS), args, stream);
}

gtopk_status_t launch_copy_set(const cuda_queue_t *queue, const device_set_t *from, const device_set_t *to,
                               device_words_t *words, void *stream)
{
    const copy_set_args_t args = {.from = *from, .to = *to, .words = words};
    return LAUNCH(queue, copy_set, blocks_for(queue, CUDA_KERNEL_copy_set, from->capacity, CUDA_THREADS), args, stream);
}

gtopk_status_t launch_append(const cuda_queue_t *queue, const device_set_t *set, uint32_t offset,
                             const device_set_t *to, device_words_t *words, void *stream)
{
    const append_args_t args = {.set = *set, .to = *to, .offset = offset, .words = words, .scratch = queue->scratch};
    return LAUNCH(queue, append, blocks_for(queue, CUDA_KERNEL_append, set->capacity, CUDA_THREADS), args, stream);
}

gtopk_status_t launch_add_up(const cuda_queue_t *queue, const float *parts, size_t stride, uint32_t count, float *out,
                             uint64_t length, void *stream)
{
    const add_up_args_t args = {.parts = parts, .out = out, .stride = stride, .length = length, .count = count};
    return LAUNCH(queue, add_up, blocks_for(queue, CUDA_KERNEL_add_up, length, 4 * CUDA_THREADS), args, stream);
}

/* ---- words ---- */

/* Up to CUDA_REDUCERS reducers take one launch. More: all gather, then all apply. */
static const uint32_t phases[] = {CUDA_GATHER, CUDA_APPLY, CUDA_GATHER | CUDA_APPLY};

gtopk_status_t launch_words_join(const cuda_queue_t *queue, device_words_t *const *words, size_t count, int joined,
                                 void *stream)
{
    gtopk_status_t status = GTOPK_OK;
    const size_t begin = count <= CUDA_REDUCERS ? 2 : 0, end = count <= CUDA_REDUCERS ? 3 : 2;
    for (size_t p = begin; p < end; p++)
        for (size_t first = 0; first < count && status == GTOPK_OK; first += CUDA_REDUCERS) {
            join_args_t args = {.joined = joined != 0, .phases = phases[p], .scratch = queue->scratch};
            for (size_t i = first; i < count && args.count < CUDA_REDUCERS; i++)
                args.words[args.count++] = words[i];
            if (phases[p] & CUDA_APPLY && first + args.count == count)
                args.phases |= CUDA_LAST;
            status = LAUNCH(queue, join, 1, args, stream);
        }
    return status;
}

gtopk_status_t launch_verdict(const cuda_queue_t *queue, const device_outcome_t *outcomes, size_t count, void *stream)
{
    gtopk_status_t status = GTOPK_OK;
    const size_t begin = count <= CUDA_REDUCERS ? 2 : 0, end = count <= CUDA_REDUCERS ? 3 : 2;
    for (size_t p = begin; p < end; p++)
        for (size_t first = 0; first < count && status == GTOPK_OK; first += CUDA_REDUCERS) {
            verdict_args_t args = {.phases = phases[p], .scratch = queue->scratch};
            for (size_t i = first; i < count && args.count < CUDA_REDUCERS; i++, args.count++) {
                const device_outcome_t *outcome = &outcomes[i];
                args.words[args.count] = outcome->words;
                args.final_count[args.count] = outcome->final ? outcome->final->count : NULL;
                args.host[args.count] = outcome->host;
            }
            if (phases[p] & CUDA_APPLY && first + args.count == count)
                args.phases |= CUDA_LAST;
            status = LAUNCH(queue, verdict, 1, args, stream);
        }
    return status;
}
