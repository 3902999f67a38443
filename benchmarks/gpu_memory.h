/* Memory on a GPU for the benchmarks: this rank's GPU is made current, so that gtopk takes it, and one buffer is kept there.
 * Goes by the library's own way to the driver, so no CUDA toolkit is needed. */
#ifndef BENCHMARKS_GPU_MEMORY_H
#define BENCHMARKS_GPU_MEMORY_H

#include <stdint.h>
#include <stdlib.h>

#include "device/cuda/driver.h"

static inline int gpu_number(const cuda_driver_t *driver)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID", "LOCAL_RANK"};
    int count = 1;
    (void)driver->cuDeviceGetCount(&count);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (getenv(names[i]))
            return atoi(getenv(names[i])) % count;
    return 0;
}

/* Returns 0, with gtopk_last_error(), where there is no GPU. Before the communicator is made. */
static inline int gpu_start(const cuda_driver_t **driver)
{
    cu_context_t context;
    cu_device_t gpu;
    if (cuda_driver_get(driver) != GTOPK_OK)
        return 0;
    cu_result_t result = (*driver)->cuDeviceGet(&gpu, gpu_number(*driver));
    if (result == CU_SUCCESS)
        result = (*driver)->cuDevicePrimaryCtxRetain(&context, gpu);
    if (result == CU_SUCCESS)
        result = (*driver)->cuCtxPushCurrent(context);
    return result == CU_SUCCESS || cuda_driver_error(*driver, result, "starting the GPU") == GTOPK_OK;
}

static inline void *gpu_allocate(const cuda_driver_t *driver, size_t bytes)
{
    cu_pointer_t block = 0;
    return driver->cuMemAlloc(&block, bytes) == CU_SUCCESS ? (void *)(uintptr_t)block : NULL;
}

static inline void gpu_free(const cuda_driver_t *driver, void *block)
{
    if (block)
        (void)driver->cuMemFree((cu_pointer_t)(uintptr_t)block);
}

/* To or from the GPU, after what is queued on the default stream; done when it returns. */
static inline int gpu_copy(const cuda_driver_t *driver, void *to, const void *from, size_t bytes)
{
    return driver->cuMemcpyAsync((cu_pointer_t)(uintptr_t)to, (cu_pointer_t)(uintptr_t)from, bytes, NULL) ==
               CU_SUCCESS &&
           driver->cuStreamSynchronize(NULL) == CU_SUCCESS;
}

#endif
