/* What concerns the library as a whole. */
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

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
    static _Thread_local char text[512];
    (void)snprintf(text, sizeof text, "version=%d.%d.%d\nisa=%s\nisa_supported=%s\nwire_format=%u\ncuda=%s\n",
                   GTOPK_VERSION_MAJOR, GTOPK_VERSION_MINOR, GTOPK_VERSION_PATCH, device_instruction_set(),
                   device_instruction_sets(), WIRE_FORMAT_VERSION, device_cuda_architectures());
    return text;
}

gtopk_status_t gtopk_device_describe(const char *device, char *text, size_t bytes)
{
    if (!text || bytes == 0)
        return status_set(GTOPK_ERR_INVALID, "gtopk_device_describe needs room for a text");
    text[0] = 0;
    return device_describe(device, text, bytes);
}

gtopk_status_t gtopk_finalize(void)
{
    return transport_finalize();
}

/* A process that ends with another status leaves MPI as it is, and mpirun ends the others when it sees that. A child made
 * by fork inherits the handler, but not MPI. */
static void end_process(int status, void *registered_by)
{
    if (status == 0 && getpid() == (pid_t)(intptr_t)registered_by)
        transport_end_process(status);
}

gtopk_status_t gtopk_finalize_at_exit(void)
{
    static _Atomic int registered;
    if (atomic_exchange(&registered, (int)getpid()) == (int)getpid())
        return GTOPK_OK;
    if (on_exit(end_process, (void *)(intptr_t)getpid()) != 0)
        return status_set(GTOPK_ERR_NOMEM, "the system takes no more functions to be called by exit()");
    return GTOPK_OK;
}
