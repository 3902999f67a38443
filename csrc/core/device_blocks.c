/* select and merge on arrays that lie on a device. A GPU that was used once stays open, as loading its kernels takes longer
 * than what they do here; one call at a time has it. */
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "core/blocks.h"
#include "util/memory.h"

enum { KEPT = 16 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static device_t *kept[KEPT];
static pid_t owner; /* devices are not inherited by fork */

static gtopk_status_t find_device(const char *name, device_t **device)
{
    char full[DEVICE_NAME_SIZE];
    size_t i = 0;
    gtopk_status_t status = device_resolve(name, full);
    if (status != GTOPK_OK)
        return status;
    if (owner != getpid())
        memset(kept, 0, sizeof kept);
    owner = getpid();
    while (i < KEPT && kept[i] && strcmp(kept[i]->name, full) != 0)
        i++;
    if (i == KEPT)
        return status_set(GTOPK_ERR_UNSUPPORTED, "blocks were used on %d devices of this process already", KEPT);
    if (!kept[i])
        status = device_open(full, &kept[i]);
    *device = kept[i];
    return status;
}

/* ---- a call: what it has in device memory and, beside it, on the host ---- */

typedef struct call {
    device_t *device;
    void *stream;
    uint32_t *counts; /* device memory */
    device_words_t *words;
    void *extra;
    uint32_t *host_counts; /* pinned */
    device_words_t *host_words;
    uint32_t *indices;
    float *values;
} call_t;

enum { COUNTS = 4 };

/* With room for `entries` on the host, and `extra` bytes more in device memory. */
static gtopk_status_t call_begin(call_t *call, const char *name, size_t entries, size_t extra, void *stream)
{
    *call = (call_t){.stream = stream};
    (void)pthread_mutex_lock(&mutex);
    gtopk_status_t status = find_device(name, &call->device);
    if (status != GTOPK_OK)
        return status;
    const device_ops_t *ops = call->device->ops;
    void *blocks[7] = {NULL};
    const struct {
        size_t bytes;
        int pinned;
    } wanted[7] = {
        {COUNTS * sizeof *call->counts, 0},      {sizeof *call->words, 0},      {extra, 0},
        {COUNTS * sizeof *call->host_counts, 1}, {sizeof *call->host_words, 1}, {entries * sizeof *call->indices, 1},
        {entries * sizeof *call->values, 1}};
    for (size_t i = 0; i < 7 && status == GTOPK_OK; i++)
        status = (wanted[i].pinned ? ops->allocate_pinned : ops->allocate)(call->device, wanted[i].bytes,
                                                                           "memory of a block", &blocks[i]);
    call->counts = blocks[0];
    call->words = blocks[1];
    call->extra = blocks[2];
    call->host_counts = blocks[3];
    call->host_words = blocks[4];
    call->indices = blocks[5];
    call->values = blocks[6];
    return status;
}

/* Returns `status`, with its text. */
static gtopk_status_t call_end(call_t *call, gtopk_status_t status)
{
    if (call->device) {
        const device_ops_t *ops = call->device->ops;
        if (status != GTOPK_OK)
            device_drain(call->device, call->stream);
        ops->release(call->device, call->counts);
        ops->release(call->device, call->words);
        ops->release(call->device, call->extra);
        ops->release_pinned(call->device, call->host_counts);
        ops->release_pinned(call->device, call->host_words);
        ops->release_pinned(call->device, call->indices);
        ops->release_pinned(call->device, call->values);
    }
    (void)pthread_mutex_unlock(&mutex);
    return status;
}

static gtopk_status_t copy(const call_t *call, void *to, const void *from, size_t bytes)
{
    return call->device->ops->copy(call->device, to, from, bytes, call->stream);
}

static gtopk_status_t wait_for(const call_t *call)
{
    return call->device->ops->synchronize(call->device, call->stream);
}

/* The caller's arrays as a set of the device. */
static device_set_t on_device(const call_t *call, const gtopk_set_t *set, uint64_t capacity, int which)
{
    return (device_set_t){set->indices, set->values, call->counts + which, (uint32_t)capacity};
}

/* ---- select ---- */

static gtopk_status_t select_on(const call_t *call, const float *x, uint64_t n, uint64_t k, gtopk_set_t *set)
{
    const device_ops_t *ops = call->device->ops;
    const device_parallel_t alone = {NULL, NULL};
    device_set_t out = on_device(call, set, k, 0);
    gtopk_status_t status = ops->array_select(call->device, x, n, k, &alone, &out, call->stream);
    if (status == GTOPK_OK)
        status = copy(call, call->host_counts, call->counts, sizeof *call->counts);
    if (status == GTOPK_OK)
        status = copy(call, call->values, set->values, (size_t)k * sizeof *set->values);
    if (status == GTOPK_OK)
        status = wait_for(call);
    if (status == GTOPK_OK)
        status = blocks_check_finite(call->values, call->host_counts[0]);
    if (status == GTOPK_OK)
        set->count = call->host_counts[0];
    return status;
}

gtopk_status_t gtopk_select_on(const char *device, const float *x, uint64_t n, uint64_t k, gtopk_set_t *set,
                               void *stream)
{
    uint64_t kept_entries;
    call_t call;
    gtopk_status_t status = blocks_check_select("gtopk_select_on", x, n, k, set, &kept_entries);
    if (status != GTOPK_OK || kept_entries == 0)
        return status;
    status = call_begin(&call, device, (size_t)kept_entries, 0, stream);
    if (status == GTOPK_OK)
        status = select_on(&call, x, n, kept_entries, set);
    return call_end(&call, status);
}

/* ---- merge ---- */

/* As the host can check it. */
static gtopk_status_t check_on_host(const call_t *call, const char *name, const gtopk_set_t *set)
{
    const gtopk_set_t here = {call->indices, call->values, set->count, set->count};
    gtopk_status_t status = copy(call, call->indices, set->indices, (size_t)set->count * sizeof *set->indices);
    if (status == GTOPK_OK)
        status = copy(call, call->values, set->values, (size_t)set->count * sizeof *set->values);
    if (status == GTOPK_OK)
        status = wait_for(call);
    return status == GTOPK_OK ? blocks_check_set("gtopk_merge_on", name, &here, (uint64_t)UINT32_MAX + 1) : status;
}

static gtopk_status_t merge_on(const call_t *call, const gtopk_set_t *a, const gtopk_set_t *b, uint64_t k,
                               gtopk_set_t *out)
{
    const device_ops_t *ops = call->device->ops;
    const uint64_t most = a->count + b->count;
    const gtopk_set_t union_of = {call->extra, (float *)call->extra + most, most, 0};
    const device_set_t left = on_device(call, a, a->count, 0), right = on_device(call, b, b->count, 1);
    device_set_t sum = on_device(call, out, k, 2), all = on_device(call, &union_of, most, 3);
    gtopk_status_t status = check_on_host(call, "a", a);
    if (status == GTOPK_OK)
        status = check_on_host(call, "b", b);
    if (status != GTOPK_OK)
        return status;
    call->host_counts[0] = (uint32_t)a->count;
    call->host_counts[1] = (uint32_t)b->count;
    *call->host_words = (device_words_t){.ok = 1};
    status = copy(call, call->counts, call->host_counts, COUNTS * sizeof *call->counts);
    if (status == GTOPK_OK)
        status = copy(call, call->words, call->host_words, sizeof *call->words);
    if (status == GTOPK_OK)
        status = ops->merge(call->device, &left, &right, k, &sum, &all, call->words, call->stream);
    if (status == GTOPK_OK)
        status = copy(call, call->host_counts, call->counts, COUNTS * sizeof *call->counts);
    if (status == GTOPK_OK)
        status = copy(call, call->host_words, call->words, sizeof *call->words);
    if (status == GTOPK_OK)
        status = wait_for(call);
    if (status == GTOPK_OK && call->host_words->nonfinite)
        status = status_set(GTOPK_ERR_INVALID, "gtopk_merge_on: a sum is too large for a float; scale the values down");
    if (status == GTOPK_OK)
        out->count = call->host_counts[2];
    return status;
}

gtopk_status_t gtopk_merge_on(const char *device, const gtopk_set_t *a, const gtopk_set_t *b, uint64_t k,
                              gtopk_set_t *out, void *stream)
{
    call_t call;
    if (!a || !b || a->count > UINT32_MAX || b->count > UINT32_MAX || a->count + b->count > UINT32_MAX)
        return status_set(GTOPK_ERR_INVALID, "gtopk_merge_on takes two sets with at most 2^32 - 1 entries together");
    const uint64_t most = a->count + b->count, kept_entries = most < k ? most : k;
    gtopk_status_t status = blocks_check_room("gtopk_merge_on: a", a, a->count);
    if (status == GTOPK_OK)
        status = blocks_check_room("gtopk_merge_on: b", b, b->count);
    if (status == GTOPK_OK)
        status = blocks_check_room("gtopk_merge_on", out, kept_entries);
    if (status != GTOPK_OK)
        return status;
    out->count = 0;
    if (kept_entries == 0)
        return GTOPK_OK;
    const size_t entries = (size_t)(a->count > b->count ? a->count : b->count);
    status = call_begin(&call, device, entries, (size_t)most * 2 * sizeof(float), stream);
    if (status == GTOPK_OK)
        status = merge_on(&call, a, b, kept_entries, out);
    return call_end(&call, status);
}
