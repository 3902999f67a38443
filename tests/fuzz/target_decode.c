/* The decoder: any byte string is refused as CORRUPT or decoded to a valid set, and both devices say the same. What was
 * decoded is encoded again: the indices must give the same bytes (there is one code for a set), the values the same
 * floats. */
#include <math.h>
#include <string.h>

#include "device/device.h"
#include "fuzz.h"
#include "wire/bytes.h"

enum { VALID_DIM_MAX = 5000, VALID_COUNT_MAX = 300 };

static const fuzz_field_t fields[] = {{0, 4},  {4, 1},  {5, 1},  {6, 1},  {7, 1},  {8, 2},  {10, 1}, {11, 1},
                                      {12, 4}, {16, 4}, {20, 4}, {24, 8}, {32, 4}, {36, 4}, {40, 4}, {44, 4},
                                      {48, 4}, {50, 2}, {52, 4}, {56, 4}, {60, 4}, {64, 8}, {72, 8}, {80, 4}};

/* ---- inputs ---- */

static size_t valid_message(random_state_t *random, uint8_t *out)
{
    static uint32_t index[VALID_COUNT_MAX];
    static float value[VALID_COUNT_MAX];
    const uint64_t wide = random_below(random, 4) == 0 ? UINT32_MAX : VALID_DIM_MAX;
    const uint64_t dim = 1 + (random_below(random, wide) >> random_below(random, 16));
    const uint64_t most = random_below(random, 4) == 0 ? VALID_COUNT_MAX : 12;
    gtopk_set_t set = {index, value, VALID_COUNT_MAX, random_below(random, 1 + (dim < most ? dim : most))};
    random_indices(random, index, (uint32_t)set.count, dim);
    for (uint64_t i = 0; i < set.count; i++) {
        do
            value[i] = random_float_bits(random);
        while (!isfinite(value[i]) || value[i] == 0.0f);
        if (random_below(random, 8) != 0) /* the others may make these vanish under a scale */
            value[i] = ldexpf(value[i], -ilogbf(value[i]));
    }
    size_t bytes = FUZZ_INPUT_MAX;
    FUZZ_CHECK(gtopk_encode(&set, dim, (int32_t)random_below(random, 4), out, &bytes) == GTOPK_OK);
    if (random_below(random, 2)) { /* as a message of an exchange, whose k may be above the count */
        wire_header_t header;
        FUZZ_CHECK(wire_header_read(out, bytes, 0, &header) == GTOPK_OK);
        out[6] = (uint8_t)random_below(random, 4);
        out[7] = (uint8_t)random_below(random, 8);
        bytes_store32(out + 32, header.count + (uint32_t)random_below(random, header.dim - header.count + 1ull));
        wire_seal(out, bytes - WIRE_HEADER_SIZE);
    }
    return bytes;
}

static void repair_message(random_state_t *random, uint8_t *data, size_t bytes)
{
    if (bytes < WIRE_HEADER_SIZE)
        return;
    const uint64_t dim = bytes_load32(data + 36), count = bytes_load32(data + 40);
    if (random_below(random, 2) && count > 0 && count <= dim) {
        data[10] = (uint8_t)wire_low_width(dim, count);
        bytes_store32(data + 44, (uint32_t)wire_index_bytes(dim, count));
        if (bytes_load32(data + 32) < count)
            bytes_store32(data + 32, (uint32_t)count);
    }
    wire_seal(data, bytes - WIRE_HEADER_SIZE);
}

/* ---- promises ---- */

typedef struct decoded {
    gtopk_set_t set;
    uint64_t dim;
} decoded_t;

static void decoded_free(decoded_t *decoded)
{
    free(decoded->set.indices);
    free(decoded->set.values);
}

/* Arrays of just the length that the header asks for. */
static void decoded_allocate(decoded_t *decoded, uint64_t count)
{
    *decoded = (decoded_t){.set = {.capacity = count}};
    decoded->set.indices = malloc(count ? count * sizeof(uint32_t) : 1);
    decoded->set.values = malloc(count ? count * sizeof(float) : 1);
    FUZZ_CHECK(decoded->set.indices && decoded->set.values);
}

static void check_set(const decoded_t *decoded)
{
    const gtopk_set_t *set = &decoded->set;
    for (uint64_t i = 0; i < set->count; i++) {
        FUZZ_CHECK(set->indices[i] < decoded->dim && (i == 0 || set->indices[i] > set->indices[i - 1]));
        FUZZ_CHECK(isfinite(set->values[i]) && set->values[i] != 0.0f);
    }
}

static void check_same(const gtopk_set_t *a, const gtopk_set_t *b)
{
    FUZZ_CHECK(a->count == b->count);
    FUZZ_CHECK(a->count == 0 || memcmp(a->indices, b->indices, a->count * sizeof *a->indices) == 0);
    FUZZ_CHECK(a->count == 0 || memcmp(a->values, b->values, a->count * sizeof *a->values) == 0);
}

static void check_reference(const uint8_t *data, size_t bytes, const decoded_t *fast, gtopk_status_t status)
{
    wire_header_t header;
    device_t *device;
    decoded_t slow;
    uint32_t count = 0;
    FUZZ_CHECK(wire_header_read(data, bytes, 0, &header) == GTOPK_OK);
    FUZZ_CHECK(device_open("reference", &device) == GTOPK_OK);
    decoded_allocate(&slow, header.count);
    device_set_t out = {slow.set.indices, slow.set.values, &count, header.count};
    device_words_t words = {.ok = 1};
    const wire_expect_t expect = {
        .algorithm = header.algorithm,
        .value_type = header.value_type,
        .round = header.round,
        .sender = header.sender,
        .epoch = header.epoch,
        .reducer = header.reducer,
        .config_hash = header.config_hash,
        .dim = header.dim,
        .k = header.k,
        .step = header.step,
    };
    FUZZ_CHECK(device->ops->decode(device, data, bytes, &expect, &out, &words, NULL) == GTOPK_OK);
    FUZZ_CHECK(words.ok == (status == GTOPK_OK) && words.error != DEVICE_NO_ROOM);
    if (status == GTOPK_OK) {
        slow.set.count = count;
        check_same(&fast->set, &slow.set);
    }
    decoded_free(&slow);
    device->ops->close(device);
}

/* fp16 goes on above the 32768 * scale that a writer uses: encoded anew such a set gets a larger scale, and its smallest
 * values fewer bits. */
static int scale_is_ample(const uint8_t *data, const decoded_t *decoded)
{
    wire_header_t header;
    float max = 0.0f;
    FUZZ_CHECK(wire_header_read(data, wire_own_size(data), 0, &header) == GTOPK_OK);
    for (uint64_t i = 0; i < decoded->set.count; i++)
        max = fmaxf(max, fabsf(decoded->set.values[i]));
    return wire_scale(header.value_type, max) <= header.scale;
}

static void check_encodes_again(const uint8_t *data, const decoded_t *decoded)
{
    if (!scale_is_ample(data, decoded))
        return;
    decoded_t back;
    size_t bytes = gtopk_encode_bound(decoded->dim, decoded->set.count, data[5]);
    uint8_t *again = malloc(bytes);
    FUZZ_CHECK(again && gtopk_encode(&decoded->set, decoded->dim, data[5], again, &bytes) == GTOPK_OK);
    FUZZ_CHECK(memcmp(again + WIRE_HEADER_SIZE, data + WIRE_HEADER_SIZE,
                      wire_index_bytes(decoded->dim, decoded->set.count)) == 0);
    decoded_allocate(&back, decoded->set.count);
    FUZZ_CHECK(gtopk_decode(again, bytes, &back.set, &back.dim) == GTOPK_OK && back.dim == decoded->dim);
    check_same(&decoded->set, &back.set);
    decoded_free(&back);
    free(again);
}

static int run_message(const uint8_t *data, size_t bytes)
{
    uint64_t dim, count;
    decoded_t decoded;
    const gtopk_status_t header = gtopk_decode_header(data, bytes, &dim, &count);
    FUZZ_CHECK(header == GTOPK_OK || header == GTOPK_ERR_CORRUPT);
    if (header != GTOPK_OK)
        return 0;
    FUZZ_CHECK(count <= bytes); /* so that a short message cannot ask for much memory */
    decoded_allocate(&decoded, count);
    const gtopk_status_t status = gtopk_decode(data, bytes, &decoded.set, &decoded.dim);
    FUZZ_CHECK(status == GTOPK_OK || status == GTOPK_ERR_CORRUPT);
    FUZZ_CHECK(status != GTOPK_OK || (decoded.dim == dim && decoded.set.count == count));
    check_reference(data, bytes, &decoded, status);
    if (status == GTOPK_OK) {
        check_set(&decoded);
        check_encodes_again(data, &decoded);
    }
    decoded_free(&decoded);
    return status == GTOPK_OK;
}

const fuzz_target_t fuzz_target = {"decode",      fields,         sizeof fields / sizeof *fields,
                                   valid_message, repair_message, run_message};
