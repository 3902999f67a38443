/* The dense baseline: bare headers along the butterfly (flags, step, configuration), then an all-reduce. */
#ifndef GTOPK_EXCHANGE_DENSE_H
#define GTOPK_EXCHANGE_DENSE_H

#include "exchange/sparse.h"

/* `headers` was created for algorithm dense; `buffer` holds dim floats. Unless a rank has set NONFINITE or all have
 * JOINED, `buffer` becomes the sum of all residuals, and a sum that is not finite sets NONFINITE. The residual is not
 * touched. */
gtopk_status_t dense_run(sparse_t *headers, link_t *link, device_t *device, device_store_t *store, float *buffer,
                         uint64_t dim, uint64_t step, uint32_t config_hash, device_words_t *words);

#endif
