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

static gtopk_status_t device_passed(void *device, void *stream, int *passed)
{
    device_t *self = device;
    return self->ops->passed(self, stream, passed);
}

static gtopk_status_t device_enter(void *device)
{
    device_t *self = device;
    return self->ops->enter(self);
}

static void device_leave(void *device)
{
    device_t *self = device;
    self->ops->leave(self);
}

static void device_halt(void *device)
{
    device_t *self = device;
    self->ops->halt(self);
}

/* The device that GTOPK_DEVICE names, if it is one with memory of its own, else the GPU. */
static gtopk_status_t find_device(gtopk_comm_t *comm, device_t **device)
{
    const gtopk_status_t status = comm_device(comm, NULL, device);
    if (status == GTOPK_OK && (*device)->ops->host_memory)
        return comm_device(comm, "cuda", device);
    return status;
}

static gtopk_status_t open_and_connect(gtopk_comm_t *comm, transport_data_config_t *config, const uint8_t *key)
{
    link_t *link = &comm->link;
    device_t *device = config->device.device;
    config->deadline = link_deadline(link) - link->timeout + fmin(OPEN_SECONDS, OPEN_SHARE * link->timeout);
    gtopk_status_t status = transport_data_open(config, key, &link->data);
    if (status != GTOPK_OK) {
        link->data = link->control;
        return status;
    }
    return exchange_connect(device, link, config->deadline);
}

/* The device has been halted: reducers get another one. */
static void close_again(gtopk_comm_t *comm, device_t *device)
{
    link_t *link = &comm->link;
    if (link->data != link->control)
        link->data->ops->close(link->data);
    link->data = link->control;
    comm_forget_device(comm, device);
}

static gtopk_status_t open_named(gtopk_comm_t *comm, const char *name, const char *library)
{
    link_t *link = &comm->link;
    uint8_t key[TRANSPORT_KEY] = {0};
    device_t *device;
    transport_data_config_t config = {.name = name, .library = library, .control = link->control};
    gtopk_status_t status = find_device(comm, &device);
    if (status == GTOPK_OK) {
        config.device = (transport_device_t){device, device_passed, device_enter, device_leave, device_halt};
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
        close_again(comm, device);
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
