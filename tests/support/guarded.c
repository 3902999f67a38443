/* The operations of guarded devices: each puts a copy of its arguments into the stream, with addresses that the device
 * inside can use. */
#include "support/guarded.h"

#include <stdlib.h>
#include <string.h>

#include "support/guarded_machine.h"
#include "util/memory.h"

typedef struct guarded_store {
    guarded_t *device;
    device_store_t *inner;
} guarded_store_t;

static call_t *begin(device_t *device, void *stream, gtopk_status_t (*run)(call_t *call, double deadline))
{
    guarded_t *self = (guarded_t *)device;
    return call_begin(self->machine, self, stream, run);
}

static call_t *begin_on(device_store_t *store, void *stream, gtopk_status_t (*run)(call_t *call, double deadline))
{
    const guarded_store_t *self = (const guarded_store_t *)store;
    call_t *call = begin(&self->device->base, stream, run);
    call->store = self->inner;
    return call;
}

static gtopk_status_t queue(call_t *call)
{
    return call_queue(call->device->machine, call);
}

static gtopk_status_t queue_and_wait(call_t *call)
{
    return call_wait(call->device->machine, call);
}

static void *reach(const call_t *call, const void *address)
{
    return machine_reach(call->device->machine, address);
}

static device_set_t reach_set(const call_t *call, const device_set_t *set)
{
    return (device_set_t){reach(call, set->index), reach(call, set->value), reach(call, set->count), set->capacity};
}

static device_span_t *keep_spans(const call_t *call, const device_span_t *spans, size_t count)
{
    device_span_t *kept = call_keep(call->device->machine, spans, count * sizeof *spans);
    for (size_t i = 0; i < count; i++)
        kept[i].data = reach(call, kept[i].data);
    return kept;
}

static device_target_t keep_target(const call_t *call, const device_target_t *target)
{
    device_target_t kept = *target;
    if (target->spans)
        kept.spans = keep_spans(call, target->spans, target->count);
    kept.indices = reach(call, target->indices);
    kept.values = reach(call, target->values);
    return kept;
}

static const device_ops_t *inside(const call_t *call)
{
    return call->device->inner->ops;
}

#define RUN(name, invocation)                                       \
    static gtopk_status_t run_##name(call_t *call, double deadline) \
    {                                                               \
        (void)deadline;                                             \
        device_t *const inner = call->device->inner;                \
        (void)inner;                                                \
        return inside(call)->invocation;                            \
    }

/* ---- life and memory ---- */

static void guarded_close(device_t *device)
{
    guarded_t *self = (guarded_t *)device;
    must_be_idle(self);
    self->inner->ops->close(self->inner);
    machine_release(self->machine);
    memory_free(self);
}

static gtopk_status_t guarded_allocate(device_t *device, size_t bytes, const char *what, void **out)
{
    return machine_allocate(((guarded_t *)device)->machine, bytes, what, out);
}

static void guarded_free(device_t *device, void *block)
{
    machine_free(((guarded_t *)device)->machine, block);
}

/* Pinned memory is the host's. Its length stands before it. */
enum { PINNED_HEAD = 64 };

static gtopk_status_t guarded_allocate_pinned(device_t *device, size_t bytes, const char *what, void **out)
{
    uint8_t *block;
    (void)device;
    *out = NULL;
    const gtopk_status_t status = bytes > 0 ? memory_alloc(&block, PINNED_HEAD + bytes, 1, what) : GTOPK_OK;
    if (status != GTOPK_OK || bytes == 0)
        return status;
    memcpy(block, &bytes, sizeof bytes);
    *out = block + PINNED_HEAD;
    return GTOPK_OK;
}

static void guarded_free_pinned(device_t *device, void *block)
{
    size_t bytes;
    if (!block)
        return;
    uint8_t *whole = (uint8_t *)block - PINNED_HEAD;
    memcpy(&bytes, whole, sizeof bytes);
    must_be_passed(((guarded_t *)device)->machine, block, bytes);
    memory_free(whole);
}

/* ---- the store ---- */

static gtopk_status_t guarded_store_create(device_t *device, uint64_t dim, uint64_t k, int with,
                                           const device_parallel_t *parallel, device_store_t **out)
{
    guarded_t *self = (guarded_t *)device;
    guarded_store_t *store;
    *out = NULL;
    gtopk_status_t status = memory_alloc(&store, 1, sizeof *store, "a guarded store");
    if (status != GTOPK_OK)
        return status;
    store->device = self;
    status = self->inner->ops->store_create(self->inner, dim, k, with, parallel, &store->inner);
    if (status != GTOPK_OK) {
        memory_free(store);
        return status;
    }
    *out = (device_store_t *)store;
    return GTOPK_OK;
}

static void guarded_store_destroy(device_store_t *store)
{
    guarded_store_t *self = (guarded_store_t *)store;
    if (!self)
        return;
    must_be_unused(self->device->machine, self->inner, "a store is destroyed");
    self->device->inner->ops->store_destroy(self->inner);
    memory_free(self);
}

static gtopk_status_t guarded_store_resize(device_store_t *store, uint64_t k)
{
    const guarded_store_t *self = (const guarded_store_t *)store;
    must_be_unused(self->device->machine, self->inner, "a store is resized");
    return self->device->inner->ops->store_resize(self->inner, k);
}

RUN(store_seed, store_seed(call->store, call->offset, NULL))

static gtopk_status_t guarded_store_seed(device_store_t *store, uint64_t seed, void *stream)
{
    call_t *call = begin_on(store, stream, run_store_seed);
    call->offset = seed;
    return queue(call);
}

RUN(step_begin, step_begin(call->store, call->words, NULL))

static gtopk_status_t guarded_step_begin(device_store_t *store, device_words_t *words, void *stream)
{
    call_t *call = begin_on(store, stream, run_step_begin);
    call->words = reach(call, words);
    return queue(call);
}

RUN(accumulate, accumulate(call->store, call->spans, call->count, &call->accumulate, call->words, NULL))

static gtopk_status_t guarded_accumulate(device_store_t *store, const device_span_t *spans, size_t count,
                                         const device_accumulate_t *params, device_words_t *words, void *stream)
{
    call_t *call = begin_on(store, stream, run_accumulate);
    call->spans = keep_spans(call, spans, count);
    call->count = count;
    call->accumulate = *params;
    call->words = reach(call, words);
    return queue(call);
}

RUN(swap, swap(call->store, NULL))

static gtopk_status_t guarded_swap(device_store_t *store, void *stream)
{
    return queue(begin_on(store, stream, run_swap));
}

RUN(select, select(call->store, call->k, &call->sets[0], call->words, NULL))

static gtopk_status_t guarded_select(device_store_t *store, uint64_t k, device_set_t *out, device_words_t *words,
                                     void *stream)
{
    call_t *call = begin_on(store, stream, run_select);
    call->k = k;
    call->sets[0] = reach_set(call, out);
    call->words = reach(call, words);
    return queue(call);
}

RUN(array_select, array_select(inner, call->from, call->count, call->k, &call->parallel, &call->sets[0], NULL))

static gtopk_status_t guarded_array_select(device_t *device, const float *x, uint64_t n, uint64_t k,
                                           const device_parallel_t *parallel, device_set_t *out, void *stream)
{
    call_t *call = begin(device, stream, run_array_select);
    call->from = reach(call, x);
    call->count = (size_t)n;
    call->k = k;
    if (parallel)
        call->parallel = *parallel;
    call->sets[0] = reach_set(call, out);
    return queue(call);
}

RUN(commit, commit(call->store, &call->journal, &call->target, call->words, NULL))

static gtopk_status_t guarded_commit(device_store_t *store, const device_journal_t *journal,
                                     const device_target_t *target, const device_words_t *words, void *stream)
{
    call_t *call = begin_on(store, stream, run_commit);
    device_set_t *deposits = call_keep(call->device->machine, journal->deposits,
                                       journal->deposit_count * sizeof *deposits);
    for (uint32_t d = 0; d < journal->deposit_count; d++)
        deposits[d] = reach_set(call, &deposits[d]);
    call->journal = *journal;
    call->journal.deposits = deposits;
    call->journal.selected = reach_set(call, &journal->selected);
    call->journal.first = reach_set(call, &journal->first);
    call->journal.final = reach_set(call, &journal->final);
    call->target = keep_target(call, target);
    call->words = reach(call, words);
    return queue(call);
}

RUN(dense_gather, dense_gather(call->store, call->to, NULL))

static gtopk_status_t guarded_dense_gather(device_store_t *store, float *out, void *stream)
{
    call_t *call = begin_on(store, stream, run_dense_gather);
    call->to = reach(call, out);
    return queue(call);
}

RUN(dense_check, dense_check(call->store, call->from, call->words, NULL))

static gtopk_status_t guarded_dense_check(device_store_t *store, const float *sum, device_words_t *words, void *stream)
{
    call_t *call = begin_on(store, stream, run_dense_check);
    call->from = reach(call, sum);
    call->words = reach(call, words);
    return queue(call);
}

RUN(dense_commit, dense_commit(call->store, call->to, call->divisor, &call->target, call->words, NULL))

static gtopk_status_t guarded_dense_commit(device_store_t *store, float *sum, uint32_t divisor,
                                           const device_target_t *target, device_words_t *words, void *stream)
{
    call_t *call = begin_on(store, stream, run_dense_commit);
    call->to = reach(call, sum);
    call->divisor = divisor;
    call->target = keep_target(call, target);
    call->words = reach(call, words);
    return queue(call);
}

/* ---- the store between steps ---- */

RUN(store_read, store_read(call->store, call->which, call->offset, call->count, call->to, NULL))

static gtopk_status_t guarded_store_read(device_store_t *store, int which, uint64_t offset, uint64_t length, float *out,
                                         void *stream)
{
    call_t *call = begin_on(store, stream, run_store_read);
    call->which = which;
    call->offset = offset;
    call->count = (size_t)length;
    call->to = out;
    return queue_and_wait(call);
}

RUN(store_write, store_write(call->store, call->which, call->offset, call->count, call->from, NULL))

static gtopk_status_t guarded_store_write(device_store_t *store, int which, uint64_t offset, uint64_t length,
                                          const float *in, void *stream)
{
    call_t *call = begin_on(store, stream, run_store_write);
    call->which = which;
    call->offset = offset;
    call->count = (size_t)length;
    call->from = in;
    return queue_and_wait(call);
}

RUN(store_square, store_square(call->store, call->square, NULL))

static gtopk_status_t guarded_store_square(device_store_t *store, double *sum, void *stream)
{
    call_t *call = begin_on(store, stream, run_store_square);
    call->square = sum;
    return queue_and_wait(call);
}

/* ---- words ---- */

RUN(words_join, words_join(inner, call->words_list, call->count, call->joined, NULL))

static gtopk_status_t guarded_words_join(device_t *device, device_words_t *const *words, size_t count, int joined,
                                         void *stream)
{
    call_t *call = begin(device, stream, run_words_join);
    call->words_list = call_keep(call->device->machine, words, count * sizeof *words);
    for (size_t i = 0; i < count; i++)
        call->words_list[i] = reach(call, words[i]);
    call->count = count;
    call->joined = joined;
    return queue(call);
}

RUN(verdict, verdict(inner, call->outcomes, call->count, NULL))

static gtopk_status_t guarded_verdict(device_t *device, const device_outcome_t *outcomes, size_t count, void *stream)
{
    call_t *call = begin(device, stream, run_verdict);
    call->outcomes = call_keep(call->device->machine, outcomes, count * sizeof *outcomes);
    for (size_t i = 0; i < count; i++) {
        device_outcome_t *outcome = &call->outcomes[i];
        outcome->words = reach(call, outcome->words);
        if (outcome->final) {
            device_set_t *final = call_keep(call->device->machine, outcome->final, sizeof *final);
            *final = reach_set(call, final);
            outcome->final = final;
        }
    }
    call->count = count;
    return queue_and_wait(call);
}

/* ---- sets ---- */

RUN(encode, encode(inner, &call->sets[0], &call->header, call->to, &call->sets[1], call->words, NULL))

static gtopk_status_t guarded_encode(device_t *device, const device_set_t *set, const wire_header_t *header,
                                     uint8_t *message, device_set_t *decoded, device_words_t *words, void *stream)
{
    call_t *call = begin(device, stream, run_encode);
    call->sets[0] = reach_set(call, set);
    call->header = *header;
    call->to = reach(call, message);
    call->sets[1] = reach_set(call, decoded);
    call->words = reach(call, words);
    return queue(call);
}

RUN(address, address(inner, call->to, call->sender, call->round, (uint32_t)call->k, call->words, NULL))

static gtopk_status_t guarded_address(device_t *device, uint8_t *message, uint32_t sender, uint16_t round, uint32_t k,
                                      const device_words_t *words, void *stream)
{
    call_t *call = begin(device, stream, run_address);
    call->words = reach(call, words);
    call->to = reach(call, message);
    call->sender = sender;
    call->round = round;
    call->k = k;
    return queue(call);
}

RUN(decode, decode(inner, call->from, call->count, &call->expect, &call->sets[0], call->words, NULL))

static gtopk_status_t guarded_decode(device_t *device, const uint8_t *message, size_t capacity,
                                     const wire_expect_t *expect, device_set_t *out, device_words_t *words,
                                     void *stream)
{
    call_t *call = begin(device, stream, run_decode);
    call->from = reach(call, message);
    call->count = capacity;
    call->expect = *expect;
    call->sets[0] = reach_set(call, out);
    call->words = reach(call, words);
    return queue(call);
}

RUN(merge, merge(inner, &call->sets[0], &call->sets[1], call->k, &call->sets[2], &call->sets[3], call->words, NULL))

static gtopk_status_t guarded_merge(device_t *device, const device_set_t *a, const device_set_t *b, uint64_t k,
                                    device_set_t *kept, device_set_t *all, device_words_t *words, void *stream)
{
    call_t *call = begin(device, stream, run_merge);
    call->sets[0] = reach_set(call, a);
    call->sets[1] = reach_set(call, b);
    call->k = k;
    call->sets[2] = reach_set(call, kept);
    call->sets[3] = reach_set(call, all);
    call->words = reach(call, words);
    return queue(call);
}

RUN(deposit, deposit(inner, &call->sets[0], &call->sets[1], call->share, &call->sets[2], call->words, NULL))

static gtopk_status_t guarded_deposit(device_t *device, const device_set_t *all, const device_set_t *sent, float share,
                                      device_set_t *out, device_words_t *words, void *stream)
{
    call_t *call = begin(device, stream, run_deposit);
    call->sets[0] = reach_set(call, all);
    call->sets[1] = reach_set(call, sent);
    call->share = share;
    call->sets[2] = reach_set(call, out);
    call->words = reach(call, words);
    return queue(call);
}

RUN(cut, cut(inner, &call->sets[0], call->range, &call->sets[1], call->words, NULL))

static gtopk_status_t guarded_cut(device_t *device, const device_set_t *set, device_range_t range, device_set_t *out,
                                  device_words_t *words, void *stream)
{
    call_t *call = begin(device, stream, run_cut);
    call->sets[0] = reach_set(call, set);
    call->range = range;
    call->sets[1] = reach_set(call, out);
    call->words = reach(call, words);
    return queue(call);
}

RUN(widen, widen(inner, &call->sets[0], call->range, NULL))

static gtopk_status_t guarded_widen(device_t *device, device_set_t *set, device_range_t range, void *stream)
{
    call_t *call = begin(device, stream, run_widen);
    call->sets[0] = reach_set(call, set);
    call->range = range;
    return queue(call);
}

RUN(copy, copy(inner, call->to, call->from, call->count, NULL))

static gtopk_status_t guarded_copy(device_t *device, void *to, const void *from, size_t bytes, void *stream)
{
    call_t *call = begin(device, stream, run_copy);
    call->to = reach(call, to);
    call->from = reach(call, from);
    call->count = bytes;
    return queue(call);
}

RUN(copy_set, copy_set(inner, &call->sets[0], &call->sets[1], call->words, NULL))

static gtopk_status_t guarded_copy_set(device_t *device, const device_set_t *from, device_set_t *to,
                                       device_words_t *words, void *stream)
{
    call_t *call = begin(device, stream, run_copy_set);
    call->sets[0] = reach_set(call, from);
    call->sets[1] = reach_set(call, to);
    call->words = reach(call, words);
    return queue(call);
}

RUN(stage, stage(inner, call->spans, call->count, &call->stage, call->to, NULL))

static gtopk_status_t guarded_stage(device_t *device, const device_span_t *spans, size_t count,
                                    const device_stage_t *params, float *out, void *stream)
{
    call_t *call = begin(device, stream, run_stage);
    call->spans = keep_spans(call, spans, count);
    call->count = count;
    call->stage = *params;
    call->to = reach(call, out);
    return queue(call);
}

RUN(add_up, add_up(inner, call->from, call->count, call->divisor, call->to, call->k, NULL))

static gtopk_status_t guarded_add_up(device_t *device, const float *parts, size_t stride, uint32_t count, float *out,
                                     uint64_t length, void *stream)
{
    call_t *call = begin(device, stream, run_add_up);
    call->from = reach(call, parts);
    call->count = stride;
    call->divisor = count;
    call->to = reach(call, out);
    call->k = length;
    return queue(call);
}

RUN(append, append(inner, &call->sets[0], (uint32_t)call->k, &call->sets[1], call->words, NULL))

static gtopk_status_t guarded_append(device_t *device, const device_set_t *set, uint32_t offset, device_set_t *to,
                                     device_words_t *words, void *stream)
{
    call_t *call = begin(device, stream, run_append);
    call->sets[0] = reach_set(call, set);
    call->k = offset;
    call->sets[1] = reach_set(call, to);
    call->words = reach(call, words);
    return queue(call);
}

RUN(write, write(inner, &call->sets[0], call->divisor, &call->target, call->words, NULL))

static gtopk_status_t guarded_write(device_t *device, const device_set_t *final, uint32_t divisor,
                                    const device_target_t *target, const device_words_t *words, void *stream)
{
    call_t *call = begin(device, stream, run_write);
    call->sets[0] = reach_set(call, final);
    call->divisor = divisor;
    call->target = keep_target(call, target);
    call->words = reach(call, words);
    return queue(call);
}

RUN(synchronize, synchronize(inner, NULL))

static gtopk_status_t guarded_synchronize(device_t *device, void *stream)
{
    return queue_and_wait(begin(device, stream, run_synchronize));
}

/* Runs what can be run at once. */
static gtopk_status_t guarded_passed(device_t *device, void *stream, int *passed)
{
    const gtopk_status_t status = guarded_run(stream, 0.0, NULL);
    (void)device;
    *passed = status == GTOPK_OK;
    return status == GTOPK_ERR_TIMEOUT ? GTOPK_OK : status;
}

static gtopk_status_t guarded_enter(device_t *device)
{
    (void)device;
    return GTOPK_OK;
}

static void guarded_leave(device_t *device)
{
    (void)device;
}

static void guarded_halt(device_t *device)
{
    const guarded_t *self = (const guarded_t *)device;
    self->inner->ops->halt(self->inner);
}

static const device_ops_t guarded_ops = {
    .name = "guarded",
    .host_memory = 0,
    .close = guarded_close,
    .allocate = guarded_allocate,
    .release = guarded_free,
    .allocate_pinned = guarded_allocate_pinned,
    .release_pinned = guarded_free_pinned,
    .store_create = guarded_store_create,
    .store_destroy = guarded_store_destroy,
    .store_resize = guarded_store_resize,
    .store_seed = guarded_store_seed,
    .step_begin = guarded_step_begin,
    .accumulate = guarded_accumulate,
    .swap = guarded_swap,
    .select = guarded_select,
    .array_select = guarded_array_select,
    .commit = guarded_commit,
    .dense_gather = guarded_dense_gather,
    .dense_check = guarded_dense_check,
    .dense_commit = guarded_dense_commit,
    .store_read = guarded_store_read,
    .store_write = guarded_store_write,
    .store_square = guarded_store_square,
    .words_join = guarded_words_join,
    .verdict = guarded_verdict,
    .encode = guarded_encode,
    .address = guarded_address,
    .decode = guarded_decode,
    .merge = guarded_merge,
    .deposit = guarded_deposit,
    .cut = guarded_cut,
    .widen = guarded_widen,
    .copy = guarded_copy,
    .copy_set = guarded_copy_set,
    .stage = guarded_stage,
    .add_up = guarded_add_up,
    .append = guarded_append,
    .write = guarded_write,
    .synchronize = guarded_synchronize,
    .passed = guarded_passed,
    .enter = guarded_enter,
    .leave = guarded_leave,
    .halt = guarded_halt,
};

gtopk_status_t device_guarded_open(device_t **device)
{
    const char *name = getenv("GTOPK_GUARDED_INNER");
    const int reference = name && strcmp(name, "reference") == 0;
    guarded_t *self;
    machine_t *machine = machine_of_thread();
    gtopk_status_t status = machine ? memory_alloc(&self, 1, sizeof *self, "a guarded device")
                                    : STATUS_NOMEM("a guarded machine", sizeof *machine);
    if (status != GTOPK_OK)
        return status;
    status = reference ? device_reference_open(&self->inner) : device_cpu_open(&self->inner);
    if (status != GTOPK_OK) {
        memory_free(self);
        return status;
    }
    machine_retain(machine);
    self->machine = machine;
    self->base.ops = &guarded_ops;
    *device = &self->base;
    return GTOPK_OK;
}
