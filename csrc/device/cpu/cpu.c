/* The CPU device: its table of operations. Host memory, no streams; the arithmetic is in the other files here. */
#include <string.h>

#include "device/cpu/isa.h"
#include "device/cpu/sets.h"
#include "device/cpu/store.h"
#include "util/memory.h"

static void cpu_close(device_t *device)
{
    memory_free(device);
}

static gtopk_status_t cpu_allocate(device_t *device, size_t bytes, const char *what, void **out)
{
    (void)device;
    return memory_alloc(out, bytes, 1, what);
}

static void cpu_release(device_t *device, void *block)
{
    (void)device;
    memory_free(block);
}

static gtopk_status_t cpu_copy(device_t *device, void *to, const void *from, size_t bytes, void *stream)
{
    (void)device;
    (void)stream;
    if (bytes)
        memmove(to, from, bytes);
    return GTOPK_OK;
}

static gtopk_status_t cpu_synchronize(device_t *device, void *stream)
{
    (void)device;
    (void)stream;
    return GTOPK_OK;
}

static const device_ops_t cpu_ops = {
    .name = "cpu",
    .host_memory = 1,
    .close = cpu_close,
    .allocate = cpu_allocate,
    .release = cpu_release,
    .allocate_pinned = cpu_allocate,
    .release_pinned = cpu_release,
    .store_create = store_create,
    .store_destroy = store_destroy,
    .store_resize = store_resize,
    .step_begin = store_step_begin,
    .accumulate = store_accumulate,
    .select = store_select,
    .array_select = array_select,
    .commit = store_commit,
    .dense_gather = store_dense_gather,
    .dense_check = store_dense_check,
    .dense_commit = store_dense_commit,
    .store_read = store_read,
    .store_write = store_write,
    .encode = message_encode,
    .decode = message_decode,
    .merge = sets_merge,
    .deposit = sets_deposit,
    .copy = cpu_copy,
    .copy_set = sets_copy,
    .synchronize = cpu_synchronize,
};

gtopk_status_t device_cpu_open(device_t **out)
{
    const kernels_t *kernels;
    gtopk_status_t status = isa_choose(&kernels);
    if (status != GTOPK_OK)
        return status;
    device_cpu_t *device;
    status = memory_alloc(&device, 1, sizeof *device, "a device");
    if (status != GTOPK_OK)
        return status;
    device->base.ops = &cpu_ops;
    device->kernels = kernels;
    *out = &device->base;
    return GTOPK_OK;
}
