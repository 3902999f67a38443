/* Which of the embedded images runs on a GPU, and what the driver makes of it. */
#include <pthread.h>
#include <stdio.h>

#include "device/cuda/cuda.h"
#include "device/cuda/images.h"
#include "util/log.h"
#include "util/memory.h"
#include "wire/wire.h"

static const struct {
    const char *name;
    int meets;
} kernels[CUDA_KERNEL_COUNT] = {
#define KERNEL_NAME(name, args, meets) {"gtopk_cuda_" #name, meets},
    CUDA_KERNELS(KERNEL_NAME)
#undef KERNEL_NAME
};

/* What is loaded in this process, by GPU. */
enum { GPUS = 64 };

typedef struct loaded {
    cu_module_t module;
    uint32_t users; /* devices */
} loaded_t;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static loaded_t loaded[GPUS];

const char *device_cuda_architectures(void)
{
    static _Thread_local char text[96];
    size_t at = 0;
    (void)snprintf(text, sizeof text, "none");
    for (size_t i = 0; i < cuda_image_count && at < sizeof text; i++) {
        const cuda_image_t *image = &cuda_images[i];
        const int wrote = snprintf(text + at, sizeof text - at, "%s%s_%d", i ? " " : "", image->is_ptx ? "ptx" : "sm",
                                   image->architecture);
        at += wrote > 0 ? (size_t)wrote : 0;
    }
    return text;
}

static gtopk_status_t attribute(const device_cuda_t *device, int which, int *value)
{
    return cuda_check(device, device->driver->cuDeviceGetAttribute(value, which, device->gpu),
                      "asking what the GPU can do");
}

/* A cubin runs on GPUs of its own major version, from its minor version on; the newest of those is best. A PTX is for
 * what came after all of them: the driver compiles it. */
static const cuda_image_t *choose(int capability)
{
    const cuda_image_t *best = NULL;
    for (size_t i = 0; i < cuda_image_count; i++) {
        const cuda_image_t *image = &cuda_images[i];
        const int fits = image->is_ptx
                             ? !best && capability >= image->architecture
                             : capability / 10 == image->architecture / 10 && capability >= image->architecture;
        if (fits)
            best = image;
    }
    return best;
}

static gtopk_status_t unpack_and_load(const device_cuda_t *device, const cuda_image_t *image, cu_module_t *module)
{
    void *code;
    gtopk_status_t status = memory_alloc(&code, image->bytes, 1, "the GPU's kernels");
    if (status != GTOPK_OK)
        return status;
    if (!image_unpack(image->packed, image->packed_bytes, code, image->bytes) ||
        wire_crc(0, code, image->bytes) != image->crc)
        status = status_set(GTOPK_ERR_INTERNAL, "the kernels for the GPU in this library are damaged");
    else
        status = cuda_check(device, device->driver->cuModuleLoadData(module, code),
                            "loading gtopk's kernels into the GPU");
    memory_free(code);
    return status;
}

static gtopk_status_t load_image(const device_cuda_t *device, int capability, cu_module_t *module)
{
    char name[128];
    if (device->driver->cuDeviceGetName(name, sizeof name, device->gpu) != CU_SUCCESS)
        name[0] = 0;
    if (capability < CUDA_CAPABILITY_MIN)
        return status_set(GTOPK_ERR_UNSUPPORTED,
                          "GPU %d (%s) has compute capability %d.%d; gtopk needs %d.%d or newer (Turing)",
                          (int)device->gpu, name, capability / 10, capability % 10, CUDA_CAPABILITY_MIN / 10,
                          CUDA_CAPABILITY_MIN % 10);
    const cuda_image_t *image = choose(capability);
    if (!image)
        return status_set(GTOPK_ERR_UNSUPPORTED,
                          "this build of gtopk has no kernels for GPU %d (%s, compute capability "
                          "%d.%d): it was built without NVRTC; see docs/development.md",
                          (int)device->gpu, name, capability / 10, capability % 10);
    LOG(GTOPK_LOG_INFO, "GPU %d: %s, compute capability %d.%d, kernels for %d.%d%s", (int)device->gpu, name,
        capability / 10, capability % 10, image->architecture / 10, image->architecture % 10,
        image->is_ptx ? " compiled by the driver" : "");
    return unpack_and_load(device, image, module);
}

static gtopk_status_t load_once(device_cuda_t *device, int capability, cu_module_t *module)
{
    gtopk_status_t status = GTOPK_OK;
    loaded_t *at = &loaded[device->gpu];
    (void)pthread_mutex_lock(&mutex);
    if (at->users == 0)
        status = load_image(device, capability, &at->module);
    if (status == GTOPK_OK) {
        at->users++;
        device->has_kernels = 1;
        *module = at->module;
    }
    (void)pthread_mutex_unlock(&mutex);
    return status;
}

void cuda_module_release(device_cuda_t *device)
{
    if (!device->has_kernels)
        return;
    loaded_t *at = &loaded[device->gpu];
    (void)pthread_mutex_lock(&mutex);
    if (--at->users == 0)
        (void)device->driver->cuModuleUnload(at->module);
    (void)pthread_mutex_unlock(&mutex);
}

static gtopk_status_t find_kernel(device_cuda_t *device, cu_module_t module, int kernel, uint32_t processors)
{
    const cuda_driver_t *driver = device->driver;
    const char *name = kernels[kernel].name;
    cu_function_t *function = &device->functions[kernel];
    int blocks = 0;
    gtopk_status_t status = cuda_check(device, driver->cuModuleGetFunction(function, module, name), name);
    if (status == GTOPK_OK)
        status = cuda_check(
            device, driver->cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, *function, CUDA_THREADS, 0), name);
    device->queue.resident[kernel] = (uint32_t)blocks * processors;
    return status;
}

gtopk_status_t cuda_module_load(device_cuda_t *device)
{
    int major = 0, minor = 0, processors = 0, cooperative = 0;
    cu_module_t module = NULL;
    gtopk_status_t status = attribute(device, CU_CAPABILITY_MAJOR, &major);
    if (status == GTOPK_OK)
        status = attribute(device, CU_CAPABILITY_MINOR, &minor);
    if (status == GTOPK_OK)
        status = attribute(device, CU_PROCESSORS, &processors);
    if (status == GTOPK_OK)
        status = attribute(device, CU_COOPERATIVE_LAUNCH, &cooperative);
    if (status == GTOPK_OK && device->gpu >= GPUS)
        status = status_set(GTOPK_ERR_UNSUPPORTED, "GPU %d: at most %d GPUs of a machine can be used", (int)device->gpu,
                            GPUS);
    if (status == GTOPK_OK)
        status = load_once(device, 10 * major + minor, &module);
    if (status == GTOPK_OK && !cooperative)
        status = status_set(GTOPK_ERR_UNSUPPORTED,
                            "GPU %d cannot launch cooperative kernels, which gtopk needs (a GPU that is shared through "
                            "virtualisation?)",
                            (int)device->gpu);
    device->queue.processors = (uint32_t)processors;
    for (int k = 0; k < CUDA_KERNEL_COUNT && status == GTOPK_OK; k++)
        status = find_kernel(device, module, k, (uint32_t)processors);
    return status;
}
