/* CRC-32C (Castagnoli, reflected polynomial 0x82f63b78; RFC 3720), by a table and by the CPU's own instruction. */
#include "wire/bytes.h"
#include "wire/wire.h"

#define POLYNOMIAL 0x82f63b78u

/* ---- the reference: one table, four bits at a time ---- */

uint32_t wire_crc_reference(uint32_t crc, const void *data, size_t bytes)
{
    /* table[i]: i, followed by four shifts of the register. */
    static const uint32_t table[16] = {0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3,
                                       0x61c69362, 0x7198540d, 0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9,
                                       0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75};
    const uint8_t *at = data;
    crc = ~crc;
    for (size_t i = 0; i < bytes; i++) {
        crc ^= at[i];
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return ~crc;
}

/* ---- the CPU's instruction ---- */

#if defined(__x86_64__)
#include <nmmintrin.h>
#define CRC_TARGET __attribute__((target("sse4.2")))
#define CRC_BYTE(crc, byte) _mm_crc32_u8((crc), (byte))
#define CRC_WORD(crc, word) ((uint32_t)_mm_crc32_u64((crc), (word)))

static int crc_has_instruction(void)
{
    return __builtin_cpu_supports("sse4.2");
}
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#if defined(__clang__)
#define CRC_TARGET __attribute__((target("crc")))
#else
#define CRC_TARGET __attribute__((target("+crc")))
#endif
#define CRC_BYTE(crc, byte) __builtin_aarch64_crc32cb((crc), (byte))
#define CRC_WORD(crc, word) __builtin_aarch64_crc32cx((crc), (word))
#define HWCAP_CRC32_BIT (1ul << 7)

static int crc_has_instruction(void)
{
    return (getauxval(AT_HWCAP) & HWCAP_CRC32_BIT) != 0;
}
#endif

#ifdef CRC_TARGET

/* Below this, working out the power costs more than three streams save. */
#define THREE_STREAMS_FROM 2048u

/* a * b modulo the polynomial; bit 31 is the coefficient of 1. */
static uint32_t polynomial_multiply(uint32_t a, uint32_t b)
{
    uint32_t product = 0;
    for (int i = 0; i < 32; i++) {
        product ^= b & (0u - (a >> 31));
        a <<= 1;
        b = b >> 1 ^ (POLYNOMIAL & (0u - (b & 1)));
    }
    return product;
}

/* x^(64 words) modulo the polynomial: what `words` words of zeros multiply a CRC by. words > 0. */
static uint32_t polynomial_power(size_t words)
{
    const uint32_t x64 = 0x6ea2d55cu;
    uint32_t power = x64;
    for (int bit = 62 - __builtin_clzll(words); bit >= 0; bit--) {
        power = polynomial_multiply(power, power);
        if (words >> bit & 1)
            power = polynomial_multiply(power, x64);
    }
    return power;
}

/* The instruction takes one word a cycle but gives its result after three: three streams at once, each over a third
 * of the data, put together by multiplying with the power of x that their distance stands for. */
CRC_TARGET static uint32_t crc_three_streams(uint32_t crc, const uint8_t *at, size_t words)
{
    uint32_t a = crc, b = 0, c = 0;
    for (size_t i = 0; i < words; i++) {
        a = CRC_WORD(a, bytes_load64(at + 8 * i));
        b = CRC_WORD(b, bytes_load64(at + 8 * (words + i)));
        c = CRC_WORD(c, bytes_load64(at + 8 * (2 * words + i)));
    }
    const uint32_t power = polynomial_power(words);
    return polynomial_multiply(polynomial_multiply(a, power) ^ b, power) ^ c;
}

CRC_TARGET static uint32_t crc_instruction(uint32_t crc, const uint8_t *at, size_t bytes)
{
    crc = ~crc;
    if (bytes >= THREE_STREAMS_FROM) {
        const size_t words = bytes / 24;
        crc = crc_three_streams(crc, at, words);
        at += 24 * words;
        bytes -= 24 * words;
    }
    for (; bytes >= 8; at += 8, bytes -= 8)
        crc = CRC_WORD(crc, bytes_load64(at));
    for (; bytes > 0; at++, bytes--)
        crc = CRC_BYTE(crc, *at);
    return ~crc;
}

uint32_t wire_crc(uint32_t crc, const void *data, size_t bytes)
{
    return crc_has_instruction() ? crc_instruction(crc, data, bytes) : wire_crc_reference(crc, data, bytes);
}

#else

uint32_t wire_crc(uint32_t crc, const void *data, size_t bytes)
{
    return wire_crc_reference(crc, data, bytes);
}

#endif
