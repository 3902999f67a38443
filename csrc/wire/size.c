/* How long the parts of a message are. Pure arithmetic: counts and dims of 2^32 - 1 must not wrap. */
#include "gtopk.h"
#include "wire/tail.h"
#include "wire/wire.h"

_Static_assert(sizeof(size_t) >= 8, "a message may be longer than 4 GiB: gtopk needs a 64-bit machine");

#define WORD_BYTES(bits) (((bits) + 63) / 64 * 8)

size_t wire_value_size(int value_type)
{
    switch (value_type) {
    case GTOPK_VALUE_F32: return 4;
    case GTOPK_VALUE_F16:
    case GTOPK_VALUE_BF16: return 2;
    default: return 1; /* GTOPK_VALUE_I8, WIRE_VALUE_BYTES */
    }
}

uint32_t wire_low_width(uint64_t dim, uint64_t count)
{
    return 63u - (uint32_t)__builtin_clzll(dim / count);
}

size_t wire_low_bytes(uint64_t dim, uint64_t count)
{
    return count == 0 ? 0 : WORD_BYTES(count * wire_low_width(dim, count));
}

size_t wire_index_bytes(uint64_t dim, uint64_t count)
{
    if (count == 0)
        return 0;
    return wire_low_bytes(dim, count) + WORD_BYTES(count + ((dim - 1) >> wire_low_width(dim, count)));
}

size_t wire_message_size(uint64_t dim, uint64_t count, int value_type)
{
    const size_t index_bytes = value_type == WIRE_VALUE_BYTES ? 0 : wire_index_bytes(dim, count);
    return WIRE_HEADER_SIZE + index_bytes + count * wire_value_size(value_type);
}

/* The most bytes of indices, and of `each` bytes a value, of up to k entries. They grow with the count while the low width stays
 * the same, so it is k entries, or the most entries that a larger width allows. */
static size_t longest(uint64_t dim, uint64_t k, size_t each)
{
    if (k == 0)
        return 0;
    size_t most = wire_index_bytes(dim, k) + k * each;
    for (uint32_t width = wire_low_width(dim, k) + 1; dim >> width != 0; width++) {
        const uint64_t count = dim >> width;
        const size_t bytes = wire_index_bytes(dim, count) + count * each;
        most = bytes > most ? bytes : most;
    }
    return most;
}

size_t wire_index_capacity(uint64_t dim, uint64_t k)
{
    return longest(dim, k, 0);
}

size_t wire_message_capacity(uint64_t dim, uint64_t k, int value_type)
{
    if (value_type == WIRE_VALUE_BYTES)
        return wire_message_size(dim, k, value_type);
    return WIRE_HEADER_SIZE + longest(dim, k, wire_value_size(value_type));
}

size_t wire_tailed_capacity(size_t capacity)
{
    return (size_t)tail_place(capacity) + WIRE_TAIL_SIZE;
}
