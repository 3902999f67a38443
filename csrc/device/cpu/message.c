/* Encode and decode: sets to whole messages and back. The codes of indices and of one value are wire's. */
#include <string.h>

#include "device/cpu/sets.h"
#include "device/cpu/store.h"
#include "device/host.h"
#include "util/fpenv.h"
#include "wire/convert.h"
#include "wire/elias_fano.h"

#define MAGNITUDE 0x7fffffffu

static float largest_magnitude(const float *value, size_t count)
{
    uint32_t largest = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = convert_bits(value[i]) & MAGNITUDE;
        largest = (int32_t)bits > (int32_t)largest ? bits : largest;
    }
    return convert_float(largest);
}

/* int8 goes from -127 to 127: -128 would be a second code for what is clamped. */
static int codes_are_valid(int type, const uint8_t *codes, size_t count)
{
    uint32_t bad = 0;
    for (size_t i = 0; i < count && type == GTOPK_VALUE_I8; i++)
        bad |= codes[i] == 0x80;
    return !bad;
}

/* Whether each value is finite and not zero. */
static int values_are_valid(const float *value, size_t count)
{
    uint32_t bad = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = convert_bits(value[i]) & MAGNITUDE;
        bad |= (uint32_t)(bits == 0) | (uint32_t)((int32_t)bits >= (int32_t)CONVERT_INF);
    }
    return !bad;
}

static size_t drop_zeros(uint32_t *index, float *value, size_t count)
{
    size_t n = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = convert_bits(value[i]);
        index[n] = index[i];
        value[n] = convert_float(bits);
        n += (bits & MAGNITUDE) != 0;
    }
    return n;
}

/* ---- messages ---- */

/* Writes header, values and indices, in that order: the values say how many entries remain. decoded has room for all
 * of them. */
static void encode_set(const kernels_t *kernels, const device_set_t *set, wire_header_t *head, uint8_t *message,
                       device_set_t *decoded)
{
    size_t count = *set->count;
    int type = head->value_type;
    head->scale = 1.0f;
    if (type == GTOPK_VALUE_F16 || type == GTOPK_VALUE_I8)
        head->scale = wire_scale(type, largest_magnitude(set->value, count));
    uint8_t *payload = message + WIRE_HEADER_SIZE;

    if (count)
        memcpy(decoded->index, set->index, count * sizeof *set->index);
    kernels->encode_values(type, set->value, count, head->scale, payload + wire_index_bytes(head->dim, count),
                           decoded->value);
    if (!values_are_valid(decoded->value, count)) {
        count = drop_zeros(decoded->index, decoded->value, count);
        kernels->encode_values(type, decoded->value, count, head->scale, payload + wire_index_bytes(head->dim, count),
                               decoded->value);
    }
    *decoded->count = head->count = (uint32_t)count;
    wire_indices_encode_fast(decoded->index, head->count, head->dim, payload);
    wire_header_write(head, message);
    if (head->flags & WIRE_TAIL)
        wire_write_tail(message);
}

gtopk_status_t message_encode(device_t *device, const device_set_t *set, const wire_header_t *header, uint8_t *message,
                              device_set_t *decoded, device_words_t *words, void *stream)
{
    (void)stream;
    wire_header_t head = *header;
    uint32_t count = words->nonfinite || !words->ok ? 0 : *set->count;
    device_set_t input = *set;
    input.count = &count;
    if (!host_has_room(decoded, count, words))
        count = 0;
    host_mark(words, &head);
    fpenv_t saved = fpenv_enter();
    encode_set(cpu_kernels(device), &input, &head, message, decoded);
    fpenv_leave(saved);
    return GTOPK_OK;
}

gtopk_status_t message_decode(device_t *device, const uint8_t *message, size_t capacity, const wire_expect_t *expect,
                              device_set_t *out, device_words_t *words, void *stream)
{
    wire_header_t head;
    (void)stream;
    *out->count = 0;
    if (host_is_halted(device, words))
        return GTOPK_OK;
    if (!host_judge(message, capacity, expect, &head, words) || !host_has_room(out, head.count, words))
        return GTOPK_OK;
    const uint8_t *payload = message + WIRE_HEADER_SIZE, *codes = payload + head.index_bytes;
    int valid = wire_indices_decode_fast(payload, head.count, head.dim, out->index) == GTOPK_OK;
    if (valid) {
        fpenv_t saved = fpenv_enter();
        cpu_kernels(device)->decode_values(head.value_type, codes, head.count, head.scale, out->value);
        fpenv_leave(saved);
        valid = values_are_valid(out->value, head.count) && codes_are_valid(head.value_type, codes, head.count);
    }
    if (valid)
        *out->count = head.count;
    else
        host_blame(message, capacity, expect, DEVICE_BAD_PAYLOAD, words);
    return GTOPK_OK;
}
