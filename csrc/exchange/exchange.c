/* The algorithms by their numbers, and what all of them begin with. */
#include "exchange/exchange.h"

#include "util/clock.h"
#include "util/memory.h"

static const exchange_ops_t *const exchanges[] = {
    [GTOPK_ALGORITHM_DENSE] = &exchange_dense,
    [GTOPK_ALGORITHM_TOPK] = &exchange_topk,
    [GTOPK_ALGORITHM_GTOPK] = &exchange_gtopk,
    [GTOPK_ALGORITHM_GTOPK_TREE] = &exchange_gtopk_tree,
    [GTOPK_ALGORITHM_GTOPK_SPLIT] = &exchange_gtopk_split,
};

_Static_assert(sizeof exchanges / sizeof *exchanges == WIRE_ALGORITHMS, "messages name an algorithm by its number");

const exchange_ops_t *exchange_find(int32_t algorithm)
{
    return algorithm >= 0 && algorithm < WIRE_ALGORITHMS ? exchanges[algorithm] : NULL;
}

gtopk_status_t exchange_allocate(void *out, size_t bytes, const exchange_ops_t *ops, const exchange_setup_t *setup)
{
    exchange_t *exchange;
    const gtopk_status_t status = memory_alloc(&exchange, 1, bytes, "an exchange");
    if (status != GTOPK_OK)
        return status;
    exchange->ops = ops;
    exchange->setup = *setup;
    *(exchange_t **)out = exchange;
    return GTOPK_OK;
}

gtopk_status_t exchange_select(const exchange_t *exchange, exchange_step_t *step, device_set_t *selected)
{
    const exchange_setup_t *setup = &exchange->setup;
    const double start = clock_now();
    const gtopk_status_t status = setup->device->ops->select(setup->store, setup->config.k, selected, step->words,
                                                             step->stream);
    step->select_s = clock_now() - start;
    return status;
}
