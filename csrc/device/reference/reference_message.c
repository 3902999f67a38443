/* A set written as a message and read back. The header's layout and the codes of indices and values are wire/'s. */
#include <math.h>

#include "device/reference/reference.h"
#include "util/fpenv.h"
#include "util/memory.h"
#include "wire/bytes.h"
#include "wire/convert.h"
#include "wire/elias_fano.h"

/* ---- one value ---- */

static void value_write(int value_type, float value, float scale, uint8_t *at)
{
    switch (value_type) {
    case GTOPK_VALUE_F16: bytes_store16(at, convert_fp16_scaled(value, 1.0f / scale, convert_fp16_limit(scale))); break;
    case GTOPK_VALUE_BF16: bytes_store16(at, convert_bf16_from_float(value)); break;
    case GTOPK_VALUE_I8: *at = (uint8_t)convert_i8_scaled(value, 1.0f / scale, convert_i8_limit(scale)); break;
    default: bytes_store32(at, convert_bits(value));
    }
}

static float value_read(int value_type, const uint8_t *at, float scale)
{
    switch (value_type) {
    case GTOPK_VALUE_F16: return convert_float_from_fp16_scaled(bytes_load16(at), scale);
    case GTOPK_VALUE_BF16: return convert_float_from_bf16(bytes_load16(at));
    case GTOPK_VALUE_I8: return convert_float_from_i8_scaled((int8_t)*at, scale);
    default: return convert_float(bytes_load32(at));
    }
}

/* ---- encode ---- */

static float largest_magnitude(const device_set_t *set)
{
    float max = 0.0f;
    for (uint32_t i = 0; i < *set->count; i++)
        max = fmaxf(max, fabsf(set->value[i]));
    return max;
}

/* The entries that do not decode to zero, their values as they were. */
static void set_filter(const device_set_t *set, int value_type, float scale, device_set_t *out)
{
    *out->count = 0;
    for (uint32_t i = 0; i < *set->count; i++) {
        uint8_t code[4];
        value_write(value_type, set->value[i], scale, code);
        if (value_read(value_type, code, scale) != 0.0f)
            reference_append(out, set->index[i], set->value[i]);
    }
}

static uint8_t flags_of(const device_words_t *words, uint8_t flags)
{
    if (words && words->nonfinite)
        flags |= WIRE_NONFINITE;
    if (words && words->joined)
        flags |= WIRE_JOINED;
    return flags;
}

static void message_write(const device_set_t *set, const wire_header_t *header, uint8_t *message, device_set_t *decoded)
{
    const size_t size = wire_value_size(header->value_type);
    wire_header_write(header, message);
    wire_indices_encode(set->index, *set->count, header->dim, message + WIRE_HEADER_SIZE);
    uint8_t *values = message + WIRE_HEADER_SIZE + wire_index_bytes(header->dim, *set->count);
    for (uint32_t i = 0; i < *set->count; i++) {
        value_write(header->value_type, set->value[i], header->scale, values + i * size);
        if (decoded)
            reference_append(decoded, set->index[i], value_read(header->value_type, values + i * size, header->scale));
    }
}

gtopk_status_t reference_encode(device_t *device, const device_set_t *set, const wire_header_t *header,
                                uint8_t *message, device_set_t *decoded, const device_words_t *words, void *stream)
{
    (void)device;
    (void)stream;
    const fpenv_t saved = fpenv_enter();
    const int nonfinite = words && words->nonfinite;
    wire_header_t full = *header;
    uint32_t count = 0;
    device_set_t sent = {.count = &count, .capacity = *set->count};
    gtopk_status_t status = memory_alloc(&sent.index, sent.capacity, sizeof *sent.index, "an encoder's indices");
    if (status == GTOPK_OK)
        status = memory_alloc(&sent.value, sent.capacity, sizeof *sent.value, "an encoder's values");
    if (status != GTOPK_OK)
        goto cleanup;

    if (decoded)
        *decoded->count = 0;
    full.scale = nonfinite ? 1.0f : wire_scale(full.value_type, largest_magnitude(set));
    if (!nonfinite)
        set_filter(set, full.value_type, full.scale, &sent);
    full.count = count;
    full.flags = flags_of(words, header->flags);
    message_write(&sent, &full, message, decoded);

cleanup:
    memory_free(sent.value);
    memory_free(sent.index);
    fpenv_leave(saved);
    return status;
}

/* ---- decode ---- */

static gtopk_status_t message_read(const uint8_t *message, const wire_header_t *header, device_set_t *out)
{
    const uint8_t *indices = message + WIRE_HEADER_SIZE, *values = indices + header->index_bytes;
    const size_t size = wire_value_size(header->value_type);
    *out->count = 0;
    gtopk_status_t status = wire_indices_decode(indices, header->count, header->dim, out->index);
    if (status != GTOPK_OK)
        return status;
    for (uint32_t i = 0; i < header->count; i++) {
        out->value[i] = value_read(header->value_type, values + i * size, header->scale);
        if (!isfinite(out->value[i]) || out->value[i] == 0.0f)
            return status_set(GTOPK_ERR_CORRUPT, "value %u of %u, for index %u, is zero, not finite or no code", i,
                              header->count, out->index[i]);
    }
    *out->count = header->count;
    return GTOPK_OK;
}

gtopk_status_t reference_decode(device_t *device, const uint8_t *message, const wire_header_t *header,
                                device_set_t *out, device_words_t *words, void *stream)
{
    (void)device;
    (void)stream;
    const fpenv_t saved = fpenv_enter();
    gtopk_status_t status = message_read(message, header, out);
    fpenv_leave(saved);
    if (words && status != GTOPK_OK)
        words->ok = 0;
    if (words && header->flags & WIRE_NONFINITE)
        words->nonfinite = 1;
    if (words && !(header->flags & WIRE_JOINED))
        words->joined = 0;
    return status;
}
