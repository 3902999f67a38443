/* Which of the embedded images runs on a GPU, and what the driver makes of it. */
#include "device/cuda/cuda.h"
#include "device/cuda/images.h"
#include "util/log.h"
#include "util/memory.h"

static const struct {
    const char *name;
    int meets;
} kernels[CUDA_KERNEL_COUNT] = {
#define KERNEL_NAME(name, args, meets) {"gtopk_cuda_" #name, meets},
    CUDA_KERNELS(KERNEL_NAME)
#undef KERNEL_NAME
};

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

static gtopk_status_t unpack_and_load(device_cuda_t *device, const cuda_image_t *image)
{
    void *code;
    gtopk_status_t status = memory_alloc(&code, image->bytes, 1, "the GPU's kernels");
    if (status != GTOPK_OK)
        return status;
    if (!image_unpack(image->packed, image->packed_bytes, code, image->bytes))
        status = status_set(GTOPK_ERR_INTERNAL, "the kernels for the GPU in this library are damaged");
    else
        status = cuda_check(device, device->driver->cuModuleLoadData(&device->module, code),
                            "loading gtopk's kernels into the GPU");
    memory_free(code);
    return status;
}

static gtopk_status_t load_image(device_cuda_t *device, int capability)
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
    return unpack_and_load(device, image);
}

gtopk_status_t cuda_module_load(device_cuda_t *device)
{
    int major = 0, minor = 0, processors = 0, cooperative = 0;
    gtopk_status_t status = attribute(device, CU_CAPABILITY_MAJOR, &major);
    if (status == GTOPK_OK)
        status = attribute(device, CU_CAPABILITY_MINOR, &minor);
    if (status == GTOPK_OK)
        status = attribute(device, CU_PROCESSORS, &processors);
    if (status == GTOPK_OK)
        status = attribute(device, CU_COOPERATIVE_LAUNCH, &cooperative);
    if (status == GTOPK_OK)
        status = load_image(device, 10 * major + minor);
    if (status == GTOPK_OK && !cooperative)
        status = status_set(GTOPK_ERR_UNSUPPORTED,
                            "GPU %d cannot launch cooperative kernels, which gtopk needs (a GPU that is shared through "
                            "virtualisation?)",
                            (int)device->gpu);
    device->queue.processors = (uint32_t)processors;
    for (int k = 0; k < CUDA_KERNEL_COUNT && status == GTOPK_OK; k++) {
        int blocks = 0;
        status = cuda_check(device,
                            device->driver->cuModuleGetFunction(&device->functions[k], device->module, kernels[k].name),
                            kernels[k].name);
        if (status == GTOPK_OK)
            status = cuda_check(device,
                                device->driver->cuOccupancyMaxActiveBlocksPerMultiprocessor(
                                    &blocks, device->functions[k], CUDA_THREADS, 0),
                                kernels[k].name);
        device->queue.resident[k] = (uint32_t)blocks * (uint32_t)processors;
    }
    return status;
}
