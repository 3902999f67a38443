/* Memory of sets. */
#ifndef GTOPK_EXCHANGE_SETS_H
#define GTOPK_EXCHANGE_SETS_H

#include "device/device.h"

/* An empty set with room for `capacity` entries. On failure it is one that set_release accepts. */
gtopk_status_t set_allocate(device_t *device, device_set_t *set, uint64_t capacity);

/* Sets of zeros are accepted. */
void set_release(device_t *device, device_set_t *set);

/* Room for the union of two sets, before equal indices are added up: UNSUPPORTED when 32 bits cannot count it. */
gtopk_status_t set_allocate_union(device_t *device, device_set_t *set, uint64_t a, uint64_t b);

static inline uint64_t set_at_most(uint64_t limit, uint64_t value)
{
    return value < limit ? value : limit;
}

#endif
