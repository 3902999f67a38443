/* Candidates as 64-bit keys in the order of selection: bits of |v|, then the lower index first. The lowest bit is the
 * sign of the value, so that a key is a whole entry. Knows no pools and no devices. */
#ifndef GTOPK_DEVICE_CPU_KEYS_H
#define GTOPK_DEVICE_CPU_KEYS_H

#include <stddef.h>
#include <stdint.h>

static inline uint64_t key_make(uint32_t index, uint32_t bits)
{
    return (uint64_t)(bits & 0x7fffffffu) << 33 | (uint64_t)(uint32_t)~index << 1 | bits >> 31;
}

static inline uint32_t key_magnitude(uint64_t key)
{
    return (uint32_t)(key >> 33);
}

static inline uint32_t key_index(uint64_t key)
{
    return ~(uint32_t)(key >> 1);
}

static inline uint32_t key_bits(uint64_t key)
{
    return key_magnitude(key) | (uint32_t)key << 31;
}

/* Keeps the k largest of `count` keys in the order in which they stand, 1 <= k < count, and returns the smallest of
 * them. Keys differ. scratch: room for `count` keys. O(count). */
uint64_t keys_keep_largest(uint64_t *keys, size_t count, size_t k, uint64_t *scratch);

/* Sorts by index, all below dim. Costs one read when they are sorted. scratch: room for `count` keys. O(count). */
void keys_sort_by_index(uint64_t *keys, size_t count, uint64_t dim, uint64_t *scratch);

#endif
