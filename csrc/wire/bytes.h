/* Little-endian loads and stores at any address, on machines of either byte order. */
#ifndef GTOPK_WIRE_BYTES_H
#define GTOPK_WIRE_BYTES_H

#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define BYTES_LE(bits, x) __builtin_bswap##bits(x)
#else
#define BYTES_LE(bits, x) (x)
#endif

#define BYTES_DEFINE(bits)                                                  \
    static inline uint##bits##_t bytes_load##bits(const uint8_t *at)        \
    {                                                                       \
        uint##bits##_t x;                                                   \
        memcpy(&x, at, sizeof x);                                           \
        return (uint##bits##_t)BYTES_LE(bits, x);                           \
    }                                                                       \
    static inline void bytes_store##bits(uint8_t *at, uint##bits##_t value) \
    {                                                                       \
        const uint##bits##_t x = (uint##bits##_t)BYTES_LE(bits, value);     \
        memcpy(at, &x, sizeof x);                                           \
    }

BYTES_DEFINE(16)
BYTES_DEFINE(32)
BYTES_DEFINE(64)

#undef BYTES_DEFINE

#endif
