/* The message: 64-byte header, Elias-Fano indices, values. Layout, sizes, checks and CRC; docs/wire-format.md is the
 * normative text. Knows no device and no transport; works on host memory.
 *
 * Offsets, little-endian:
 *    0  magic "GTK1"            16  sender u32          40  count u32
 *    4  format version u8       20  epoch u32           44  index bytes u32
 *    5  value type u8           24  step u64            48  scale f32 (bits)
 *    6  algorithm u8            32  k u32               52  configuration hash u32
 *    7  flags u8                36  dim u32             56  reducer id u32
 *    8  round u16                                       60  CRC-32C of everything else
 *   10  low-bit width u8
 *   11  zero u8
 *   12  attachment u32 (meaning given by the message's kind; zero for sets)
 *
 * Index part: count fields of `low width` bits, packed from the least significant bit up, padded with zero bits to a
 * multiple of 8 bytes; then the unary part: bit (index >> low) + i is set for entry i, count + ((dim - 1) >> low) bits,
 * padded to a multiple of 8 bytes. Low width is floor(log2(dim / count)). count = 0 has no index part.
 * Value part: count values of 4, 2, 2 or 1 bytes. The message ends there. */
#ifndef GTOPK_WIRE_WIRE_H
#define GTOPK_WIRE_WIRE_H

#include <stddef.h>
#include <stdint.h>

#include "util/status.h"

#define WIRE_HEADER_SIZE 64u
#define WIRE_FORMAT_VERSION 1u

enum { WIRE_NONFINITE = 1, WIRE_ABORT = 2, WIRE_JOINED = 4, WIRE_FLAGS = 7 };

/* A flag of messages that travel unsealed, on transports that queue on a device's stream: a tail follows (tail.h). */
enum { WIRE_TAIL = 8 };

/* `algorithm` of messages that carry no set: the collectives' (value type WIRE_VALUE_BYTES, count = payload bytes) and
 * a block's (gtopk_encode). Below these: gtopk_algorithm_t. */
enum { WIRE_ALGORITHMS = 5 }; /* how many gtopk_algorithm_t has */
enum { WIRE_BLOCK = 32, WIRE_BROADCAST = 33, WIRE_ALLGATHER = 34, WIRE_REDUCE_SCATTER = 35, WIRE_BARRIER = 36 };
enum { WIRE_VALUE_BYTES = 255 };

typedef struct wire_header {
    uint8_t value_type, algorithm, flags, low_width;
    uint16_t round;
    uint32_t attachment, sender, epoch, reducer, k, dim, count, index_bytes, config_hash;
    uint64_t step;
    float scale; /* a power of two for fp16 and int8, else 1 */
} wire_header_t;

/* What the header of a message that is awaited must say. `sender` is a rank of the transport. */
typedef struct wire_expect {
    uint8_t algorithm, value_type;
    uint16_t round;
    uint32_t tail; /* 1: it has a tail */
    uint32_t sender, epoch, reducer, config_hash, dim, k;
    uint64_t step;
} wire_expect_t;

/* Bytes of one value on the wire. value_type is valid. */
size_t wire_value_size(int value_type);

/* floor(log2(dim / count)), 0 < count <= dim. */
uint32_t wire_low_width(uint64_t dim, uint64_t count);

/* Bytes of the low part (a multiple of 8) and of the whole index part. wire_index_capacity: enough for any count <= k, as
 * padding can make it longer for fewer entries. */
size_t wire_low_bytes(uint64_t dim, uint64_t count);
size_t wire_index_bytes(uint64_t dim, uint64_t count);
size_t wire_index_capacity(uint64_t dim, uint64_t k);

/* Bytes of a message with `count` entries of `dim`. wire_message_capacity: enough for any count <= k (the index part
 * is not monotonic in count). */
size_t wire_message_size(uint64_t dim, uint64_t count, int value_type);
size_t wire_message_capacity(uint64_t dim, uint64_t k, int value_type);

/* The same with a tail. */
size_t wire_tailed_capacity(size_t capacity);

/* Fills in low_width and index_bytes from dim and count and writes 64 bytes, the CRC field zero. */
void wire_header_write(const wire_header_t *header, uint8_t *message);

/* CRC over the message (header with its CRC field left out, and `payload` bytes after it), stored in the header. */
void wire_seal(uint8_t *message, size_t payload_bytes);

/* The tail of a message whose header is written, and zeros up to it. */
void wire_write_tail(uint8_t *message);

/* 1 when the tail is there and says what the header says: the message was not cut off in between. The header was checked
 * and says that there is one. */
int wire_tail_matches(const uint8_t *message, const wire_header_t *header);

/* Another sender, round and k for a message that is relayed or sent again; seal it afterwards, unless it has a tail. */
void wire_readdress(uint8_t *message, uint32_t sender, uint16_t round, uint32_t k);

/* The same message as a rank's last word: ABORT, and the number of its error, made positive. */
void wire_make_last_word(uint8_t *message, uint32_t attachment);

/* The error in a last word that the device says by itself. */
#define WIRE_FAILED_STEP ((uint32_t)-GTOPK_ERR_CORRUPT)

/* Length of a message that this process wrote, from its header. */
size_t wire_own_size(const uint8_t *message);

/* Reads and checks everything that needs no payload: magic, version, ranges, canonical widths, that `received` bytes
 * hold the message. `padded`: more bytes than the message may have come. Then the CRC. CORRUPT with a text that says
 * what is wrong (the caller puts the peer's name before it). */
gtopk_status_t wire_header_read(const uint8_t *message, size_t received, int padded, wire_header_t *header);

/* The header of a message of which the first `held` bytes are at hand and more was sent: checked as above, but for the
 * CRC, which needs the rest. Good enough to say why a message did not fit, not to use it. CORRUPT also when the message
 * would end within `held`. */
gtopk_status_t wire_header_peek(const uint8_t *message, size_t held, wire_header_t *header);

/* The header of a message in a buffer of `capacity` bytes: checked as above, but for the CRC. For transports that carry no
 * lengths and seal nothing. CORRUPT also when the message would not end within the buffer. */
gtopk_status_t wire_header_trust(const uint8_t *message, size_t capacity, wire_header_t *header);

/* 1 when a header that was checked is the awaited one: every field of *expect is there, and it is no last word. The tail is
 * judged by itself. */
int wire_header_matches(const wire_header_t *header, const wire_expect_t *expect);

/* CRC-32C (Castagnoli), as in iSCSI; wire_crc(0, ...) starts. Uses the CPU's instruction where there is one. */
uint32_t wire_crc(uint32_t crc, const void *data, size_t bytes);

/* The table version, kept as reference. */
uint32_t wire_crc_reference(uint32_t crc, const void *data, size_t bytes);

/* Conversions of one value, round to nearest even, a finite value beyond the largest finite one clamped to it; NaN and
 * Inf stay what they are. The GPU and SIMD versions give the same bits. */
uint16_t wire_bf16_from_float(float value);
float wire_float_from_bf16(uint16_t bits);
uint16_t wire_fp16_from_float(float value);
float wire_float_from_fp16(uint16_t bits);

/* The smallest power of two s, at least 2^-126, with max <= limit * s, where limit is 32768 for fp16, 127 for int8;
 * 1 for the other types and for max = 0. max is finite and >= 0. */
float wire_scale(int value_type, float max);

/* 1 when `scale` can stand in a header for this value type. */
int wire_scale_valid(int value_type, float scale);

#endif
