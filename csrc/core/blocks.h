/* Blocks for other layers than the public API. */
#ifndef GTOPK_CORE_BLOCKS_H
#define GTOPK_CORE_BLOCKS_H

#include "device/device.h"

/* gtopk_select on the caller's threads. */
gtopk_status_t blocks_select(const float *x, uint64_t n, uint64_t k, gtopk_set_t *set,
                             const device_parallel_t *parallel);

#endif
