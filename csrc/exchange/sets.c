/* Sets: allocated and released. */
#include "exchange/sets.h"

gtopk_status_t set_allocate(device_t *device, device_set_t *set, uint64_t capacity)
{
    void *index = NULL, *value = NULL, *count = NULL;
    gtopk_status_t status = device->ops->allocate(device, (capacity + 1) * sizeof(uint32_t), "a set's indices", &index);
    if (status == GTOPK_OK)
        status = device->ops->allocate(device, (capacity + 1) * sizeof(float), "a set's values", &value);
    if (status == GTOPK_OK)
        status = device->ops->allocate(device, sizeof(uint32_t), "a set's count", &count);
    *set = (device_set_t){.index = index, .value = value, .count = count, .capacity = (uint32_t)capacity};
    return status;
}

void set_release(device_t *device, device_set_t *set)
{
    device->ops->release(device, set->index);
    device->ops->release(device, set->value);
    device->ops->release(device, set->count);
    *set = (device_set_t){.capacity = 0};
}

gtopk_status_t set_allocate_union(device_t *device, device_set_t *set, uint64_t a, uint64_t b)
{
    if (a + b <= UINT32_MAX)
        return set_allocate(device, set, a + b);
    return status_set(GTOPK_ERR_UNSUPPORTED,
                      "an exchange that adds up %llu and %llu entries is too large: at most 2^32 - 1 together; use a "
                      "lower density or more reducers",
                      (unsigned long long)a, (unsigned long long)b);
}
