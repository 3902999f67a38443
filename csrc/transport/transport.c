/* The transports by name. What is behind a name, this file does not know. */
#include "transport/transport.h"

#include <string.h>

#include "transport/mpi.h"

typedef struct named_transport {
    const char *name;
    gtopk_status_t (*open)(const gtopk_comm_config_t *config, transport_t **transport);
} named_transport_t;

static const named_transport_t TRANSPORTS[] = {
    {"self", transport_self_open},
    {"thread", transport_thread_open},
    {"callback", transport_callback_open},
    {"mpi", transport_mpi_open},
};

static gtopk_status_t open_one(const named_transport_t *named, const gtopk_comm_config_t *config,
                               transport_t **transport)
{
    const gtopk_status_t status = named->open(config, transport);
    if (status == GTOPK_OK) {
        (*transport)->interrupt = config->interrupt;
        (*transport)->interrupt_context = config->interrupt_context;
    }
    return status;
}

gtopk_status_t transport_open(const gtopk_comm_config_t *config, transport_t **transport)
{
    const char *name = config->transport ? config->transport : "self";
    *transport = NULL;
    for (size_t i = 0; i < sizeof TRANSPORTS / sizeof TRANSPORTS[0]; i++)
        if (strcmp(name, TRANSPORTS[i].name) == 0)
            return open_one(&TRANSPORTS[i], config, transport);
    return status_set(GTOPK_ERR_INVALID, "there is no transport '%s': use self, thread, callback or mpi", name);
}

static gtopk_status_t check_data(const transport_data_config_t *config)
{
    if (strcmp(config->name, "nccl") == 0 || strcmp(config->name, "auto") == 0)
        return GTOPK_OK;
    return status_set(GTOPK_ERR_INVALID, "there is no data transport '%s': use nccl, or auto, or none", config->name);
}

gtopk_status_t transport_data_prepare(const transport_data_config_t *config, uint8_t key[TRANSPORT_KEY])
{
    const gtopk_status_t status = check_data(config);
    return status == GTOPK_OK ? transport_nccl_prepare(config, key) : status;
}

gtopk_status_t transport_data_open(const transport_data_config_t *config, const uint8_t key[TRANSPORT_KEY],
                                   transport_t **transport)
{
    *transport = NULL;
    const gtopk_status_t status = transport_nccl_open(config, key, transport);
    if (status == GTOPK_OK) {
        (*transport)->interrupt = config->control->interrupt;
        (*transport)->interrupt_context = config->control->interrupt_context;
    }
    return status;
}

gtopk_status_t transport_finalize(void)
{
    return transport_mpi_finalize();
}

void transport_end_process(int status)
{
    transport_mpi_end_process(status);
}
