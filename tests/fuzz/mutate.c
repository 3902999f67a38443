/* Mutations that know where an input's fields are: most inputs they make differ from a good one in a single place and
 * get past the checksum, so that every check behind it is reached. Also libFuzzer's entry points. */
#include <string.h>

#include "fuzz.h"

static size_t place(random_state_t *random, size_t bytes)
{
    return (size_t)random_below(random, bytes);
}

/* A number that is likely to be on the edge of something: of its own size, near the present one, a power of two. */
static uint64_t edge(random_state_t *random, uint64_t now, uint32_t bits)
{
    static const uint64_t doubles[] = {0x7ff0000000000000, 0xfff0000000000000, 0x7ff8000000000000, 0x3ff0000000000000,
                                       0x8000000000000000, 0x0000000000000001, 0x3ff0000000000001, 0x7fefffffffffffff};
    switch (random_below(random, 9)) {
    case 0: return 0;
    case 1: return UINT64_MAX;
    case 2: return now + 1;
    case 3: return now - 1;
    case 4: return (uint64_t)1 << random_below(random, bits);
    case 5: return ((uint64_t)1 << random_below(random, bits)) - 1;
    case 6: return now ^ (uint64_t)1 << random_below(random, bits);
    case 7: return bits == 64 ? doubles[random_below(random, 8)] : random_below(random, 64);
    default: return random_u64(random) >> random_below(random, bits);
    }
}

static void change_field(random_state_t *random, uint8_t *data, size_t bytes)
{
    const fuzz_field_t *field = &fuzz_target.fields[place(random, fuzz_target.field_count)];
    if (field->offset + field->bytes > bytes)
        return;
    uint64_t value = 0;
    for (uint32_t i = 0; i < field->bytes; i++)
        value |= (uint64_t)data[field->offset + i] << 8 * i;
    value = edge(random, value, 8 * field->bytes);
    for (uint32_t i = 0; i < field->bytes; i++)
        data[field->offset + i] = (uint8_t)(value >> 8 * i);
}

static void flip_bit(random_state_t *random, uint8_t *data, size_t bytes)
{
    const size_t bit = place(random, 8 * bytes);
    data[bit / 8] = (uint8_t)(data[bit / 8] ^ 1u << bit % 8);
}

/* Keeps the number of ones, which a unary code stands or falls with. */
static void move_bit(random_state_t *random, uint8_t *data, size_t bytes)
{
    const size_t from = place(random, 8 * bytes), near = from + place(random, 17);
    const size_t to = near >= 8 && near - 8 < 8 * bytes ? near - 8 : from;
    const unsigned bit = (unsigned)data[from / 8] >> from % 8 & 1;
    data[from / 8] = (uint8_t)(data[from / 8] & ~(bit << from % 8));
    data[to / 8] = (uint8_t)(data[to / 8] | bit << to % 8);
}

static void overwrite(random_state_t *random, uint8_t *data, size_t bytes)
{
    const size_t start = place(random, bytes), length = 1 + place(random, 16);
    const uint8_t fill = (uint8_t)random_u64(random);
    const int random_bytes = random_below(random, 2) != 0;
    for (size_t i = start; i < start + length && i < bytes; i++)
        data[i] = random_bytes ? (uint8_t)random_u64(random) : fill;
}

static size_t change_length(random_state_t *random, uint8_t *data, size_t bytes)
{
    size_t length = place(random, bytes + 1);
    if (random_below(random, 2))
        length = bytes + 1 + place(random, 16);
    if (length > FUZZ_INPUT_MAX)
        length = FUZZ_INPUT_MAX;
    if (length > bytes)
        memset(data + bytes, random_below(random, 2) ? 0 : 0xa5, length - bytes);
    return length;
}

size_t fuzz_mutate(random_state_t *random, uint8_t *data, size_t bytes)
{
    for (uint64_t changes = 1 + random_below(random, 3) / 2; changes > 0 && bytes > 0; changes--)
        switch (random_below(random, 8)) {
        case 0: flip_bit(random, data, bytes); break;
        case 1: move_bit(random, data, bytes); break;
        case 2: overwrite(random, data, bytes); break;
        case 3: bytes = change_length(random, data, bytes); break;
        default: change_field(random, data, bytes); break;
        }
    if (random_below(random, 16) != 0)
        fuzz_target.repair(random, data, bytes);
    return bytes;
}

/* ---- libFuzzer ---- */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    (void)fuzz_target.run(data, bytes);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t bytes, size_t capacity, unsigned seed)
{
    random_state_t random = {seed};
    uint8_t work[FUZZ_INPUT_MAX];
    size_t length = bytes < sizeof work ? bytes : sizeof work;
    memcpy(work, data, length);
    if (length == 0 || random_below(&random, 64) == 0)
        length = fuzz_target.valid(&random, work);
    length = fuzz_mutate(&random, work, length);
    if (length > capacity)
        length = capacity;
    memcpy(data, work, length);
    return length;
}
