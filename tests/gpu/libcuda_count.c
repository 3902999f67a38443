/* A driver between the library and the CUDA driver that counts calls, and notes when each was made: how many launches a step
 * takes, which kernels, and who waits for the GPU, is seen on any machine. GTOPK_CUDA_DRIVER names this file;
 * GTOPK_COUNTED_DRIVER the one behind it, libcuda.so.1 by default. */
#include "gpu/libcuda_count.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "device/cuda/driver.h"

#define EXPORTED __attribute__((visibility("default")))

typedef cu_result_t (*get_version_fn)(int *version);
typedef cu_result_t (*get_address_fn)(const char *name, void **function, int version, uint64_t flags, int *found);

/* Functions that are counted: name, parameters, the names of these. */
#define PLAIN(X)                                                                                         \
    X(cuCtxSynchronize, (void), ())                                                                      \
    X(cuMemAlloc, (cu_pointer_t * block, size_t bytes), (block, bytes))                                  \
    X(cuMemFree, (cu_pointer_t block), (block))                                                          \
    X(cuMemHostAlloc, (void **block, size_t bytes, unsigned flags), (block, bytes, flags))               \
    X(cuMemFreeHost, (void *block), (block))                                                             \
    X(cuMemsetD8Async, (cu_pointer_t block, unsigned char value, size_t bytes, cu_stream_t stream),      \
      (block, value, bytes, stream))                                                                     \
    X(cuMemcpyAsync, (cu_pointer_t to, cu_pointer_t from, size_t bytes, cu_stream_t stream),             \
      (to, from, bytes, stream))                                                                         \
    X(cuStreamSynchronize, (cu_stream_t stream), (stream))                                               \
    X(cuStreamQuery, (cu_stream_t stream), (stream))                                                     \
    X(cuStreamWaitEvent, (cu_stream_t stream, cu_event_t event, unsigned flags), (stream, event, flags)) \
    X(cuEventRecord, (cu_event_t event, cu_stream_t stream), (event, stream))
#define LAUNCHES(X)                                                                                                   \
    X(cuLaunchKernel,                                                                                                 \
      (cu_function_t function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, \
       unsigned block_z, unsigned shared, cu_stream_t stream, void **parameters, void **extra),                       \
      (function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared, stream, parameters, extra))               \
    X(cuLaunchCooperativeKernel,                                                                                      \
      (cu_function_t function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, \
       unsigned block_z, unsigned shared, cu_stream_t stream, void **parameters),                                     \
      (function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared, stream, parameters))
#define COUNTED(X) PLAIN(X) LAUNCHES(X)

enum {
#define NUMBER(name, parameters, names) NUMBER_##name,
    COUNTED(NUMBER)
#undef NUMBER
        COUNTED_FUNCTIONS
};

static const char *const function_names[COUNTED_FUNCTIONS] = {
#define NAME(name, parameters, names) #name,
    COUNTED(NAME)
#undef NAME
};

/* ---- what was called ---- */

enum { CALLS_MAX = 1 << 16, KERNELS_MAX = 1024 };

static uint64_t calls[COUNTED_FUNCTIONS];
static cuda_call_t traced[CALLS_MAX];
static size_t traced_count = CALLS_MAX; /* nothing is noted until somebody asks */

/* Kernels that were looked up: the library keeps their names. */
static struct {
    cu_function_t function;
    const char *name;
} kernels[KERNELS_MAX];
static size_t kernel_count;

static double now_us(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e6 * (double)t.tv_sec + 1e-3 * (double)t.tv_nsec;
}

static const char *kernel_name(cu_function_t function)
{
    size_t i = __atomic_load_n(&kernel_count, __ATOMIC_ACQUIRE);
    while (i > 0 && kernels[i - 1].function != function)
        i--;
    return i > 0 ? kernels[i - 1].name : "?";
}

static void note(int number, const char *kernel, double begin)
{
    const size_t noted = __atomic_load_n(&traced_count, __ATOMIC_RELAXED);
    const size_t at = noted < CALLS_MAX ? __atomic_fetch_add(&traced_count, 1, __ATOMIC_RELAXED) : CALLS_MAX;
    (void)__atomic_fetch_add(&calls[number], 1, __ATOMIC_RELAXED);
    if (at < CALLS_MAX)
        traced[at] = (cuda_call_t){function_names[number], kernel, begin, now_us()};
}

#define COUNT(name, parameters, names, kernel)        \
    static cu_result_t(*real_##name) parameters;      \
    static cu_result_t counted_##name parameters      \
    {                                                 \
        const double begin = now_us();                \
        const cu_result_t result = real_##name names; \
        note(NUMBER_##name, kernel, begin);           \
        return result;                                \
    }
#define COUNT_PLAIN(name, parameters, names) COUNT(name, parameters, names, NULL)
#define COUNT_LAUNCH(name, parameters, names) COUNT(name, parameters, names, kernel_name(function))
PLAIN(COUNT_PLAIN)
LAUNCHES(COUNT_LAUNCH)
#undef COUNT_LAUNCH
#undef COUNT_PLAIN
#undef COUNT

static cu_result_t (*real_cuModuleGetFunction)(cu_function_t *function, cu_module_t module, const char *name);

static cu_result_t counted_cuModuleGetFunction(cu_function_t *function, cu_module_t module, const char *name)
{
    const cu_result_t result = real_cuModuleGetFunction(function, module, name);
    if (result == CU_SUCCESS && kernel_count < KERNELS_MAX) {
        kernels[kernel_count].function = *function;
        kernels[kernel_count].name = name;
        (void)__atomic_fetch_add(&kernel_count, 1, __ATOMIC_RELEASE);
    }
    return result;
}

/* ---- the driver ---- */

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
    BETWEEN(cuModuleGetFunction, (cu_function_t *, cu_module_t, const char *), ())
#undef BETWEEN
    return result;
}

/* ---- for whoever asks ---- */

size_t cuda_count_take(cuda_count_t *counts, size_t most)
{
    size_t count = 0;
    for (size_t i = 0; i < COUNTED_FUNCTIONS; i++) {
        if (calls[i] > 0 && count < most)
            counts[count++] = (cuda_count_t){function_names[i], calls[i]};
        calls[i] = 0;
    }
    return count;
}

void cuda_trace_begin(void)
{
    __atomic_store_n(&traced_count, 0, __ATOMIC_SEQ_CST);
}

size_t cuda_trace_end(const cuda_call_t **found)
{
    const size_t count = __atomic_exchange_n(&traced_count, (size_t)CALLS_MAX, __ATOMIC_SEQ_CST);
    *found = traced;
    return count < CALLS_MAX ? count : CALLS_MAX;
}
