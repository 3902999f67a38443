/* A driver between the library and the CUDA driver that counts calls: how many launches a step takes, and who waits for the
 * GPU, is seen on any machine. GTOPK_CUDA_DRIVER names this file; GTOPK_COUNTED_DRIVER the one behind it, libcuda.so.1 by
 * default. */
#include "gpu/libcuda_count.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/cuda/driver.h"

#define EXPORTED __attribute__((visibility("default")))

typedef cu_result_t (*get_version_fn)(int *version);
typedef cu_result_t (*get_address_fn)(const char *name, void **function, int version, uint64_t flags, int *found);

/* Functions that are counted: name, parameters, the names of these. */
#define COUNTED(X)                                                                                                    \
    X(cuCtxSynchronize, (void), ())                                                                                   \
    X(cuMemAlloc, (cu_pointer_t * block, size_t bytes), (block, bytes))                                               \
    X(cuMemFree, (cu_pointer_t block), (block))                                                                       \
    X(cuMemHostAlloc, (void **block, size_t bytes, unsigned flags), (block, bytes, flags))                            \
    X(cuMemFreeHost, (void *block), (block))                                                                          \
    X(cuMemsetD8Async, (cu_pointer_t block, unsigned char value, size_t bytes, cu_stream_t stream),                   \
      (block, value, bytes, stream))                                                                                  \
    X(cuMemcpyAsync, (cu_pointer_t to, cu_pointer_t from, size_t bytes, cu_stream_t stream),                          \
      (to, from, bytes, stream))                                                                                      \
    X(cuStreamSynchronize, (cu_stream_t stream), (stream))                                                            \
    X(cuStreamWaitEvent, (cu_stream_t stream, cu_event_t event, unsigned flags), (stream, event, flags))              \
    X(cuEventRecord, (cu_event_t event, cu_stream_t stream), (event, stream))                                         \
    X(cuLaunchKernel,                                                                                                 \
      (cu_function_t function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, \
       unsigned block_z, unsigned shared, cu_stream_t stream, void **parameters, void **extra),                       \
      (function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared, stream, parameters, extra))               \
    X(cuLaunchCooperativeKernel,                                                                                      \
      (cu_function_t function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, \
       unsigned block_z, unsigned shared, cu_stream_t stream, void **parameters),                                     \
      (function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared, stream, parameters))

enum {
#define NUMBER(name, parameters, names) NUMBER_##name,
    COUNTED(NUMBER)
#undef NUMBER
        COUNTED_FUNCTIONS
};

static uint64_t calls[COUNTED_FUNCTIONS];

#define DEFINE(name, parameters, names)          \
    static cu_result_t(*real_##name) parameters; \
    static cu_result_t counted_##name parameters \
    {                                            \
        calls[NUMBER_##name]++;                  \
        return real_##name names;                \
    }
COUNTED(DEFINE)
#undef DEFINE

static void *behind(const char *name)
{
    static void *library;
    const char *named = getenv("GTOPK_COUNTED_DRIVER");
    if (!library)
        library = dlopen(named && *named ? named : "libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library)
        (void)fprintf(stderr, "libcuda_count.c: %s\n", dlerror());
    return library ? dlsym(library, name) : NULL;
}

EXPORTED cu_result_t cuDriverGetVersion(int *version);
EXPORTED cu_result_t cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *found);

cu_result_t cuDriverGetVersion(int *version)
{
    get_version_fn real;
    void *symbol = behind("cuDriverGetVersion");
    memcpy(&real, &symbol, sizeof symbol);
    return symbol ? real(version) : CU_NO_DEVICE;
}

cu_result_t cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *found)
{
    get_address_fn real;
    void *symbol = behind("cuGetProcAddress_v2");
    memcpy(&real, &symbol, sizeof symbol);
    const cu_result_t result = symbol ? real(name, function, version, flags, found) : CU_NO_DEVICE;
    if (result != CU_SUCCESS || !*function)
        return result;
#define BETWEEN(own, parameters, names)                   \
    if (strcmp(name, #own) == 0) {                        \
        cu_result_t(*counted) parameters = counted_##own; \
        memcpy(&real_##own, function, sizeof real_##own); \
        memcpy(function, &counted, sizeof counted);       \
    }
    COUNTED(BETWEEN)
#undef BETWEEN
    return result;
}

size_t cuda_count_take(cuda_count_t *counts, size_t most)
{
    static const char *const names[COUNTED_FUNCTIONS] = {
#define NAME(name, parameters, names) #name,
        COUNTED(NAME)
#undef NAME
    };
    size_t count = 0;
    for (size_t i = 0; i < COUNTED_FUNCTIONS; i++) {
        if (calls[i] > 0 && count < most)
            counts[count++] = (cuda_count_t){names[i], calls[i]};
        calls[i] = 0;
    }
    return count;
}
