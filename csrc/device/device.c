/* Finds a device by its name. Knows the devices' open functions and nothing else of them. */
#include "device/device.h"

#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    gtopk_status_t (*open)(device_t **device);
} devices[] = {
    {"cpu", device_cpu_open},
    {"reference", device_reference_open},
};

gtopk_status_t device_open(const char *name, device_t **device)
{
    *device = NULL;
    const int from_environment = name == NULL;
    if (!name)
        name = getenv("GTOPK_DEVICE");
    if (!name || !*name)
        name = "cpu";
    if (device_guarded_open && strcmp(name, "guarded") == 0)
        return device_guarded_open(device);
    for (size_t i = 0; i < sizeof devices / sizeof devices[0]; i++)
        if (strcmp(name, devices[i].name) == 0)
            return devices[i].open(device);
    return status_set(GTOPK_ERR_UNSUPPORTED, "no device \"%s\"%s; there are \"cpu\" and \"reference\"", name,
                      from_environment ? " (from GTOPK_DEVICE)" : "");
}
