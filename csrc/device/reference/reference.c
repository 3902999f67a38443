/* The reference device's table of operations. */
#include "device/reference/reference.h"

#include "device/host.h"
#include "util/memory.h"

static void reference_close(device_t *device)
{
    memory_free(device);
}

static const device_ops_t reference_ops = {
    .name = "reference",
    .host_memory = 1,
    .close = reference_close,
    .allocate = host_allocate,
    .release = host_release,
    .allocate_pinned = host_allocate,
    .release_pinned = host_release,
    .store_create = reference_store_create,
    .store_destroy = reference_store_destroy,
    .store_resize = reference_store_resize,
    .store_seed = reference_store_seed,
    .step_begin = reference_step_begin,
    .accumulate = reference_accumulate,
    .swap = reference_swap,
    .select = reference_select,
    .array_select = reference_array_select,
    .commit = reference_commit,
    .dense_gather = reference_dense_gather,
    .dense_check = reference_dense_check,
    .dense_commit = reference_dense_commit,
    .store_read = reference_store_read,
    .store_write = reference_store_write,
    .store_square = reference_store_square,
    .words_join = host_words_join,
    .verdict = host_verdict,
    .encode = reference_encode,
    .address = host_address,
    .decode = reference_decode,
    .merge = reference_merge,
    .deposit = reference_deposit,
    .cut = reference_cut,
    .widen = host_widen,
    .copy = host_copy,
    .copy_set = reference_copy_set,
    .stage = host_stage,
    .add_up = host_add_up,
    .append = host_append,
    .write = reference_write,
    .synchronize = host_synchronize,
    .passed = host_passed,
    .enter = host_enter,
    .leave = host_leave,
    .halt = host_halt,
};

gtopk_status_t device_reference_open(device_t **device)
{
    gtopk_status_t status = memory_alloc(device, 1, sizeof **device, "the reference device");
    if (status == GTOPK_OK)
        (*device)->ops = &reference_ops;
    return status;
}
