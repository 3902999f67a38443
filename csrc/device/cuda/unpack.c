/* The decoder of LZ4 blocks. */
#include <string.h>

#include "device/cuda/images.h"

/* A length that began as four bits goes on in bytes for as long as they are 255. Returns 0 at the end of the input. */
static int read_length(const uint8_t **in, const uint8_t *end, size_t *length)
{
    uint8_t byte = 255;
    if (*length < 15)
        return 1;
    while (byte == 255) {
        if (*in == end)
            return 0;
        byte = *(*in)++;
        *length += byte;
    }
    return 1;
}

int image_unpack(const void *packed, size_t packed_bytes, void *out, size_t bytes)
{
    const uint8_t *in = packed, *const end = in + packed_bytes;
    uint8_t *const begin = out, *const stop = begin + bytes, *to = begin;
    while (in < end) {
        const uint8_t token = *in++;
        size_t literals = token >> 4, match = token & 15;
        if (!read_length(&in, end, &literals) || literals > (size_t)(end - in) || literals > (size_t)(stop - to))
            return 0;
        if (literals > 0)
            memcpy(to, in, literals);
        in += literals;
        to += literals;
        if (in == end) /* the last part has no match */
            return to == stop;
        if (end - in < 2)
            return 0;
        const size_t back = in[0] | (size_t)in[1] << 8;
        in += 2;
        if (!read_length(&in, end, &match))
            return 0;
        match += 4;
        if (back == 0 || back > (size_t)(to - begin) || match > (size_t)(stop - to))
            return 0;
        for (size_t i = 0; i < match; i++, to++) /* may overlap itself */
            *to = *(to - back);
    }
    return 0;
}
