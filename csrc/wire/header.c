/* The 64 bytes before every message: written, sealed with the CRC, read and checked. Nothing that a peer sent is used
 * before it was checked here. What a good header of the wrong step or sender means is for the exchange to say. */
#include <string.h>

#include "gtopk.h"
#include "wire/bytes.h"
#include "wire/tail.h"
#include "wire/wire.h"

enum {
    AT_MAGIC = 0,
    AT_VERSION = 4,
    AT_VALUE_TYPE = 5,
    AT_ALGORITHM = 6,
    AT_FLAGS = 7,
    AT_ROUND = 8,
    AT_LOW_WIDTH = 10,
    AT_ZERO = 11,
    AT_ATTACHMENT = 12,
    AT_SENDER = 16,
    AT_EPOCH = 20,
    AT_STEP = 24,
    AT_K = 32,
    AT_DIM = 36,
    AT_COUNT = 40,
    AT_INDEX_BYTES = 44,
    AT_SCALE = 48,
    AT_CONFIG_HASH = 52,
    AT_REDUCER = 56,
    AT_CRC = 60
};

static const uint8_t magic[4] = {'G', 'T', 'K', '1'};

#define CORRUPT(...) status_set(GTOPK_ERR_CORRUPT, __VA_ARGS__)

/* ---- writing ---- */

void wire_header_write(const wire_header_t *header, uint8_t *message)
{
    const int has_indices = header->value_type != WIRE_VALUE_BYTES && header->count != 0;
    uint32_t scale;
    memcpy(&scale, &header->scale, sizeof scale);

    memcpy(message + AT_MAGIC, magic, sizeof magic);
    message[AT_VERSION] = WIRE_FORMAT_VERSION;
    message[AT_VALUE_TYPE] = header->value_type;
    message[AT_ALGORITHM] = header->algorithm;
    message[AT_FLAGS] = header->flags;
    bytes_store16(message + AT_ROUND, header->round);
    message[AT_LOW_WIDTH] = has_indices ? (uint8_t)wire_low_width(header->dim, header->count) : 0;
    message[AT_ZERO] = 0;
    bytes_store32(message + AT_ATTACHMENT, header->attachment);
    bytes_store32(message + AT_SENDER, header->sender);
    bytes_store32(message + AT_EPOCH, header->epoch);
    bytes_store64(message + AT_STEP, header->step);
    bytes_store32(message + AT_K, header->k);
    bytes_store32(message + AT_DIM, header->dim);
    bytes_store32(message + AT_COUNT, header->count);
    bytes_store32(message + AT_INDEX_BYTES, has_indices ? (uint32_t)wire_index_bytes(header->dim, header->count) : 0);
    bytes_store32(message + AT_SCALE, scale);
    bytes_store32(message + AT_CONFIG_HASH, header->config_hash);
    bytes_store32(message + AT_REDUCER, header->reducer);
    bytes_store32(message + AT_CRC, 0);
}

static uint32_t message_crc(const uint8_t *message, size_t payload_bytes)
{
    return wire_crc(wire_crc(0, message, AT_CRC), message + WIRE_HEADER_SIZE, payload_bytes);
}

void wire_seal(uint8_t *message, size_t payload_bytes)
{
    bytes_store32(message + AT_CRC, message_crc(message, payload_bytes));
}

static uint64_t tail_of(const uint8_t *message)
{
    return tail_mark(bytes_load64(message + AT_STEP), bytes_load32(message + AT_SENDER),
                     bytes_load16(message + AT_ROUND));
}

void wire_write_tail(uint8_t *message)
{
    const size_t size = wire_own_size(message), place = (size_t)tail_place(size);
    memset(message + size, 0, place - size);
    bytes_store64(message + place, tail_of(message));
}

int wire_tail_matches(const uint8_t *message, const wire_header_t *header)
{
    const size_t size = wire_message_size(header->dim, header->count, header->value_type);
    return bytes_load64(message + tail_place(size)) == tail_of(message);
}

void wire_readdress(uint8_t *message, uint32_t sender, uint16_t round, uint32_t k)
{
    bytes_store16(message + AT_ROUND, round);
    bytes_store32(message + AT_SENDER, sender);
    bytes_store32(message + AT_K, k);
    if (message[AT_FLAGS] & WIRE_TAIL)
        wire_write_tail(message);
}

void wire_make_last_word(uint8_t *message, uint32_t attachment)
{
    message[AT_FLAGS] |= WIRE_ABORT;
    bytes_store32(message + AT_ATTACHMENT, attachment);
}

size_t wire_own_size(const uint8_t *message)
{
    return wire_message_size(bytes_load32(message + AT_DIM), bytes_load32(message + AT_COUNT), message[AT_VALUE_TYPE]);
}

/* ---- reading ---- */

static void header_parse(const uint8_t *message, wire_header_t *header)
{
    const uint32_t scale = bytes_load32(message + AT_SCALE);
    *header = (wire_header_t){
        .value_type = message[AT_VALUE_TYPE],
        .algorithm = message[AT_ALGORITHM],
        .flags = message[AT_FLAGS],
        .low_width = message[AT_LOW_WIDTH],
        .round = bytes_load16(message + AT_ROUND),
        .attachment = bytes_load32(message + AT_ATTACHMENT),
        .sender = bytes_load32(message + AT_SENDER),
        .epoch = bytes_load32(message + AT_EPOCH),
        .reducer = bytes_load32(message + AT_REDUCER),
        .k = bytes_load32(message + AT_K),
        .dim = bytes_load32(message + AT_DIM),
        .count = bytes_load32(message + AT_COUNT),
        .index_bytes = bytes_load32(message + AT_INDEX_BYTES),
        .config_hash = bytes_load32(message + AT_CONFIG_HASH),
        .step = bytes_load64(message + AT_STEP),
    };
    memcpy(&header->scale, &scale, sizeof scale);
}

/* The fields that mean the same in every message; `flags` that it may have. */
static gtopk_status_t check_frame(const uint8_t *message, size_t received, int flags)
{
    if (received < WIRE_HEADER_SIZE)
        return CORRUPT("message of %zu bytes is shorter than its header of %u bytes", received, WIRE_HEADER_SIZE);
    if (memcmp(message + AT_MAGIC, magic, sizeof magic) != 0)
        return CORRUPT("message does not start with \"GTK1\": it is not from gtopk");
    if (message[AT_VERSION] != WIRE_FORMAT_VERSION)
        return CORRUPT("message has format version %u, this library reads %u; use one gtopk version on all ranks",
                       message[AT_VERSION], WIRE_FORMAT_VERSION);
    if (message[AT_ZERO] != 0)
        return CORRUPT("message has %u in its reserved byte, not 0", message[AT_ZERO]);
    if (message[AT_FLAGS] & ~flags)
        return CORRUPT("message has unknown flags 0x%02x", message[AT_FLAGS]);
    return GTOPK_OK;
}

static gtopk_status_t check_kind(const wire_header_t *header)
{
    const int is_set = header->algorithm < WIRE_ALGORITHMS || header->algorithm == WIRE_BLOCK;
    const int is_collective = header->algorithm >= WIRE_BROADCAST && header->algorithm <= WIRE_BARRIER;
    if (!is_set && !is_collective)
        return CORRUPT("message has unknown algorithm %u", header->algorithm);
    if (is_set ? header->value_type > GTOPK_VALUE_I8 : header->value_type != WIRE_VALUE_BYTES)
        return CORRUPT("message of algorithm %u has value type %u", header->algorithm, header->value_type);
    if (is_set && header->attachment != 0 && !(header->flags & WIRE_ABORT))
        return CORRUPT("message with a set has attachment %u, not 0", header->attachment);
    if (!wire_scale_valid(header->value_type, header->scale))
        return CORRUPT("message of value type %u has scale %g", header->value_type, (double)header->scale);
    return GTOPK_OK;
}

/* Counts, and what follows from them: there is one way to write a set. */
static gtopk_status_t check_shape(const wire_header_t *header)
{
    uint32_t low_width = 0, index_bytes = 0;
    if (header->value_type != WIRE_VALUE_BYTES) {
        if (header->count > header->k || header->k > header->dim)
            return CORRUPT("message has count %u, k %u, dim %u; count <= k <= dim must hold", header->count, header->k,
                           header->dim);
        if (header->count != 0) {
            low_width = wire_low_width(header->dim, header->count);
            index_bytes = (uint32_t)wire_index_bytes(header->dim, header->count);
        }
    }
    if (header->low_width != low_width)
        return CORRUPT("message has low width %u, %u entries of %u need %u", header->low_width, header->count,
                       header->dim, low_width);
    if (header->index_bytes != index_bytes)
        return CORRUPT("message has %u index bytes, %u entries of %u need %u", header->index_bytes, header->count,
                       header->dim, index_bytes);
    return GTOPK_OK;
}

/* Everything that the header alone tells. */
static gtopk_status_t header_check(const uint8_t *message, size_t received, int flags, wire_header_t *header)
{
    gtopk_status_t status = check_frame(message, received, flags);
    if (status != GTOPK_OK)
        return status;
    header_parse(message, header);
    status = check_kind(header);
    return status == GTOPK_OK ? check_shape(header) : status;
}

gtopk_status_t wire_header_peek(const uint8_t *message, size_t held, wire_header_t *header)
{
    const gtopk_status_t status = header_check(message, held, WIRE_FLAGS, header);
    if (status != GTOPK_OK)
        return status;
    const size_t size = wire_message_size(header->dim, header->count, header->value_type);
    return size > held ? GTOPK_OK : CORRUPT("message of more than %zu bytes arrived, its header says %zu", held, size);
}

gtopk_status_t wire_header_read(const uint8_t *message, size_t received, int padded, wire_header_t *header)
{
    const gtopk_status_t status = header_check(message, received, WIRE_FLAGS, header);
    if (status != GTOPK_OK)
        return status;

    const size_t size = wire_message_size(header->dim, header->count, header->value_type);
    if (received < size || (received > size && !padded))
        return CORRUPT("message of %zu bytes arrived, its header says %zu", received, size);
    const uint32_t crc = message_crc(message, size - WIRE_HEADER_SIZE), sent = bytes_load32(message + AT_CRC);
    if (crc != sent)
        return CORRUPT("message of %zu bytes has checksum %08x, its header says %08x: it was damaged on the way", size,
                       crc, sent);
    return GTOPK_OK;
}

gtopk_status_t wire_header_trust(const uint8_t *message, size_t capacity, wire_header_t *header)
{
    const gtopk_status_t status = header_check(message, capacity, WIRE_FLAGS | WIRE_TAIL, header);
    if (status != GTOPK_OK)
        return status;
    size_t size = wire_message_size(header->dim, header->count, header->value_type);
    if (header->flags & WIRE_TAIL)
        size = wire_tailed_capacity(size);
    return size <= capacity ? GTOPK_OK : CORRUPT("message has room for %zu bytes, its header says %zu", capacity, size);
}

int wire_header_matches(const wire_header_t *header, const wire_expect_t *expect)
{
    return !(header->flags & WIRE_ABORT) && header->algorithm == expect->algorithm &&
           header->value_type == expect->value_type && header->round == expect->round &&
           header->sender == expect->sender && header->epoch == expect->epoch && header->reducer == expect->reducer &&
           header->config_hash == expect->config_hash && header->dim == expect->dim && header->k == expect->k &&
           header->step == expect->step && !(header->flags & WIRE_TAIL) == !expect->tail;
}
