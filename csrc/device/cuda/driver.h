/* The CUDA driver, libcuda.so.1: opened when the first GPU is asked for, never linked. Only what is called is declared
 * here, with the names and types of NVIDIA's documentation of the driver API; no header of CUDA is needed. */
#ifndef GTOPK_DEVICE_CUDA_DRIVER_H
#define GTOPK_DEVICE_CUDA_DRIVER_H

#include <stddef.h>
#include <stdint.h>

#include "util/status.h"

typedef int cu_result_t; /* 0: success */
typedef int cu_device_t;
typedef uint64_t cu_pointer_t; /* device memory */
typedef struct CUctx_st *cu_context_t;
typedef struct CUmod_st *cu_module_t;
typedef struct CUfunc_st *cu_function_t;
typedef struct CUstream_st *cu_stream_t;
typedef struct CUevent_st *cu_event_t;

enum {
    CU_SUCCESS = 0,
    CU_OUT_OF_MEMORY = 2,
    CU_NO_DEVICE = 100,
    CU_INVALID_CONTEXT = 201,
    CU_NO_BINARY_FOR_GPU = 209,
    CU_NOT_READY = 600,
};
enum { CU_PROCESSORS = 16, CU_CAPABILITY_MAJOR = 75, CU_CAPABILITY_MINOR = 76, CU_COOPERATIVE_LAUNCH = 95 };
enum { CU_HOST_PORTABLE = 1, CU_HOST_DEVICE_MAP = 2, CU_EVENT_NO_TIMING = 2 };

/* name, version of CUDA that introduced this form of it (as cuGetProcAddress counts), parameters */
#define CUDA_DRIVER_FUNCTIONS(X)                                                                                      \
    X(cuInit, 2000, (unsigned flags))                                                                                 \
    X(cuGetErrorName, 6000, (cu_result_t result, const char **text))                                                  \
    X(cuGetErrorString, 6000, (cu_result_t result, const char **text))                                                \
    X(cuDeviceGetCount, 2000, (int *count))                                                                           \
    X(cuDeviceGet, 2000, (cu_device_t * device, int ordinal))                                                         \
    X(cuDeviceGetName, 2000, (char *name, int size, cu_device_t device))                                              \
    X(cuDeviceGetAttribute, 2000, (int *value, int attribute, cu_device_t device))                                    \
    X(cuDevicePrimaryCtxRetain, 7000, (cu_context_t * context, cu_device_t device))                                   \
    X(cuDevicePrimaryCtxRelease, 11000, (cu_device_t device))                                                         \
    X(cuCtxGetCurrent, 4000, (cu_context_t * context))                                                                \
    X(cuCtxGetDevice, 2000, (cu_device_t * device))                                                                   \
    X(cuCtxPushCurrent, 4000, (cu_context_t context))                                                                 \
    X(cuCtxPopCurrent, 4000, (cu_context_t * context))                                                                \
    X(cuCtxSynchronize, 2000, (void))                                                                                 \
    X(cuModuleLoadData, 2000, (cu_module_t * module, const void *image))                                              \
    X(cuModuleUnload, 2000, (cu_module_t module))                                                                     \
    X(cuModuleGetFunction, 2000, (cu_function_t * function, cu_module_t module, const char *name))                    \
    X(cuOccupancyMaxActiveBlocksPerMultiprocessor, 6050,                                                              \
      (int *blocks, cu_function_t function, int threads, size_t shared))                                              \
    X(cuMemAlloc, 3020, (cu_pointer_t * block, size_t bytes))                                                         \
    X(cuMemFree, 3020, (cu_pointer_t block))                                                                          \
    X(cuMemHostAlloc, 2020, (void **block, size_t bytes, unsigned flags))                                             \
    X(cuMemFreeHost, 2000, (void *block))                                                                             \
    X(cuMemsetD8Async, 3020, (cu_pointer_t block, unsigned char value, size_t bytes, cu_stream_t stream))             \
    X(cuMemcpyAsync, 4000, (cu_pointer_t to, cu_pointer_t from, size_t bytes, cu_stream_t stream))                    \
    X(cuStreamSynchronize, 2000, (cu_stream_t stream))                                                                \
    X(cuStreamQuery, 2000, (cu_stream_t stream))                                                                      \
    X(cuStreamWaitEvent, 3020, (cu_stream_t stream, cu_event_t event, unsigned flags))                                \
    X(cuEventCreate, 2000, (cu_event_t * event, unsigned flags))                                                      \
    X(cuEventRecord, 2000, (cu_event_t event, cu_stream_t stream))                                                    \
    X(cuEventDestroy, 4000, (cu_event_t event))                                                                       \
    X(cuLaunchKernel, 4000,                                                                                           \
      (cu_function_t function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, \
       unsigned block_z, unsigned shared, cu_stream_t stream, void **parameters, void **extra))                       \
    X(cuLaunchCooperativeKernel, 9000,                                                                                \
      (cu_function_t function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, \
       unsigned block_z, unsigned shared, cu_stream_t stream, void **parameters))

typedef struct cuda_driver {
/* NOLINTNEXTLINE(bugprone-macro-parentheses): a type takes none */
#define CUDA_DRIVER_MEMBER(name, version, parameters) cu_result_t(*name) parameters;
    CUDA_DRIVER_FUNCTIONS(CUDA_DRIVER_MEMBER)
#undef CUDA_DRIVER_MEMBER
    int version; /* 12080: CUDA 12.8 */
} cuda_driver_t;

/* Oldest driver, as CUDA version and as NVIDIA numbers drivers, and oldest architecture. */
enum { CUDA_DRIVER_MIN = 12000, CUDA_CAPABILITY_MIN = 75 };
#define CUDA_DRIVER_MIN_NAME "525"

/* The driver, ready for use; the same one each time. The environment variable GTOPK_CUDA_DRIVER names another library
 * than libcuda.so.1. NOT_FOUND: there is none; UNSUPPORTED: it is too old, or there is no GPU. */
gtopk_status_t cuda_driver_get(const cuda_driver_t **driver);

/* The status and text for a failed call: DEVICE, or NOMEM, with the driver's own text. `what` is what was tried. */
gtopk_status_t cuda_driver_error(const cuda_driver_t *driver, cu_result_t result, const char *what);

#endif
