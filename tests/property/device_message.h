/* Messages of all sides: encoded, compared byte for byte, decoded whole and damaged. */
#ifndef GTOPK_TESTS_DEVICE_MESSAGE_H
#define GTOPK_TESTS_DEVICE_MESSAGE_H

#include "device_world.h"
#include "wire/bytes.h"
#include "wire/tail.h"

static uint8_t message[SIDE_MESSAGE], whole[SIDE_MESSAGE];

static uint8_t *message_of(side_t *side)
{
    return side->message;
}

/* How a message is awaited: the size of its buffer, and what its header must say. */
typedef struct awaited {
    size_t capacity;
    wire_expect_t expect;
} awaited_t;

static void damage_value(random_state_t *random, const wire_header_t *header, size_t size)
{
    static const uint32_t codes[] = {0,      0x80,   0x8000,     0x80000000u, 0x7c00, 0xfc01,
                                     0x7f80, 0xffc0, 0x7f800000, 0x7fc00001,  1};
    const size_t value_size = wire_value_size(header->value_type);
    const size_t values = size - header->count * value_size;
    uint8_t code[4];
    bytes_store32(code, codes[random_below(random, sizeof codes / sizeof codes[0])]);
    memcpy(message + values + random_below(random, header->count) * value_size, code, value_size);
}

/* Another power of two: mostly one that a header may have. */
static void damage_scale(random_state_t *random)
{
    const float scale = ldexpf(1.0f, (int)random_below(random, 249) - 126);
    uint32_t bits;
    memcpy(&bits, &scale, sizeof bits);
    bytes_store32(message + 48, bits);
}

static void damage_expect(random_state_t *random, wire_expect_t *expect)
{
    const uint32_t bit = 1u << random_below(random, 8);
    switch (random_below(random, 11)) {
    case 10: expect->tail ^= 1; break;
    case 0: expect->algorithm ^= (uint8_t)bit; break;
    case 1: expect->value_type ^= (uint8_t)bit; break;
    case 2: expect->round ^= (uint16_t)bit; break;
    case 3: expect->sender ^= bit << 24; break;
    case 4: expect->epoch ^= bit << 24; break;
    case 5: expect->reducer ^= bit; break;
    case 6: expect->config_hash ^= bit << 16; break;
    case 7: expect->dim ^= bit; break;
    case 8: expect->k ^= bit; break;
    default: expect->step ^= (uint64_t)bit << 40; break;
    }
}

/* Spoils the message or what is awaited, in one way. The checksum is no device's business. */
static void damage(random_state_t *random, const wire_header_t *header, size_t size, awaited_t *awaited)
{
    const size_t payload = size - WIRE_HEADER_SIZE;
    if (header->flags & WIRE_TAIL && random_chance(random, 4)) {
        message[tail_place(size) + random_below(random, WIRE_TAIL_SIZE)] ^= (uint8_t)(1u << random_below(random, 8));
        return;
    }
    switch (random_below(random, payload > 0 ? 8 : 5)) {
    case 0: message[random_below(random, WIRE_HEADER_SIZE)] ^= (uint8_t)(1u << random_below(random, 8)); break;
    case 1: message[7] = (uint8_t)random_below(random, (WIRE_FLAGS | WIRE_TAIL) + 1); break;
    case 2: damage_expect(random, &awaited->expect); break;
    case 3: awaited->capacity = (size_t)random_below(random, size); break;
    case 4: damage_scale(random); break;
    case 5: damage_value(random, header, size); break;
    default: message[WIRE_HEADER_SIZE + random_below(random, payload)] ^= (uint8_t)(1u << random_below(random, 8));
    }
}

/* Words as they may be before a decode: at times an error has been met. */
static device_words_t draw_words(random_state_t *random)
{
    device_words_t words;
    memset(&words, 0, sizeof words);
    words.ok = 1;
    words.joined = (uint32_t)random_below(random, 2);
    words.nonfinite = (uint32_t)random_chance(random, 4);
    if (random_chance(random, 5)) {
        words.ok = 0;
        words.error = random_chance(random, 2) ? DEVICE_BAD_PAYLOAD : DEVICE_NO_ROOM;
        words.expect.sender = 77;
        memset(words.header, 0x3c, sizeof words.header);
    }
    return words;
}

/* Decodes the message of all sides into a set with room for `room` entries; they agree on what it holds, and on what is
 * wrong with it. Returns the words after it. */
static device_words_t decode_everywhere(world_t *w, const awaited_t *awaited, uint64_t room, device_words_t before)
{
    const device_words_t kept = world_words(w);
    world_set_words(w, before);
    world_prepare(w, SET_RECEIVED, room);
    WORLD_CALL_OK(w, ops->decode(side->device, side->message, awaited->capacity, &awaited->expect,
                                 &side->sets[SET_RECEIVED], side->words, NULL));
    const device_words_t after = world_words(w);
    world_compare_set(w, SET_RECEIVED, "decoded set");
    if (!before.ok && (after.error != before.error || memcmp(after.header, before.header, sizeof after.header) != 0))
        WORLD_FAIL(w, w->sides, "the first error, %u, became %u", before.error, after.error);
    if (before.ok && after.ok != (after.error == DEVICE_NO_ERROR))
        WORLD_FAIL(w, w->sides, "ok is %u with error %u", after.ok, after.error);
    world_set_words(w, kept);
    return after;
}

/* `size` bytes, and a tail where there is one. */
static size_t whole_size(const wire_header_t *header, size_t size)
{
    return header->flags & WIRE_TAIL ? wire_tailed_capacity(size) : size;
}

static void decode_damaged(world_t *w, const wire_header_t *header, const awaited_t *awaited, size_t size)
{
    awaited_t other = *awaited;
    memcpy(message, whole, whole_size(header, size));
    damage(&w->random, header, size, &other);
    world_upload(w, message_of, message, whole_size(header, size));
    (void)decode_everywhere(w, &other, header->count, draw_words(&w->random));
}

/* The same message under another sender, round and k. */
static void address_everywhere(world_t *w, size_t size, awaited_t *awaited)
{
    wire_expect_t *expect = &awaited->expect;
    expect->sender = (uint32_t)random_u64(&w->random);
    expect->round = (uint16_t)random_u64(&w->random);
    expect->k = (uint32_t)w->dim;
    const device_words_t kept = world_words(w), well = {.ok = 1};
    world_set_words(w, well);
    WORLD_CALL_OK(
        w, ops->address(side->device, side->message, expect->sender, expect->round, expect->k, side->words, NULL));
    world_set_words(w, kept);
    WORLD_COMPARE(w, message, size);
}

static awaited_t await(const wire_header_t *header, size_t capacity)
{
    awaited_t awaited;
    memset(&awaited, 0, sizeof awaited);
    awaited.capacity = capacity;
    awaited.expect = (wire_expect_t){
        .algorithm = header->algorithm,
        .value_type = header->value_type,
        .round = header->round,
        .tail = (header->flags & WIRE_TAIL) != 0,
        .sender = header->sender,
        .epoch = header->epoch,
        .reducer = header->reducer,
        .config_hash = header->config_hash,
        .dim = header->dim,
        .k = header->k,
        .step = header->step,
    };
    return awaited;
}

static wire_header_t draw_header(world_t *w)
{
    random_state_t *random = &w->random;
    wire_header_t header = {.algorithm = GTOPK_ALGORITHM_GTOPK, .k = (uint32_t)w->dim, .dim = (uint32_t)w->dim};
    header.value_type = (uint8_t)random_below(random, 4);
    header.round = (uint16_t)random_u64(random);
    header.sender = (uint32_t)random_u64(random);
    header.epoch = (uint32_t)random_u64(random);
    header.reducer = (uint32_t)random_u64(random);
    header.config_hash = (uint32_t)random_u64(random);
    header.step = random_u64(random);
    header.flags = random_chance(random, 2) ? WIRE_TAIL : 0;
    return header;
}

/* A set that is too small for what decodes: told, and the message says nothing. */
static void encode_without_room(world_t *w, int which, const wire_header_t *header, size_t capacity)
{
    const device_words_t kept = world_words(w);
    world_prepare(w, SET_DECODED, 0);
    WORLD_CALL_OK(w, ops->encode(side->device, &side->sets[which], header, side->message, &side->sets[SET_DECODED],
                                 side->words, NULL));
    const device_words_t after = world_words(w);
    world_compare_set(w, SET_DECODED, "what encode decodes without room");
    side_copy(w->sides, message, w->sides->message, capacity);
    WORLD_COMPARE(w, message, wire_own_size(message));
    assert_int_equal(wire_own_size(message), WIRE_HEADER_SIZE);
    if (kept.ok && !kept.nonfinite && (after.ok || after.error != DEVICE_NO_ROOM))
        WORLD_FAIL(w, w->sides, "encode without room leaves ok %u, error %u", after.ok, after.error);
    world_set_words(w, kept);
}

/* Encodes a set on all sides, with what it decodes to in SET_DECODED, and reads the message back, whole and damaged. */
static void encode_everywhere(world_t *w, int which)
{
    const wire_header_t header = draw_header(w);
    const size_t capacity = whole_size(
        &header, wire_message_capacity(w->dim, w->sides[0].sets[which].capacity, header.value_type));
    memset(message, 0x5a, capacity + FAR_BEHIND);
    world_upload(w, message_of, message, capacity + FAR_BEHIND);
    const uint32_t entries = world_count(w, which);
    if (entries > 0 && random_chance(&w->random, 8)) {
        world_prepare(w, SET_DECODED, entries);
        WORLD_CALL_OK(w, ops->encode(side->device, &side->sets[which], &header, side->message, &side->sets[SET_DECODED],
                                     side->words, NULL));
        if (world_count(w, SET_DECODED) > 0)
            encode_without_room(w, which, &header, capacity);
    }
    world_prepare(w, SET_DECODED, entries);
    WORLD_CALL_OK(w, ops->encode(side->device, &side->sets[which], &header, side->message, &side->sets[SET_DECODED],
                                 side->words, NULL));
    world_compare_set(w, SET_DECODED, "what encode decodes");

    side_copy(w->sides, message, w->sides->message, capacity + FAR_BEHIND);
    const size_t size = wire_own_size(message);
    assert_true(whole_size(&header, size) <= capacity);
    WORLD_COMPARE(w, message, whole_size(&header, size));
    for (side_t *side = w->sides; side < w->sides + w->side_count; side++) {
        uint8_t behind[FAR_BEHIND], expected[FAR_BEHIND];
        side_copy(side, behind, side->message + capacity, FAR_BEHIND);
        memset(expected, 0x5a, FAR_BEHIND);
        world_compare(w, side, "bytes behind the message", expected, behind, FAR_BEHIND);
    }

    wire_header_t read;
    wire_seal(message, size - WIRE_HEADER_SIZE);
    if (header.flags & WIRE_TAIL) { /* not for those who carry checksums */
        assert_int_equal(wire_header_read(message, whole_size(&header, size), 1, &read), GTOPK_ERR_CORRUPT);
        SIDE_OK(wire_header_trust(message, whole_size(&header, size), &read));
    } else {
        SIDE_OK(wire_header_read(message, size, 0, &read));
    }
    awaited_t awaited = await(&read, capacity);
    if (random_chance(&w->random, 3))
        address_everywhere(w, whole_size(&header, size), &awaited);
    const device_words_t before = {.ok = 1, .joined = (uint32_t)random_below(&w->random, 2)};
    const device_words_t after = decode_everywhere(w, &awaited, read.count, before);
    if (!after.ok || after.error != DEVICE_NO_ERROR || after.nonfinite != ((read.flags & WIRE_NONFINITE) != 0) ||
        after.joined != (before.joined && read.flags & WIRE_JOINED))
        WORLD_FAIL(w, w->sides, "decode of flags %u leaves ok %u, nonfinite %u, joined %u (joined was %u), error %u",
                   read.flags, after.ok, after.nonfinite, after.joined, before.joined, after.error);
    if (read.count > 0 && random_chance(&w->random, 4))
        assert_int_equal(decode_everywhere(w, &awaited, read.count - 1, before).error, DEVICE_NO_ROOM);
    side_copy(w->sides, whole, w->sides->message, whole_size(&header, size));
    for (int i = 0; i < 3; i++)
        decode_damaged(w, &read, &awaited, size);
}

#endif
