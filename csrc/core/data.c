#include "core/data.h"

#include <math.h>
#include <string.h>

#include "exchange/collective.h"
#include "exchange/exchange.h"
#include "util/log.h"

/* All ranks have just said that they are ready. One that fails waits for the others' answers meanwhile, so they give up
 * before that one does. */
#define OPEN_SECONDS 120.0
#define OPEN_SHARE 0.5

/* What the transport is given for a device. */

static gtopk_status_t device_passed(void *comm, void *stream, int *passed)
{
    device_t *device = ((gtopk_comm_t *)comm)->data_device;
    return device->ops->passed(device, stream, passed);
}

static gtopk_status_t device_enter(void *comm)
{
    device_t *device = ((gtopk_comm_t *)comm)->data_device;
    return device->ops->enter(device);
}

static void device_leave(void *comm)
{
    device_t *device = ((gtopk_comm_t *)comm)->data_device;
    device->ops->leave(device);
}

static void device_halt(void *comm)
{
    const gtopk_comm_t *self = comm;
    comm_halt(self, self->data_device->name);
}

/* The device that GTOPK_DEVICE names, if it is one with memory of its own, else the GPU. */
static gtopk_status_t find_device(gtopk_comm_t *comm, device_t **device)
{
    const gtopk_status_t status = comm_device(comm, NULL, NULL, device);
    if (status == GTOPK_OK && (*device)->ops->host_memory)
        return comm_device(comm, "cuda", NULL, device);
    return status;
}

static gtopk_status_t open_and_connect(gtopk_comm_t *comm, transport_data_config_t *config, const uint8_t *key)
{
    link_t *link = &comm->link;
    config->deadline = link_deadline(link) - link->timeout + fmin(OPEN_SECONDS, OPEN_SHARE * link->timeout);
    gtopk_status_t status = transport_data_open(config, key, &link->data);
    if (status != GTOPK_OK) {
        link->data = link->control;
        return status;
    }
    return exchange_connect(comm->data_device, link, config->deadline);
}

/* The device has been halted: reducers get another one. */
static void close_again(gtopk_comm_t *comm)
{
    link_t *link = &comm->link;
    if (link->data != link->control)
        link->data->ops->close(link->data);
    link->data = link->control;
    comm_forget_device(comm, comm->data_device);
    comm->data_device = NULL;
}

static gtopk_status_t open_named(gtopk_comm_t *comm, const char *name, const char *library)
{
    link_t *link = &comm->link;
    uint8_t key[TRANSPORT_KEY] = {0};
    transport_data_config_t config = {.name = name, .library = library, .control = link->control};
    gtopk_status_t status = find_device(comm, &comm->data_device);
    if (status == GTOPK_OK) {
        config.device = (transport_device_t){
            comm, comm->data_device->name, device_passed, device_enter, device_leave, device_halt};
        status = transport_data_prepare(&config, key);
    }
    status = comm_agree(comm, status, "preparing the data transport");
    if (status != GTOPK_OK)
        return status;
    status = comm_settle(comm, collective_broadcast(link, key, sizeof key, 0), 0);
    if (status != GTOPK_OK)
        return status;
    status = comm_agree(comm, open_and_connect(comm, &config, key), "opening the data transport");
    if (status != GTOPK_OK)
        close_again(comm);
    return status;
}

gtopk_status_t data_open(gtopk_comm_t *comm, const gtopk_comm_config_t *config)
{
    const char *name = config->data;
    if (!name || !*name)
        return GTOPK_OK;
    const gtopk_status_t status = open_named(comm, name, config->data_library);
    if (status == GTOPK_OK || strcmp(name, "auto") != 0 || link_check_alive(&comm->link) != GTOPK_OK)
        return status;
    LOG(GTOPK_LOG_INFO, "rank %d: messages go over %s: %s", (int)comm_rank(comm), comm->link.control->ops->name,
        gtopk_last_error());
    return GTOPK_OK;
}
