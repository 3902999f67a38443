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

/* ---- the CPU's instruction ----
 *
 * As assembly: intrinsics for a CPU that is newer than the one compiled for are spelt differently by each compiler. A
 * register is 64 bits wide so that nothing is widened between two instructions. */

#if defined(__x86_64__)

static inline uint64_t crc_word(uint64_t crc, uint64_t word)
{
    __asm__("crc32q %1, %0" : "+r"(crc) : "r"(word));
    return crc;
}

static inline uint64_t crc_byte(uint64_t crc, uint8_t byte)
{
    __asm__("crc32b %1, %k0" : "+r"(crc) : "r"(byte));
    return crc;
}

static int crc_has_instruction(void)
{
    return __builtin_cpu_supports("sse4.2");
}

#define HAS_INSTRUCTION

#elif defined(__aarch64__) && defined(__linux__)

#include <sys/auxv.h>
#define HWCAP_CRC32_BIT (1ul << 7)

static inline uint64_t crc_word(uint64_t crc, uint64_t word)
{
    __asm__(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(word));
    return crc;
}

static inline uint64_t crc_byte(uint64_t crc, uint8_t byte)
{
    __asm__(".arch_extension crc\n\tcrc32cb %w0, %w0, %w1" : "+r"(crc) : "r"(byte));
    return crc;
}

static int crc_has_instruction(void)
{
    return (getauxval(AT_HWCAP) & HWCAP_CRC32_BIT) != 0;
}

#define HAS_INSTRUCTION

#endif

#ifdef HAS_INSTRUCTION

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
static uint32_t crc_three_streams(uint32_t crc, const uint8_t *at, size_t words)
{
    uint64_t a = crc, b = 0, c = 0;
    for (size_t i = 0; i < words; i++) {
        a = crc_word(a, bytes_load64(at + 8 * i));
        b = crc_word(b, bytes_load64(at + 8 * (words + i)));
        c = crc_word(c, bytes_load64(at + 8 * (2 * words + i)));
    }
    const uint32_t power = polynomial_power(words);
    return polynomial_multiply(polynomial_multiply((uint32_t)a, power) ^ (uint32_t)b, power) ^ (uint32_t)c;
}

static uint32_t crc_instruction(uint32_t start, const uint8_t *at, size_t bytes)
{
    uint64_t crc = ~start;
    if (bytes >= THREE_STREAMS_FROM) {
        const size_t words = bytes / 24;
        crc = crc_three_streams(~start, at, words);
        at += 24 * words;
        bytes -= 24 * words;
    }
    for (; bytes >= 8; at += 8, bytes -= 8)
        crc = crc_word(crc, bytes_load64(at));
    for (; bytes > 0; at++, bytes--)
        crc = crc_byte(crc, *at);
    return ~(uint32_t)crc;
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
