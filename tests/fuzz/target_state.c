/* The checkpoint loader: any byte string is refused, with the reducer left as it was bit for bit, or loaded, and then
 * saving gives back the same values, of a consolidated state their mean. */
#include <string.h>

#include "fuzz.h"
#include "gtopk.h"
#include "wire/bytes.h"
#include "wire/wire.h"

enum { SEGMENTS = 3, DIM = 12, HEADER = 64, ARRAYS = HEADER + 8 * SEGMENTS, RANK_AT = 40, SIZE_AT = 44, CRC_AT = 52 };
enum { SIZE_PLAIN = ARRAYS + 4 * DIM, SIZE_VELOCITY = ARRAYS + 8 * DIM };

static const uint64_t lengths[SEGMENTS] = {5, 0, 7};

static const fuzz_field_t fields[] = {{0, 4},  {4, 4},  {8, 8},  {16, 8}, {24, 8},  {32, 8}, {40, 4},
                                      {44, 4}, {48, 4}, {52, 4}, {56, 8}, {60, 4},  {64, 8}, {72, 8},
                                      {80, 8}, {88, 4}, {90, 2}, {92, 4}, {132, 4}, {136, 4}};

/* What a reducer has: they live as long as the process. */
enum { PLAIN, WITH_VELOCITY, IN_BF16, KINDS };

static size_t size_of(int kind)
{
    return kind == WITH_VELOCITY ? SIZE_VELOCITY : SIZE_PLAIN;
}

static gtopk_reducer_t *reducer_of(int kind)
{
    static gtopk_comm_t *comm;
    static gtopk_reducer_t *reducers[KINDS];
    if (!reducers[kind]) {
        const gtopk_comm_config_t network = GTOPK_COMM_CONFIG_INIT;
        gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
        config.momentum_correction = kind == WITH_VELOCITY;
        config.residual_dtype = kind == IN_BF16 ? GTOPK_BF16 : GTOPK_F32;
        FUZZ_CHECK(comm || gtopk_comm_create(&comm, &network) == GTOPK_OK);
        FUZZ_CHECK(gtopk_reducer_create(&reducers[kind], comm, &config, lengths, SEGMENTS) == GTOPK_OK);
        FUZZ_CHECK(gtopk_reducer_state_size(reducers[kind]) == size_of(kind));
    }
    return reducers[kind];
}

/* ---- inputs ---- */

static void seal(uint8_t *data, size_t bytes)
{
    const uint32_t crc = wire_crc(0, data, CRC_AT);
    bytes_store32(data + CRC_AT, wire_crc(crc, data + CRC_AT + 4, bytes - CRC_AT - 4));
}

static size_t valid_state(random_state_t *random, uint8_t *out)
{
    const int kind = (int)random_below(random, KINDS);
    const size_t bytes = size_of(kind);
    FUZZ_CHECK(gtopk_reducer_state_save(reducer_of(kind), out, bytes) == GTOPK_OK);
    bytes_store64(out + 24, random_u64(random));
    bytes_store64(out + 32, random_u64(random));
    if (random_below(random, 4) == 0) { /* consolidated, of some ranks */
        bytes_store32(out + RANK_AT, UINT32_MAX);
        bytes_store32(out + SIZE_AT, 1 + (uint32_t)random_below(random, 9));
    }
    for (size_t at = ARRAYS; at < bytes; at += 4)
        bytes_store32(out + at, (uint32_t)random_u64(random) & 0xbfffffffu); /* finite */
    seal(out, bytes);
    return bytes;
}

static void repair_state(random_state_t *random, uint8_t *data, size_t bytes)
{
    (void)random;
    if (bytes >= HEADER)
        seal(data, bytes);
}

/* ---- promises ---- */

/* What the one rank that there is takes of `value`: the mean over the ranks that a consolidated state is the sum of. */
static uint32_t due(const uint8_t *state, uint32_t value)
{
    if (bytes_load32(state + RANK_AT) != UINT32_MAX)
        return value;
    float sum, mean;
    memcpy(&sum, &value, sizeof sum);
    mean = (float)((double)sum / bytes_load32(state + SIZE_AT));
    memcpy(&value, &mean, sizeof value);
    return value;
}

/* Whether `kept` is what a residual may have of `given`: the same, in bf16 one of the two next values. */
static int is_kept(int kind, uint32_t kept, uint32_t given)
{
    if (kind != IN_BF16)
        return kept == given;
    const uint32_t below = given & 0xffff0000u, above = below + 0x10000u;
    return kept == below || (given != below && kept == above && (above & 0x7f800000u) != 0x7f800000u);
}

static int try_load(int kind, const uint8_t *data, size_t bytes)
{
    gtopk_reducer_t *reducer = reducer_of(kind);
    uint8_t before[SIZE_VELOCITY], after[SIZE_VELOCITY];
    const size_t size = gtopk_reducer_state_size(reducer);
    FUZZ_CHECK(gtopk_reducer_state_save(reducer, before, size) == GTOPK_OK);
    const gtopk_status_t status = gtopk_reducer_state_load(reducer, data, bytes);
    FUZZ_CHECK(status == GTOPK_OK || status == GTOPK_ERR_CORRUPT || status == GTOPK_ERR_MISMATCH);
    FUZZ_CHECK(gtopk_reducer_state_save(reducer, after, size) == GTOPK_OK);
    if (status != GTOPK_OK) {
        FUZZ_CHECK(memcmp(before, after, size) == 0);
        return 0;
    }
    FUZZ_CHECK(bytes == size && memcmp(after + HEADER, data + HEADER, ARRAYS - HEADER) == 0);
    for (size_t at = ARRAYS; at < size; at += 4)
        FUZZ_CHECK(is_kept(kind, bytes_load32(after + at), due(data, bytes_load32(data + at))));
    FUZZ_CHECK(memcmp(after + 24, data + 24, 16) == 0); /* step and run */
    for (size_t at = ARRAYS; at < size; at += 4)
        FUZZ_CHECK((bytes_load32(after + at) & 0x7f800000u) != 0x7f800000u);
    return 1;
}

static int run_state(const uint8_t *data, size_t bytes)
{
    gtopk_state_info_t info = {.struct_size = sizeof info};
    const gtopk_status_t status = gtopk_state_inspect(data, bytes, &info);
    FUZZ_CHECK(status == GTOPK_OK || status == GTOPK_ERR_CORRUPT);
    const int plain = try_load(PLAIN, data, bytes), velocity = try_load(WITH_VELOCITY, data, bytes);
    FUZZ_CHECK(!(plain && velocity));
    FUZZ_CHECK(try_load(IN_BF16, data, bytes) == plain);
    FUZZ_CHECK(status == GTOPK_OK || !(plain || velocity));
    return plain || velocity;
}

const fuzz_target_t fuzz_target = {"state",     fields,       sizeof fields / sizeof *fields,
                                   valid_state, repair_state, run_state};
