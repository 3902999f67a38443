/* Elias-Fano indices: the fast version against the bit-by-bit one, on sets of every shape and on bytes that are no
 * encoding. All coded parts lie in blocks of their exact size, so that a sanitizer sees an access beyond them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gtopk.h"
#include "support/random.h"
#include "wire/elias_fano.h"
#include "wire/wire.h"

#define DIM_MAX 0xffffffffull

static void *room(size_t bytes)
{
    void *block = malloc(bytes ? bytes : 1);
    assert_non_null(block);
    return block;
}

/* Both versions encode to the same bytes, which both decode to the same indices. */
static void check_round_trip(const uint32_t *index, uint32_t count, uint64_t dim)
{
    const size_t bytes = wire_index_bytes(dim, count);
    uint8_t *slow = room(bytes), *fast = room(bytes);
    uint32_t *back = room(count * sizeof *back);

    memset(slow, 0xaa, bytes);
    memset(fast, 0x55, bytes);
    wire_indices_encode(index, count, dim, slow);
    wire_indices_encode_fast(index, count, dim, fast);
    assert_memory_equal(slow, fast, bytes);

    assert_int_equal(wire_indices_decode(slow, count, dim, back), GTOPK_OK);
    assert_memory_equal(back, index, count * sizeof *back);
    memset(back, 0xff, count * sizeof *back);
    assert_int_equal(wire_indices_decode_fast(slow, count, dim, back), GTOPK_OK);
    assert_memory_equal(back, index, count * sizeof *back);

    free(slow);
    free(fast);
    free(back);
}

/* Both versions give the same verdict and, if they accept, the same indices, whose encoding is the very bytes. Returns
 * the verdict. */
static gtopk_status_t check_verdict(const uint8_t *bytes, uint32_t count, uint64_t dim)
{
    const size_t size = wire_index_bytes(dim, count);
    uint32_t *slow = room(count * sizeof *slow), *fast = room(count * sizeof *fast);
    uint8_t *again = room(size);
    for (uint32_t i = 0; i < count; i++)
        fast[i] = i; /* entries that are missing must not be taken from what was there */
    const gtopk_status_t status = wire_indices_decode(bytes, count, dim, slow);
    assert_int_equal(wire_indices_decode_fast(bytes, count, dim, fast), status);
    if (status == GTOPK_OK) {
        assert_memory_equal(slow, fast, count * sizeof *slow);
        for (uint32_t i = 0; i < count; i++)
            assert_true(slow[i] < dim && (i == 0 || slow[i] > slow[i - 1]));
        wire_indices_encode(slow, count, dim, again);
        assert_memory_equal(again, bytes, size);
    } else {
        assert_int_equal(status, GTOPK_ERR_CORRUPT);
    }
    free(slow);
    free(fast);
    free(again);
    return status;
}

/* ---- round trips ---- */

static void every_small_set_comes_back(void **state)
{
    (void)state;
    for (uint32_t dim = 1; dim <= 11; dim++)
        for (uint32_t members = 0; members < 1u << dim; members++) {
            uint32_t index[11], count = 0;
            for (uint32_t i = 0; i < dim; i++)
                if (members >> i & 1)
                    index[count++] = i;
            check_round_trip(index, count, dim);
        }
}

/* Evenly spread, at the start, at the end, in two runs with a gap between, and steps that hit the same high bits. */
static void check_patterns(uint32_t count, uint64_t dim)
{
    uint32_t *index = room(count * sizeof *index);
    for (int pattern = 0; pattern < 5; pattern++) {
        for (uint64_t i = 0; i < count; i++) {
            const uint64_t from[5] = {i * (dim / count), i, dim - count + i, i < count / 2 ? i : dim - count + i,
                                      (i + 1) * (dim / count) - 1};
            index[i] = (uint32_t)from[pattern];
        }
        check_round_trip(index, count, dim);
    }
    free(index);
}

static void patterns_come_back(void **state)
{
    (void)state;
    const uint64_t dims[] = {
        1, 2, 63, 64, 65, 127, 128, 129, 1000, 4096, 65536, 25000000, 1ull << 31, (1ull << 31) + 1, DIM_MAX};
    const uint32_t counts[] = {1, 2, 3, 7, 8, 9, 63, 64, 65, 71, 72, 127, 128, 129, 192, 1000, 4096};
    for (size_t d = 0; d < sizeof dims / sizeof *dims; d++)
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
            if (counts[c] <= dims[d])
                check_patterns(counts[c], dims[d]);
    check_patterns(65536, 65536); /* everything */
    check_patterns(65535, 65536);
}

/* Every low width, with counts around the blocks of 64. */
static void every_width_comes_back(void **state)
{
    (void)state;
    random_state_t random = {3};
    uint32_t index[330];
    for (uint32_t width = 0; width <= 31; width++)
        for (uint32_t count = 1; count <= 330; count += count < 70 ? 1 : 13) {
            const uint64_t dim = ((uint64_t)count << width) + random_below(&random, (uint64_t)count << width);
            if (dim > DIM_MAX)
                continue;
            assert_int_equal(wire_low_width(dim, count), width);
            random_indices(&random, index, count, dim);
            check_round_trip(index, count, dim);
        }
}

static void random_sets_come_back(void **state)
{
    (void)state;
    random_state_t random = {4};
    uint32_t *index = room(20000 * sizeof *index);
    for (int i = 0; i < 300; i++) {
        const uint64_t dim = 1 + (random_below(&random, DIM_MAX) >> random_below(&random, 32));
        const uint32_t count = (uint32_t)(1 + random_below(&random, dim < 20000 ? dim : 20000));
        random_indices(&random, index, count, dim);
        check_round_trip(index, count, dim);
    }
    free(index);
}

static void no_entries_take_no_bytes(void **state)
{
    (void)state;
    wire_indices_encode(NULL, 0, 100, NULL);
    wire_indices_encode_fast(NULL, 0, 100, NULL);
    assert_int_equal(wire_indices_decode(NULL, 0, 100, NULL), GTOPK_OK);
    assert_int_equal(wire_indices_decode_fast(NULL, 0, 100, NULL), GTOPK_OK);
}

/* ---- refusals ---- */

static uint64_t choose(uint32_t n, uint32_t k)
{
    uint64_t ways = 1;
    for (uint32_t i = 0; i < k; i++)
        ways = ways * (n - i) / (i + 1);
    return ways;
}

/* All bit patterns of the used bits and one padding bit each: as many are accepted as there are sets. */
static void as_many_codes_as_sets(void **state)
{
    (void)state;
    for (uint32_t dim = 1; dim <= 9; dim++)
        for (uint32_t count = 1; count <= dim; count++) {
            const uint32_t low = wire_low_width(dim, count);
            const size_t low_bytes = wire_low_bytes(dim, count), bytes = wire_index_bytes(dim, count);
            const uint32_t low_bits = low == 0 ? 0 : count * low + 1, unary_bits = count + ((dim - 1) >> low) + 1;
            uint64_t accepted = 0;
            for (uint32_t pattern = 0; pattern < 1u << (low_bits + unary_bits); pattern++) {
                uint8_t *code = room(bytes);
                memset(code, 0, bytes);
                for (uint32_t b = 0; b < low_bits + unary_bits; b++)
                    if (pattern >> b & 1) {
                        uint8_t *part = b < low_bits ? code : code + low_bytes;
                        const uint32_t at = b < low_bits ? b : b - low_bits;
                        part[at / 8] = (uint8_t)(part[at / 8] | 1u << at % 8);
                    }
                accepted += check_verdict(code, count, dim) == GTOPK_OK;
                free(code);
            }
            assert_true(accepted == choose(dim, count));
        }
}

/* 200 of 5000: low width 4, 100 bytes in 104; the unary part has 200 + 312 = 512 bits. */
enum { COUNT = 200, DIM = 5000, LOW_BYTES = 104, BYTES = LOW_BYTES + 64 };

static void encode_example(uint32_t *index, uint8_t *code)
{
    for (uint32_t i = 0; i < COUNT; i++)
        index[i] = 25 * i + 24;
    assert_int_equal(wire_low_bytes(DIM, COUNT), LOW_BYTES);
    assert_int_equal(wire_index_bytes(DIM, COUNT), BYTES);
    wire_indices_encode(index, COUNT, DIM, code);
    assert_int_equal(check_verdict(code, COUNT, DIM), GTOPK_OK);
}

static void assert_refused(const uint8_t *code, uint32_t count, uint64_t dim, const char *says)
{
    assert_int_equal(check_verdict(code, count, dim), GTOPK_ERR_CORRUPT);
    if (!strstr(gtopk_last_error(), says))
        fail_msg("\"%s\", expected \"%s\"", gtopk_last_error(), says);
}

static void each_kind_of_damage_is_refused(void **state)
{
    (void)state;
    uint32_t index[COUNT];
    uint8_t code[BYTES], damaged[BYTES];
    encode_example(index, code);
    uint8_t *unary = damaged + LOW_BYTES;

    for (int bit = 0; bit < 32; bit++) { /* 800 low bits, 832 in whole words */
        memcpy(damaged, code, BYTES);
        damaged[100 + bit / 8] = (uint8_t)(1u << bit % 8);
        assert_refused(damaged, COUNT, DIM, "padding of its low part");
    }

    memcpy(damaged, code, BYTES); /* one entry fewer */
    unary[0] = (uint8_t)(unary[0] & (unary[0] - 1));
    assert_refused(damaged, COUNT, DIM, "");
    memset(unary, 0, 64); /* none */
    assert_refused(damaged, COUNT, DIM, "has 0 entries, the header says 200");

    memset(unary, 0xff, 64); /* as many as there is room for */
    assert_refused(damaged, COUNT, DIM, "not above the one before it");

    /* Two entries whose high bits are the same and whose low bits are equal, or fall. */
    for (uint32_t second = 7; second <= 8; second++) {
        const uint32_t pair[2] = {7, 9}; /* of 40: low width 4 */
        uint8_t two[16];
        assert_int_equal(wire_index_bytes(40, 2), 16);
        wire_indices_encode(pair, 2, 40, two);
        two[0] = (uint8_t)(8 | second << 4);
        assert_refused(two, 2, 40, "not above the one before it");
    }

    /* One entry more than the header says: three bits in the unary part of two. */
    const uint32_t pair[2] = {7, 9};
    uint8_t two[16];
    wire_indices_encode(pair, 2, 40, two);
    two[8] |= 1u << 3;
    assert_refused(two, 2, 40, "more than the 2 entries");

    memset(two + 8, 0, 8);
    assert_refused(two, 2, 40, "has 0 entries, the header says 2");

    /* Beyond dim by its low bits (39 becomes 47 of 40), and by a bit in the unary part's padding. */
    const uint32_t last[2] = {7, 39};
    wire_indices_encode(last, 2, 40, two);
    two[0] |= 0xf0;
    assert_refused(two, 2, 40, "index 47 of entry 1 is not below dim 40");
    wire_indices_encode(last, 2, 40, two);
    memset(two + 8, 0, 8);
    two[8] = 1;
    two[15] = 0x80;
    assert_refused(two, 2, 40, "not below dim 40");
}

/* High bits that would fall out of 32 when shifted must not come back as a small index. */
static void high_bits_do_not_wrap(void **state)
{
    (void)state;
    for (uint32_t bit = 0; bit < 64; bit++) {
        uint8_t code[16] = {0};
        assert_int_equal(wire_index_bytes(DIM_MAX, 1), 16);
        code[8 + bit / 8] = (uint8_t)(1u << bit % 8);
        assert_int_equal(check_verdict(code, 1, DIM_MAX), bit < 2 ? GTOPK_OK : GTOPK_ERR_CORRUPT);
    }
}

static void every_flipped_bit_has_one_verdict(void **state)
{
    (void)state;
    uint32_t index[COUNT];
    uint8_t code[BYTES];
    encode_example(index, code);
    for (uint32_t bit = 0; bit < 8 * BYTES; bit++) {
        uint8_t *flipped = room(BYTES);
        memcpy(flipped, code, BYTES);
        flipped[bit / 8] = (uint8_t)(flipped[bit / 8] ^ 1u << bit % 8);
        /* A flip in the unary part changes the number of entries, one in the padding is seen, and one in a low field
         * gives another set unless the field was the last index's and rises above dim. */
        const gtopk_status_t status = check_verdict(flipped, COUNT, DIM);
        if (bit >= 800)
            assert_int_equal(status, GTOPK_ERR_CORRUPT);
        free(flipped);
    }
}

static void random_damage_has_one_verdict(void **state)
{
    (void)state;
    random_state_t random = {5};
    uint32_t index[400], accepted = 0;
    for (int i = 0; i < 20000; i++) {
        const uint32_t count = 1 + (uint32_t)random_below(&random, i % 2 ? 400 : 6);
        const uint64_t spread = count + random_below(&random, (uint64_t)count << random_below(&random, 22));
        const uint64_t dim = spread < DIM_MAX ? spread : DIM_MAX;
        const size_t bytes = wire_index_bytes(dim, count);
        uint8_t *code = room(bytes);
        random_indices(&random, index, count, dim);
        wire_indices_encode(index, count, dim, code);
        for (uint64_t hits = 1 + random_below(&random, 4); hits > 0; hits--) {
            /* Moving one unary bit keeps their number, which any other damage is likely to be refused for. */
            const uint64_t from = random_below(&random, 8 * bytes), to = random_below(&random, 8 * bytes);
            const uint8_t bit = code[from / 8] >> from % 8 & 1;
            code[from / 8] = (uint8_t)(code[from / 8] ^ bit << from % 8);
            code[to / 8] = (uint8_t)(code[to / 8] | bit << to % 8);
        }
        accepted += check_verdict(code, count, dim) == GTOPK_OK;
        free(code);
    }
    assert_in_range(accepted, 1000, 19000); /* both sides of the check were tried */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_small_set_comes_back),
        cmocka_unit_test(patterns_come_back),
        cmocka_unit_test(every_width_comes_back),
        cmocka_unit_test(random_sets_come_back),
        cmocka_unit_test(no_entries_take_no_bytes),
        cmocka_unit_test(as_many_codes_as_sets),
        cmocka_unit_test(each_kind_of_damage_is_refused),
        cmocka_unit_test(high_bits_do_not_wrap),
        cmocka_unit_test(every_flipped_bit_has_one_verdict),
        cmocka_unit_test(random_damage_has_one_verdict),
    };
    return cmocka_run_group_tests_name("wire indices", tests, NULL, NULL);
}
