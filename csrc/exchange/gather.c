/* topk: every rank gets every rank's selected set, and adds all of them up in the order of ranks. */
#include "exchange/exchange.h"
#include "exchange/message.h"
#include "exchange/sets.h"
#include "util/clock.h"
#include "util/memory.h"

typedef struct gather {
    exchange_t base;
    uint64_t max_count;
    size_t capacity;       /* of a message */
    device_set_t selected; /* what this rank chose */
    device_set_t first;    /* what the others decode of it */
    device_set_t incoming, all, sums[2];
    uint8_t *out, *gathered; /* this rank's message; one of each place */
    device_set_t *sum;       /* of the step under way */
} gather_t;

/* ---- life ---- */

static message_bounds_t bounds_of(const exchange_setup_t *setup)
{
    return (message_bounds_t){setup->config.dim, (uint32_t)setup->config.k};
}

static gtopk_status_t allocate(gather_t *gather)
{
    const exchange_setup_t *setup = &gather->base.setup;
    device_t *device = setup->device;
    const uint64_t k = setup->config.k;
    gtopk_status_t status = set_allocate(device, &gather->selected, k);
    if (status == GTOPK_OK && setup->places.size == 1)
        return status;
    if (status == GTOPK_OK)
        status = set_allocate(device, &gather->first, k);
    if (status == GTOPK_OK)
        status = set_allocate(device, &gather->incoming, k);
    if (status == GTOPK_OK)
        status = set_allocate(device, &gather->sums[0], gather->max_count);
    if (status == GTOPK_OK)
        status = set_allocate(device, &gather->sums[1], gather->max_count);
    if (status == GTOPK_OK)
        status = set_allocate_union(device, &gather->all, gather->max_count, k);
    if (status == GTOPK_OK)
        status = message_allocate(setup, gather->capacity, "a send buffer", &gather->out);
    if (status == GTOPK_OK)
        status = message_allocate(setup, gather->capacity * (size_t)setup->places.size,
                                  "the messages that topk gathers", &gather->gathered);
    return status;
}

static void gather_destroy(exchange_t *exchange)
{
    gather_t *gather = (gather_t *)exchange;
    if (!gather)
        return;
    device_set_t *sets[] = {&gather->selected, &gather->first,   &gather->incoming,
                            &gather->all,      &gather->sums[0], &gather->sums[1]};
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        set_release(exchange->setup.device, sets[i]);
    message_release(&exchange->setup, gather->out);
    message_release(&exchange->setup, gather->gathered);
    memory_free(gather);
}

static gtopk_status_t gather_create(exchange_t **out, const exchange_setup_t *setup)
{
    gather_t *gather;
    const exchange_config_t *config = &setup->config;
    gtopk_status_t status = exchange_allocate(&gather, sizeof *gather, &exchange_topk, setup);
    if (status != GTOPK_OK)
        return status;
    gather->max_count = set_at_most(config->dim, config->k * (uint64_t)setup->places.size);
    gather->capacity = message_capacity(setup, bounds_of(setup));
    status = allocate(gather);
    if (status != GTOPK_OK) {
        gather_destroy(&gather->base);
        return status;
    }
    *out = &gather->base;
    return GTOPK_OK;
}

static uint64_t gather_max_count(const exchange_t *exchange)
{
    return ((const gather_t *)exchange)->max_count;
}

/* ---- one step ---- */

static uint8_t *message_of(const gather_t *gather, int32_t place)
{
    return gather->gathered + (size_t)place * gather->capacity;
}

/* The transport's own all-gather is one of all its ranks. */
static int transport_gathers(const exchange_setup_t *setup)
{
    const transport_t *transport = message_transport(setup);
    return transport->ops->allgather && setup->places.size == transport->size;
}

/* One message of every place, in gather->gathered. */
static gtopk_status_t gather_messages(gather_t *gather, const exchange_step_t *step)
{
    const exchange_setup_t *setup = &gather->base.setup;
    if (!transport_gathers(setup))
        return message_gather(setup, step, 0, bounds_of(setup), gather->out, gather->gathered, gather->capacity);
    gtopk_status_t status = message_flush(setup, step);
    if (status == GTOPK_OK)
        status = link_allgather(setup->link, message_transport(setup), gather->out, gather->capacity, gather->gathered,
                                step->deadline, step->stream);
    for (int32_t from = 0; from < setup->places.size && status == GTOPK_OK; from++) {
        const wire_expect_t expect = message_expect(setup, step, from, 0, bounds_of(setup));
        if (from != setup->places.place)
            status = link_check_gathered(setup->link, message_transport(setup), message_of(gather, from),
                                         gather->capacity, &expect);
    }
    return status;
}

/* Adds up the sets in the order of ranks, own included, so that all ranks compute the same bits. */
static gtopk_status_t add_up(gather_t *gather, const exchange_step_t *step)
{
    const exchange_setup_t *setup = &gather->base.setup;
    device_t *device = setup->device;
    device_set_t *next = &gather->sums[1];
    gtopk_status_t status = GTOPK_OK;
    gather->sum = &gather->sums[0];
    for (int32_t from = 0; from < setup->places.size && status == GTOPK_OK; from++) {
        const device_set_t *set = &gather->first;
        if (from != setup->places.place) {
            const wire_expect_t expect = message_expect(setup, step, from, 0, bounds_of(setup));
            status = device->ops->decode(device, message_of(gather, from), gather->capacity, &expect, &gather->incoming,
                                         step->words, step->stream);
            set = &gather->incoming;
        }
        if (status == GTOPK_OK && from == 0) {
            status = device->ops->copy_set(device, set, gather->sum, step->words, step->stream);
        } else if (status == GTOPK_OK) {
            status = device->ops->merge(device, gather->sum, set, gather->max_count, next, &gather->all, step->words,
                                        step->stream);
            device_set_t *swap = gather->sum;
            gather->sum = next;
            next = swap;
        }
    }
    return status;
}

static gtopk_status_t exchange_selected(gather_t *gather, const exchange_step_t *step)
{
    const exchange_setup_t *setup = &gather->base.setup;
    const wire_header_t header = message_header(setup, step, 0, bounds_of(setup));
    gtopk_status_t status = setup->device->ops->encode(setup->device, &gather->selected, &header, gather->out,
                                                       &gather->first, step->words, step->stream);
    if (status == GTOPK_OK)
        status = gather_messages(gather, step);
    if (status == GTOPK_OK)
        status = add_up(gather, step);
    if (status != GTOPK_OK)
        status = status_prefix(status, "step %llu, all-gather of topk", (unsigned long long)step->number);
    return status;
}

static gtopk_status_t gather_run(exchange_t *exchange, exchange_step_t *step)
{
    gather_t *gather = (gather_t *)exchange;
    gtopk_status_t status = exchange_select(exchange, step, &gather->selected);
    const double start = clock_now();
    gather->sum = &gather->selected;
    if (status == GTOPK_OK && exchange->setup.places.size > 1)
        status = exchange_selected(gather, step);
    step->final = gather->sum;
    step->exchange_s = clock_now() - start;
    return status;
}

/* There are no merges that drop: everything that was sent arrives, and nothing is deposited. */
static gtopk_status_t gather_commit(exchange_t *exchange, const exchange_step_t *step, const device_target_t *target)
{
    const gather_t *gather = (const gather_t *)exchange;
    const exchange_setup_t *setup = &exchange->setup;
    const device_journal_t journal = {
        .selected = gather->selected,
        .first = setup->places.size == 1 ? gather->selected : gather->first,
        .final = *gather->sum,
        .divisor = setup->places.contributors,
        .others = places_others(&setup->places),
    };
    return setup->device->ops->commit(setup->store, &journal, target, step->words, step->stream);
}

const exchange_ops_t exchange_topk = {
    .name = "topk",
    .selects = 1,
    .create = gather_create,
    .run = gather_run,
    .commit = gather_commit,
    .max_count = gather_max_count,
    .destroy = gather_destroy,
};
