/* Dense step: flags first, because an all-reduce cannot carry them and would spread a NaN. */
#include "exchange/dense.h"

#include "exchange/collective.h"

gtopk_status_t dense_run(sparse_t *headers, link_t *link, device_t *device, device_store_t *store, float *buffer,
                         uint64_t dim, uint64_t step, uint32_t config_hash, device_words_t *words)
{
    device_journal_t unused;
    gtopk_status_t status = sparse_run(headers, step, config_hash, link_deadline(link), words, &unused);
    if (status != GTOPK_OK || words->nonfinite || words->joined)
        return status;
    status = device->ops->dense_gather(store, buffer, NULL);
    if (status == GTOPK_OK)
        status = collective_sum(link, buffer, dim);
    if (status == GTOPK_OK)
        status = device->ops->dense_check(store, buffer, words, NULL);
    if (status != GTOPK_OK)
        status = status_prefix(status, "step %llu, all-reduce of dense", (unsigned long long)step);
    return status;
}
