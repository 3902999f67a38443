/* Whether a test runs on a GPU (tests/gpu/on_device.c); else its devices are those of the host. */
#ifndef TESTS_SUPPORT_GPU_H
#define TESTS_SUPPORT_GPU_H

#include <stdlib.h>
#include <string.h>

static inline int on_gpu(void)
{
    const char *device = getenv("GTOPK_DEVICE");
    return device && strncmp(device, "cuda", 4) == 0;
}

#endif
