/* Finds accesses to shared memory that no barrier orders: what compute-sanitizer's racecheck finds on a GPU.
 *
 * Kernels that are compiled with -fsanitize=thread call the functions below at each access, which is why they are named so;
 * ThreadSanitizer itself is not linked. Two accesses of different threads to one word, of which one writes, are a race
 * unless there is a __syncthreads between them, or, within a warp, a __syncwarp. Atomics do not race with each other. */
#include "support/cuda_emulator.h"

#if !defined(__SANITIZE_THREAD__)

#include <stdio.h>
#include <stdlib.h>

enum { WARP = 32, WARPS = 32, SLOTS = 64 };

typedef struct word {
    uint64_t write_epoch, read_epoch;
    unsigned writer, write_synced, write_line;
    int atomic;
    unsigned read_synced[WARPS];
    uint32_t readers[WARPS]; /* lanes */
} word_t;

static word_t *words[SLOTS];
static size_t word_count;

static void words_free(void)
{
    for (size_t s = 0; s < SLOTS; s++)
        free(words[s]);
}

static word_t *word_of(unsigned slot, size_t place)
{
    if (slot >= SLOTS)
        abort();
    if (!word_count && atexit(words_free) == 0)
        word_count = emulator_shared_bytes() / 4 + 1;
    if (!words[slot])
        words[slot] = calloc(word_count, sizeof(word_t));
    if (!words[slot])
        abort();
    return &words[slot][place / 4];
}

static void report(const emulator_moment_t *now, size_t place, const char *did, unsigned other, const char *had)
{
    char text[200];
    (void)snprintf(
        text, sizeof text,
        "thread %u of block %u %s word %zu of shared memory, which thread %u %s since the last barrier (line %u)",
        now->thread, now->block, did, place / 4, other, had, now->line);
    emulator_fail(text);
}

/* A thread that has read the word, and that nothing has kept from being late; -1: none. */
static int reader(const word_t *word, const emulator_moment_t *now)
{
    for (unsigned w = 0; w < WARPS && word->read_epoch == now->epoch; w++) {
        uint32_t lanes = word->readers[w];
        if (w == now->thread / WARP)
            lanes = word->read_synced[w] == now->synced ? lanes & ~(1u << now->thread % WARP) : 0;
        if (lanes)
            return (int)(w * WARP) + __builtin_ctz(lanes);
    }
    return -1;
}

static void look(const emulator_moment_t *now, size_t place, int writes, int atomic)
{
    word_t *word = word_of(now->slot, place);
    const unsigned warp = now->thread / WARP;
    const int ordered = word->write_epoch != now->epoch || word->writer == now->thread ||
                        (word->writer / WARP == warp && word->write_synced != now->synced);
    if (!ordered && !(atomic && word->atomic))
        report(now, place, writes ? "writes" : "reads", word->writer, "has written");
    const int late = writes ? reader(word, now) : -1;
    if (late >= 0)
        report(now, place, "writes", (unsigned)late, "has read");
    if (writes) {
        word->write_epoch = now->epoch;
        word->writer = now->thread;
        word->write_synced = now->synced;
        word->atomic = atomic;
        return;
    }
    if (word->read_epoch != now->epoch)
        memset(word->readers, 0, sizeof word->readers);
    if (word->read_synced[warp] != now->synced)
        word->readers[warp] = 0;
    word->read_epoch = now->epoch;
    word->read_synced[warp] = now->synced;
    word->readers[warp] |= 1u << now->thread % WARP;
}

static void saw(const void *address, size_t bytes, int writes, int atomic)
{
    size_t place = emulator_shared_place(address);
    if (place == SIZE_MAX)
        return;
    const emulator_moment_t now = emulator_moment();
    for (const size_t end = place + bytes; now.runs && place < end; place += 4)
        look(&now, place, writes, atomic);
}

void emulator_saw_atomic(const void *address)
{
    saw(address, 4, 1, 1);
}

/* ---- what the compiler calls ---- */

#define ACCESS(bytes)                                  \
    void __tsan_read##bytes(void *address);            \
    void __tsan_write##bytes(void *address);           \
    void __tsan_unaligned_read##bytes(void *address);  \
    void __tsan_unaligned_write##bytes(void *address); \
    void __tsan_read##bytes(void *address)             \
    {                                                  \
        saw(address, bytes, 0, 0);                     \
    }                                                  \
    void __tsan_write##bytes(void *address)            \
    {                                                  \
        saw(address, bytes, 1, 0);                     \
    }                                                  \
    void __tsan_unaligned_read##bytes(void *address)   \
    {                                                  \
        saw(address, bytes, 0, 0);                     \
    }                                                  \
    void __tsan_unaligned_write##bytes(void *address)  \
    {                                                  \
        saw(address, bytes, 1, 0);                     \
    }

ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)

void __tsan_read_range(void *address, unsigned long bytes);
void __tsan_write_range(void *address, unsigned long bytes);
void __tsan_init(void);
void __tsan_func_entry(void *caller);
void __tsan_func_exit(void);

void __tsan_read_range(void *address, unsigned long bytes)
{
    saw(address, bytes, 0, 0);
}

void __tsan_write_range(void *address, unsigned long bytes)
{
    saw(address, bytes, 1, 0);
}

void __tsan_init(void)
{
}

void __tsan_func_entry(void *caller)
{
    (void)caller;
}

void __tsan_func_exit(void)
{
}
#endif
