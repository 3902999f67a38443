/* How a GPU is opened and closed: driver, context, kernels, scratch memory, and the undoing of it. */
#include <string.h>

#include "device/cuda/cuda.h"
#include "util/memory.h"

/* What the launches of launch.h go through. */
static gtopk_status_t launch(void *context, cuda_kernel_t kernel, uint32_t grid, const void *args, size_t bytes,
                             void *stream)
{
    static const struct {
        const char *what;
        int meets;
    } about[CUDA_KERNEL_COUNT] = {
#define ABOUT(name, args_name, meets) {"launching the kernel " #name, meets},
        CUDA_KERNELS(ABOUT)
#undef ABOUT
    };
    device_cuda_t *device = context;
    const cu_function_t function = device->functions[kernel];
    unsigned char copy[CUDA_ARGUMENTS_MAX]; /* the driver wants what it does not change to be changeable */
    void *parameters[] = {copy};
    memcpy(copy, args, bytes);
    const cu_result_t result = about[kernel].meets
                                   ? device->driver->cuLaunchCooperativeKernel(function, grid, 1, 1, CUDA_THREADS, 1, 1,
                                                                               0, stream, parameters)
                                   : device->driver->cuLaunchKernel(function, grid, 1, 1, CUDA_THREADS, 1, 1, 0, stream,
                                                                    parameters, NULL);
    return cuda_check(device, result, about[kernel].what);
}

static gtopk_status_t choose_gpu(device_cuda_t *device, int ordinal)
{
    int count = 0;
    gtopk_status_t status = cuda_check(device, device->driver->cuDeviceGetCount(&count), "counting the GPUs");
    if (status == GTOPK_OK && ordinal >= count)
        status = status_set(
            GTOPK_ERR_UNSUPPORTED,
            "there is no GPU %d: the driver finds %d, counted from 0 (CUDA_VISIBLE_DEVICES hides others)", ordinal,
            count);
    if (status == GTOPK_OK)
        status = cuda_check(device, device->driver->cuDeviceGet(&device->gpu, ordinal), "choosing a GPU");
    return status;
}

/* The word that op_halt sets; kernels find it through the scratch memory. */
static gtopk_status_t prepare_halt(device_cuda_t *device)
{
    const cuda_driver_t *driver = device->driver;
    void *halt = NULL;
    gtopk_status_t status = cuda_check(
        device, driver->cuMemHostAlloc(&halt, sizeof *device->halt, CU_HOST_PORTABLE | CU_HOST_DEVICE_MAP),
        "pinned memory");
    if (status != GTOPK_OK)
        return status;
    device->halt = halt;
    *device->halt = 0;
    status = cuda_copy(device, (void *)&device->queue.scratch->halt, &halt, sizeof halt, NULL);
    return status == GTOPK_OK ? cuda_wait(device, NULL) : status;
}

static gtopk_status_t prepare(device_cuda_t *device)
{
    const cuda_driver_t *driver = device->driver;
    gtopk_status_t status = cuda_module_load(device);
    void *number = NULL;
    if (status == GTOPK_OK)
        status = cuda_check(device, driver->cuEventCreate(&device->event, CU_EVENT_NO_TIMING), "making an event");
    if (status == GTOPK_OK)
        status = cuda_allocate(device, sizeof *device->queue.scratch, "scratch memory", &device->queue.scratch);
    if (status == GTOPK_OK)
        status = cuda_check(
            device, driver->cuMemHostAlloc(&number, sizeof *device->number, CU_HOST_PORTABLE | CU_HOST_DEVICE_MAP),
            "pinned memory");
    device->number = number;
    return status == GTOPK_OK ? prepare_halt(device) : status;
}

void cuda_close(device_t *base)
{
    device_cuda_t *device = (device_cuda_t *)base;
    const cuda_driver_t *driver = device->driver;
    cu_context_t left;
    if (device->context && driver->cuCtxPushCurrent(device->context) == CU_SUCCESS) {
        if (device->number)
            (void)driver->cuMemFreeHost(device->number);
        if (device->halt)
            (void)driver->cuMemFreeHost(device->halt);
        if (device->queue.scratch)
            (void)driver->cuMemFree((cu_pointer_t)(uintptr_t)device->queue.scratch);
        if (device->event)
            (void)driver->cuEventDestroy(device->event);
        cuda_module_release(device);
        (void)driver->cuCtxPopCurrent(&left);
    }
    if (device->context)
        (void)driver->cuDevicePrimaryCtxRelease(device->gpu);
    memory_free(device);
}

gtopk_status_t device_cuda_open(int ordinal, const gtopk_allocator_t *allocator, device_t **out)
{
    const cuda_driver_t *driver;
    device_cuda_t *device;
    gtopk_status_t status = cuda_driver_get(&driver);
    if (status != GTOPK_OK)
        return status;
    status = memory_alloc(&device, 1, sizeof *device, "a device");
    if (status != GTOPK_OK)
        return status;
    device->base.ops = &cuda_ops;
    device->driver = driver;
    device->queue.launch = launch;
    device->queue.context = device;
    status = choose_gpu(device, ordinal);
    if (status == GTOPK_OK)
        status = cuda_check(device, driver->cuDevicePrimaryCtxRetain(&device->context, device->gpu),
                            "starting the GPU (is another process using all of its memory?)");
    if (status == GTOPK_OK)
        status = cuda_check(device, driver->cuCtxPushCurrent(device->context), "entering the GPU's context");
    if (status == GTOPK_OK) {
        status = prepare(device);
        cuda_leave(device);
    }
    if (status != GTOPK_OK) {
        cuda_close(&device->base);
        return status;
    }
    if (allocator)
        device->allocator = *allocator;
    *out = &device->base;
    return GTOPK_OK;
}
