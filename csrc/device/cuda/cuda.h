/* A GPU of this process: context, kernels, scratch memory. Between cuda_enter and cuda_leave its context is current. */
#ifndef GTOPK_DEVICE_CUDA_CUDA_H
#define GTOPK_DEVICE_CUDA_CUDA_H

#include "device/cuda/driver.h"
#include "device/cuda/launch.h"

typedef struct device_cuda {
    device_t base;
    const cuda_driver_t *driver;
    cu_device_t gpu;
    cu_context_t context;        /* the primary one, which PyTorch and the CUDA runtime use too */
    gtopk_allocator_t allocator; /* without functions: memory is the driver's */
    int has_kernels;
    cu_function_t functions[CUDA_KERNEL_COUNT];
    cuda_queue_t queue;
    cu_event_t event;  /* orders streams when the caller changes from one to another */
    void *last_stream; /* the scratch memory is in use there */
    int has_run;
    double *number; /* pinned: a result on its way to the host */
    uint32_t *halt; /* pinned: kernels look at it */
} device_cuda_t;

struct device_store {
    device_cuda_t *device;
    cuda_memory_t memory;
};

/* The driver's answer as a status, with its text. */
gtopk_status_t cuda_check(const device_cuda_t *device, cu_result_t result, const char *what);

/* Makes the context current, and orders `stream` after what was queued on another one. */
gtopk_status_t cuda_enter(device_cuda_t *device, void *stream);
void cuda_leave(device_cuda_t *device);

/* Zeroed memory of the device; NULL for no bytes. Within cuda_enter. With an allocator it is memory of the stream that the
 * device was at last used on. */
gtopk_status_t cuda_allocate(device_cuda_t *device, size_t bytes, const char *what, void *out);
void cuda_release(device_cuda_t *device, void *block);

gtopk_status_t cuda_copy(device_cuda_t *device, void *to, const void *from, size_t bytes, void *stream);
gtopk_status_t cuda_wait(device_cuda_t *device, void *stream);

/* cuda.c: the table of operations; open.c: how a device that has it is closed, also one that was not opened completely. */
extern const device_ops_t cuda_ops;
void cuda_close(device_t *base);

/* module.c: the kernels for this GPU, and how many blocks of each can run together. Loaded once a GPU: devices share them,
 * and the last one unloads them. Within the GPU's context. */
gtopk_status_t cuda_module_load(device_cuda_t *device);
void cuda_module_release(device_cuda_t *device);

/* store.c: operations of device.h. */
gtopk_status_t cuda_store_create(device_t *device, uint64_t dim, uint64_t k, int with,
                                 const device_parallel_t *parallel, device_store_t **store);
void cuda_store_destroy(device_store_t *store);
gtopk_status_t cuda_store_swap(device_store_t *store, void *stream);
gtopk_status_t cuda_store_resize(device_store_t *store, uint64_t k);
gtopk_status_t cuda_store_seed(device_store_t *store, uint64_t seed, void *stream);
gtopk_status_t cuda_store_read(device_store_t *store, int which, uint64_t offset, uint64_t length, float *out,
                               void *stream);
gtopk_status_t cuda_store_write(device_store_t *store, int which, uint64_t offset, uint64_t length, const float *in,
                                void *stream);
gtopk_status_t cuda_store_square(device_store_t *store, double *sum, void *stream);
gtopk_status_t cuda_array_select(device_t *device, const float *x, uint64_t n, uint64_t k,
                                 const device_parallel_t *parallel, device_set_t *out, void *stream);

#endif
