/* Messages of all sides: encoded, compared byte for byte, decoded whole and damaged. */
#ifndef GTOPK_TESTS_DEVICE_MESSAGE_H
#define GTOPK_TESTS_DEVICE_MESSAGE_H

#include "device_world.h"
#include "wire/bytes.h"

static uint8_t message[SIDE_MESSAGE];

static uint8_t *message_of(side_t *side)
{
    return side->message;
}

/* Spoils the payload, or changes the scale to another that a header may have. */
static void damage(random_state_t *random, wire_header_t *header, size_t size)
{
    static const uint32_t codes[] = {0,      0x80,   0x8000,     0x80000000u, 0x7c00, 0xfc01,
                                     0x7f80, 0xffc0, 0x7f800000, 0x7fc00001,  1};
    const size_t value_size = wire_value_size(header->value_type);
    const size_t values = size - header->count * value_size;
    const int scaled = header->value_type == GTOPK_VALUE_F16 || header->value_type == GTOPK_VALUE_I8;
    if (scaled && random_chance(random, 3)) {
        do
            header->scale = ldexpf(1.0f, (int)random_below(random, 249) - 126);
        while (!wire_scale_valid(header->value_type, header->scale));
    } else if (random_chance(random, 2)) {
        uint8_t code[4];
        bytes_store32(code, codes[random_below(random, sizeof codes / sizeof codes[0])]);
        memcpy(message + values + random_below(random, header->count) * value_size, code, value_size);
    } else {
        const size_t payload = size - WIRE_HEADER_SIZE;
        message[WIRE_HEADER_SIZE + random_below(random, payload)] ^= (uint8_t)(1u << random_below(random, 8));
    }
}

/* Decodes the message of all sides; they agree on what it holds, and on whether it holds anything. */
static void decode_everywhere(world_t *w, const wire_header_t *header)
{
    const int no_words = random_chance(&w->random, 4);
    const device_words_t kept = world_words(w),
                         before = {.ok = kept.ok, .joined = (uint32_t)random_below(&w->random, 2)};
    world_set_words(w, before);
    world_prepare(w, SET_RECEIVED, header->count);
    WORLD_CALL(w, ops->decode(side->device, side->message, header, &side->sets[SET_RECEIVED],
                              no_words ? NULL : side->words, NULL))
    device_words_t expected = before;
    if (!no_words) {
        expected.ok = before.ok && w->status == GTOPK_OK;
        expected.nonfinite = (header->flags & WIRE_NONFINITE) != 0;
        expected.joined = before.joined && header->flags & WIRE_JOINED;
    }
    const device_words_t after = world_words(w);
    if (memcmp(&after, &expected, sizeof after) != 0)
        WORLD_FAIL(w, w->sides, "decode of flags %u leaves ok %u, nonfinite %u, joined %u (joined was %u)",
                   header->flags, after.ok, after.nonfinite, after.joined, before.joined);
    if (w->status == GTOPK_OK)
        world_compare_set(w, SET_RECEIVED, "decoded set");
    else
        assert_int_equal(w->status, GTOPK_ERR_CORRUPT);
    world_set_words(w, kept);
}

/* Encodes a set on all sides, with what it decodes to in SET_DECODED, and reads the message back, whole and damaged. */
static void encode_everywhere(world_t *w, int which)
{
    const wire_header_t header = {.value_type = (uint8_t)random_below(&w->random, 4),
                                  .algorithm = GTOPK_ALGORITHM_GTOPK,
                                  .round = 3,
                                  .k = (uint32_t)w->dim,
                                  .dim = (uint32_t)w->dim,
                                  .step = (uint64_t)w->step};
    const size_t capacity = wire_message_capacity(w->dim, w->sides[0].sets[which].capacity, header.value_type);
    memset(message, 0x5a, capacity + FAR_BEHIND);
    world_upload(w, message_of, message, capacity + FAR_BEHIND);
    world_prepare(w, SET_DECODED, world_count(w, which));
    if (random_chance(&w->random, 8))
        WORLD_CALL_OK(w,
                      ops->encode(side->device, &side->sets[which], &header, side->message, NULL, side->words, NULL));
    WORLD_CALL_OK(w, ops->encode(side->device, &side->sets[which], &header, side->message, &side->sets[SET_DECODED],
                                 side->words, NULL));
    world_compare_set(w, SET_DECODED, "what encode decodes");

    side_copy(w->sides, message, w->sides->message, capacity + FAR_BEHIND);
    const size_t size = wire_own_size(message);
    assert_true(size <= capacity);
    WORLD_COMPARE(w, message, size);
    for (side_t *side = w->sides; side < w->sides + w->side_count; side++) {
        uint8_t behind[FAR_BEHIND], expected[FAR_BEHIND];
        side_copy(side, behind, side->message + capacity, FAR_BEHIND);
        memset(expected, 0x5a, FAR_BEHIND);
        world_compare(w, side, "bytes behind the message", expected, behind, FAR_BEHIND);
    }

    wire_header_t read;
    wire_seal(message, size - WIRE_HEADER_SIZE);
    SIDE_OK(wire_header_read(message, size, 0, &read));
    decode_everywhere(w, &read);
    assert_int_equal(w->status, GTOPK_OK);
    for (int i = 0; i < 3 && read.count > 0; i++) {
        wire_header_t spoilt = read;
        spoilt.flags = (uint8_t)random_below(&w->random, WIRE_FLAGS + 1);
        side_copy(w->sides, message, w->sides->message, size);
        damage(&w->random, &spoilt, size);
        world_upload(w, message_of, message, size);
        decode_everywhere(w, &spoilt);
    }
}

#endif
