/* The pass over the residual and what comes of it: accumulate, scan, select. The driver loop cuts spans into blocks
 * and hands what the kernels find to the pool; it knows no instruction set. */
#include "device/cpu/store.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "device/host.h"
#include "util/fpenv.h"

/* Blocks that are worth a thread's while: a megabyte of residual, some 100 microseconds. */
#define PASS_GRAIN 64

typedef struct pass {
    device_store_t *store;
    const device_span_t *spans;
    size_t count;
    const device_accumulate_t *params; /* NULL: a residual is read again */
    atomic_int nonfinite;
} pass_t;

#define LINE 64u /* bytes of a cache line, and what streaming stores are aligned to */

static int is_aligned(const float *to)
{
    return (uintptr_t)to % LINE == 0;
}

/* Entries before the first line of the second array, where there is one: a block of their own. */
static uint64_t span_head(const device_store_t *store, const device_span_t *span)
{
    if (!store->second)
        return 0;
    const uint64_t before = (uintptr_t)(store->second + span->offset) % LINE / sizeof *store->second;
    const uint64_t head = before > 0 ? LINE / sizeof *store->second - before : 0;
    return head < span->length ? head : span->length;
}

static uint64_t span_blocks(const device_store_t *store, const device_span_t *span)
{
    const uint64_t head = span_head(store, span);
    return (head > 0) + (span->length - head + KERNEL_BLOCK - 1) / KERNEL_BLOCK;
}

static void pass_flush(device_store_t *store, kernel_found_t *found)
{
    if (found->count == 0)
        return;
    (void)pthread_mutex_lock(&store->lock);
    pool_offer(&store->pool, found);
    (void)pthread_mutex_unlock(&store->lock);
}

/* What nothing arrived for, in a step that may be undone. */
static void carry_over(const device_store_t *store, uint64_t first, size_t length)
{
    if (store->second)
        memcpy(store->second + first, store->residual + first, length * sizeof *store->second);
    if (store->second_narrow)
        memcpy(store->second_narrow + first, store->narrow + first, length * sizeof *store->second_narrow);
    if (store->second_velocity)
        memcpy(store->second_velocity + first, store->velocity + first, length * sizeof *store->second_velocity);
}

/* A block of a residual in bf16 is widened, and rounded again when it has changed; what is found is what was stored. */
static int narrow_block(device_store_t *store, kernel_job_t *job, int dtype, kernel_found_t *found)
{
    const uint32_t above = job->above;
    float wide[KERNEL_BLOCK] __attribute__((aligned(LINE)));
    int bad = 0;
    store->kernels->widen(store->narrow + job->first, job->length, wide);
    job->residual = job->to = wide;
    if (job->input) {
        job->above = KERNEL_LARGEST;
        bad = (job->velocity ? store->kernels->momentum : store->kernels->accumulate)[dtype](job, found);
        store->kernels->narrow(wide, job->length, job->first, dither_key(store->seed, DITHER_ACCUMULATE),
                               (store->second_narrow ? store->second_narrow : store->narrow) + job->first);
        job->above = above;
    }
    store->kernels->scan(job, found);
    return bad;
}

/* Returns 1 when a sum was not finite. */
static int float_block(const device_store_t *store, kernel_job_t *job, int dtype, kernel_found_t *found)
{
    job->residual = store->residual + job->first;
    job->to = (store->second ? store->second : store->residual) + job->first;
    if (!job->input) {
        store->kernels->scan(job, found);
        return 0;
    }
    job->streams = store->second && is_aligned(job->to) && (!job->velocity || is_aligned(job->velocity_to));
    return (job->velocity ? store->kernels->momentum : store->kernels->accumulate)[dtype](job, found);
}

static void pass_block(pass_t *pass, const device_span_t *span, uint64_t block, kernel_found_t *found)
{
    device_store_t *store = pass->store;
    const uint64_t head = span_head(store, span),
                   begin = block > 0 && head > 0 ? head + (block - 1) * KERNEL_BLOCK : block * KERNEL_BLOCK;
    const uint64_t most = block == 0 && head > 0 ? head : KERNEL_BLOCK;
    const uint64_t left = span->length - begin, first = span->offset + begin;
    kernel_job_t job = {
        .length = (size_t)(left < most ? left : most),
        .first = (uint32_t)first,
        .above = pool_above(&store->pool, (uint32_t)first),
    };
    if (span->data) {
        job.input = (char *)span->data + begin * device_entry_size(span->dtype);
        job.scale = pass->params->scale;
        job.zero_input = pass->params->zero_input;
        job.momentum = pass->params->momentum;
        job.nesterov = pass->params->nesterov;
        if (store->velocity) {
            job.velocity = store->velocity + first;
            job.velocity_to = (store->second_velocity ? store->second_velocity : store->velocity) + first;
        }
    } else if (pass->params) {
        carry_over(store, first, job.length);
    }
    if (store->narrow ? narrow_block(store, &job, span->dtype, found) : float_block(store, &job, span->dtype, found))
        atomic_store_explicit(&pass->nonfinite, 1, memory_order_relaxed);
    if (found->count > KERNEL_BLOCK)
        pass_flush(store, found);
}

/* Blocks [begin, end) of all spans, counted one after the other. */
static void pass_body(int64_t begin, int64_t end, void *arg)
{
    pass_t *pass = arg;
    kernel_found_t found;
    found.count = 0;
    fpenv_t saved = fpenv_enter();
    uint64_t from = (uint64_t)begin, to = (uint64_t)end, base = 0;
    for (size_t s = 0; s < pass->count && base < to; s++) {
        const device_span_t *span = &pass->spans[s];
        uint64_t blocks = span_blocks(pass->store, span);
        uint64_t block = from > base ? from - base : 0, stop = to - base < blocks ? to - base : blocks;
        for (; block < stop; block++)
            pass_block(pass, span, block, &found);
        base += blocks;
    }
    pass_flush(pass->store, &found);
    fpenv_leave(saved);
}

/* Returns 1 when a sum was not finite. */
static int pass_run(device_store_t *store, const device_span_t *spans, size_t count, const device_accumulate_t *params)
{
    pass_t pass = {.store = store, .spans = spans, .count = count, .params = params};
    atomic_init(&pass.nonfinite, 0);
    uint64_t blocks = 0;
    for (size_t s = 0; s < count; s++)
        blocks += span_blocks(store, &spans[s]);
    store_parallel(store, (int64_t)blocks, PASS_GRAIN, pass_body, &pass);
    return atomic_load_explicit(&pass.nonfinite, memory_order_relaxed);
}

gtopk_status_t store_step_begin(device_store_t *store, device_words_t *words, void *stream)
{
    (void)stream;
    fpenv_t saved = fpenv_enter();
    pool_reset(&store->pool, hint_magnitude(&store->hint));
    fpenv_leave(saved);
    host_words_begin(words);
    return GTOPK_OK;
}

gtopk_status_t store_accumulate(device_store_t *store, const device_span_t *spans, size_t count,
                                const device_accumulate_t *params, device_words_t *words, void *stream)
{
    (void)stream;
    if (params->found_inf || pass_run(store, spans, count, params))
        words->nonfinite = 1;
    return GTOPK_OK;
}

/* Sampling reads this many pieces of a block, each of a few cache lines. */
#define SAMPLE_PIECES 512u
#define SAMPLE_PIECE 64u

/* A magnitude that more than k entries have, if a sample of the residual does not mislead: the one of the rank that is
 * expected in the sample, and four standard deviations. 1 (the smallest) where the sample is no use. Empties the pool.
 */
static uint32_t sample_magnitude(device_store_t *store, uint64_t k)
{
    const size_t size = SAMPLE_PIECES * SAMPLE_PIECE;
    pool_t *pool = &store->pool;
    double expected = (double)k * (double)size / (double)store->dim;
    size_t rank = (size_t)(expected + 4.0 * sqrt(expected) + 4.0), taken = 0;
    if (store->dim < 16 * size || pool->capacity < size || rank >= size)
        return 1;
    uint64_t stride = store->dim / SAMPLE_PIECES;
    for (uint64_t p = 0; p < SAMPLE_PIECES; p++)
        for (uint64_t i = p * stride; i < p * stride + SAMPLE_PIECE; i++) {
            const uint32_t bits = convert_bits(store_value(store, i));
            pool->keys[taken++] = key_make((uint32_t)i, bits);
        }
    uint32_t magnitude = key_magnitude(keys_keep_largest(pool->keys, taken, rank, pool->scratch));
    return magnitude > 1 ? magnitude : 1;
}

/* Reads the residual again, from a magnitude that a sample suggests; should that be too high as well, from the smallest
 * one, which leaves nothing out. */
static void rescan(device_store_t *store, uint64_t k, device_words_t *words)
{
    const device_span_t everything = {.offset = 0, .length = store->dim};
    uint32_t magnitude = sample_magnitude(store, k);
    do {
        pool_reset(&store->pool, magnitude);
        (void)pass_run(store, &everything, 1, NULL);
        words->candidates += store->pool.offered;
        magnitude = 1;
    } while (!pool_is_complete(&store->pool, (size_t)k));
}

/* Writes the pool's entries, and returns the smallest magnitude among them. */
static uint32_t write_out(const pool_t *pool, device_set_t *out)
{
    uint32_t smallest = UINT32_MAX;
    for (size_t i = 0; i < pool->count; i++) {
        uint64_t key = pool->keys[i];
        uint32_t bits = key_bits(key), magnitude = key_magnitude(key);
        out->index[i] = key_index(key);
        memcpy(&out->value[i], &bits, sizeof bits);
        smallest = magnitude < smallest ? magnitude : smallest;
    }
    *out->count = (uint32_t)pool->count;
    return smallest;
}

gtopk_status_t store_select(device_store_t *store, uint64_t k, device_set_t *out, device_words_t *words, void *stream)
{
    (void)stream;
    *out->count = 0;
    if (words->nonfinite)
        return GTOPK_OK;
    if (k > store->k || out->capacity < k)
        return status_set(GTOPK_ERR_INTERNAL, "select of %llu entries from a store made for %llu into a set of %u",
                          (unsigned long long)k, (unsigned long long)store->k, out->capacity);
    pool_t *pool = &store->pool;
    fpenv_t saved = fpenv_enter();
    words->candidates = pool->offered;
    if (!pool_is_complete(pool, (size_t)k)) {
        words->misses = 1;
        rescan(store, k, words);
    }
    pool_cut(pool, (size_t)k);
    keys_sort_by_index(pool->keys, pool->count, store->dim, pool->scratch);
    uint32_t smallest = write_out(pool, out);
    hint_learn(&store->hint, pool->count < k ? 0 : smallest);
    words->selected = *out->count;
    fpenv_leave(saved);
    return GTOPK_OK;
}
