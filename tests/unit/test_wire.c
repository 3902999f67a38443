/* The message frame: sizes, header, checksum. Every way a header can be wrong is tried with the checksum put right, so
 * that it is the check that refuses and not the checksum. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gtopk.h"
#include "support/random.h"
#include "wire/bytes.h"
#include "wire/elias_fano.h"
#include "wire/wire.h"

#define DIM_MAX 0xffffffffu

/* The example of docs/wire-format.md: 0.5, -2 and 3 at 1, 4 and 9 of 10, as a rank 5 sends it in round 2 of step 7. */
static const wire_header_t example_header = {
    .value_type = GTOPK_VALUE_BF16,
    .algorithm = GTOPK_ALGORITHM_GTOPK,
    .flags = WIRE_JOINED,
    .round = 2,
    .sender = 5,
    .epoch = 0x01020304,
    .reducer = 6,
    .k = 4,
    .dim = 10,
    .count = 3,
    .config_hash = 0xcafef00d,
    .step = 7,
    .scale = 1.0f,
};
static const uint32_t example_index[3] = {1, 4, 9};
static const float example_value[3] = {0.5f, -2.0f, 3.0f};

/* Worked out by hand from the format's description, the checksum by an independent program. */
static const uint8_t example_message[86] = {
    'G',  'T',  'K',  '1',  0x01, 0x02, 0x02, 0x04, 0x02, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, /* 0 */
    0x05, 0x00, 0x00, 0x00, 0x04, 0x03, 0x02, 0x01, 0x07, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, /* 16 */
    0x04, 0x00, 0x00, 0x00, 0x0a, 0x00, 0x00, 0x00, 0x03, 0x00, 0x00, 0x00, 0x10, 0x00, 0x00, 0x00, /* 32 */
    0x00, 0x00, 0x80, 0x3f, 0x0d, 0xf0, 0xfe, 0xca, 0x06, 0x00, 0x00, 0x00, 0x8a, 0xe5, 0x41, 0x39, /* 48 */
    0x05, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x49, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, /* 64 */
    0x00, 0x3f, 0x00, 0xc0, 0x40, 0x40,                                                             /* 80 */
};

enum { EXAMPLE_SIZE = sizeof example_message };

static void build_example(uint8_t *message)
{
    wire_header_write(&example_header, message);
    wire_indices_encode(example_index, 3, 10, message + WIRE_HEADER_SIZE);
    for (int i = 0; i < 3; i++)
        bytes_store16(message + WIRE_HEADER_SIZE + 16 + 2 * i, wire_bf16_from_float(example_value[i]));
    wire_seal(message, EXAMPLE_SIZE - WIRE_HEADER_SIZE);
}

static void assert_header_equal(const wire_header_t *a, const wire_header_t *b)
{
    assert_int_equal(a->value_type, b->value_type);
    assert_int_equal(a->algorithm, b->algorithm);
    assert_int_equal(a->flags, b->flags);
    assert_int_equal(a->round, b->round);
    assert_int_equal(a->attachment, b->attachment);
    assert_int_equal(a->sender, b->sender);
    assert_int_equal(a->epoch, b->epoch);
    assert_int_equal(a->reducer, b->reducer);
    assert_int_equal(a->k, b->k);
    assert_int_equal(a->dim, b->dim);
    assert_int_equal(a->count, b->count);
    assert_int_equal(a->config_hash, b->config_hash);
    assert_true(a->step == b->step);
    assert_true(a->scale == b->scale);
}

/* ---- sizes ---- */

static void sizes_match_worked_examples(void **state)
{
    (void)state;
    assert_int_equal(wire_low_width(10, 3), 1);
    assert_int_equal(wire_low_bytes(10, 3), 8);
    assert_int_equal(wire_index_bytes(10, 3), 16);
    assert_int_equal(wire_message_size(10, 3, GTOPK_VALUE_BF16), 64 + 16 + 6);

    assert_int_equal(wire_low_width(1, 1), 0);
    assert_int_equal(wire_index_bytes(1, 1), 8);
    assert_int_equal(wire_index_bytes(12345, 0), 0);
    assert_int_equal(wire_message_size(12345, 0, GTOPK_VALUE_F32), 64);

    assert_int_equal(wire_index_bytes(66, 32), 8 + 8); /* 32 + (65 >> 1) = 64 unary bits */
    assert_int_equal(wire_index_bytes(68, 32), 8 + 16);

    /* The ends of the range, where 32 bits would wrap. */
    assert_int_equal(wire_low_width(DIM_MAX, 1), 31);
    assert_int_equal(wire_index_bytes(DIM_MAX, 1), 8 + 8);
    assert_int_equal(wire_low_width(DIM_MAX, DIM_MAX), 0);
    assert_true(wire_index_bytes(DIM_MAX, DIM_MAX) == 1ull << 30);
    assert_true(wire_message_size(DIM_MAX, DIM_MAX, GTOPK_VALUE_F32) == 64 + (1ull << 30) + 4ull * DIM_MAX);
    assert_true(wire_message_size(0, DIM_MAX, WIRE_VALUE_BYTES) == 64 + (uint64_t)DIM_MAX);
    assert_true(wire_message_capacity(0, DIM_MAX, WIRE_VALUE_BYTES) == 64 + (uint64_t)DIM_MAX);

    /* 25,000 of 25 million: 12 bits an index, so 3.5, 2.5 and 5.5 bytes an entry. */
    assert_in_range(wire_message_size(25000000, 25000, GTOPK_VALUE_BF16), 87000, 87600);
    assert_in_range(wire_message_size(25000000, 25000, GTOPK_VALUE_I8), 62000, 62600);
    assert_in_range(wire_message_size(25000000, 25000, GTOPK_VALUE_F32), 137000, 137600);
}

static void low_width_is_floor_of_log2(void **state)
{
    (void)state;
    for (uint64_t dim = 1; dim < 200; dim++)
        for (uint64_t count = 1; count <= dim; count++) {
            const uint32_t width = wire_low_width(dim, count);
            assert_true(count << width <= dim && dim < count << (width + 1));
        }
}

static void capacity_is_the_longest_message(void **state)
{
    (void)state;
    const int types[] = {GTOPK_VALUE_F32, GTOPK_VALUE_F16, GTOPK_VALUE_BF16, GTOPK_VALUE_I8};
    for (size_t t = 0; t < 4; t++)
        for (uint64_t dim = 0; dim < 700; dim += dim < 300 ? 1 : 57) {
            size_t longest = 0;
            for (uint64_t k = 0; k <= dim; k++) {
                const size_t size = wire_message_size(dim, k, types[t]);
                longest = size > longest ? size : longest;
                assert_int_equal(wire_message_capacity(dim, k, types[t]), longest);
            }
        }
}

/* ---- the header ---- */

static void example_has_the_documented_bytes(void **state)
{
    (void)state;
    uint8_t message[EXAMPLE_SIZE];
    memset(message, 0xff, sizeof message);
    build_example(message);
    assert_memory_equal(message, example_message, sizeof message);
    assert_int_equal(wire_own_size(message), EXAMPLE_SIZE);

    wire_header_t header;
    assert_int_equal(wire_header_read(example_message, EXAMPLE_SIZE, 0, &header), GTOPK_OK);
    assert_header_equal(&header, &example_header);
    assert_int_equal(header.low_width, 1);
    assert_int_equal(header.index_bytes, 16);
}

static void random_headers_come_back(void **state)
{
    (void)state;
    random_state_t random = {1};
    static uint8_t message[1 << 16];
    for (int i = 0; i < 5000; i++) {
        const int is_bytes = i % 4 == 3;
        const int types[] = {GTOPK_VALUE_F32, GTOPK_VALUE_F16, GTOPK_VALUE_BF16, GTOPK_VALUE_I8};
        const uint8_t sets[] = {0, 1, 2, 3, WIRE_BLOCK};
        wire_header_t header = {
            .value_type = (uint8_t)(is_bytes ? WIRE_VALUE_BYTES : types[random_below(&random, 4)]),
            .algorithm = (uint8_t)(is_bytes ? WIRE_BROADCAST + random_below(&random, 4)
                                            : sets[random_below(&random, 5)]),
            .flags = (uint8_t)random_below(&random, 8),
            .round = (uint16_t)random_u64(&random),
            .sender = (uint32_t)random_u64(&random),
            .epoch = (uint32_t)random_u64(&random),
            .reducer = (uint32_t)random_u64(&random),
            .config_hash = (uint32_t)random_u64(&random),
            .step = random_u64(&random),
            .dim = (uint32_t)random_u64(&random) >> random_below(&random, 32),
            .scale = 1.0f,
        };
        header.count = (uint32_t)random_below(&random, is_bytes || header.dim > 5000 ? 5001 : header.dim + 1ull);
        header.k = (uint32_t)(is_bytes ? random_u64(&random)
                                       : header.count + random_below(&random, header.dim - header.count + 1ull));
        if (is_bytes || header.flags & WIRE_ABORT)
            header.attachment = (uint32_t)random_u64(&random);
        if (header.value_type == GTOPK_VALUE_F16 || header.value_type == GTOPK_VALUE_I8)
            header.scale = wire_scale(header.value_type, 1e-9f + (float)random_below(&random, 1u << 30));

        const size_t size = wire_message_size(header.dim, header.count, header.value_type);
        assert_in_range(size, WIRE_HEADER_SIZE, sizeof message);
        wire_header_write(&header, message);
        assert_int_equal(bytes_load32(message + 60), 0);
        wire_seal(message, size - WIRE_HEADER_SIZE);

        wire_header_t back;
        assert_int_equal(wire_header_read(message, size, 0, &back), GTOPK_OK);
        assert_header_equal(&back, &header);
        assert_int_equal(wire_own_size(message), size);
    }
}

static void collectives_need_no_k_and_no_dim(void **state)
{
    (void)state;
    uint8_t message[WIRE_HEADER_SIZE + 100] = {0};
    const wire_header_t sent = {.value_type = WIRE_VALUE_BYTES,
                                .algorithm = WIRE_ALLGATHER,
                                .count = 100,
                                .k = 3,
                                .dim = 2,
                                .attachment = 9,
                                .scale = 1.0f};
    wire_header_write(&sent, message);
    wire_seal(message, 100);
    wire_header_t header;
    assert_int_equal(wire_header_read(message, sizeof message, 0, &header), GTOPK_OK);
    assert_header_equal(&header, &sent);
    assert_int_equal(header.low_width, 0);
    assert_int_equal(header.index_bytes, 0);
    assert_int_equal(wire_header_read(message, sizeof message - 1, 0, &header), GTOPK_ERR_CORRUPT);
}

/* What stands in the byte for the algorithm decides which value types may be there. */
static void each_algorithm_has_its_value_types(void **state)
{
    (void)state;
    uint8_t message[WIRE_HEADER_SIZE];
    wire_header_t sent = {.scale = 1.0f}, header;
    for (int algorithm = 0; algorithm < 256; algorithm++)
        for (int type = 0; type < 256; type++) {
            const int is_set = algorithm < WIRE_ALGORITHMS || algorithm == WIRE_BLOCK;
            const int is_collective = algorithm >= WIRE_BROADCAST && algorithm <= WIRE_BARRIER;
            const int good = (is_set && type <= GTOPK_VALUE_I8) || (is_collective && type == WIRE_VALUE_BYTES);
            sent.algorithm = (uint8_t)algorithm;
            sent.value_type = (uint8_t)type;
            wire_header_write(&sent, message);
            wire_seal(message, 0);
            assert_int_equal(wire_header_read(message, sizeof message, 0, &header),
                             good ? GTOPK_OK : GTOPK_ERR_CORRUPT);
        }
}

static void relayed_message_is_good_once_sealed_again(void **state)
{
    (void)state;
    uint8_t message[EXAMPLE_SIZE];
    build_example(message);
    wire_readdress(message, 0x11223344, 0x5566, 9);
    wire_header_t header;
    assert_int_equal(wire_header_read(message, EXAMPLE_SIZE, 0, &header), GTOPK_ERR_CORRUPT);
    wire_seal(message, EXAMPLE_SIZE - WIRE_HEADER_SIZE);
    assert_int_equal(wire_header_read(message, EXAMPLE_SIZE, 0, &header), GTOPK_OK);
    wire_header_t expected = example_header;
    expected.sender = 0x11223344;
    expected.round = 0x5566;
    expected.k = 9;
    assert_header_equal(&header, &expected);
}

/* ---- refusals ---- */

typedef struct broken_field {
    uint32_t offset, bytes;
    uint64_t value;
    const char *says; /* part of the error text */
} broken_field_t;

static const broken_field_t broken_fields[] = {
    {0, 1, 'g', "GTK1"},
    {1, 1, 0, "GTK1"},
    {2, 1, 'k', "GTK1"},
    {3, 1, '2', "GTK1"},
    {4, 1, 0, "format version 0"},
    {4, 1, 2, "format version 2"},
    {5, 1, 4, "value type 4"},
    {5, 1, WIRE_VALUE_BYTES, "value type 255"},
    {5, 1, GTOPK_VALUE_F32, "86 bytes arrived, its header says 92"}, /* another size */
    {5, 1, GTOPK_VALUE_I8, "86 bytes arrived, its header says 83"},
    {6, 1, 5, "unknown algorithm 5"},
    {6, 1, 31, "unknown algorithm 31"},
    {6, 1, WIRE_BARRIER + 1, "unknown algorithm 37"},
    {6, 1, 255, "unknown algorithm 255"},
    {6, 1, WIRE_BROADCAST, "value type 2"}, /* a set in a collective */
    {6, 1, WIRE_BARRIER, "value type 2"},
    {7, 1, 8, "flags 0x08"},
    {7, 1, 0x84, "flags 0x84"},
    {10, 1, 0, "low width 0"},
    {10, 1, 2, "low width 2"},
    {10, 1, 255, "low width 255"},
    {11, 1, 1, "reserved byte"},
    {11, 1, 0x80, "reserved byte"},
    {12, 4, 1, "attachment 1"},
    {12, 4, 1u << 31, "attachment"},
    {32, 4, 2, "count 3, k 2"}, /* k < count */
    {32, 4, 0, "count 3, k 0"},
    {32, 4, 11, "k 11, dim 10"}, /* k > dim */
    {32, 4, DIM_MAX, "k 4294967295"},
    {36, 4, 0, "dim 0"},
    {36, 4, 3, "dim 3"},        /* dim < k */
    {36, 4, 5, "low width 1"},  /* then width 0 */
    {36, 4, 12, "low width 1"}, /* then width 2 */
    {36, 4, DIM_MAX, "low width 1"},
    {40, 4, 5, "count 5"}, /* count > k */
    {40, 4, DIM_MAX, "count 4294967295"},
    {40, 4, 2, "low width 1"},
    {40, 4, 0, "low width 1"},
    {40, 4, 4, "86 bytes arrived"}, /* same width, longer */
    {44, 4, 0, "index bytes"},
    {44, 4, 8, "index bytes"},
    {44, 4, 15, "index bytes"},
    {44, 4, 24, "index bytes"},
    {44, 4, DIM_MAX, "index bytes"},
    {48, 4, 0, "scale"},          /* 0 */
    {48, 4, 0x40000000, "scale"}, /* 2: bf16 has none */
    {48, 4, 0xbf800000, "scale"}, /* -1 */
    {48, 4, 0x7fc00000, "scale"}, /* NaN */
};

static void reseal(uint8_t *message)
{
    wire_seal(message, EXAMPLE_SIZE - WIRE_HEADER_SIZE);
}

static void broken_field_is_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof broken_fields / sizeof *broken_fields; i++) {
        const broken_field_t *broken = &broken_fields[i];
        uint8_t message[EXAMPLE_SIZE];
        wire_header_t header;
        build_example(message);
        for (uint32_t b = 0; b < broken->bytes; b++)
            message[broken->offset + b] = (uint8_t)(broken->value >> 8 * b);
        reseal(message);
        const gtopk_status_t status = wire_header_read(message, EXAMPLE_SIZE, 0, &header);
        if (status != GTOPK_ERR_CORRUPT || !strstr(gtopk_last_error(), broken->says))
            fail_msg("byte %u set to %llu: %s, \"%s\", expected \"%s\"", broken->offset,
                     (unsigned long long)broken->value, gtopk_status_name(status), gtopk_last_error(), broken->says);
    }
}

/* Fields that any value may stand in: what they should be is for the exchange to say. */
static void free_fields_are_accepted(void **state)
{
    (void)state;
    const uint8_t offsets[] = {8, 9, 16, 17, 18, 19, 20, 23, 24, 31, 52, 55, 56, 59};
    for (size_t i = 0; i < sizeof offsets; i++) {
        uint8_t message[EXAMPLE_SIZE];
        wire_header_t header;
        build_example(message);
        message[offsets[i]] ^= 0xff;
        reseal(message);
        assert_int_equal(wire_header_read(message, EXAMPLE_SIZE, 0, &header), GTOPK_OK);
    }
}

static void scale_of_fp16_and_int8_is_checked(void **state)
{
    (void)state;
    const float good[] = {0x1p-126f, 0.5f, 1.0f, 0x1p113f},
                bad[] = {0.0f, -1.0f, 3.0f, 0x1p-127f, 0x1p123f, 1.0f / 0.0f};
    for (int type = GTOPK_VALUE_F16; type <= GTOPK_VALUE_I8; type += GTOPK_VALUE_I8 - GTOPK_VALUE_F16) {
        wire_header_t sent = example_header, header;
        uint8_t message[EXAMPLE_SIZE] = {0};
        sent.value_type = (uint8_t)type;
        const size_t size = wire_message_size(10, 3, type);
        for (size_t i = 0; i < 4 + 6; i++) {
            sent.scale = i < 4 ? good[i] : bad[i - 4];
            wire_header_write(&sent, message);
            wire_seal(message, size - WIRE_HEADER_SIZE);
            assert_int_equal(wire_header_read(message, size, 0, &header), i < 4 ? GTOPK_OK : GTOPK_ERR_CORRUPT);
        }
    }
}

static void every_other_length_is_refused(void **state)
{
    (void)state;
    wire_header_t header;
    for (size_t received = 0; received < EXAMPLE_SIZE; received++) {
        uint8_t *exact = malloc(received ? received : 1); /* so that a read beyond it is seen by a sanitizer */
        assert_non_null(exact);
        memcpy(exact, example_message, received);
        assert_int_equal(wire_header_read(exact, received, 0, &header), GTOPK_ERR_CORRUPT);
        assert_int_equal(wire_header_read(exact, received, 1, &header), GTOPK_ERR_CORRUPT);
        free(exact);
    }
    uint8_t longer[EXAMPLE_SIZE + 9];
    memset(longer, 0x5a, sizeof longer);
    memcpy(longer, example_message, EXAMPLE_SIZE);
    for (size_t received = EXAMPLE_SIZE + 1; received <= sizeof longer; received++) {
        assert_int_equal(wire_header_read(longer, received, 0, &header), GTOPK_ERR_CORRUPT);
        assert_int_equal(wire_header_read(longer, received, 1, &header), GTOPK_OK);
    }
}

static void every_flipped_bit_is_refused(void **state)
{
    (void)state;
    for (size_t bit = 0; bit < 8 * (size_t)EXAMPLE_SIZE; bit++) {
        uint8_t message[EXAMPLE_SIZE];
        wire_header_t header;
        memcpy(message, example_message, EXAMPLE_SIZE);
        message[bit / 8] = (uint8_t)(message[bit / 8] ^ 1u << bit % 8);
        assert_int_equal(wire_header_read(message, EXAMPLE_SIZE, 0, &header), GTOPK_ERR_CORRUPT);
    }
}

/* ---- checksum ---- */

static void crc_gives_the_published_values(void **state)
{
    (void)state;
    uint8_t zeros[32], ones[32], up[32], down[32];
    memset(zeros, 0, 32);
    memset(ones, 0xff, 32);
    for (int i = 0; i < 32; i++) {
        up[i] = (uint8_t)i;
        down[i] = (uint8_t)(31 - i);
    }
    const uint8_t read_command[48] = {0x01,        0xc0,        [16] = 0x14, [22] = 0x04,
                                      [27] = 0x14, [31] = 0x18, [32] = 0x28, [40] = 0x02};
    const struct {
        const void *data;
        size_t bytes;
        uint32_t crc;
    } published[] = {/* RFC 3720, appendix B.4; the last one is the usual check value */
                     {zeros, 32, 0x8a9136aa}, {ones, 32, 0x62a8ab43},         {up, 32, 0x46dd794e},
                     {down, 32, 0x113fdb5c},  {read_command, 48, 0xd9963a56}, {"123456789", 9, 0xe3069283}};
    for (size_t i = 0; i < sizeof published / sizeof *published; i++) {
        assert_int_equal(wire_crc_reference(0, published[i].data, published[i].bytes), published[i].crc);
        assert_int_equal(wire_crc(0, published[i].data, published[i].bytes), published[i].crc);
    }
}

static void crc_versions_agree_at_every_length(void **state)
{
    (void)state;
    enum { ROOM = 100000 };
    random_state_t random = {2};
    uint8_t *data = malloc(ROOM);
    assert_non_null(data);
    for (size_t i = 0; i < ROOM; i++)
        data[i] = (uint8_t)random_u64(&random);
    for (size_t bytes = 0; bytes < 4200; bytes++) {
        const size_t start = bytes % 17;
        const uint32_t seed = (uint32_t)random_u64(&random);
        assert_int_equal(wire_crc(seed, data + start, bytes), wire_crc_reference(seed, data + start, bytes));
    }
    for (int i = 0; i < 100; i++) {
        const size_t bytes = random_below(&random, ROOM), part = random_below(&random, bytes + 1);
        const uint32_t whole = wire_crc_reference(0, data, bytes);
        assert_int_equal(wire_crc(0, data, bytes), whole);
        assert_int_equal(wire_crc(wire_crc(0, data, part), data + part, bytes - part), whole);
    }
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_match_worked_examples),
        cmocka_unit_test(low_width_is_floor_of_log2),
        cmocka_unit_test(capacity_is_the_longest_message),
        cmocka_unit_test(example_has_the_documented_bytes),
        cmocka_unit_test(random_headers_come_back),
        cmocka_unit_test(collectives_need_no_k_and_no_dim),
        cmocka_unit_test(each_algorithm_has_its_value_types),
        cmocka_unit_test(relayed_message_is_good_once_sealed_again),
        cmocka_unit_test(broken_field_is_refused),
        cmocka_unit_test(free_fields_are_accepted),
        cmocka_unit_test(scale_of_fp16_and_int8_is_checked),
        cmocka_unit_test(every_other_length_is_refused),
        cmocka_unit_test(every_flipped_bit_is_refused),
        cmocka_unit_test(crc_gives_the_published_values),
        cmocka_unit_test(crc_versions_agree_at_every_length),
    };
    return cmocka_run_group_tests_name("wire", tests, NULL, NULL);
}
