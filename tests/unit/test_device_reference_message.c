/* The reference device's messages: round trips, flags, headers that are not the awaited ones, and values and indices spoilt
 * by hand. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "device/device.h"
#include "support/random.h"
#include "wire/bytes.h"

enum { DIM = 60, ROUNDS = 400 };

static device_t *device;
static const device_ops_t *ops;

typedef struct own_set {
    uint32_t index[2 * DIM];
    float value[2 * DIM];
    uint32_t count;
} own_set_t;

static device_set_t view(own_set_t *set)
{
    return (device_set_t){set->index, set->value, &set->count, 2 * DIM};
}

/* Small integers, or any magnitudes over nine decimal orders. */
static void draw_set(random_state_t *random, own_set_t *set, int integers)
{
    set->count = 0;
    for (uint32_t i = 0; i < DIM; i++) {
        const float value = (float)random_below(random, 17) - 8.0f;
        if (value == 0.0f || random_below(random, 2))
            continue;
        set->index[set->count] = i;
        set->value[set->count++] = integers ? value : value * ((float)random_below(random, 1000000) * 1e-3f + 1e-6f);
    }
}

static const wire_header_t header = {
    .algorithm = GTOPK_ALGORITHM_TOPK,
    .round = 3,
    .sender = 4,
    .epoch = 5,
    .reducer = 6,
    .config_hash = 7,
    .k = DIM,
    .dim = DIM,
    .step = 8,
    .scale = 1.0f,
};

/* Encodes, seals, reads the header. */
static wire_header_t encode(own_set_t *set, int value_type, uint8_t *message, own_set_t *decoded, device_words_t *words)
{
    device_words_t own = {.ok = 1};
    wire_header_t full = header;
    full.value_type = (uint8_t)value_type;
    const device_set_t in = view(set);
    device_set_t out = view(decoded);
    assert_int_equal(ops->encode(device, &in, &full, message, &out, words ? words : &own, NULL), GTOPK_OK);
    const size_t size = wire_own_size(message);
    wire_seal(message, size - WIRE_HEADER_SIZE);
    assert_int_equal(wire_header_read(message, size, 0, &full), GTOPK_OK);
    return full;
}

static wire_expect_t expect_of(const wire_header_t *read)
{
    return (wire_expect_t){
        .algorithm = read->algorithm,
        .value_type = read->value_type,
        .round = read->round,
        .sender = read->sender,
        .epoch = read->epoch,
        .reducer = read->reducer,
        .config_hash = read->config_hash,
        .dim = read->dim,
        .k = read->k,
        .step = read->step,
    };
}

/* The error that the words have after it, DEVICE_NO_ERROR when the set is there. */
static device_error_t decode(const uint8_t *message, const wire_header_t *read, own_set_t *out, device_words_t *words)
{
    device_set_t set = view(out);
    const wire_expect_t expect = expect_of(read);
    assert_int_equal(ops->decode(device, message, wire_own_size(message), &expect, &set, words, NULL), GTOPK_OK);
    assert_int_equal(words->ok, words->error == DEVICE_NO_ERROR);
    return (device_error_t)words->error;
}

/* Small integers come back as they were, in every type; other values within half a unit, and no zeros. */
static void test_round_trip(void **state)
{
    (void)state;
    random_state_t random = {5};
    static const double unit[4] = {0.0, 0x1p-11, 0x1p-8, 1.0 / 127.0};
    for (int round = 0; round < ROUNDS; round++)
        for (int type = GTOPK_VALUE_F32; type <= GTOPK_VALUE_I8; type++) {
            const int integers = round % 2;
            own_set_t set, decoded, received;
            uint8_t message[4096];
            draw_set(&random, &set, integers);
            double largest = 0.0;
            for (uint32_t i = 0; i < set.count; i++)
                largest = fmax(largest, fabs((double)set.value[i]));
            device_words_t words = {.ok = 1};
            const wire_header_t read = encode(&set, type, message, &decoded, NULL);
            assert_int_equal(decode(message, &read, &received, &words), DEVICE_NO_ERROR);
            assert_int_equal(received.count, decoded.count);
            assert_int_equal(read.count, decoded.count);
            uint32_t d = 0;
            for (uint32_t i = 0; i < set.count; i++) {
                const double value = (double)set.value[i];
                const double rounding = unit[type] * (type == GTOPK_VALUE_I8 ? largest : fabs(value)) +
                                        (type == GTOPK_VALUE_F16 ? largest * 0x1p-38 : 0.0);
                const double allowed = integers ? 0.0 : rounding;
                if (d < decoded.count && decoded.index[d] == set.index[i]) {
                    assert_int_equal(received.index[d], decoded.index[d]);
                    assert_true(received.value[d] == decoded.value[d]);
                    assert_true(received.value[d] != 0.0f && fabs((double)received.value[d++] - value) <= allowed);
                } else {
                    assert_true(fabs(value) <= allowed);
                }
            }
            assert_int_equal(d, decoded.count);
        }
}

/* 1e-3 beside 127 is zero in int8: it does not travel, and the index part is that of one entry. */
static void test_encode_leaves_zeros_out(void **state)
{
    (void)state;
    own_set_t set = {{3, 50}, {1e-3f, -127.0f}, 2}, decoded;
    uint8_t message[256];
    const wire_header_t read = encode(&set, GTOPK_VALUE_I8, message, &decoded, NULL);
    assert_int_equal(read.count, 1);
    assert_int_equal(read.low_width, wire_low_width(DIM, 1));
    assert_int_equal(wire_own_size(message), wire_message_size(DIM, 1, GTOPK_VALUE_I8));
    assert_int_equal(decoded.count, 1);
    assert_int_equal(decoded.index[0], 50);
    assert_true(decoded.value[0] == -127.0f && read.scale == 1.0f);
}

static void test_flags_travel(void **state)
{
    (void)state;
    own_set_t set = {{3}, {1.0f}, 1}, decoded, received;
    uint8_t message[256];
    for (uint32_t sender = 0; sender < 4; sender++)
        for (uint32_t receiver = 0; receiver < 4; receiver++) {
            device_words_t from = {.ok = 1, .nonfinite = sender & 1, .joined = sender >> 1};
            device_words_t to = {.ok = 1, .nonfinite = receiver & 1, .joined = receiver >> 1};
            const wire_header_t read = encode(&set, GTOPK_VALUE_BF16, message, &decoded, &from);
            assert_int_equal(read.count, from.nonfinite ? 0 : 1);
            assert_int_equal(decoded.count, read.count);
            assert_int_equal(decode(message, &read, &received, &to), DEVICE_NO_ERROR);
            assert_int_equal(to.nonfinite, from.nonfinite || (receiver & 1));
            assert_int_equal(to.joined, from.joined && receiver >> 1);
            assert_int_equal(to.ok, 1);
        }
}

/* After an error nobody is to take in what this rank makes of the step. */
static void test_a_failed_rank_says_so(void **state)
{
    (void)state;
    own_set_t set = {{3}, {1.0f}, 1}, decoded, received;
    uint8_t message[256];
    device_words_t from = {.ok = 0, .error = DEVICE_BAD_PAYLOAD}, to = {.ok = 1};
    const wire_header_t read = encode(&set, GTOPK_VALUE_F16, message, &decoded, &from);
    assert_int_equal(read.count, 0);
    assert_int_equal(decoded.count, 0);
    assert_int_equal(read.flags, WIRE_ABORT);
    assert_int_equal(decode(message, &read, &received, &to), DEVICE_BAD_HEADER);
}

static void test_address(void **state)
{
    (void)state;
    own_set_t set = {{3}, {1.0f}, 1}, decoded, received;
    uint8_t message[256];
    device_words_t words = {.ok = 1};
    wire_header_t read = encode(&set, GTOPK_VALUE_F32, message, &decoded, NULL);
    assert_int_equal(ops->address(device, message, 90, 91, 2, &words, NULL), GTOPK_OK);
    read.sender = 90;
    read.round = 91;
    read.k = 2;
    assert_int_equal(decode(message, &read, &received, &words), DEVICE_NO_ERROR);
    assert_true(received.count == 1 && received.index[0] == 3 && received.value[0] == 1.0f);

    /* What is passed on after an error is a last word: nobody takes it in. */
    device_words_t failed = {.ok = 0}, theirs = {.ok = 1};
    assert_int_equal(ops->address(device, message, 90, 91, 2, &failed, NULL), GTOPK_OK);
    assert_int_equal(decode(message, &read, &received, &theirs), DEVICE_BAD_HEADER);
    assert_int_equal(received.count, 0);
}

/* Whatever else the header says: the words bring it, and what was awaited. */
static void test_decode_refuses_headers(void **state)
{
    (void)state;
    own_set_t set = {{3}, {1.0f}, 1}, decoded;
    uint8_t message[256];
    const wire_header_t read = encode(&set, GTOPK_VALUE_BF16, message, &decoded, NULL);
    for (int field = 0; field < 11; field++) {
        wire_expect_t expect = expect_of(&read);
        size_t capacity = sizeof message;
        switch (field) {
        case 0: expect.algorithm = GTOPK_ALGORITHM_GTOPK; break;
        case 1: expect.value_type = GTOPK_VALUE_F16; break;
        case 2: expect.round ^= 0x100; break;
        case 3: expect.sender ^= 1; break;
        case 4: expect.epoch ^= 1u << 31; break;
        case 5: expect.reducer ^= 1; break;
        case 6: expect.config_hash ^= 1u << 16; break;
        case 7: expect.dim++; break;
        case 8: expect.k--; break;
        case 9: expect.step ^= 1ull << 32; break;
        default: capacity = wire_own_size(message) - 1; break;
        }
        device_words_t words = {.ok = 1, .joined = 1};
        own_set_t out = {.count = 9};
        device_set_t out_set = view(&out);
        assert_int_equal(ops->decode(device, message, capacity, &expect, &out_set, &words, NULL), GTOPK_OK);
        assert_true(words.ok == 0 && words.error == DEVICE_BAD_HEADER && words.joined == 1 && out.count == 0);
        assert_memory_equal(words.header, message, sizeof words.header);
        assert_true(words.expect.step == expect.step && words.expect.k == expect.k &&
                    words.expect.sender == expect.sender && words.expect.round == expect.round);

        /* The first error is kept. */
        message[WIRE_HEADER_SIZE] ^= 1;
        expect.sender = 99;
        assert_int_equal(ops->decode(device, message, sizeof message, &expect, &out_set, &words, NULL), GTOPK_OK);
        message[WIRE_HEADER_SIZE] ^= 1;
        assert_true(words.ok == 0 && words.error == DEVICE_BAD_HEADER && words.expect.sender != 99);
    }
}

static void test_sets_without_room(void **state)
{
    (void)state;
    own_set_t set = {{3, 4}, {1.0f, 2.0f}, 2}, other = {{4, 9}, {1.0f, 2.0f}, 2}, decoded, out, all;
    uint8_t message[256];
    const wire_header_t read = encode(&set, GTOPK_VALUE_F32, message, &decoded, NULL);
    const wire_expect_t expect = expect_of(&read);
    const device_set_t a = view(&set), b = view(&other);
    for (int call = 0; call < 6; call++) {
        device_words_t words = {.ok = 1};
        device_set_t small = view(&out), large = view(&all);
        out.count = 9;
        small.capacity = 1;
        switch (call) {
        case 0: (void)ops->decode(device, message, sizeof message, &expect, &small, &words, NULL); break;
        case 1: (void)ops->copy_set(device, &a, &small, &words, NULL); break;
        case 2: (void)ops->merge(device, &a, &b, 2, &small, &large, &words, NULL); break;
        case 3: (void)ops->merge(device, &a, &b, 2, &large, &small, &words, NULL); break;
        case 4: (void)ops->deposit(device, &a, &b, 1.0f, &small, &words, NULL); break;
        default: (void)ops->encode(device, &a, &read, message, &small, &words, NULL); break;
        }
        assert_true(words.ok == 0 && words.error == DEVICE_NO_ROOM && out.count == 0);
    }
    assert_int_equal(wire_own_size(message), WIRE_HEADER_SIZE);
}

/* One entry whose value's code and scale are replaced. 1: it is refused. */
static int refuses_code(int value_type, uint32_t code, float scale)
{
    own_set_t set = {{7}, {1.0f}, 1}, out;
    uint8_t message[256];
    device_words_t words = {.ok = 1};
    const wire_header_t read = encode(&set, value_type, message, &out, NULL);
    const size_t size = wire_value_size(value_type), at = wire_own_size(message) - size;
    for (size_t b = 0; b < size; b++)
        message[at + b] = (uint8_t)(code >> 8 * b);
    uint32_t bits;
    memcpy(&bits, &scale, sizeof bits);
    bytes_store32(message + 48, bits);
    const device_error_t error = decode(message, &read, &out, &words);
    assert_true(error == DEVICE_NO_ERROR || error == DEVICE_BAD_PAYLOAD);
    assert_int_equal(out.count, error == DEVICE_NO_ERROR);
    return error != DEVICE_NO_ERROR;
}

static void test_decode_refuses_values(void **state)
{
    (void)state;
    static const struct {
        int value_type;
        uint32_t code;
        float scale;
        int good;
    } cases[] = {
        {GTOPK_VALUE_F32, 0x00000000, 1, 0},
        {GTOPK_VALUE_F32, 0x80000000, 1, 0},
        {GTOPK_VALUE_F32, 0x7f800000, 1, 0},
        {GTOPK_VALUE_F32, 0xffc00000, 1, 0},
        {GTOPK_VALUE_F32, 0x00000001, 1, 1},
        {GTOPK_VALUE_F32, 0xff7fffff, 1, 1},
        {GTOPK_VALUE_BF16, 0x0000, 1, 0},
        {GTOPK_VALUE_BF16, 0x8000, 1, 0},
        {GTOPK_VALUE_BF16, 0xff80, 1, 0},
        {GTOPK_VALUE_BF16, 0x7f81, 1, 0},
        {GTOPK_VALUE_BF16, 0x0001, 1, 1},
        {GTOPK_VALUE_BF16, 0x7f7f, 1, 1},
        {GTOPK_VALUE_F16, 0x0000, 1, 0},
        {GTOPK_VALUE_F16, 0x8000, 1, 0},
        {GTOPK_VALUE_F16, 0x7c00, 1, 0},
        {GTOPK_VALUE_F16, 0xfe00, 1, 0},
        {GTOPK_VALUE_F16, 0x0001, 0x1p-126f, 0},
        {GTOPK_VALUE_F16, 0x0002, 0x1p-126f, 1},
        {GTOPK_VALUE_F16, 0x7bff, 0x1p113f, 0},
        {GTOPK_VALUE_F16, 0x7800, 0x1p113f, 0},
        {GTOPK_VALUE_F16, 0x7bff, 0x1p111f, 1},
        {GTOPK_VALUE_I8, 0x00, 1, 0},
        {GTOPK_VALUE_I8, 0x80, 1, 0},
        {GTOPK_VALUE_I8, 0x81, 1, 1},
        {GTOPK_VALUE_I8, 0x7f, 0x1p122f, 0},
        {GTOPK_VALUE_I8, 0x01, 0x1p-126f, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (refuses_code(cases[i].value_type, cases[i].code, cases[i].scale) == cases[i].good)
            fail_msg("value type %d, code %#x, scale %g should be %s", cases[i].value_type, cases[i].code,
                     (double)cases[i].scale, cases[i].good ? "good" : "refused");
}

static void test_decode_refuses_indices(void **state)
{
    (void)state;
    own_set_t set = {{7, 8}, {1.0f, 2.0f}, 2}, out;
    uint8_t message[256];
    device_words_t words = {.ok = 1};
    const wire_header_t read = encode(&set, GTOPK_VALUE_F32, message, &out, NULL);
    message[WIRE_HEADER_SIZE + wire_low_bytes(DIM, 2)] ^= 1; /* one more bit in the unary part */
    assert_int_equal(decode(message, &read, &out, &words), DEVICE_BAD_PAYLOAD);
    assert_memory_equal(words.header, message, sizeof words.header);
    assert_int_equal(words.expect.sender, read.sender);
    assert_int_equal(out.count, 0);
}

static int open_reference(void **state)
{
    (void)state;
    if (device_open("reference", &device) != GTOPK_OK)
        return -1;
    ops = device->ops;
    return 0;
}

static int close_reference(void **state)
{
    (void)state;
    ops->close(device);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_encode_leaves_zeros_out),
        cmocka_unit_test(test_flags_travel),
        cmocka_unit_test(test_a_failed_rank_says_so),
        cmocka_unit_test(test_address),
        cmocka_unit_test(test_decode_refuses_headers),
        cmocka_unit_test(test_sets_without_room),
        cmocka_unit_test(test_decode_refuses_values),
        cmocka_unit_test(test_decode_refuses_indices),
    };
    return cmocka_run_group_tests_name("device_reference_message", tests, open_reference, close_reference);
}
