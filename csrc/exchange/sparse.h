/* Runs one sparse exchange: a rank's selected set in, the final set and the journal out. Nothing here touches the
 * residual. All memory is allocated by sparse_create. */
#ifndef GTOPK_EXCHANGE_SPARSE_H
#define GTOPK_EXCHANGE_SPARSE_H

#include "device/device.h"
#include "exchange/link.h"

typedef struct sparse sparse_t;

/* What an exchange is made for. algorithm `dense` gives the butterfly for bare headers: k is then 0. */
typedef struct sparse_config {
    gtopk_algorithm_t algorithm;
    gtopk_value_type_t value_type;
    gtopk_residual_policy_t policy;
    double growth;
    uint64_t dim, k;
    uint32_t reducer; /* id, the same on all ranks */
} sparse_config_t;

gtopk_status_t sparse_create(sparse_t **sparse, device_t *device, link_t *link, const sparse_config_t *config);
void sparse_destroy(sparse_t *sparse);

/* Where select writes: capacity k. */
device_set_t *sparse_selected(sparse_t *sparse);

/* Entries that the final set may have. */
uint64_t sparse_max_count(const sparse_t *sparse);

/* Exchanges the selected set (with one rank: nothing to exchange, nothing quantised). On success *journal is complete
 * and points into `sparse` until the next call. words: flags in and out. */
gtopk_status_t sparse_run(sparse_t *sparse, uint64_t step, uint32_t config_hash, double deadline, device_words_t *words,
                          device_journal_t *journal);

#endif
