/* One of the devices that a property test runs side by side, with its memory. Nothing here relies on device memory being
 * the host's. */
#ifndef GTOPK_TESTS_DEVICE_SIDE_H
#define GTOPK_TESTS_DEVICE_SIDE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "device/device.h"
#include "support/random.h"
#include "util/fpenv.h"

enum {
    SIDE_DIM_MAX = 120000,
    SIDE_SET_MAX = 2 * SIDE_DIM_MAX,
    SIDE_ARENA = 4 * SIDE_DIM_MAX + (1 << 16),
    SIDE_CANARIES = 4,
    SIDE_BEHIND = 16 /* floats behind those of a dense vector */
};
enum { SIDE_MESSAGE = WIRE_HEADER_SIZE + 12 * SIDE_SET_MAX };

#define SIDE_CANARY 0xc0ffee01u

/* The sets of a step. */
enum {
    SET_SELECTED,
    SET_FIRST,
    SET_CURRENT,
    SET_PEER,
    SET_ALL,
    SET_KEPT,
    SET_DECODED,
    SET_RECEIVED,
    SET_FINAL,
    SET_UPDATE,  /* the arrays that commit writes */
    SET_DEPOSIT, /* one a round */
    SET_COUNT = SET_DEPOSIT + 3
};

typedef struct side {
    char name[32];
    device_t *device;
    device_store_t *store;
    device_words_t *words, *other_words;
    device_words_t *told; /* pinned: what a verdict brings */
    uint8_t *arena;       /* gradients or outputs of all segments */
    uint8_t *message;
    float *dense;
    device_set_t sets[SET_COUNT];
    random_state_t parallel_random;
    uint64_t calls, selections, misses;
} side_t;

/* A set in the test's own memory. */
typedef struct host_set {
    uint32_t count;
    uint32_t index[SIDE_SET_MAX + SIDE_CANARIES];
    float value[SIDE_SET_MAX + SIDE_CANARIES];
} host_set_t;

#define SIDE_OK(call)                                      \
    do {                                                   \
        if ((call) != GTOPK_OK)                            \
            fail_msg("%s: %s", #call, gtopk_last_error()); \
    } while (0)

/* ---- memory ---- */

static inline void *side_allocate(side_t *side, size_t bytes)
{
    void *block;
    SIDE_OK(side->device->ops->allocate(side->device, bytes, "a test's buffer", &block));
    return block;
}

/* At times a device with a queue has to run what was queued before anything else is. */
static inline gtopk_status_t side_settle(side_t *side)
{
    const device_ops_t *ops = side->device->ops;
    return !ops->host_memory && side->calls++ % 3 == 0 ? ops->synchronize(side->device, NULL) : GTOPK_OK;
}

static inline void side_copy(side_t *side, void *to, const void *from, size_t bytes)
{
    SIDE_OK(side->device->ops->copy(side->device, to, from, bytes, NULL));
    SIDE_OK(side->device->ops->synchronize(side->device, NULL));
}

static inline void side_open(side_t *side, const char *name, device_t *device)
{
    *side = (side_t){.device = device};
    (void)snprintf(side->name, sizeof side->name, "%s", name);
    side->words = side_allocate(side, sizeof *side->words);
    side->other_words = side_allocate(side, sizeof *side->other_words);
    SIDE_OK(device->ops->allocate_pinned(device, 2 * sizeof *side->told, "a test's words", (void **)&side->told));
    side->arena = side_allocate(side, SIDE_ARENA);
    side->message = side_allocate(side, SIDE_MESSAGE);
    side->dense = side_allocate(side, (SIDE_DIM_MAX + SIDE_BEHIND) * sizeof(float));
    for (int s = 0; s < SET_COUNT; s++) {
        side->sets[s].index = side_allocate(side, (SIDE_SET_MAX + SIDE_CANARIES) * sizeof(uint32_t));
        side->sets[s].value = side_allocate(side, (SIDE_SET_MAX + SIDE_CANARIES) * sizeof(float));
        side->sets[s].count = side_allocate(side, sizeof(uint32_t));
    }
}

static inline void side_close(side_t *side)
{
    const device_ops_t *ops = side->device->ops;
    for (int s = 0; s < SET_COUNT; s++) {
        ops->release(side->device, side->sets[s].index);
        ops->release(side->device, side->sets[s].value);
        ops->release(side->device, side->sets[s].count);
    }
    ops->release(side->device, side->dense);
    ops->release(side->device, side->message);
    ops->release(side->device, side->arena);
    ops->release(side->device, side->words);
    ops->release(side->device, side->other_words);
    ops->release_pinned(side->device, side->told);
    ops->close(side->device);
}

/* ---- sets ---- */

/* Makes a set empty, with room for `capacity` entries and canaries behind. */
static inline device_set_t *side_prepare(side_t *side, int which, uint64_t capacity)
{
    const uint32_t canaries[SIDE_CANARIES] = {SIDE_CANARY, SIDE_CANARY, SIDE_CANARY, SIDE_CANARY}, zero = 0;
    device_set_t *set = &side->sets[which];
    assert_true(capacity <= SIDE_SET_MAX);
    set->capacity = (uint32_t)capacity;
    side_copy(side, set->index + capacity, canaries, sizeof canaries);
    side_copy(side, set->value + capacity, canaries, sizeof canaries);
    side_copy(side, set->count, &zero, sizeof zero);
    return set;
}

static inline void side_upload_set(side_t *side, int which, const host_set_t *from)
{
    device_set_t *set = side_prepare(side, which, from->count);
    side_copy(side, set->index, from->index, from->count * sizeof(uint32_t));
    side_copy(side, set->value, from->value, from->count * sizeof(float));
    side_copy(side, set->count, &from->count, sizeof(uint32_t));
}

/* Returns 0 when something was written behind the set's capacity. */
static inline int side_download_set(side_t *side, int which, host_set_t *to)
{
    const device_set_t *set = &side->sets[which];
    uint32_t canaries[2 * SIDE_CANARIES];
    side_copy(side, &to->count, set->count, sizeof(uint32_t));
    if (to->count > set->capacity)
        return 0;
    side_copy(side, to->index, set->index, to->count * sizeof(uint32_t));
    side_copy(side, to->value, set->value, to->count * sizeof(float));
    side_copy(side, canaries, set->index + set->capacity, SIDE_CANARIES * sizeof(uint32_t));
    side_copy(side, canaries + SIDE_CANARIES, set->value + set->capacity, SIDE_CANARIES * sizeof(uint32_t));
    for (int i = 0; i < 2 * SIDE_CANARIES; i++)
        if (canaries[i] != SIDE_CANARY)
            return 0;
    return 1;
}

/* ---- the caller's floating-point environment ---- */

#if defined(__x86_64__)
#define SIDE_FLAGS 0xe040u /* FTZ, DAZ, rounding */
#elif defined(__aarch64__)
#define SIDE_FLAGS 0x1c00000u /* FZ, rounding */
#endif

#ifdef SIDE_FLAGS
static inline uint64_t side_flags(void)
{
    const fpenv_t flags = fpenv_enter();
    fpenv_leave(flags);
    return flags & SIDE_FLAGS;
}

/* Sets some of SIDE_FLAGS; fpenv_leave restores what it returns. */
static inline fpenv_t side_flags_enter(uint64_t flags)
{
    const fpenv_t saved = fpenv_enter();
    fpenv_leave(saved | (fpenv_t)(flags & SIDE_FLAGS));
    return saved;
}
#else
#define SIDE_FLAGS 0u

static inline uint64_t side_flags(void)
{
    return 0;
}

static inline fpenv_t side_flags_enter(uint64_t flags)
{
    (void)flags;
    return fpenv_enter();
}
#endif

#endif
