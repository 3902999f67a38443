/* The stand-in for libcuda.so.1. See cuda_standin.h. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "device/cuda/driver.h"
#include "support/cuda_emulator.h"
#include "support/cuda_kernels.h"
#include "support/cuda_standin.h"
#include "support/random.h"

#define PAGE 4096u
#define ALIGNMENT 256u
#define EXPORTED __attribute__((visibility("default")))

enum { INVALID_VALUE = 1, NOT_INITIALIZED = 3, INVALID_IMAGE = 200, INVALID_HANDLE = 400, NOT_FOUND = 500 };
enum { LAUNCH_FAILED = 719 };
enum { GPUS = 4, EVERY = -1 };

/* ---- state ---- */

typedef struct block {
    char *map; /* whole pages, with one behind that nobody may touch */
    size_t map_bytes, bytes;
    char *memory;
    int pinned, gpu;
    struct block *next;
} block_t;

typedef struct work {
    enum { WORK_LAUNCH, WORK_COPY, WORK_SET, WORK_WAIT } kind;
    const cuda_emulated_t *kernel;
    unsigned grid;
    int cooperative;
    unsigned char args[4096];
    char *to;
    char *from; /* WORK_COPY: memory of the device or pinned, or `kept` */
    char *kept; /* a copy of memory of the host that may change at once */
    size_t bytes;
    unsigned char value;
    struct stream *other; /* WORK_WAIT: until that one has done so much */
    uint64_t until;
    struct work *next;
} work_t;

typedef struct stream {
    cu_stream_t name;
    int gpu;
    work_t *first, **last;
    uint64_t queued, done;
    struct stream *next;
} stream_t;

typedef struct event {
    stream_t *stream;
    uint64_t until;
} event_t;

static struct {
    pthread_mutex_t lock;
    block_t *blocks;
    stream_t *streams;
    random_state_t random;
    uint64_t launches, waits;
    char fails[64];
    int fails_after, fails_with, has_failed, lost, open;
    int capability, processors, blocks_each, gpus, version;
    char lacks[64];
    long live, contexts;
    int working; /* the GPU whose work is being done; EVERY: a test looks */
} gpu = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .capability = 90,
    .processors = 2,
    .blocks_each = 2,
    .gpus = 1,
    .version = 12080,
    .working = EVERY,
};

static _Thread_local cu_context_t stack[16];
static _Thread_local unsigned depth;
static struct CUctx_st {
    int unused;
} contexts[GPUS];

/* What a function's name stands for: a kernel on a GPU. */
static struct CUfunc_st {
    const cuda_emulated_t *kernel;
    int gpu;
} functions[GPUS][CUDA_KERNEL_COUNT];

static int current_gpu(void)
{
    return depth > 0 ? (int)(stack[depth - 1] - contexts) : 0;
}

/* ---- memory ---- */

static block_t *block_of(const void *address)
{
    for (block_t *b = gpu.blocks; b; b = b->next)
        if ((const char *)address >= b->memory && (const char *)address < b->memory + b->bytes)
            return b;
    return NULL;
}

/* Device memory is opened where it is touched, a granule at a time, while the driver is at work: opening and closing all of
 * it each time would take most of a test. */
#define GRANULE (64u << 10)

static struct {
    char *at;
    size_t bytes;
} opened[4096];
static size_t opened_count;
static struct sigaction others;

static int granule_open(const char *address)
{
    for (block_t *b = gpu.blocks; b; b = b->next) {
        const size_t bytes = b->map_bytes - PAGE;
        if (b->pinned || address < b->map || address >= b->map + bytes)
            continue;
        if (gpu.working != EVERY && gpu.working != b->gpu)
            return 0; /* another GPU's */
        const size_t begin = (size_t)(address - b->map) / GRANULE * GRANULE;
        const size_t length = bytes - begin < GRANULE ? bytes - begin : GRANULE;
        if (opened_count == sizeof opened / sizeof opened[0] ||
            mprotect(b->map + begin, length, PROT_READ | PROT_WRITE) != 0)
            return 0;
        opened[opened_count].at = b->map + begin;
        opened[opened_count++].bytes = length;
        return 1;
    }
    return 0;
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    if (gpu.open > 0 && granule_open(info->si_addr))
        return;
    (void)number;
    (void)context;
    (void)sigaction(SIGSEGV, &others, NULL); /* it happens again, and is what it would have been */
}

static void memory_open(int open)
{
    const struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    gpu.open += open ? 1 : -1;
    if (open && gpu.open == 1 && sigaction(SIGSEGV, &action, &others) != 0)
        abort();
    if (gpu.open > 0)
        return;
    (void)sigaction(SIGSEGV, &others, NULL);
    while (opened_count > 0) {
        opened_count--;
        if (mprotect(opened[opened_count].at, opened[opened_count].bytes, PROT_NONE) != 0)
            abort();
    }
}

static void *block_make(size_t bytes, int pinned)
{
    const size_t body = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT, pages = (body + PAGE - 1) / PAGE * PAGE;
    block_t *block = calloc(1, sizeof *block);
    char *map = mmap(NULL, pages + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!block || map == MAP_FAILED || mprotect(map, pages, PROT_READ | PROT_WRITE) != 0)
        abort();
    *block = (block_t){.map = map,
                       .map_bytes = pages + PAGE,
                       .bytes = bytes,
                       .pinned = pinned,
                       .gpu = current_gpu(),
                       .next = gpu.blocks};
    block->memory = map + pages - body; /* what is read behind it is a fault */
    memset(map, 0xcb, pages);
    gpu.blocks = block;
    gpu.live++;
    if (!pinned && mprotect(map, pages, PROT_NONE) != 0)
        abort();
    return block->memory;
}

static int block_free(const void *memory)
{
    for (block_t **at = &gpu.blocks; *at; at = &(*at)->next) {
        block_t *block = *at;
        if (block->memory != memory)
            continue;
        *at = block->next;
        for (size_t i = 0; i < opened_count; i++)
            if (opened[i].at >= block->map && opened[i].at < block->map + block->map_bytes)
                opened[i--] = opened[--opened_count];
        (void)munmap(block->map, block->map_bytes);
        free(block);
        gpu.live--;
        return 1;
    }
    return 0;
}

/* ---- streams: work is done when somebody waits for it ---- */

static stream_t *stream_on(int number, cu_stream_t name)
{
    for (stream_t *s = gpu.streams; s; s = s->next)
        if (s->name == name && s->gpu == number)
            return s;
    stream_t *made = calloc(1, sizeof *made);
    if (!made)
        abort();
    *made = (stream_t){.name = name, .gpu = number, .next = gpu.streams};
    made->last = &made->first;
    gpu.streams = made;
    return made;
}

static stream_t *stream_of(cu_stream_t name)
{
    return stream_on(current_gpu(), name);
}

static work_t *queue(cu_stream_t name)
{
    stream_t *stream = stream_of(name);
    work_t *work = calloc(1, sizeof *work);
    if (!work)
        abort();
    *stream->last = work;
    stream->last = &work->next;
    stream->queued++;
    return work;
}

static void stream_run(stream_t *stream, uint64_t until);

static void work_do(const work_t *work)
{
    switch (work->kind) {
    case WORK_LAUNCH: {
        const emulator_order_t order = (emulator_order_t)random_below(&gpu.random, EMULATOR_ORDERS);
        if (emulator_run(work->kernel->run, work->args, work->grid, 256, work->cooperative, order,
                         random_u64(&gpu.random)) != 0) {
            (void)fprintf(stderr, "%s: %s\n", work->kernel->name, emulator_error());
            gpu.lost = LAUNCH_FAILED;
        }
        break;
    }
    case WORK_COPY: memmove(work->to, work->kept ? work->kept : work->from, work->bytes); break;
    case WORK_SET: memset(work->to, work->value, work->bytes); break;
    default: stream_run(work->other, work->until);
    }
}

static void stream_run(stream_t *stream, uint64_t until)
{
    const int before = gpu.working;
    if (stream->done >= until)
        return;
    gpu.working = stream->gpu;
    memory_open(1);
    while (stream->done < until && stream->first) {
        work_t *work = stream->first;
        if (!gpu.lost)
            work_do(work);
        stream->first = work->next;
        if (!stream->first)
            stream->last = &stream->first;
        stream->done++;
        free(work->kept);
        free(work);
    }
    memory_open(0);
    gpu.working = before;
}

static void run_all(void)
{
    for (stream_t *s = gpu.streams; s; s = s->next)
        stream_run(s, s->queued);
}

/* ---- every call ---- */

/* What the call named here is to answer before it does anything; the lock is taken. */
static int begin(const char *name)
{
    (void)pthread_mutex_lock(&gpu.lock);
    if (gpu.lost)
        return gpu.lost;
    if (strcmp(name, gpu.fails) == 0 && gpu.fails_after-- == 0) {
        gpu.fails[0] = 0;
        gpu.has_failed = 1;
        return gpu.fails_with;
    }
    return CU_SUCCESS;
}

static cu_result_t end(cu_result_t result)
{
    (void)pthread_mutex_unlock(&gpu.lock);
    return result;
}

#define BEGIN(name)                       \
    do {                                  \
        const int result_ = begin(#name); \
        if (result_ != CU_SUCCESS)        \
            return end(result_);          \
    } while (0)

/* Most calls need a current context. */
#define BEGIN_IN_CONTEXT(name) \
    BEGIN(name);               \
    if (depth == 0)            \
    return end(CU_INVALID_CONTEXT)

/* ---- the driver ---- */

static cu_result_t standin_cuInit(unsigned flags)
{
    BEGIN(cuInit);
    return end(flags != 0 ? INVALID_VALUE : gpu.gpus == 0 ? CU_NO_DEVICE : CU_SUCCESS);
}

static cu_result_t standin_cuGetErrorName(cu_result_t result, const char **text)
{
    *text = result == CU_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_STANDIN";
    return CU_SUCCESS;
}

static cu_result_t standin_cuGetErrorString(cu_result_t result, const char **text)
{
    *text = result == CU_OUT_OF_MEMORY ? "out of memory" : "what the stand-in was asked for";
    return CU_SUCCESS;
}

static cu_result_t standin_cuDeviceGetCount(int *count)
{
    BEGIN(cuDeviceGetCount);
    *count = gpu.gpus;
    return end(CU_SUCCESS);
}

static cu_result_t standin_cuDeviceGet(cu_device_t *device, int ordinal)
{
    BEGIN(cuDeviceGet);
    *device = ordinal;
    return end(ordinal < gpu.gpus && ordinal < GPUS ? CU_SUCCESS : 101);
}

static cu_result_t standin_cuDeviceGetName(char *name, int size, cu_device_t device)
{
    BEGIN(cuDeviceGetName);
    (void)snprintf(name, (size_t)size, "Stand-in %d", device);
    return end(CU_SUCCESS);
}

static cu_result_t standin_cuDeviceGetAttribute(int *value, int attribute, cu_device_t device)
{
    (void)device;
    BEGIN(cuDeviceGetAttribute);
    switch (attribute) {
    case CU_PROCESSORS: *value = gpu.processors; break;
    case CU_CAPABILITY_MAJOR: *value = gpu.capability / 10; break;
    case CU_CAPABILITY_MINOR: *value = gpu.capability % 10; break;
    case CU_COOPERATIVE_LAUNCH: *value = 1; break;
    default: return end(INVALID_VALUE);
    }
    return end(CU_SUCCESS);
}

static cu_result_t standin_cuDevicePrimaryCtxRetain(cu_context_t *context, cu_device_t device)
{
    BEGIN(cuDevicePrimaryCtxRetain);
    *context = &contexts[device];
    gpu.contexts++;
    return end(CU_SUCCESS);
}

static cu_result_t standin_cuDevicePrimaryCtxRelease(cu_device_t device)
{
    (void)device;
    BEGIN(cuDevicePrimaryCtxRelease);
    gpu.contexts--;
    return end(CU_SUCCESS);
}

static cu_result_t standin_cuCtxGetCurrent(cu_context_t *context)
{
    BEGIN(cuCtxGetCurrent);
    *context = depth > 0 ? stack[depth - 1] : NULL;
    return end(CU_SUCCESS);
}

static cu_result_t standin_cuCtxGetDevice(cu_device_t *device)
{
    BEGIN_IN_CONTEXT(cuCtxGetDevice);
    *device = current_gpu();
    return end(CU_SUCCESS);
}

static cu_result_t standin_cuCtxPushCurrent(cu_context_t context)
{
    BEGIN(cuCtxPushCurrent);
    if (context < contexts || context >= contexts + gpu.gpus || depth == sizeof stack / sizeof stack[0])
        return end(CU_INVALID_CONTEXT);
    stack[depth++] = context;
    return end(CU_SUCCESS);
}

static cu_result_t standin_cuCtxPopCurrent(cu_context_t *context)
{
    (void)pthread_mutex_lock(&gpu.lock); /* also in a lost context */
    if (depth == 0)
        return end(CU_INVALID_CONTEXT);
    *context = stack[--depth];
    return end(CU_SUCCESS);
}

static cu_result_t standin_cuCtxSynchronize(void)
{
    BEGIN_IN_CONTEXT(cuCtxSynchronize);
    gpu.waits++;
    run_all();
    return end(gpu.lost);
}

/* An image for this GPU: an ELF file of NVIDIA's with its architecture in e_flags, or a PTX. */
static cu_result_t standin_cuModuleLoadData(cu_module_t *module, const void *image)
{
    uint32_t flags;
    BEGIN_IN_CONTEXT(cuModuleLoadData);
    if (memcmp(image,
               "\x7f"
               "ELF",
               4) == 0) {
        memcpy(&flags, (const char *)image + 48, sizeof flags);
        const int old = (int)(flags & 0xff), new = (int)(flags >> 8 & 0xff);
        const int architecture = old >= 70 && old < 100 && old % 10 == 0 ? old : old == 75 ? old : new;
        if (architecture / 10 != gpu.capability / 10 || architecture > gpu.capability)
            return end(CU_NO_BINARY_FOR_GPU);
    } else if (!strstr(image, ".target sm_")) {
        return end(INVALID_IMAGE);
    }
    *module = (cu_module_t)(void *)&contexts[current_gpu()];
    return end(CU_SUCCESS);
}

static cu_result_t standin_cuModuleUnload(cu_module_t module)
{
    BEGIN_IN_CONTEXT(cuModuleUnload);
    return end(module == (cu_module_t)(void *)&contexts[current_gpu()] ? CU_SUCCESS : INVALID_HANDLE);
}

static cu_result_t standin_cuModuleGetFunction(cu_function_t *function, cu_module_t module, const char *name)
{
    BEGIN_IN_CONTEXT(cuModuleGetFunction);
    if (module != (cu_module_t)(void *)&contexts[current_gpu()])
        return end(INVALID_HANDLE);
    for (int k = 0; k < CUDA_KERNEL_COUNT; k++)
        if (strcmp(cuda_emulated[k].name, name) == 0) {
            functions[current_gpu()][k] = (struct CUfunc_st){&cuda_emulated[k], current_gpu()};
            *function = &functions[current_gpu()][k];
            return end(CU_SUCCESS);
        }
    return end(NOT_FOUND);
}

static cu_result_t standin_cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, cu_function_t function, int threads,
                                                                       size_t shared)
{
    (void)function;
    BEGIN_IN_CONTEXT(cuOccupancyMaxActiveBlocksPerMultiprocessor);
    *blocks = gpu.blocks_each;
    return end(threads == 256 && shared == 0 ? CU_SUCCESS : INVALID_VALUE);
}

static cu_result_t standin_cuMemAlloc(cu_pointer_t *block, size_t bytes)
{
    BEGIN_IN_CONTEXT(cuMemAlloc);
    if (bytes == 0)
        return end(INVALID_VALUE);
    *block = (cu_pointer_t)(uintptr_t)block_make(bytes, 0);
    return end(CU_SUCCESS);
}

static cu_result_t standin_cuMemFree(cu_pointer_t block)
{
    BEGIN_IN_CONTEXT(cuMemFree);
    run_all();
    return end(block_free((void *)(uintptr_t)block) ? CU_SUCCESS : INVALID_VALUE);
}

static cu_result_t standin_cuMemHostAlloc(void **block, size_t bytes, unsigned flags)
{
    (void)flags;
    BEGIN_IN_CONTEXT(cuMemHostAlloc);
    *block = block_make(bytes, 1);
    return end(CU_SUCCESS);
}

static cu_result_t standin_cuMemFreeHost(void *block)
{
    BEGIN_IN_CONTEXT(cuMemFreeHost);
    run_all();
    return end(block_free(block) ? CU_SUCCESS : INVALID_VALUE);
}

static cu_result_t standin_cuMemsetD8Async(cu_pointer_t block, unsigned char value, size_t bytes, cu_stream_t stream)
{
    BEGIN_IN_CONTEXT(cuMemsetD8Async);
    work_t *work = queue(stream);
    work->kind = WORK_SET;
    work->to = (char *)(uintptr_t)block;
    work->value = value;
    work->bytes = bytes;
    return end(CU_SUCCESS);
}

/* Memory that is not pinned is read at once, and written only after all work before has been done. */
static cu_result_t standin_cuMemcpyAsync(cu_pointer_t to, cu_pointer_t from, size_t bytes, cu_stream_t stream)
{
    BEGIN_IN_CONTEXT(cuMemcpyAsync);
    work_t *work = queue(stream);
    work->kind = WORK_COPY;
    work->to = (char *)(uintptr_t)to;
    work->from = (char *)(uintptr_t)from;
    work->bytes = bytes;
    if (!block_of(work->from)) {
        work->kept = malloc(bytes);
        if (!work->kept)
            abort();
        memcpy(work->kept, work->from, bytes);
    }
    if (!block_of(work->to))
        stream_run(stream_of(stream), stream_of(stream)->queued);
    return end(gpu.lost);
}

static cu_result_t standin_cuStreamSynchronize(cu_stream_t stream)
{
    BEGIN_IN_CONTEXT(cuStreamSynchronize);
    gpu.waits++;
    stream_run(stream_of(stream), stream_of(stream)->queued);
    return end(gpu.lost);
}

static cu_result_t standin_cuStreamWaitEvent(cu_stream_t stream, cu_event_t name, unsigned flags)
{
    event_t *event;
    (void)flags;
    BEGIN_IN_CONTEXT(cuStreamWaitEvent);
    memcpy(&event, &name, sizeof event);
    if (event->stream) {
        work_t *work = queue(stream);
        work->kind = WORK_WAIT;
        work->other = event->stream;
        work->until = event->until;
    }
    return end(CU_SUCCESS);
}

static cu_result_t standin_cuEventCreate(cu_event_t *name, unsigned flags)
{
    (void)flags;
    BEGIN_IN_CONTEXT(cuEventCreate);
    event_t *event = calloc(1, sizeof *event);
    if (!event)
        abort();
    memcpy(name, &event, sizeof event);
    gpu.live++;
    return end(CU_SUCCESS);
}

static cu_result_t standin_cuEventRecord(cu_event_t name, cu_stream_t stream)
{
    event_t *event;
    BEGIN_IN_CONTEXT(cuEventRecord);
    memcpy(&event, &name, sizeof event);
    event->stream = stream_of(stream);
    event->until = event->stream->queued;
    return end(CU_SUCCESS);
}

static cu_result_t standin_cuEventDestroy(cu_event_t name)
{
    event_t *event;
    BEGIN_IN_CONTEXT(cuEventDestroy);
    memcpy(&event, &name, sizeof event);
    free(event);
    gpu.live--;
    return end(CU_SUCCESS);
}

/* What a GPU would stumble on: an address of ordinary memory of the host among the arguments of a kernel, where launches
 * before had one of the GPU's. (Elsewhere two numbers side by side, or what was left in padding, may look like one.) Only
 * with GTOPK_STANDIN_STRICT in the environment. */
static int has_host_address(const cuda_emulated_t *kernel, const unsigned char *args)
{
    static unsigned char is_address[CUDA_KERNEL_COUNT][CUDA_ARGUMENTS_MAX / 8];
    static int strict = -1;
    const uint64_t lowest = 1u << 24, highest = 1ull << 47;
    if (strict < 0)
        strict = getenv("GTOPK_STANDIN_STRICT") != NULL;
    for (size_t at = 0; strict && at + 8 <= kernel->bytes; at += 8) {
        unsigned char *known = &is_address[kernel - cuda_emulated][at / 8], resident;
        uint64_t word;
        memcpy(&word, args + at, sizeof word);
        if (word < lowest || word >= highest)
            continue;
        if (block_of((const void *)(uintptr_t)word)) {
            *known = 1;
            continue;
        }
        if (!*known || mincore((void *)(uintptr_t)(word / PAGE * PAGE), PAGE, &resident) != 0)
            continue;
        (void)fprintf(stderr, "%s: the word at byte %zu of its arguments, %#llx, is an address of the host\n",
                      kernel->name, at, (unsigned long long)word);
        return 1;
    }
    return 0;
}

static cu_result_t queue_launch(cu_function_t function, unsigned grid, unsigned block, cu_stream_t stream,
                                void **parameters, int cooperative)
{
    const cuda_emulated_t *kernel = function->kernel;
    if (function->gpu != current_gpu())
        return INVALID_HANDLE;
    if (grid == 0 || block != 256)
        return INVALID_VALUE;
    if (cooperative && grid > (unsigned)(gpu.processors * gpu.blocks_each))
        return 720; /* too large for all to be resident */
    if (kernel->meets && !cooperative)
        return INVALID_VALUE;
    if (has_host_address(kernel, parameters[0]))
        return 700; /* an illegal address */
    work_t *work = queue(stream);
    work->kind = WORK_LAUNCH;
    work->kernel = kernel;
    work->grid = grid;
    work->cooperative = cooperative;
    memcpy(work->args, parameters[0], kernel->bytes);
    gpu.launches++;
    return CU_SUCCESS;
}

static cu_result_t standin_cuLaunchKernel(cu_function_t function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                          unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                                          cu_stream_t stream, void **parameters, void **extra)
{
    (void)shared;
    BEGIN_IN_CONTEXT(cuLaunchKernel);
    if (grid_y != 1 || grid_z != 1 || block_y != 1 || block_z != 1 || extra)
        return end(INVALID_VALUE);
    return end(queue_launch(function, grid_x, block_x, stream, parameters, 0));
}

static cu_result_t standin_cuLaunchCooperativeKernel(cu_function_t function, unsigned grid_x, unsigned grid_y,
                                                     unsigned grid_z, unsigned block_x, unsigned block_y,
                                                     unsigned block_z, unsigned shared, cu_stream_t stream,
                                                     void **parameters)
{
    (void)shared;
    BEGIN_IN_CONTEXT(cuLaunchCooperativeKernel);
    if (grid_y != 1 || grid_z != 1 || block_y != 1 || block_z != 1)
        return end(INVALID_VALUE);
    return end(queue_launch(function, grid_x, block_x, stream, parameters, 1));
}

/* ---- what is exported ---- */

EXPORTED cu_result_t cuDriverGetVersion(int *version);
EXPORTED cu_result_t cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *found);

cu_result_t cuDriverGetVersion(int *version)
{
    *version = gpu.version;
    return CU_SUCCESS;
}

cu_result_t cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *found)
{
    (void)flags;
    (void)found;
#define GIVE(own, since, parameters)                                                     \
    if (strcmp(name, #own) == 0 && version >= (since) && strcmp(name, gpu.lacks) != 0) { \
        cu_result_t(*address) parameters = standin_##own;                                \
        memcpy(function, &address, sizeof address);                                      \
        return CU_SUCCESS;                                                               \
    }
    CUDA_DRIVER_FUNCTIONS(GIVE)
#undef GIVE
    *function = NULL;
    return NOT_FOUND;
}

static void control_inject(const char *function, int after, int result)
{
    (void)snprintf(gpu.fails, sizeof gpu.fails, "%s", function);
    gpu.fails_after = after;
    gpu.fails_with = result;
    gpu.has_failed = 0;
}

static int control_failed(void)
{
    return gpu.has_failed;
}

static void control_lose(int result)
{
    gpu.lost = result;
}

static void control_gpu(int capability, int processors, int blocks)
{
    gpu.capability = capability;
    gpu.processors = processors;
    gpu.blocks_each = blocks;
}

static void control_driver(int gpus, int version, const char *lacks)
{
    gpu.gpus = gpus;
    gpu.version = version;
    (void)snprintf(gpu.lacks, sizeof gpu.lacks, "%s", lacks);
}

static void control_seed(uint64_t seed)
{
    gpu.random.state = seed;
}

static void control_count(uint64_t *launches, uint64_t *waits)
{
    *launches = gpu.launches;
    *waits = gpu.waits;
    gpu.launches = gpu.waits = 0;
}

static long control_live(void)
{
    return gpu.live + gpu.contexts + (long)depth;
}

static void control_peek(int open)
{
    (void)pthread_mutex_lock(&gpu.lock);
    memory_open(open);
    (void)pthread_mutex_unlock(&gpu.lock);
}

static void *control_allocate(int number, size_t bytes)
{
    (void)pthread_mutex_lock(&gpu.lock);
    stack[depth++] = &contexts[number];
    void *memory = block_make(bytes, 0);
    depth--;
    (void)pthread_mutex_unlock(&gpu.lock);
    return memory;
}

static void control_release(void *memory)
{
    (void)pthread_mutex_lock(&gpu.lock);
    run_all();
    if (!block_free(memory))
        abort();
    (void)pthread_mutex_unlock(&gpu.lock);
}

static void control_pass(int number, void *name)
{
    (void)pthread_mutex_lock(&gpu.lock);
    stream_t *stream = stream_on(number, name);
    stream_run(stream, stream->queued);
    (void)pthread_mutex_unlock(&gpu.lock);
}

extern const standin_control_t cuda_standin EXPORTED;
const standin_control_t cuda_standin = {
    .inject = control_inject,
    .failed = control_failed,
    .lose = control_lose,
    .gpu = control_gpu,
    .driver = control_driver,
    .seed = control_seed,
    .count = control_count,
    .live = control_live,
    .peek = control_peek,
    .allocate = control_allocate,
    .release = control_release,
    .pass = control_pass,
};
