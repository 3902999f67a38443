/* Finds a device by its name. Knows the devices' open functions and nothing else of them. */
#include "device/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    gtopk_status_t (*open)(device_t **device);
} devices[] = {
    {"cpu", device_cpu_open},
    {"reference", device_reference_open},
};

/* The number of "cuda:3"; -1: it is no GPU's name. */
static int gpu_of(const char *name)
{
    char *end;
    if (strncmp(name, "cuda:", 5) != 0 || name[5] < '0' || name[5] > '9')
        return -1;
    const long number = strtol(name + 5, &end, 10);
    return *end == 0 && number < 1024 ? (int)number : -1;
}

static int exists(const char *name)
{
    int found = gpu_of(name) >= 0 || (device_guarded_open && strcmp(name, "guarded") == 0);
    for (size_t i = 0; i < sizeof devices / sizeof devices[0]; i++)
        found |= strcmp(name, devices[i].name) == 0;
    return found;
}

gtopk_status_t device_resolve(const char *name, char full[DEVICE_NAME_SIZE])
{
    const char *named = name ? name : getenv("GTOPK_DEVICE"), *wanted = named && *named ? named : "cpu";
    gtopk_status_t status = GTOPK_OK;
    memset(full, 0, DEVICE_NAME_SIZE);
    if (strcmp(wanted, "cuda") == 0) {
        int current = 0;
        status = device_cuda_current(&current);
        (void)snprintf(full, DEVICE_NAME_SIZE, "cuda:%d", current);
    } else if (!exists(wanted)) {
        status = status_set(
            GTOPK_ERR_UNSUPPORTED,
            "no device \"%s\"%s; there are \"cpu\", \"cuda\" (\"cuda:1\": the second GPU) and \"reference\"", wanted,
            name ? "" : " (from GTOPK_DEVICE)");
    } else {
        (void)snprintf(full, DEVICE_NAME_SIZE, "%s", wanted);
    }
    return status;
}

static gtopk_status_t open_named(const char *full, const gtopk_allocator_t *allocator, device_t **device)
{
    const int gpu = gpu_of(full);
    if (gpu >= 0)
        return device_cuda_open(gpu, allocator, device);
    for (size_t i = 0; i < sizeof devices / sizeof devices[0]; i++)
        if (strcmp(full, devices[i].name) == 0)
            return devices[i].open(device);
    return device_guarded_open(device);
}

gtopk_status_t device_open_with(const char *name, const gtopk_allocator_t *allocator, device_t **device)
{
    char full[DEVICE_NAME_SIZE];
    *device = NULL;
    gtopk_status_t status = device_resolve(name, full);
    if (status == GTOPK_OK)
        status = open_named(full, allocator, device);
    if (status == GTOPK_OK)
        memcpy((*device)->name, full, sizeof full);
    return status;
}

gtopk_status_t device_open(const char *name, device_t **device)
{
    return device_open_with(name, NULL, device);
}

void device_drain(device_t *device, void *stream)
{
    char text[STATUS_TEXT_SIZE];
    status_keep(text);
    (void)device->ops->synchronize(device, stream);
    (void)status_set(GTOPK_OK, "%s", text);
}

gtopk_status_t device_describe(const char *name, char *text, size_t bytes)
{
    char full[DEVICE_NAME_SIZE];
    device_t *device;
    gtopk_status_t status = device_resolve(name, full);
    if (status == GTOPK_OK)
        status = open_named(full, NULL, &device);
    if (status != GTOPK_OK)
        return status;
    device->ops->close(device);
    if (gpu_of(full) >= 0)
        return device_cuda_describe(gpu_of(full), text, bytes);
    (void)snprintf(text, bytes, "%s", device_instruction_set());
    return GTOPK_OK;
}
