/* Whole messages through gtopk_encode and gtopk_decode, on both devices: what goes in comes out as far as the value type
 * can hold it, and a message with a broken payload is refused although its checksum is right. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gtopk.h"
#include "support/random.h"
#include "wire/bytes.h"
#include "wire/convert.h"
#include "wire/wire.h"

enum { ROOM = 4000, BYTES = 32768 };

typedef struct buffers {
    uint32_t index[ROOM], back_index[ROOM];
    float value[ROOM], back_value[ROOM];
    uint8_t message[BYTES], other[BYTES];
} buffers_t;

static buffers_t buffers;

static const int types[] = {GTOPK_VALUE_F32, GTOPK_VALUE_F16, GTOPK_VALUE_BF16, GTOPK_VALUE_I8};

static size_t encode(uint64_t count, uint64_t dim, int type, uint8_t *message)
{
    const gtopk_set_t set = {buffers.index, buffers.value, ROOM, count};
    size_t bytes = BYTES;
    assert_true(gtopk_encode_bound(dim, count, type) <= BYTES);
    assert_int_equal(gtopk_encode(&set, dim, type, message, &bytes), GTOPK_OK);
    assert_true(bytes <= gtopk_encode_bound(dim, count, type));
    return bytes;
}

/* From a block of the message's own length, so that a sanitizer sees a read beyond it. */
static gtopk_status_t decode(const uint8_t *message, size_t bytes, gtopk_set_t *set, uint64_t *dim)
{
    uint8_t *exact = malloc(bytes ? bytes : 1);
    assert_non_null(exact);
    memcpy(exact, message, bytes);
    *set = (gtopk_set_t){buffers.back_index, buffers.back_value, ROOM, 99};
    const gtopk_status_t status = gtopk_decode(exact, bytes, set, dim);
    free(exact);
    return status;
}

/* What `value` should come back as, from the conversion of a single value. */
static float expected_value(int type, float value, float scale)
{
    switch (type) {
    case GTOPK_VALUE_F16:
        return convert_float_from_fp16_scaled(convert_fp16_scaled(value, 1.0f / scale, convert_fp16_limit(scale)),
                                              scale);
    case GTOPK_VALUE_BF16: return wire_float_from_bf16(wire_bf16_from_float(value));
    case GTOPK_VALUE_I8:
        return convert_float_from_i8_scaled(convert_i8_scaled(value, 1.0f / scale, convert_i8_limit(scale)), scale);
    default: return value;
    }
}

static void check_round_trip(uint64_t count, uint64_t dim, int type)
{
    gtopk_set_t set;
    uint64_t decoded_dim, header_dim, header_count, at = 0;
    float max = 0.0f;
    for (uint64_t i = 0; i < count; i++)
        max = fmaxf(max, fabsf(buffers.value[i]));
    const float scale = wire_scale(type, max);
    const size_t bytes = encode(count, dim, type, buffers.message);
    assert_int_equal(decode(buffers.message, bytes, &set, &decoded_dim), GTOPK_OK);
    assert_true(decoded_dim == dim);
    for (uint64_t i = 0; i < count; i++) {
        const float expected = expected_value(type, buffers.value[i], scale);
        if (expected == 0.0f)
            continue;
        assert_true(at < set.count);
        assert_int_equal(set.indices[at], buffers.index[i]);
        assert_int_equal(convert_bits(set.values[at]), convert_bits(expected));
        at++;
    }
    assert_true(at == set.count);
    assert_int_equal(gtopk_decode_header(buffers.message, bytes, &header_dim, &header_count), GTOPK_OK);
    assert_true(header_dim == dim && header_count == at);
    assert_int_equal(bytes, wire_message_size(dim, at, type));
}

/* Devices write the same bytes. */
static void check_devices(uint64_t count, uint64_t dim, int type)
{
    assert_int_equal(setenv("GTOPK_DEVICE", "reference", 1), 0);
    check_round_trip(count, dim, type);
    const size_t bytes = encode(count, dim, type, buffers.other);
    assert_int_equal(setenv("GTOPK_DEVICE", "cpu", 1), 0);
    check_round_trip(count, dim, type);
    assert_int_equal(encode(count, dim, type, buffers.message), bytes);
    assert_memory_equal(buffers.message, buffers.other, bytes);
}

static void random_values(random_state_t *random, uint64_t count, int spread)
{
    for (uint64_t i = 0; i < count; i++)
        do
            buffers.value[i] = spread > 60 ? random_float_bits(random)
                                           : ldexpf(1.0f + (float)random_below(random, 1 << 23) * 0x1p-23f,
                                                    -(int)random_below(random, (uint64_t)spread + 1)) *
                                                 (random_below(random, 2) ? 1.0f : -1.0f);
        while (!isfinite(buffers.value[i]) || buffers.value[i] == 0.0f);
}

static void sets_come_back(void **state)
{
    (void)state;
    random_state_t random = {11};
    const uint64_t counts[] = {0, 1, 2, 63, 64, 65, 200, 1999};
    const uint64_t dims[] = {1, 2, 64, 65, 200, 3000, 1u << 20, UINT32_MAX};
    for (int t = 0; t < 4; t++)
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
            for (size_t d = 0; d < sizeof dims / sizeof *dims; d++)
                for (int spread = 0; spread <= 90 && counts[c] <= dims[d]; spread += 30) {
                    random_indices(&random, buffers.index, (uint32_t)counts[c], dims[d]);
                    random_values(&random, counts[c], spread);
                    check_devices(counts[c], dims[d], types[t]);
                }
}

static void extreme_values_come_back(void **state)
{
    (void)state;
    const float extreme[] = {0x1p-149f, 0x1p-148f, 0x1p-126f, 1.0f, 0x1p127f, 0x1.fffffep127f};
    for (int t = 0; t < 4; t++)
        for (size_t a = 0; a < 6; a++)
            for (size_t b = 0; b < 6; b++) {
                buffers.index[0] = 0;
                buffers.index[1] = 9;
                buffers.value[0] = extreme[a];
                buffers.value[1] = -extreme[b];
                check_devices(2, 10, types[t]);
            }
}

/* ---- refusals ---- */

/* One value of three replaced by `code`, the checksum put right. */
static void check_refused_code(int type, uint32_t code)
{
    gtopk_set_t set;
    uint64_t dim;
    const uint32_t index[3] = {2, 3, 8};
    const float value[3] = {1.0f, -2.0f, 3.0f};
    memcpy(buffers.index, index, sizeof index);
    memcpy(buffers.value, value, sizeof value);
    for (size_t i = 0; i < 3; i++) {
        const size_t bytes = encode(3, 10, type, buffers.message), size = wire_value_size(type);
        uint8_t *values = buffers.message + bytes - 3 * size;
        for (size_t b = 0; b < size; b++)
            values[i * size + b] = (uint8_t)(code >> 8 * b);
        wire_seal(buffers.message, bytes - WIRE_HEADER_SIZE);
        if (decode(buffers.message, bytes, &set, &dim) != GTOPK_ERR_CORRUPT || set.count != 0)
            fail_msg("code %x of type %d at entry %zu was not refused", code, type, i);
    }
}

static void values_that_no_set_has_are_refused(void **state)
{
    (void)state;
    const struct {
        int type;
        uint32_t code;
    } codes[] = {
        {GTOPK_VALUE_F32, 0},          {GTOPK_VALUE_F32, 0x80000000}, {GTOPK_VALUE_F32, 0x7f800000},
        {GTOPK_VALUE_F32, 0xff800000}, {GTOPK_VALUE_F32, 0x7fc00000}, {GTOPK_VALUE_F32, 0x7f800001},
        {GTOPK_VALUE_BF16, 0},         {GTOPK_VALUE_BF16, 0x8000},    {GTOPK_VALUE_BF16, 0x7f80},
        {GTOPK_VALUE_BF16, 0xff80},    {GTOPK_VALUE_BF16, 0x7fc0},    {GTOPK_VALUE_BF16, 0xff81},
        {GTOPK_VALUE_F16, 0},          {GTOPK_VALUE_F16, 0x8000},     {GTOPK_VALUE_F16, 0x7c00},
        {GTOPK_VALUE_F16, 0xfc00},     {GTOPK_VALUE_F16, 0x7e00},     {GTOPK_VALUE_F16, 0xfc01},
        {GTOPK_VALUE_I8, 0},           {GTOPK_VALUE_I8, 0x80},
    };
    const char *const devices[] = {"reference", "cpu"};
    for (int d = 0; d < 2; d++) {
        assert_int_equal(setenv("GTOPK_DEVICE", devices[d], 1), 0);
        for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
            check_refused_code(codes[i].type, codes[i].code);
    }
}

/* Good codes under a scale that takes them out of range: beyond the largest float, or to zero. */
static void scales_that_overflow_are_refused(void **state)
{
    (void)state;
    gtopk_set_t set;
    uint64_t dim;
    buffers.index[0] = 4;
    buffers.value[0] = 1.0f; /* fp16 code of 32768, int8 code of 64 */
    const struct {
        int type;
        float scale;
        uint32_t code;
    } beyond[] = {
        {GTOPK_VALUE_F16, 0x1p113f, 0x7800}, {GTOPK_VALUE_I8, 0x1p122f, 64}, {GTOPK_VALUE_F16, 0x1p-126f, 0x0001}};
    for (size_t i = 0; i < 3; i++) {
        const size_t bytes = encode(1, 10, beyond[i].type, buffers.message), size = wire_value_size(beyond[i].type);
        bytes_store32(buffers.message + 48, convert_bits(beyond[i].scale));
        for (size_t b = 0; b < size; b++)
            buffers.message[bytes - size + b] = (uint8_t)(beyond[i].code >> 8 * b);
        wire_seal(buffers.message, bytes - WIRE_HEADER_SIZE);
        assert_int_equal(decode(buffers.message, bytes, &set, &dim), GTOPK_ERR_CORRUPT);
    }
}

static void broken_indices_are_refused(void **state)
{
    (void)state;
    gtopk_set_t set;
    uint64_t dim;
    random_state_t random = {12};
    random_indices(&random, buffers.index, 100, 3000);
    random_values(&random, 100, 5);
    const size_t bytes = encode(100, 3000, GTOPK_VALUE_BF16, buffers.message);
    const size_t unary = WIRE_HEADER_SIZE + wire_low_bytes(3000, 100),
                 values = WIRE_HEADER_SIZE + wire_index_bytes(3000, 100);
    for (size_t bit = 8 * unary; bit < 8 * values; bit++) { /* one entry more or fewer */
        memcpy(buffers.other, buffers.message, bytes);
        buffers.other[bit / 8] = (uint8_t)(buffers.other[bit / 8] ^ 1u << bit % 8);
        wire_seal(buffers.other, bytes - WIRE_HEADER_SIZE);
        assert_int_equal(decode(buffers.other, bytes, &set, &dim), GTOPK_ERR_CORRUPT);
        assert_true(set.count == 0);
    }
}

static void every_other_length_is_refused(void **state)
{
    (void)state;
    gtopk_set_t set;
    uint64_t dim;
    random_state_t random = {13};
    for (int t = 0; t < 4; t++) {
        random_indices(&random, buffers.index, 40, 3000);
        random_values(&random, 40, 3);
        const size_t bytes = encode(40, 3000, types[t], buffers.message);
        for (size_t length = 0; length < bytes + 20; length++)
            assert_int_equal(decode(buffers.message, length, &set, &dim),
                             length == bytes ? GTOPK_OK : GTOPK_ERR_CORRUPT);
    }
}

static void message_without_a_set_is_refused(void **state)
{
    (void)state;
    gtopk_set_t set;
    uint64_t dim, count;
    const wire_header_t header = {
        .value_type = WIRE_VALUE_BYTES, .algorithm = WIRE_BROADCAST, .count = 8, .scale = 1.0f};
    wire_header_write(&header, buffers.message);
    memset(buffers.message + WIRE_HEADER_SIZE, 1, 8);
    wire_seal(buffers.message, 8);
    assert_int_equal(decode(buffers.message, WIRE_HEADER_SIZE + 8, &set, &dim), GTOPK_ERR_CORRUPT);
    assert_int_equal(gtopk_decode_header(buffers.message, WIRE_HEADER_SIZE + 8, &dim, &count), GTOPK_ERR_CORRUPT);
}

/* The caller's mistakes are INVALID, and nothing is written where there is no room. */
static void wrong_arguments_are_invalid(void **state)
{
    (void)state;
    const uint32_t index[3] = {2, 3, 8};
    const float value[3] = {1.0f, -2.0f, 3.0f};
    memcpy(buffers.index, index, sizeof index);
    memcpy(buffers.value, value, sizeof value);
    const size_t bytes = encode(3, 10, GTOPK_VALUE_F32, buffers.message);
    uint64_t dim;
    gtopk_set_t small = {buffers.back_index, buffers.back_value, 2, 0};
    assert_int_equal(gtopk_decode(buffers.message, bytes, &small, &dim), GTOPK_ERR_INVALID);
    assert_int_equal(gtopk_decode(NULL, bytes, &small, &dim), GTOPK_ERR_INVALID);

    gtopk_set_t set = {buffers.index, buffers.value, 3, 3};
    size_t room = gtopk_encode_bound(10, 3, GTOPK_VALUE_F32) - 1;
    assert_int_equal(gtopk_encode(&set, 10, GTOPK_VALUE_F32, buffers.other, &room), GTOPK_ERR_INVALID);
    room = BYTES;
    assert_int_equal(gtopk_encode(&set, 8, GTOPK_VALUE_F32, buffers.other, &room),
                     GTOPK_ERR_INVALID); /* index 8 of 8 */
    assert_int_equal(gtopk_encode(&set, 10, 4, buffers.other, &room), GTOPK_ERR_INVALID);
    assert_int_equal(gtopk_encode(&set, 1ull << 32, GTOPK_VALUE_F32, buffers.other, &room), GTOPK_ERR_INVALID);
    buffers.value[1] = NAN;
    assert_int_equal(gtopk_encode(&set, 10, GTOPK_VALUE_F32, buffers.other, &room), GTOPK_ERR_INVALID);
    buffers.value[1] = 0.0f;
    assert_int_equal(gtopk_encode(&set, 10, GTOPK_VALUE_F32, buffers.other, &room), GTOPK_ERR_INVALID);
    buffers.value[1] = 1.0f;
    buffers.index[1] = 2;
    assert_int_equal(gtopk_encode(&set, 10, GTOPK_VALUE_F32, buffers.other, &room), GTOPK_ERR_INVALID);
    assert_int_equal(gtopk_encode_bound(10, 11, GTOPK_VALUE_F32), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sets_come_back),
        cmocka_unit_test(extreme_values_come_back),
        cmocka_unit_test(values_that_no_set_has_are_refused),
        cmocka_unit_test(scales_that_overflow_are_refused),
        cmocka_unit_test(broken_indices_are_refused),
        cmocka_unit_test(every_other_length_is_refused),
        cmocka_unit_test(message_without_a_set_is_refused),
        cmocka_unit_test(wrong_arguments_are_invalid),
    };
    return cmocka_run_group_tests_name("messages", tests, NULL, NULL);
}
