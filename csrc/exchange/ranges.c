/* Ranges of owners and their budgets. */
#include "exchange/ranges.h"

device_range_t ranges_at(uint32_t level, uint32_t owner)
{
    return (device_range_t){level, owner & ((1u << level) - 1)};
}

device_range_t ranges_half(uint32_t level, uint32_t owner)
{
    return (device_range_t){1, owner >> level & 1};
}

uint32_t ranges_budget(uint64_t dim, uint64_t k, uint64_t part)
{
    const uint64_t share = k * part; /* both are below 2^32 */
    return (uint32_t)(share / dim + (share % dim != 0));
}

uint64_t ranges_kept(uint64_t dim, uint64_t k, uint32_t levels, uint32_t level, uint32_t owner)
{
    const uint64_t stride = (uint64_t)1 << level, owners = (uint64_t)1 << levels;
    uint64_t kept = 0;
    for (uint64_t o = owner % stride; o < owners; o += stride)
        kept += ranges_budget(dim, k, range_dim(ranges_at(levels, (uint32_t)o), dim));
    return kept;
}
