/* Elias-Fano, a word or a group of fields at a time: the bytes, indices and verdicts of elias_fano.c.
 *
 * Eight fields of `low` bits are `low` bytes, so blocks of 64 entries start at whole words of the low part. With widths
 * of at most 16 bits (density above 2^-17) a block is moved as eight groups, each by two 8-byte accesses that reach up
 * to 16 bytes past the group's start: past the low part's end perhaps, but then into the unary part, which has 16 bytes
 * when there are 64 entries. */
#include "wire/elias_fano.h"

#include <string.h>

#include "wire/bytes.h"
#include "wire/wire.h"

#define BLOCK 64u
#define GROUP_WIDTH_MAX 16u

/* ---- low part, encoding ---- */

static inline uint64_t pack_four(const uint32_t *index, uint32_t low, uint32_t mask)
{
    const uint64_t a = (index[0] & mask) | (uint64_t)(index[1] & mask) << low;
    const uint64_t b = (index[2] & mask) | (uint64_t)(index[3] & mask) << low;
    return a | b << 2 * low;
}

static void low_write_blocks(const uint32_t *index, uint32_t count, uint32_t low, uint8_t *out)
{
    const uint32_t mask = (1u << low) - 1;
    for (uint32_t i = 0; i < count; i += 8, out += low) {
        const uint64_t first = pack_four(index + i, low, mask), second = pack_four(index + i + 4, low, mask);
        bytes_store64(out, first | second << 2 * low << 2 * low); /* in two steps: 4 * low may be 64 */
        bytes_store64(out + 8, second >> (64 - 4 * low));
    }
}

static void low_write_words(const uint32_t *index, uint32_t count, uint32_t low, uint8_t *out)
{
    const uint32_t mask = (1u << low) - 1;
    uint64_t word = 0;
    uint32_t filled = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint64_t field = index[i] & mask;
        word |= field << filled;
        filled += low;
        if (filled >= 64) {
            bytes_store64(out, word);
            out += 8;
            filled -= 64;
            word = field >> (low - filled);
        }
    }
    if (filled > 0)
        bytes_store64(out, word);
}

/* ---- unary part, encoding ---- */

static void unary_write(const uint32_t *index, uint32_t count, uint32_t low, uint8_t *out, size_t bytes)
{
    memset(out, 0, bytes);
    uint64_t at = 0, word = 0;
    for (uint64_t i = 0; i < count; i++) {
        const uint64_t bit = (index[i] >> low) + i;
        word = bit / 64 == at ? word : 0;
        at = bit / 64;
        word |= 1ull << bit % 64;
        bytes_store64(out + 8 * at, word);
    }
}

void wire_indices_encode_fast(const uint32_t *index, uint32_t count, uint64_t dim, uint8_t *out)
{
    if (count == 0)
        return;
    const uint32_t low = wire_low_width(dim, count);
    const size_t low_bytes = wire_low_bytes(dim, count);
    if (low > 0) {
        const uint32_t in_blocks = low <= GROUP_WIDTH_MAX ? count / BLOCK * BLOCK : 0;
        low_write_blocks(index, in_blocks, low, out);
        low_write_words(index + in_blocks, count - in_blocks, low, out + (size_t)in_blocks / 8 * low);
    }
    unary_write(index, count, low, out + low_bytes, wire_index_bytes(dim, count) - low_bytes);
}

/* ---- unary part, decoding ---- */

/* high[i] = position of the i-th set bit, less i. Returns 0 unless exactly `count` bits are set. */
static int unary_read(const uint8_t *in, size_t words, uint32_t count, uint32_t *high)
{
    uint64_t i = 0;
    for (size_t w = 0; w < words; w++) {
        uint64_t word = bytes_load64(in + 8 * w);
        const uint64_t ones = (uint64_t)__builtin_popcountll(word);
        uint32_t base = (uint32_t)(64 * w - i);
        uint32_t *to = high + i;
        i += ones;
        if (i > count)
            return 0;
        for (; word != 0; word &= word - 1)
            *to++ = base-- + (uint32_t)__builtin_ctzll(word);
    }
    return i == count;
}

/* ---- low part, decoding ---- */

/* Whether indices rise, in the top bit: `previous - value` is negative, in 64 bits, just when value is above. */
typedef struct rising {
    uint64_t previous, all;
} rising_t;

static inline void rising_add(rising_t *rising, uint32_t value)
{
    rising->all &= rising->previous - value;
    rising->previous = value;
}

/* Both put the low fields under the high bits in `out`. With width 0 they read the unary part and use nothing of it. */
static void low_read_blocks(const uint8_t *in, uint32_t count, uint32_t low, uint32_t *out, rising_t *rising)
{
    const uint64_t mask = (1ull << low) - 1;
    for (uint32_t i = 0; i < count; i += 8, in += low) {
        /* The fifth field starts half a byte in when the width is odd. */
        uint64_t fields[2] = {bytes_load64(in), bytes_load64(in + low / 2) >> 4 * (low & 1)};
        for (uint32_t j = 0; j < 8; j++) {
            out[i + j] = out[i + j] << low | (uint32_t)(fields[j / 4] & mask);
            fields[j / 4] >>= low;
            rising_add(rising, out[i + j]);
        }
    }
}

static void low_read_words(const uint8_t *in, uint32_t count, uint32_t low, uint32_t *out, rising_t *rising)
{
    const uint64_t mask = (1ull << low) - 1;
    for (uint32_t i = 0; i < count; i++) {
        const uint64_t bit = (uint64_t)i * low, shift = bit % 64;
        const uint8_t *at = in + bit / 64 * 8;
        uint64_t field = bytes_load64(at) >> shift;
        if (shift + low > 64)
            field |= bytes_load64(at + 8) << (64 - shift);
        out[i] = out[i] << low | (uint32_t)(field & mask);
        rising_add(rising, out[i]);
    }
}

/* Bits after the last field, in its word. */
static uint64_t low_padding(const uint8_t *in, size_t low_bytes, uint64_t bits)
{
    return bits % 64 == 0 ? 0 : bytes_load64(in + low_bytes - 8) >> bits % 64;
}

static int decode(const uint8_t *in, uint32_t count, uint64_t dim, uint32_t *out)
{
    const uint32_t low = wire_low_width(dim, count);
    const size_t low_bytes = wire_low_bytes(dim, count), unary_bytes = wire_index_bytes(dim, count) - low_bytes;
    if (low_padding(in, low_bytes, (uint64_t)count * low) != 0 ||
        !unary_read(in + low_bytes, unary_bytes / 8, count, out))
        return 0;
    if (out[count - 1] > (dim - 1) >> low) /* before the shift, which it might not survive; also the padding */
        return 0;

    rising_t rising = {UINT64_MAX, UINT64_MAX};
    const uint32_t in_blocks = low <= GROUP_WIDTH_MAX ? count / BLOCK * BLOCK : 0;
    low_read_blocks(in, in_blocks, low, out, &rising);
    low_read_words(in + (size_t)in_blocks / 8 * low, count - in_blocks, low, out + in_blocks, &rising);
    return rising.all >> 63 != 0 && out[count - 1] < dim;
}

gtopk_status_t wire_indices_decode_fast(const uint8_t *in, uint32_t count, uint64_t dim, uint32_t *out)
{
    if (count == 0 || decode(in, count, dim, out))
        return GTOPK_OK;
    return wire_indices_decode(in, count, dim, out); /* finds what is wrong again, and says it */
}
