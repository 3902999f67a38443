/* Messages on their way out. */
#include "exchange/message.h"

transport_t *message_transport(const exchange_setup_t *setup)
{
    return link_transport(setup->link, setup->device->name);
}

static int has_tail(const exchange_setup_t *setup)
{
    return message_transport(setup)->ops->stream_ordered;
}

gtopk_status_t message_allocate(const exchange_setup_t *setup, size_t bytes, const char *what, void *out)
{
    const device_ops_t *ops = setup->device->ops;
    void *block = NULL;
    const gtopk_status_t status = message_transport(setup)->ops->device_memory
                                      ? ops->allocate(setup->device, bytes, what, &block)
                                      : ops->allocate_pinned(setup->device, bytes, what, &block);
    *(void **)out = block;
    return status;
}

void message_release(const exchange_setup_t *setup, void *block)
{
    const device_ops_t *ops = setup->device->ops;
    if (setup->link->buffers_lost)
        return;
    if (message_transport(setup)->ops->device_memory)
        ops->release(setup->device, block);
    else
        ops->release_pinned(setup->device, block);
}

size_t message_capacity(const exchange_setup_t *setup, message_bounds_t bounds)
{
    const size_t capacity = wire_message_capacity(bounds.dim, bounds.k, (int)setup->config.value_type);
    return has_tail(setup) ? wire_tailed_capacity(capacity) : capacity;
}

wire_header_t message_header(const exchange_setup_t *setup, const exchange_step_t *step, uint16_t round,
                             message_bounds_t bounds)
{
    return (wire_header_t){
        .value_type = (uint8_t)setup->config.value_type,
        .algorithm = (uint8_t)setup->config.algorithm,
        .flags = has_tail(setup) ? WIRE_TAIL : 0,
        .round = round,
        .sender = (uint32_t)setup->places.ranks[setup->places.place],
        .epoch = setup->link->epoch,
        .reducer = setup->config.reducer,
        .k = bounds.k,
        .dim = (uint32_t)bounds.dim,
        .config_hash = step->config_hash,
        .step = step->number,
        .scale = 1.0f,
    };
}

wire_expect_t message_expect(const exchange_setup_t *setup, const exchange_step_t *step, int32_t from, uint16_t round,
                             message_bounds_t bounds)
{
    return (wire_expect_t){
        .algorithm = (uint8_t)setup->config.algorithm,
        .value_type = (uint8_t)setup->config.value_type,
        .round = round,
        .tail = (uint32_t)has_tail(setup),
        .sender = (uint32_t)setup->places.ranks[from],
        .epoch = setup->link->epoch,
        .reducer = setup->config.reducer,
        .config_hash = step->config_hash,
        .dim = (uint32_t)bounds.dim,
        .k = bounds.k,
        .step = step->number,
    };
}

gtopk_status_t message_flush(const exchange_setup_t *setup, const exchange_step_t *step)
{
    if (message_transport(setup)->ops->stream_ordered)
        return GTOPK_OK;
    return setup->device->ops->synchronize(setup->device, step->stream);
}

gtopk_status_t message_carry(const exchange_setup_t *setup, const exchange_step_t *step, const message_route_t *route)
{
    const int32_t *ranks = setup->places.ranks;
    link_message_t message = {.to = TRANSPORT_NONE, .from = TRANSPORT_NONE};
    wire_expect_t expect = {.round = route->round};
    if (route->to != TRANSPORT_NONE) {
        message.to = ranks[route->to];
        message.send = route->send;
        message.send_capacity = message_capacity(setup, route->out);
    }
    if (route->from != TRANSPORT_NONE) {
        message.from = ranks[route->from];
        message.receive = route->receive;
        message.receive_capacity = message_capacity(setup, route->in);
        expect = message_expect(setup, step, route->from, route->round, route->in);
    }
    const gtopk_status_t status = message_flush(setup, step);
    if (status != GTOPK_OK)
        return status;
    return link_exchange(setup->link, message_transport(setup), &message, step->deadline, &expect, NULL, step->stream);
}

/* One to the right and one from the left, at growing distance. */
gtopk_status_t message_gather(const exchange_setup_t *setup, const exchange_step_t *step, uint16_t round,
                              message_bounds_t bounds, uint8_t *send, uint8_t *gathered, size_t capacity)
{
    const int32_t size = setup->places.size, place = setup->places.place;
    gtopk_status_t status = GTOPK_OK;
    for (int32_t shift = 1; shift < size && status == GTOPK_OK; shift++) {
        const int32_t from = (place - shift + size) % size;
        const message_route_t route = {
            .to = (place + shift) % size,
            .from = from,
            .round = round,
            .out = bounds,
            .in = bounds,
            .send = send,
            .receive = gathered + (size_t)from * capacity,
        };
        status = message_carry(setup, step, &route);
    }
    return status;
}
