/* Elias-Fano, bit by bit: the definition that the fast version is tested against. */
#include "wire/elias_fano.h"

#include <string.h>

#include "wire/wire.h"

#define CORRUPT(...) status_set(GTOPK_ERR_CORRUPT, __VA_ARGS__)

static int bit_get(const uint8_t *bytes, uint64_t bit)
{
    return bytes[bit / 8] >> bit % 8 & 1;
}

static void bit_set(uint8_t *bytes, uint64_t bit)
{
    bytes[bit / 8] = (uint8_t)(bytes[bit / 8] | 1u << bit % 8);
}

void wire_indices_encode(const uint32_t *index, uint32_t count, uint64_t dim, uint8_t *out)
{
    if (count == 0)
        return;
    const uint32_t low = wire_low_width(dim, count);
    uint8_t *unary = out + wire_low_bytes(dim, count);
    memset(out, 0, wire_index_bytes(dim, count));
    for (uint64_t i = 0; i < count; i++) {
        for (uint32_t b = 0; b < low; b++)
            if (index[i] >> b & 1)
                bit_set(out, i * low + b);
        bit_set(unary, (index[i] >> low) + i);
    }
}

gtopk_status_t wire_indices_decode(const uint8_t *in, uint32_t count, uint64_t dim, uint32_t *out)
{
    if (count == 0)
        return GTOPK_OK;
    const uint32_t low = wire_low_width(dim, count);
    const uint64_t low_bits = 8 * wire_low_bytes(dim, count);
    const uint64_t unary_bits = 8 * wire_index_bytes(dim, count) - low_bits;
    const uint8_t *unary = in + low_bits / 8;

    for (uint64_t bit = (uint64_t)count * low; bit < low_bits; bit++)
        if (bit_get(in, bit))
            return CORRUPT("index part has a bit set in the padding of its low part");

    uint64_t i = 0;
    for (uint64_t bit = 0; bit < unary_bits; bit++) {
        if (!bit_get(unary, bit))
            continue;
        if (i == count)
            return CORRUPT("index part has more than the %u entries that the header says", count);
        uint64_t index = (bit - i) << low;
        for (uint32_t b = 0; b < low; b++)
            index |= (uint64_t)bit_get(in, i * low + b) << b;
        if (index >= dim)
            return CORRUPT("index %llu of entry %llu is not below dim %llu", (unsigned long long)index,
                           (unsigned long long)i, (unsigned long long)dim);
        if (i > 0 && index <= out[i - 1])
            return CORRUPT("index %llu of entry %llu is not above the one before it, %u", (unsigned long long)index,
                           (unsigned long long)i, out[i - 1]);
        out[i++] = (uint32_t)index;
    }
    if (i != count)
        return CORRUPT("index part has %llu entries, the header says %u", (unsigned long long)i, count);
    return GTOPK_OK;
}
