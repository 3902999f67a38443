/* The dense baseline: bare headers along the butterfly, because an all-reduce cannot carry flags, step and configuration,
 * then an all-reduce of the residuals. A step that is going to be dropped is all-reduced as well: the host does not know
 * of it yet. */
#include "exchange/collective.h"
#include "exchange/exchange.h"
#include "exchange/message.h"
#include "exchange/rounds.h"
#include "util/clock.h"
#include "util/memory.h"

typedef struct dense {
    exchange_t base;
    exchange_t *headers;
    float *sum; /* dim floats where the data transport takes them */
} dense_t;

static void dense_destroy(exchange_t *exchange)
{
    dense_t *dense = (dense_t *)exchange;
    if (!dense)
        return;
    if (dense->headers)
        dense->headers->ops->destroy(dense->headers);
    message_release(&exchange->setup, dense->sum);
    memory_free(dense);
}

static gtopk_status_t dense_create(exchange_t **out, const exchange_setup_t *setup)
{
    dense_t *dense;
    exchange_setup_t headers = *setup;
    headers.config.k = 0;
    gtopk_status_t status = exchange_allocate(&dense, sizeof *dense, &exchange_dense, setup);
    if (status != GTOPK_OK)
        return status;
    status = message_allocate(setup, (size_t)setup->config.dim * sizeof *dense->sum, "the dense all-reduce",
                              &dense->sum);
    if (status == GTOPK_OK)
        status = rounds_create_headers(&dense->headers, &headers);
    if (status != GTOPK_OK) {
        dense_destroy(&dense->base);
        return status;
    }
    *out = &dense->base;
    return GTOPK_OK;
}

static gtopk_status_t add_up(dense_t *dense, const exchange_step_t *step)
{
    const exchange_setup_t *setup = &dense->base.setup;
    const device_ops_t *ops = setup->device->ops;
    gtopk_status_t status = ops->dense_gather(setup->store, dense->sum, step->stream);
    if (status == GTOPK_OK)
        status = message_flush(setup, step);
    if (status == GTOPK_OK)
        status = collective_sum(setup->link, message_transport(setup), &setup->places, dense->sum,
                                (size_t)setup->config.dim, step->stream);
    if (status == GTOPK_OK)
        status = ops->dense_check(setup->store, dense->sum, step->words, step->stream);
    if (status != GTOPK_OK)
        status = status_prefix(status, "step %llu, all-reduce of dense", (unsigned long long)step->number);
    return status;
}

static gtopk_status_t dense_run(exchange_t *exchange, exchange_step_t *step)
{
    dense_t *dense = (dense_t *)exchange;
    const double start = clock_now();
    gtopk_status_t status = dense->headers->ops->run(dense->headers, step);
    if (status == GTOPK_OK)
        status = add_up(dense, step);
    step->final = NULL;
    step->exchange_s = clock_now() - start;
    return status;
}

static gtopk_status_t dense_commit(exchange_t *exchange, const exchange_step_t *step, const device_target_t *target)
{
    const exchange_setup_t *setup = &exchange->setup;
    return setup->device->ops->dense_commit(setup->store, ((dense_t *)exchange)->sum, setup->places.contributors,
                                            target, step->words, step->stream);
}

static uint64_t dense_max_count(const exchange_t *exchange)
{
    return exchange->setup.config.dim;
}

const exchange_ops_t exchange_dense = {
    .name = "dense",
    .create = dense_create,
    .run = dense_run,
    .commit = dense_commit,
    .max_count = dense_max_count,
    .destroy = dense_destroy,
};
