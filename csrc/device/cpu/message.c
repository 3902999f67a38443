/* Encode and decode: sets to whole messages and back. The codes of indices and of one value are wire's. */
#include <string.h>

#include "device/cpu/sets.h"
#include "device/cpu/store.h"
#include "util/fpenv.h"
#include "util/memory.h"
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

static uint8_t flags_of(const device_words_t *words)
{
    if (!words)
        return 0;
    return (uint8_t)((words->nonfinite ? WIRE_NONFINITE : 0) | (words->joined ? WIRE_JOINED : 0));
}

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
}

gtopk_status_t message_encode(device_t *device, const device_set_t *set, const wire_header_t *header, uint8_t *message,
                              device_set_t *decoded, const device_words_t *words, void *stream)
{
    (void)stream;
    wire_header_t head = *header;
    head.flags = (uint8_t)(head.flags | flags_of(words));
    uint32_t count = words && words->nonfinite ? 0 : *set->count, own_count = 0;
    device_set_t input = *set, own = {.count = &own_count, .capacity = count};
    input.count = &count;
    gtopk_status_t status = GTOPK_OK;
    if (!decoded) {
        status = memory_alloc(&own.index, count, sizeof *own.index, "the indices of a message");
        if (status == GTOPK_OK)
            status = memory_alloc(&own.value, count, sizeof *own.value, "the values of a message");
        if (status != GTOPK_OK)
            goto cleanup;
        decoded = &own;
    }
    if (decoded->capacity < count) {
        status = status_set(GTOPK_ERR_INTERNAL, "encode needs room for %u decoded entries; the set has %u", count,
                            decoded->capacity);
        goto cleanup;
    }
    fpenv_t saved = fpenv_enter();
    encode_set(cpu_kernels(device), &input, &head, message, decoded);
    fpenv_leave(saved);

cleanup:
    memory_free(own.index);
    memory_free(own.value);
    return status;
}

gtopk_status_t message_decode(device_t *device, const uint8_t *message, const wire_header_t *header, device_set_t *out,
                              device_words_t *words, void *stream)
{
    (void)stream;
    const uint8_t *payload = message + WIRE_HEADER_SIZE, *codes = payload + header->index_bytes;
    gtopk_status_t status = GTOPK_OK;
    if (header->count > out->capacity)
        status = status_set(GTOPK_ERR_INTERNAL, "decode needs room for %u entries; the set has %u", header->count,
                            out->capacity);
    if (status == GTOPK_OK)
        status = wire_indices_decode_fast(payload, header->count, header->dim, out->index);
    if (status == GTOPK_OK) {
        fpenv_t saved = fpenv_enter();
        cpu_kernels(device)->decode_values(header->value_type, codes, header->count, header->scale, out->value);
        fpenv_leave(saved);
        if (!values_are_valid(out->value, header->count) || !codes_are_valid(header->value_type, codes, header->count))
            status = status_set(GTOPK_ERR_CORRUPT, "one of %u values is zero, not finite or no code", header->count);
    }
    *out->count = status == GTOPK_OK ? header->count : 0;
    if (words) {
        words->ok &= status == GTOPK_OK;
        words->nonfinite |= (header->flags & WIRE_NONFINITE) != 0;
        words->joined &= (header->flags & WIRE_JOINED) != 0;
    }
    return status;
}
