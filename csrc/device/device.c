/* Finds a device by its name. Knows the devices' open functions and nothing else of them. */
#include "device/device.h"

#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    gtopk_status_t (*open)(device_t **device);
} devices[] = {
    {"cpu", device_cpu_open},
    {"cuda", device_cuda_open},
    {"reference", device_reference_open},
};

const char *device_name(const char *name)
{
    const char *wanted = name ? name : getenv("GTOPK_DEVICE");
    return wanted && *wanted ? wanted : "cpu";
}

gtopk_status_t device_open(const char *name, device_t **device)
{
    const char *wanted = device_name(name);
    *device = NULL;
    if (device_guarded_open && strcmp(wanted, "guarded") == 0)
        return device_guarded_open(device);
    for (size_t i = 0; i < sizeof devices / sizeof devices[0]; i++)
        if (strcmp(wanted, devices[i].name) == 0)
            return devices[i].open(device);
    return status_set(GTOPK_ERR_UNSUPPORTED, "no device \"%s\"%s; there are \"cpu\", \"cuda\" and \"reference\"",
                      wanted, name ? "" : " (from GTOPK_DEVICE)");
}
