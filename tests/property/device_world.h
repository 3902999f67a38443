/* The same call on several devices, and the comparison of what they made of it. The first side is the reference; it runs
 * in the default floating-point environment, the others in one that a careless caller may have left. */
#ifndef GTOPK_TESTS_DEVICE_WORLD_H
#define GTOPK_TESTS_DEVICE_WORLD_H

#include "device_random.h"
#include "device_side.h"
#include "wire/convert.h"

enum { WORLD_SIDES = 8, WORLD_SEGMENTS = 64 };
enum { FAR_BEHIND = 16 }; /* bytes behind a buffer that are watched as well */

typedef struct world {
    side_t sides[WORLD_SIDES];
    size_t side_count;
    uint64_t seed;
    random_state_t random;
    uint64_t flags; /* of the other sides' environment */
    uint64_t dim, k;
    int with_velocity, with_second, with_bf16, step;
    int takes_bf16; /* all sides keep residuals in bf16, when asked to */
    int one_tie;    /* gradients of one magnitude, far more than a device keeps as candidates */
    uint64_t offset[WORLD_SEGMENTS + 1];
    size_t segments;
    gtopk_status_t status; /* the reference's, of the latest call */
} world_t;

/* Scratch memory of the comparisons: too large for the stack. */
static union world_bytes {
    uint8_t bytes[SIDE_MESSAGE];
    float floats[SIDE_DIM_MAX + SIDE_BEHIND];
} world_expected, world_got;
static host_set_t world_set_expected, world_set_got;

#define WORLD_FAIL(world, side, format, ...)                                                              \
    fail_msg("%s: " format " [step %d, dim %llu, k %llu; again: GTOPK_TEST_SEED=%llu GTOPK_TEST_RUNS=1]", \
             (side)->name, __VA_ARGS__, (world)->step, (unsigned long long)(world)->dim,                  \
             (unsigned long long)(world)->k, (unsigned long long)(world)->seed)

static void world_after_call(world_t *world, const side_t *side, const char *call, gtopk_status_t status,
                             uint64_t flags)
{
    if (side == world->sides)
        world->status = status;
    if (status != world->status)
        WORLD_FAIL(world, side, "%s gives %s (%s), reference %s", call, gtopk_status_name(status), gtopk_last_error(),
                   gtopk_status_name(world->status));
    if (side != world->sides && flags != (world->flags & SIDE_FLAGS))
        WORLD_FAIL(world, side, "%s leaves floating-point flags %#llx, the caller had %#llx", call,
                   (unsigned long long)flags, (unsigned long long)world->flags);
}

static gtopk_status_t world_settle(side_t *side, gtopk_status_t status)
{
    return status == GTOPK_OK ? side_settle(side) : status;
}

/* Makes `call`, in which `side` is the side and `ops` its operations, on every side; all give the same status. */
#define WORLD_CALL(world, call)                                                                \
    for (side_t *side = (world)->sides; side < (world)->sides + (world)->side_count; side++) { \
        const device_ops_t *ops = side->device->ops;                                           \
        const fpenv_t saved = side_flags_enter(side == (world)->sides ? 0 : (world)->flags);   \
        const gtopk_status_t status = world_settle(side, (call));                              \
        const uint64_t flags = side_flags();                                                   \
        (void)ops;                                                                             \
        fpenv_leave(saved);                                                                    \
        world_after_call((world), side, #call, status, flags);                                 \
    }

#define WORLD_CALL_OK(world, call)                                                  \
    do {                                                                            \
        WORLD_CALL(world, call)                                                     \
        if ((world)->status != GTOPK_OK)                                            \
            WORLD_FAIL(world, (world)->sides, "%s: %s", #call, gtopk_last_error()); \
    } while (0)

/* ---- comparisons ---- */

static void world_compare(const world_t *world, const side_t *side, const char *what, const void *expected,
                          const void *got, size_t bytes)
{
    const uint8_t *a = expected, *b = got;
    if (bytes == 0 || memcmp(a, b, bytes) == 0)
        return;
    size_t at = 0;
    while (a[at] == b[at])
        at++;
    uint32_t x = 0, y = 0;
    const size_t word = at / 4 * 4, size = bytes - word < 4 ? bytes - word : 4;
    memcpy(&x, a + word, size);
    memcpy(&y, b + word, size);
    WORLD_FAIL(world, side, "%s differ from the reference's at byte %zu: word %08x, not %08x", what, at, y, x);
}

/* Compares `bytes` bytes of a buffer that all sides have. */
#define WORLD_COMPARE(world, buffer, length)                                                            \
    do {                                                                                                \
        const size_t world_length = (length);                                                           \
        side_t *first = (world)->sides;                                                                 \
        side_copy(first, world_expected.bytes, first->buffer, world_length);                            \
        for (side_t *side = first + 1; side < first + (world)->side_count; side++) {                    \
            side_copy(side, world_got.bytes, side->buffer, world_length);                               \
            world_compare((world), side, #buffer, world_expected.bytes, world_got.bytes, world_length); \
        }                                                                                               \
    } while (0)

/* Leaves the set in world_set_expected. */
static void world_compare_set(world_t *world, int which, const char *what)
{
    if (!side_download_set(world->sides, which, &world_set_expected))
        WORLD_FAIL(world, world->sides, "%s was written behind its capacity", what);
    const host_set_t *expected = &world_set_expected, *got = &world_set_got;
    for (side_t *side = world->sides + 1; side < world->sides + world->side_count; side++) {
        if (!side_download_set(side, which, &world_set_got))
            WORLD_FAIL(world, side, "%s was written behind its capacity", what);
        if (got->count != expected->count)
            WORLD_FAIL(world, side, "%s has %u entries, the reference's %u", what, got->count, expected->count);
        world_compare(world, side, what, expected->index, got->index, got->count * sizeof(uint32_t));
        world_compare(world, side, what, expected->value, got->value, got->count * sizeof(float));
    }
}

static void world_check_bf16(const world_t *world, const float *residual)
{
    for (uint64_t i = 0; i < world->dim; i++)
        if (convert_bits(residual[i]) & 0xffffu)
            WORLD_FAIL(world, world->sides, "entry %llu of a residual in bf16 is %a", (unsigned long long)i,
                       (double)residual[i]);
}

static void world_compare_store(world_t *world)
{
    for (int which = 0; which <= world->with_velocity; which++)
        for (side_t *side = world->sides; side < world->sides + world->side_count; side++) {
            float *to = side == world->sides ? world_expected.floats : world_got.floats;
            SIDE_OK(side->device->ops->store_read(side->store, which, 0, world->dim, to, NULL));
            if (side != world->sides)
                world_compare(world, side, which ? "velocities" : "residuals", world_expected.floats, world_got.floats,
                              world->dim * sizeof(float));
            else if (which == 0 && world->with_bf16)
                world_check_bf16(world, to);
        }
}

/* Without padding, and without what a device is free to find. */
static device_words_t words_plain(const device_words_t *words)
{
    device_words_t plain;
    memset(&plain, 0, sizeof plain);
    plain.ok = words->ok;
    plain.nonfinite = words->nonfinite;
    plain.joined = words->joined;
    plain.error = words->error;
    plain.selected = words->selected;
    plain.count = words->count;
    plain.expect.algorithm = words->expect.algorithm;
    plain.expect.value_type = words->expect.value_type;
    plain.expect.round = words->expect.round;
    plain.expect.tail = words->expect.tail;
    plain.expect.sender = words->expect.sender;
    plain.expect.epoch = words->expect.epoch;
    plain.expect.reducer = words->expect.reducer;
    plain.expect.config_hash = words->expect.config_hash;
    plain.expect.dim = words->expect.dim;
    plain.expect.k = words->expect.k;
    plain.expect.step = words->expect.step;
    memcpy(plain.header, words->header, sizeof plain.header);
    return plain;
}

/* The words that `of` gives of each side, which are in device memory (or not): all alike. */
static device_words_t world_compare_words(world_t *world, device_words_t *(*of)(side_t *side), const char *what)
{
    device_words_t expected, got;
    for (side_t *side = world->sides; side < world->sides + world->side_count; side++) {
        device_words_t *to = side == world->sides ? &expected : &got;
        side_copy(side, to, of(side), sizeof *to);
        *to = words_plain(to);
        if (side != world->sides)
            world_compare(world, side, what, &expected, &got, sizeof got);
    }
    return expected;
}

static device_words_t *words_of(side_t *side)
{
    return side->words;
}

static device_words_t world_words(world_t *world)
{
    return world_compare_words(world, words_of, "words");
}

static void world_set_words(world_t *world, device_words_t words)
{
    for (side_t *side = world->sides; side < world->sides + world->side_count; side++)
        side_copy(side, side->words, &words, sizeof words);
}

static void world_prepare(world_t *world, int which, uint64_t capacity)
{
    for (side_t *side = world->sides; side < world->sides + world->side_count; side++)
        (void)side_prepare(side, which, capacity);
}

static void world_upload(world_t *world, uint8_t *(*buffer)(side_t *side), const void *from, size_t bytes)
{
    for (side_t *side = world->sides; side < world->sides + world->side_count; side++)
        side_copy(side, buffer(side), from, bytes);
}

static uint32_t world_count(world_t *world, int which)
{
    uint32_t count;
    side_copy(world->sides, &count, world->sides->sets[which].count, sizeof count);
    return count;
}

#endif
