/* The decoder of LZMA, without a header: github.com/jljusten/LZMA-SDK, DOC/lzma-specification.txt, by whose names things go
 * here. Every bit is coded with a probability of its own, which follows the bits seen. */
#include <string.h>

#include "device/cuda/images.h"

/* What scripts/cuda_images.py packs with: how many bits of the byte before, of the position for literals, and of the
 * position for the rest choose among probabilities. */
enum { LC = 1, LP = 2, PB = 4 };
enum { STATES = 12, POSITIONS = 1 << PB, END_OF_SLOTS = 14, DISTANCES = 1 << END_OF_SLOTS / 2, ALIGN_BITS = 4 };

typedef uint16_t probability_t; /* of a 0, in 2048ths */

typedef struct lengths {
    probability_t choice[2], low[POSITIONS][8], middle[POSITIONS][8], high[256];
} lengths_t;

/* All of them are probabilities. */
typedef struct model {
    probability_t is_match[STATES][POSITIONS], is_rep[STATES], is_rep_g0[STATES], is_rep_g1[STATES], is_rep_g2[STATES];
    probability_t is_rep0_long[STATES][POSITIONS];
    probability_t slots[4][64], distances[DISTANCES], align[1 << ALIGN_BITS];
    probability_t literals[1 << (LC + LP)][0x300];
    lengths_t match_length, rep_length;
} model_t;

typedef struct range_decoder {
    const uint8_t *in, *end;
    uint32_t range, code;
    int ran_out; /* a byte was needed after the last */
} range_decoder_t;

static void normalize(range_decoder_t *decoder)
{
    if (decoder->range >= 1u << 24)
        return;
    decoder->range <<= 8;
    decoder->code <<= 8;
    if (decoder->in < decoder->end)
        decoder->code |= *decoder->in++;
    else
        decoder->ran_out = 1;
}

static unsigned read_bit(range_decoder_t *decoder, probability_t *probability)
{
    const uint32_t bound = (decoder->range >> 11) * *probability;
    const unsigned bit = decoder->code >= bound;
    if (bit) {
        *probability = (probability_t)(*probability - (*probability >> 5));
        decoder->code -= bound;
        decoder->range -= bound;
    } else {
        *probability = (probability_t)(*probability + ((2048 - *probability) >> 5));
        decoder->range = bound;
    }
    normalize(decoder);
    return bit;
}

/* Bits that are as likely 0 as 1. */
static uint32_t read_direct_bits(range_decoder_t *decoder, unsigned count)
{
    uint32_t value = 0;
    for (; count > 0; count--) {
        decoder->range >>= 1;
        const uint32_t bit = decoder->code >= decoder->range;
        if (bit)
            decoder->code -= decoder->range;
        value = value << 1 | bit;
        normalize(decoder);
    }
    return value;
}

/* The highest bit first; those before choose the probability of the next. */
static unsigned read_tree(range_decoder_t *decoder, probability_t *tree, unsigned bits)
{
    unsigned node = 1;
    for (unsigned i = 0; i < bits; i++)
        node = node << 1 | read_bit(decoder, &tree[node]);
    return node - (1u << bits);
}

static unsigned read_reverse_tree(range_decoder_t *decoder, probability_t *tree, unsigned bits)
{
    unsigned node = 1, value = 0;
    for (unsigned i = 0; i < bits; i++) {
        const unsigned bit = read_bit(decoder, &tree[node]);
        node = node << 1 | bit;
        value |= bit << i;
    }
    return value;
}

static unsigned read_length(range_decoder_t *decoder, lengths_t *lengths, unsigned position)
{
    if (!read_bit(decoder, &lengths->choice[0]))
        return read_tree(decoder, lengths->low[position], 3);
    if (!read_bit(decoder, &lengths->choice[1]))
        return 8 + read_tree(decoder, lengths->middle[position], 3);
    return 16 + read_tree(decoder, lengths->high, 8);
}

/* How far back, less one. */
static uint32_t read_distance(range_decoder_t *decoder, model_t *model, unsigned length)
{
    const unsigned slot = read_tree(decoder, model->slots[length < 3 ? length : 3], 6);
    if (slot < 4)
        return slot;
    const unsigned bits = (slot >> 1) - 1;
    const uint32_t base = (2u | (slot & 1)) << bits;
    if (slot < END_OF_SLOTS)
        return base + read_reverse_tree(decoder, &model->distances[base - slot], bits);
    const uint32_t high = read_direct_bits(decoder, bits - ALIGN_BITS) << ALIGN_BITS;
    return base + high + read_reverse_tree(decoder, model->align, ALIGN_BITS);
}

/* `match`: the byte that a match would have gone on with, or -1 when none came before. */
static uint8_t read_literal(range_decoder_t *decoder, probability_t *literal, int match)
{
    unsigned symbol = 1;
    while (match >= 0 && symbol < 0x100) {
        const unsigned expected = (unsigned)match >> 7 & 1;
        const unsigned bit = read_bit(decoder, &literal[((1 + expected) << 8) + symbol]);
        symbol = symbol << 1 | bit;
        match = bit == expected ? match << 1 & 0xff : -1;
    }
    while (symbol < 0x100)
        symbol = symbol << 1 | read_bit(decoder, &literal[symbol]);
    return (uint8_t)symbol;
}

typedef struct unpacker {
    range_decoder_t decoder;
    model_t model;
    uint32_t last[4]; /* distances, less one */
    unsigned state;   /* of what kind the last parts were */
} unpacker_t;

/* Which of the last distances is used again; it becomes the first of them. */
static void choose_distance(unpacker_t *unpacker)
{
    unsigned which = 1;
    if (read_bit(&unpacker->decoder, &unpacker->model.is_rep_g1[unpacker->state]))
        which = 2 + read_bit(&unpacker->decoder, &unpacker->model.is_rep_g2[unpacker->state]);
    const uint32_t chosen = unpacker->last[which];
    memmove(unpacker->last + 1, unpacker->last, which * sizeof chosen);
    unpacker->last[0] = chosen;
}

/* Returns the length of a match, whose distance becomes the first of the last ones. */
static size_t read_match(unpacker_t *unpacker, unsigned position)
{
    range_decoder_t *const decoder = &unpacker->decoder;
    model_t *const model = &unpacker->model;
    const unsigned state = unpacker->state, after_match = state >= 7;
    if (!read_bit(decoder, &model->is_rep[state])) {
        const unsigned length = read_length(decoder, &model->match_length, position);
        memmove(unpacker->last + 1, unpacker->last, 3 * sizeof unpacker->last[0]);
        unpacker->last[0] = read_distance(decoder, model, length);
        unpacker->state = after_match ? 10 : 7;
        return length + 2;
    }
    if (read_bit(decoder, &model->is_rep_g0[state])) {
        choose_distance(unpacker);
    } else if (!read_bit(decoder, &model->is_rep0_long[state][position])) {
        unpacker->state = after_match ? 11 : 9;
        return 1;
    }
    unpacker->state = after_match ? 11 : 8;
    return read_length(decoder, &model->rep_length, position) + 2;
}

static int begin(unpacker_t *unpacker, const void *packed, size_t packed_bytes)
{
    const uint8_t *const in = packed;
    probability_t *const probabilities = (probability_t *)&unpacker->model;
    if (packed_bytes < 5 || in[0] != 0)
        return 0;
    unpacker->decoder = (range_decoder_t){.in = in + 5, .end = in + packed_bytes, .range = UINT32_MAX};
    unpacker->decoder.code = (uint32_t)in[1] << 24 | (uint32_t)in[2] << 16 | (uint32_t)in[3] << 8 | in[4];
    for (size_t i = 0; i < sizeof unpacker->model / sizeof *probabilities; i++)
        probabilities[i] = 1024;
    memset(unpacker->last, 0, sizeof unpacker->last);
    unpacker->state = 0;
    return 1;
}

int image_unpack(const void *packed, size_t packed_bytes, void *unpacked, size_t bytes)
{
    unpacker_t unpacker;
    range_decoder_t *const decoder = &unpacker.decoder;
    uint8_t *const out = unpacked;
    size_t at = 0;
    if (!begin(&unpacker, packed, packed_bytes))
        return 0;
    while (!decoder->ran_out) {
        const unsigned position = (unsigned)(at % POSITIONS), state = unpacker.state;
        if (read_bit(decoder, &unpacker.model.is_match[state][position])) {
            size_t length = read_match(&unpacker, position);
            const size_t back = (size_t)unpacker.last[0] + 1;
            if (unpacker.last[0] == UINT32_MAX) /* the mark of the end */
                return at == bytes && decoder->in == decoder->end && decoder->code == 0 && !decoder->ran_out;
            if (back > at || length > bytes - at)
                return 0;
            for (; length > 0; length--, at++) /* may overlap itself */
                out[at] = out[at - back];
        } else {
            const unsigned before = at > 0 ? out[at - 1] : 0;
            const size_t context = (at % (1 << LP)) << LC | before >> (8 - LC);
            if (at == bytes)
                return 0;
            const int match = state < 7 ? -1 : out[at - unpacker.last[0] - 1];
            out[at++] = read_literal(decoder, unpacker.model.literals[context], match);
            unpacker.state = state < 4 ? 0 : state < 10 ? state - 3 : state - 6;
        }
    }
    return 0;
}
