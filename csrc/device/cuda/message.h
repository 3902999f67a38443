/* The message as kernels read and write it: sizes, header, and the code of a value. docs/wire-format.md is normative;
 * csrc/wire has the same for the host. */
#ifndef GTOPK_DEVICE_CUDA_MESSAGE_H
#define GTOPK_DEVICE_CUDA_MESSAGE_H

#include "device/cuda/kernel.h"
#include "wire/tail.h"

/* ---- sizes ---- */

static inline uint32_t value_size(uint32_t type)
{
    return type == GTOPK_VALUE_F32 ? 4u : type == GTOPK_VALUE_I8 ? 1u : 2u;
}

/* 0 < count <= dim */
static inline uint32_t low_width(uint32_t dim, uint32_t count)
{
    return 63u - (uint32_t)__clzll(dim / count);
}

static inline uint64_t word_bytes(uint64_t bits)
{
    return (bits + 63) / 64 * 8;
}

static inline uint64_t low_bytes(uint32_t dim, uint32_t count)
{
    return count == 0 ? 0 : word_bytes((uint64_t)count * low_width(dim, count));
}

static inline uint64_t unary_bytes(uint32_t dim, uint32_t count)
{
    return count == 0 ? 0 : word_bytes((uint64_t)count + ((dim - 1) >> low_width(dim, count)));
}

static inline uint64_t index_bytes(uint32_t dim, uint32_t count)
{
    return low_bytes(dim, count) + unary_bytes(dim, count);
}

/* ---- bytes at any address ---- */

static inline uint32_t load16(const uint8_t *at)
{
    return at[0] | (uint32_t)at[1] << 8;
}

static inline uint32_t load32(const uint8_t *at)
{
    if ((uintptr_t)at % 4 == 0)
        return *(const uint32_t *)at;
    return load16(at) | load16(at + 2) << 16;
}

static inline void store16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)value;
    at[1] = (uint8_t)(value >> 8);
}

static inline void store32(uint8_t *at, uint32_t value)
{
    store16(at, value);
    store16(at + 2, value >> 16);
}

static inline uint64_t load64(const uint8_t *at)
{
    return load32(at) | (uint64_t)load32(at + 4) << 32;
}

/* ---- the header ---- */

FUNCTION void header_write(const wire_header_t *header, uint32_t count, uint32_t flags, uint32_t attachment,
                           float scale, uint8_t *message)
{
    const uint32_t width = count == 0 ? 0 : low_width(header->dim, count);
    store32(message, 0x314b5447u); /* "GTK1" */
    store32(message + 4,
            WIRE_FORMAT_VERSION | (uint32_t)header->value_type << 8 | (uint32_t)header->algorithm << 16 | flags << 24);
    store32(message + 8, header->round | width << 16);
    store32(message + 12, attachment);
    store32(message + 16, header->sender);
    store32(message + 20, header->epoch);
    store32(message + 24, (uint32_t)header->step);
    store32(message + 28, (uint32_t)(header->step >> 32));
    store32(message + 32, header->k);
    store32(message + 36, header->dim);
    store32(message + 40, count);
    store32(message + 44, (uint32_t)index_bytes(header->dim, count));
    store32(message + 48, convert_bits(scale));
    store32(message + 52, header->config_hash);
    store32(message + 56, header->reducer);
    store32(message + 60, 0);
}

/* As wire_scale_valid. */
static inline int scale_is_valid(uint32_t type, uint32_t bits)
{
    const int exponent = (int)(bits >> 23) - 127, most = type == GTOPK_VALUE_F16 ? 113 : 122;
    if (type != GTOPK_VALUE_F16 && type != GTOPK_VALUE_I8)
        return bits == 0x3f800000u;
    return (bits & 0x807fffffu) == 0 && exponent >= -126 && exponent <= most;
}

FUNCTION uint64_t message_size(uint32_t dim, uint32_t count, uint32_t type)
{
    return WIRE_HEADER_SIZE + index_bytes(dim, count) + (uint64_t)count * value_size(type);
}

/* Of a message whose header is written: the mark that belongs behind it, and the place. */
static inline uint64_t tail_of(const uint8_t *message)
{
    return tail_mark(load64(message + 24), load32(message + 16), load16(message + 8));
}

static inline void tail_write(uint8_t *message)
{
    const uint64_t mark = tail_of(message);
    uint64_t at = message_size(load32(message + 36), load32(message + 40), message[5]);
    ROLLED
    for (; at % 8 != 0; at++)
        message[at] = 0;
    store32(message + at, (uint32_t)mark);
    store32(message + at + 4, (uint32_t)(mark >> 32));
}

/* What a decoder needs of a header that it believes. */
typedef struct header {
    uint32_t good, torn, flags, count, dim, type, width;
    float scale;
} header_t;

/* good: what wire_header_trust and wire_header_matches say, for messages with a set. head: a copy of the header, for reads of
 * the message itself would wait for one another. */
FUNCTION void header_read(const uint8_t *head, const uint8_t *message, uint64_t capacity, const wire_expect_t *expect,
                          header_t *header)
{
    header->good = header->torn = 0;
    if (capacity < WIRE_HEADER_SIZE)
        return;
    const uint32_t k = load32(head + 32), bits = load32(head + 48), index = load32(head + 44);
    const uint64_t step = load64(head + 24);
    const uint32_t algorithm = head[6];
    uint64_t tail = 0;
    header->flags = head[7];
    header->count = load32(head + 40);
    header->dim = load32(head + 36);
    header->type = head[5];
    header->width = head[10];
    header->scale = convert_float(bits);

    int good = load32(head) == 0x314b5447u && head[4] == WIRE_FORMAT_VERSION && head[11] == 0 &&
               !(header->flags & ~(uint32_t)(WIRE_NONFINITE | WIRE_JOINED | WIRE_TAIL)) && /* no last word */
               (algorithm < WIRE_ALGORITHMS || algorithm == WIRE_BLOCK) && header->type <= GTOPK_VALUE_I8 &&
               load32(head + 12) == 0 && scale_is_valid(header->type, bits) && header->count <= k && k <= header->dim;
    if (good && header->count == 0)
        good = header->width == 0 && index == 0;
    else if (good)
        good = header->width == low_width(header->dim, header->count) &&
               index == (uint32_t)index_bytes(header->dim, header->count);
    if (good) {
        const uint64_t size = message_size(header->dim, header->count, header->type);
        const int tailed = (header->flags & WIRE_TAIL) != 0;
        tail = tail_place(size);
        good = (tailed ? tail + WIRE_TAIL_SIZE : size) <= capacity && tailed == (expect->tail != 0);
    }

    header->good = good && algorithm == expect->algorithm && header->type == expect->value_type &&
                   load16(head + 8) == expect->round && load32(head + 16) == expect->sender &&
                   load32(head + 20) == expect->epoch && load32(head + 56) == expect->reducer &&
                   load32(head + 52) == expect->config_hash && header->dim == expect->dim && k == expect->k &&
                   step == expect->step;
    header->torn = header->good && expect->tail && load64(message + tail) != tail_of(head);
}

/* What was wrong with a message goes into the words, unless an earlier one was worse. */
FUNCTION void message_blame(device_words_t *words, uint32_t error, const uint8_t *message, uint64_t capacity,
                            const wire_expect_t *expect)
{
    if (words->error == DEVICE_NO_ERROR) {
        const uint32_t held = capacity < WIRE_HEADER_SIZE ? (uint32_t)capacity : WIRE_HEADER_SIZE;
        words->expect = *expect;
        ROLLED
        for (uint32_t i = 0; i < held; i++)
            words->header[i] = message[i];
    }
    words_fail(words, error);
}

/* ---- values ---- */

/* As wire_scale, for the types that have one. */
static inline float scale_of(uint32_t type, uint32_t largest)
{
    const int exponent = (int)(largest >> 23) - 127;
    const uint32_t mantissa = largest & 0x7fffffu;
    int scale = type == GTOPK_VALUE_F16 ? exponent - 15 + (mantissa != 0) : exponent - 6 + (mantissa > 0x7e0000u);
    if (largest == 0 || (type != GTOPK_VALUE_F16 && type != GTOPK_VALUE_I8))
        return 1.0f;
    scale = scale < -126 ? -126 : scale;
    return convert_float((uint32_t)(scale + 127) << 23);
}

static inline uint32_t value_code(uint32_t type, float value, float scale)
{
    if (type == GTOPK_VALUE_F32)
        return convert_bits(value);
    if (type == GTOPK_VALUE_F16)
        return convert_fp16_scaled(value, 1.0f / scale, convert_fp16_limit(scale));
    if (type == GTOPK_VALUE_BF16)
        return convert_bf16_from_float(value);
    return (uint8_t)convert_i8_scaled(value, 1.0f / scale, convert_i8_limit(scale));
}

static inline float value_of_code(uint32_t type, uint32_t code, float scale)
{
    if (type == GTOPK_VALUE_F32)
        return convert_float(code);
    if (type == GTOPK_VALUE_F16)
        return convert_float_from_fp16_scaled((uint16_t)code, scale);
    if (type == GTOPK_VALUE_BF16)
        return convert_float_from_bf16((uint16_t)code);
    return convert_float_from_i8_scaled((int8_t)code, scale);
}

/* Entry i of the values at `at`. */
static inline uint32_t code_load(const uint8_t *at, uint32_t type, uint64_t i)
{
    if (type == GTOPK_VALUE_F32)
        return load32(at + 4 * i);
    return type == GTOPK_VALUE_I8 ? at[i] : load16(at + 2 * i);
}

static inline void code_store(uint8_t *at, uint32_t type, uint64_t i, uint32_t code)
{
    if (type == GTOPK_VALUE_F32)
        *(uint32_t *)(at + 4 * i) = code;
    else if (type == GTOPK_VALUE_I8)
        at[i] = (uint8_t)code;
    else
        *(uint16_t *)(at + 2 * i) = (uint16_t)code;
}

#endif
