/* A set written as a message and read back. The header's layout and the codes of indices and values are wire/'s. */
#include <math.h>

#include "device/host.h"
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

static void message_write(const device_set_t *set, const wire_header_t *header, uint8_t *message, device_set_t *decoded)
{
    const size_t size = wire_value_size(header->value_type);
    wire_header_write(header, message);
    if (header->flags & WIRE_TAIL)
        wire_write_tail(message);
    wire_indices_encode(set->index, *set->count, header->dim, message + WIRE_HEADER_SIZE);
    uint8_t *values = message + WIRE_HEADER_SIZE + wire_index_bytes(header->dim, *set->count);
    for (uint32_t i = 0; i < *set->count; i++) {
        value_write(header->value_type, set->value[i], header->scale, values + i * size);
        reference_append(decoded, set->index[i], value_read(header->value_type, values + i * size, header->scale));
    }
}

gtopk_status_t reference_encode(device_t *device, const device_set_t *set, const wire_header_t *header,
                                uint8_t *message, device_set_t *decoded, device_words_t *words, void *stream)
{
    (void)device;
    (void)stream;
    const fpenv_t saved = fpenv_enter();
    wire_header_t full = *header;
    uint32_t count = 0;
    device_set_t sent = {.count = &count, .capacity = *set->count};
    gtopk_status_t status = memory_alloc(&sent.index, sent.capacity, sizeof *sent.index, "an encoder's indices");
    if (status == GTOPK_OK)
        status = memory_alloc(&sent.value, sent.capacity, sizeof *sent.value, "an encoder's values");
    if (status != GTOPK_OK)
        goto cleanup;

    full.scale = wire_scale(full.value_type, largest_magnitude(set));
    set_filter(set, full.value_type, full.scale, &sent);
    if (words->nonfinite || !words->ok || !host_has_room(decoded, count, words)) {
        count = 0;
        full.scale = 1.0f;
    }
    *decoded->count = 0;
    full.count = count;
    host_mark(words, &full);
    message_write(&sent, &full, message, decoded);

cleanup:
    memory_free(sent.value);
    memory_free(sent.index);
    fpenv_leave(saved);
    return status;
}

/* ---- decode ---- */

static int message_read(const uint8_t *message, const wire_header_t *header, device_set_t *out)
{
    const uint8_t *indices = message + WIRE_HEADER_SIZE, *values = indices + header->index_bytes;
    const size_t size = wire_value_size(header->value_type);
    if (wire_indices_decode(indices, header->count, header->dim, out->index) != GTOPK_OK)
        return 0;
    for (uint32_t i = 0; i < header->count; i++) {
        out->value[i] = value_read(header->value_type, values + i * size, header->scale);
        if (!isfinite(out->value[i]) || out->value[i] == 0.0f)
            return 0;
    }
    return 1;
}

gtopk_status_t reference_decode(device_t *device, const uint8_t *message, size_t capacity, const wire_expect_t *expect,
                                device_set_t *out, device_words_t *words, void *stream)
{
    wire_header_t header;
    (void)stream;
    *out->count = 0;
    if (host_is_halted(device, words))
        return GTOPK_OK;
    if (!host_judge(message, capacity, expect, &header, words) || !host_has_room(out, header.count, words))
        return GTOPK_OK;
    const fpenv_t saved = fpenv_enter();
    if (message_read(message, &header, out))
        *out->count = header.count;
    else
        host_blame(message, capacity, expect, DEVICE_BAD_PAYLOAD, words);
    fpenv_leave(saved);
    return GTOPK_OK;
}
