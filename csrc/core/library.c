/* What concerns the library as a whole. */
#include <stdio.h>

#include "device/device.h"
#include "gtopk.h"
#include "transport/transport.h"
#include "wire/wire.h"

int gtopk_version(void)
{
    return GTOPK_VERSION_MAJOR * 10000 + GTOPK_VERSION_MINOR * 100 + GTOPK_VERSION_PATCH;
}

const char *gtopk_build_info(void)
{
    static _Thread_local char text[256];
    (void)snprintf(text, sizeof text, "version=%d.%d.%d\nisa=%s\nisa_supported=%s\nwire_format=%u\n",
                   GTOPK_VERSION_MAJOR, GTOPK_VERSION_MINOR, GTOPK_VERSION_PATCH, device_instruction_set(),
                   device_instruction_sets(), WIRE_FORMAT_VERSION);
    return text;
}

gtopk_status_t gtopk_finalize(void)
{
    return transport_finalize();
}
