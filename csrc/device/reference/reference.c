/* The reference device's table of operations, and its memory, which is the host's. */
#include "device/reference/reference.h"

#include <string.h>

#include "util/memory.h"

static void reference_close(device_t *device)
{
    memory_free(device);
}

static gtopk_status_t reference_allocate(device_t *device, size_t bytes, const char *what, void **out)
{
    (void)device;
    return memory_alloc(out, bytes, 1, what);
}

static void reference_release(device_t *device, void *block)
{
    (void)device;
    memory_free(block);
}

static gtopk_status_t reference_copy(device_t *device, void *to, const void *from, size_t bytes, void *stream)
{
    (void)device;
    (void)stream;
    if (bytes > 0)
        memcpy(to, from, bytes);
    return GTOPK_OK;
}

static gtopk_status_t reference_synchronize(device_t *device, void *stream)
{
    (void)device;
    (void)stream;
    return GTOPK_OK;
}

static const device_ops_t reference_ops = {
    .name = "reference",
    .host_memory = 1,
    .close = reference_close,
    .allocate = reference_allocate,
    .release = reference_release,
    .allocate_pinned = reference_allocate,
    .release_pinned = reference_release,
    .store_create = reference_store_create,
    .store_destroy = reference_store_destroy,
    .store_resize = reference_store_resize,
    .step_begin = reference_step_begin,
    .accumulate = reference_accumulate,
    .select = reference_select,
    .array_select = reference_array_select,
    .commit = reference_commit,
    .dense_gather = reference_dense_gather,
    .dense_check = reference_dense_check,
    .dense_commit = reference_dense_commit,
    .store_read = reference_store_read,
    .store_write = reference_store_write,
    .encode = reference_encode,
    .decode = reference_decode,
    .merge = reference_merge,
    .deposit = reference_deposit,
    .copy = reference_copy,
    .copy_set = reference_copy_set,
    .synchronize = reference_synchronize,
};

gtopk_status_t device_reference_open(device_t **device)
{
    gtopk_status_t status = memory_alloc(device, 1, sizeof **device, "the reference device");
    if (status == GTOPK_OK)
        (*device)->ops = &reference_ops;
    return status;
}
