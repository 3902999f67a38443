/* Which GPU there is, its context, streams and memory. */
#include <stdio.h>
#include <string.h>

#include "device/cuda/cuda.h"

gtopk_status_t cuda_check(const device_cuda_t *device, cu_result_t result, const char *what)
{
    return result == CU_SUCCESS ? GTOPK_OK : cuda_driver_error(device->driver, result, what);
}

/* ---- which GPU ---- */

gtopk_status_t device_cuda_current(int *ordinal)
{
    const cuda_driver_t *driver;
    cu_context_t current = NULL;
    *ordinal = 0;
    const gtopk_status_t status = cuda_driver_get(&driver);
    if (status != GTOPK_OK)
        return status;
    cu_result_t result = driver->cuCtxGetCurrent(&current);
    if (result == CU_SUCCESS && current)
        result = driver->cuCtxGetDevice(ordinal);
    return result == CU_SUCCESS ? GTOPK_OK : cuda_driver_error(driver, result, "asking which GPU is in use");
}

gtopk_status_t device_cuda_describe(int ordinal, char *text, size_t bytes)
{
    const cuda_driver_t *driver;
    int major = 0, minor = 0;
    char name[128] = "";
    const gtopk_status_t status = cuda_driver_get(&driver);
    if (status != GTOPK_OK)
        return status;
    cu_result_t result = driver->cuDeviceGetName(name, sizeof name, ordinal);
    if (result == CU_SUCCESS)
        result = driver->cuDeviceGetAttribute(&major, CU_CAPABILITY_MAJOR, ordinal);
    if (result == CU_SUCCESS)
        result = driver->cuDeviceGetAttribute(&minor, CU_CAPABILITY_MINOR, ordinal);
    if (result != CU_SUCCESS)
        return cuda_driver_error(driver, result, "asking what the GPU is");
    (void)snprintf(text, bytes, "%s, compute capability %d.%d, driver for CUDA %d.%d", name, major, minor,
                   driver->version / 1000, driver->version % 1000 / 10);
    return GTOPK_OK;
}

/* ---- contexts and streams ---- */

/* The scratch memory serves one stream at a time. */
static gtopk_status_t follow(device_cuda_t *device, void *stream)
{
    const cuda_driver_t *driver = device->driver;
    if (!device->has_run || device->last_stream == stream) {
        device->last_stream = stream;
        device->has_run = 1;
        return GTOPK_OK;
    }
    cu_result_t result = driver->cuEventRecord(device->event, device->last_stream);
    if (result == CU_SUCCESS)
        result = driver->cuStreamWaitEvent(stream, device->event, 0);
    else
        result = driver->cuCtxSynchronize(); /* that stream is no more */
    device->last_stream = stream;
    return cuda_check(device, result, "going on in another stream");
}

gtopk_status_t cuda_enter(device_cuda_t *device, void *stream)
{
    const cu_result_t result = device->driver->cuCtxPushCurrent(device->context);
    if (result != CU_SUCCESS)
        return cuda_driver_error(device->driver, result, "entering the GPU's context");
    const gtopk_status_t status = follow(device, stream);
    if (status != GTOPK_OK)
        cuda_leave(device);
    return status;
}

void cuda_leave(device_cuda_t *device)
{
    cu_context_t left;
    (void)device->driver->cuCtxPopCurrent(&left);
}

/* ---- memory ---- */

static gtopk_status_t take_block(const device_cuda_t *device, size_t bytes, void *stream, cu_pointer_t *block)
{
    const gtopk_allocator_t *from = &device->allocator;
    if (!from->allocate)
        return cuda_check(device, device->driver->cuMemAlloc(block, bytes), "memory of the GPU");
    *block = (cu_pointer_t)(uintptr_t)from->allocate(from->context, bytes, stream);
    if (*block)
        return GTOPK_OK;
    return status_set(GTOPK_ERR_NOMEM, "the caller's allocator has no memory of the GPU left; use a smaller model or "
                                       "batch, or fewer reducers");
}

gtopk_status_t cuda_allocate(device_cuda_t *device, size_t bytes, const char *what, void *out)
{
    void *stream = device->allocator.allocate ? device->last_stream : NULL;
    cu_pointer_t block = 0;
    memset(out, 0, sizeof(void *));
    if (bytes == 0)
        return GTOPK_OK;
    gtopk_status_t status = take_block(device, bytes, stream, &block);
    if (status == GTOPK_OK)
        status = cuda_check(device, device->driver->cuMemsetD8Async(block, 0, bytes, stream),
                            "zeroing memory of the GPU");
    if (status == GTOPK_OK)
        status = cuda_wait(device, stream);
    if (status != GTOPK_OK) {
        cuda_release(device, (void *)(uintptr_t)block);
        return status_prefix(status, "%s, %zu bytes", what, bytes);
    }
    memcpy(out, &block, sizeof block);
    return GTOPK_OK;
}

void cuda_release(device_cuda_t *device, void *block)
{
    if (block && device->allocator.release)
        device->allocator.release(device->allocator.context, block);
    else if (block)
        (void)device->driver->cuMemFree((cu_pointer_t)(uintptr_t)block);
}

gtopk_status_t cuda_copy(device_cuda_t *device, void *to, const void *from, size_t bytes, void *stream)
{
    if (bytes == 0)
        return GTOPK_OK;
    return cuda_check(
        device,
        device->driver->cuMemcpyAsync((cu_pointer_t)(uintptr_t)to, (cu_pointer_t)(uintptr_t)from, bytes, stream),
        "copying memory");
}

gtopk_status_t cuda_wait(device_cuda_t *device, void *stream)
{
    return cuda_check(device, device->driver->cuStreamSynchronize(stream), "waiting for the GPU");
}
