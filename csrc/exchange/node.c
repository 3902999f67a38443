/* Two exchanges as one: whatever the algorithm is, between the ranks of all nodes that have the same share; then its
 * update goes to the other ranks of the node, in float, so that all have the same bits. */
#include "exchange/node.h"

#include "exchange/message.h"
#include "exchange/sets.h"
#include "util/clock.h"
#include "util/memory.h"

typedef struct node {
    exchange_t base; /* its setup: the places of the node, and values in float */
    exchange_t *share;
    uint64_t dim, most; /* all entries; how many an update of a share has at most */
    size_t capacity;    /* of a message */
    uint8_t *out, *gathered;
    device_set_t decoded, all; /* the update of one share; that of all */
    device_span_t *spans;      /* of the target, as far as they are in this rank's share */
} node_t;

/* ---- life ---- */

static void node_destroy(exchange_t *exchange)
{
    node_t *node = (node_t *)exchange;
    if (!node)
        return;
    if (node->share)
        node->share->ops->destroy(node->share);
    message_release(&exchange->setup, node->out);
    message_release(&exchange->setup, node->gathered);
    set_release(exchange->setup.device, &node->decoded);
    set_release(exchange->setup.device, &node->all);
    memory_free(node->spans);
    memory_free(node);
}

static uint64_t node_max_count(const exchange_t *exchange)
{
    const node_t *node = (const node_t *)exchange;
    return set_at_most(node->dim, node->most * (uint64_t)exchange->setup.places.size);
}

static message_bounds_t bounds_of(const node_t *node)
{
    return (message_bounds_t){node->base.setup.config.dim, (uint32_t)node->most};
}

static gtopk_status_t allocate(node_t *node, const node_setup_t *setup)
{
    const exchange_setup_t *base = &node->base.setup;
    gtopk_status_t status = exchange_find(setup->share.config.algorithm)->create(&node->share, &setup->share);
    if (status != GTOPK_OK)
        return status;
    node->most = node->share->ops->max_count(node->share);
    node->capacity = message_capacity(base, bounds_of(node));
    status = message_allocate(base, node->capacity, "a send buffer", &node->out);
    if (status == GTOPK_OK)
        status = message_allocate(base, node->capacity * (size_t)base->places.size, "the updates of a node",
                                  &node->gathered);
    if (status == GTOPK_OK)
        status = set_allocate(base->device, &node->decoded, node->most);
    if (status == GTOPK_OK)
        status = set_allocate(base->device, &node->all, node->most * (uint64_t)base->places.size);
    if (status == GTOPK_OK)
        status = memory_alloc(&node->spans, setup->segments, sizeof *node->spans, "the outputs of a share");
    return status;
}

static const exchange_ops_t node_ops;

gtopk_status_t node_create(exchange_t **out, const node_setup_t *setup)
{
    exchange_setup_t base = setup->share;
    node_t *node;
    base.places = setup->node;
    base.config.value_type = GTOPK_VALUE_F32;
    gtopk_status_t status = exchange_allocate(&node, sizeof *node, &node_ops, &base);
    if (status != GTOPK_OK)
        return status;
    node->dim = setup->dim;
    status = allocate(node, setup);
    if (status != GTOPK_OK) {
        node_destroy(&node->base);
        return status;
    }
    *out = &node->base;
    return GTOPK_OK;
}

/* ---- one step ---- */

static uint8_t *message_of(const node_t *node, int32_t place)
{
    return node->gathered + (size_t)place * node->capacity;
}

static gtopk_status_t gather(node_t *node, const exchange_step_t *step, const device_set_t *update)
{
    const exchange_setup_t *setup = &node->base.setup;
    const wire_header_t header = message_header(setup, step, NODE_UPDATE, bounds_of(node));
    gtopk_status_t status = setup->device->ops->encode(setup->device, update, &header, node->out, &node->decoded,
                                                       step->words, step->stream);
    if (status == GTOPK_OK)
        status = message_gather(setup, step, NODE_UPDATE, bounds_of(node), node->out, node->gathered, node->capacity);
    if (status != GTOPK_OK)
        status = status_prefix(status, "step %llu, update of the node", (unsigned long long)step->number);
    return status;
}

/* The updates of all shares behind each other: their entries are in order then. */
static gtopk_status_t join(node_t *node, const exchange_step_t *step, const device_set_t *update)
{
    const exchange_setup_t *setup = &node->base.setup;
    const device_ops_t *ops = setup->device->ops;
    gtopk_status_t status = GTOPK_OK;
    for (int32_t from = 0; from < setup->places.size && status == GTOPK_OK; from++) {
        const device_set_t *set = update;
        if (from != setup->places.place) {
            const wire_expect_t expect = message_expect(setup, step, from, NODE_UPDATE, bounds_of(node));
            status = ops->decode(setup->device, message_of(node, from), node->capacity, &expect, &node->decoded,
                                 step->words, step->stream);
            set = &node->decoded;
        }
        if (status == GTOPK_OK && from == 0)
            status = ops->copy_set(setup->device, set, &node->all, step->words, step->stream);
        else if (status == GTOPK_OK)
            status = ops->append(setup->device, set, (uint32_t)((uint64_t)from * setup->config.dim), &node->all,
                                 step->words, step->stream);
    }
    return status;
}

static gtopk_status_t node_run(exchange_t *exchange, exchange_step_t *step)
{
    node_t *node = (node_t *)exchange;
    gtopk_status_t status = node->share->ops->run(node->share, step);
    const device_set_t *update = step->final;
    const double start = clock_now();
    if (status == GTOPK_OK)
        status = gather(node, step, update);
    if (status == GTOPK_OK)
        status = join(node, step, update);
    step->final = &node->all;
    step->exchange_s += clock_now() - start;
    return status;
}

/* The parts of a target's spans that are in this rank's share, with the indices of the share. */
static device_target_t own_part(const node_t *node, const device_target_t *target)
{
    const exchange_setup_t *setup = &node->base.setup;
    const uint64_t begin = (uint64_t)setup->places.place * setup->config.dim, end = begin + setup->config.dim;
    size_t count = 0;
    for (size_t s = 0; s < target->count; s++) {
        const device_span_t part = device_span_part(&target->spans[s], begin, end);
        if (part.length > 0)
            node->spans[count++] = part;
    }
    return (device_target_t){.spans = node->spans, .count = count, .are_zero = 1};
}

/* Everything is written; then once more what is in the share, as what an output cannot hold of it goes to the residual. */
static gtopk_status_t node_commit(exchange_t *exchange, const exchange_step_t *step, const device_target_t *target)
{
    const node_t *node = (const node_t *)exchange;
    const exchange_setup_t *setup = &exchange->setup;
    const device_target_t mine = own_part(node, target);
    const uint32_t contributors = node->share->setup.places.contributors;
    const gtopk_status_t status = setup->device->ops->write(setup->device, &node->all, contributors, target,
                                                            step->words, step->stream);
    return status == GTOPK_OK ? node->share->ops->commit(node->share, step, &mine) : status;
}

static const exchange_ops_t node_ops = {
    .name = "node",
    .selects = 1,
    .create = NULL, /* by node_create */
    .run = node_run,
    .commit = node_commit,
    .max_count = node_max_count,
    .destroy = node_destroy,
};
