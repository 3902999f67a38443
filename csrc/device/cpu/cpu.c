/* The CPU device: its table of operations. Host memory, no streams; the arithmetic is in the other files here. */
#include "device/cpu/isa.h"
#include "device/cpu/output.h"
#include "device/cpu/sets.h"
#include "device/cpu/store.h"
#include "device/host.h"
#include "util/memory.h"

static void cpu_close(device_t *device)
{
    memory_free(device);
}

static const device_ops_t cpu_ops = {
    .name = "cpu",
    .host_memory = 1,
    .close = cpu_close,
    .allocate = host_allocate,
    .release = host_release,
    .allocate_pinned = host_allocate,
    .release_pinned = host_release,
    .store_create = store_create,
    .store_destroy = store_destroy,
    .store_resize = store_resize,
    .store_seed = store_seed,
    .step_begin = store_step_begin,
    .accumulate = store_accumulate,
    .swap = store_swap,
    .select = store_select,
    .array_select = array_select,
    .commit = store_commit,
    .dense_gather = store_dense_gather,
    .dense_check = store_dense_check,
    .dense_commit = store_dense_commit,
    .store_read = store_read,
    .store_write = store_write,
    .store_square = store_square,
    .words_join = host_words_join,
    .verdict = host_verdict,
    .encode = message_encode,
    .address = host_address,
    .decode = message_decode,
    .merge = sets_merge,
    .deposit = sets_deposit,
    .cut = sets_cut,
    .widen = host_widen,
    .copy = host_copy,
    .copy_set = sets_copy,
    .stage = host_stage,
    .add_up = host_add_up,
    .append = host_append,
    .write = target_write,
    .synchronize = host_synchronize,
    .passed = host_passed,
    .enter = host_enter,
    .leave = host_leave,
    .halt = host_halt,
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

const char *device_instruction_set(void)
{
    return device_cpu_isa();
}

const char *device_instruction_sets(void)
{
    return device_cpu_isa_supported();
}
