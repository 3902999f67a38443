/* Checks that blocks on host memory and on devices share. */
#ifndef GTOPK_CORE_BLOCKS_H
#define GTOPK_CORE_BLOCKS_H

#include "device/device.h"

/* Room for `needed` entries. */
gtopk_status_t blocks_check_room(const char *call, const gtopk_set_t *set, uint64_t needed);

/* Strictly increasing indices below dim, finite non-zero values. Of host memory. */
gtopk_status_t blocks_check_set(const char *call, const char *name, const gtopk_set_t *set, uint64_t dim);

/* The arguments of select, whose set becomes empty; *kept is how many entries it is to find. */
gtopk_status_t blocks_check_select(const char *call, const float *x, uint64_t n, uint64_t k, gtopk_set_t *set,
                                   uint64_t *kept);

/* Of values that select found: what is not finite has the largest keys, so it would have been selected. */
gtopk_status_t blocks_check_finite(const float *values, uint32_t count);

#endif
