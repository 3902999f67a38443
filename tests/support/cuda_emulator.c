/* Fibres, and the scheduler that plays a GPU with them. */
#include "support/cuda_emulator.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "support/random.h"
#include "util/fpenv.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif
#ifdef WITH_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define STACK_BYTES (64u << 10)
#define WARP 32u
#define RESIDENT_MAX 3u /* blocks at a time of a grid that is not cooperative */

typedef enum fibre_state { FIBRE_NEW, FIBRE_READY, FIBRE_AT_BARRIER, FIBRE_IN_WARP, FIBRE_DONE } fibre_state_t;

typedef struct warp {
    uint32_t arrived, mask;
    unsigned synced;
    emulator_warp_op_t op;
    int line;
    uint32_t value[WARP], argument[WARP], result[WARP];
} warp_t;

struct block;

typedef struct fibre {
#if defined(__x86_64__)
    void *stack_pointer;
#else
    ucontext_t context;
#endif
    char *stack;
    fibre_state_t state;
    int spins; /* it gave way only because what it waits for has not come */
    unsigned thread;
    struct block *block;
} fibre_t;

typedef struct block {
    unsigned number, waiting, done;
    int barrier_line, live;
    uint64_t epoch;
    uint64_t held;  /* warps that are held back, */
    unsigned turns; /* for so many turns more */
    fibre_t *fibres;
    warp_t *warps;
    unsigned *order;
    char *shared; /* while another block runs */
} block_t;

static struct {
    emulator_kernel_fn kernel;
    const void *args;
    unsigned grid, block_size;
    emulator_order_t order;
    random_state_t random;
    fibre_t *running;
    block_t *in_place; /* whose shared memory is where the kernel sees it */
    int failed;
    char error[256];
#if defined(__x86_64__)
    void *scheduler;
#else
    ucontext_t scheduler;
#endif
    const void *host_stack;
    size_t host_stack_bytes;
} now;

static struct {
    block_t *blocks;
    unsigned count, block_size;
} kept;

static uint64_t epochs; /* never the same again */
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
emulator_place_t emulator_place;

extern char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));

static size_t shared_bytes(void)
{
    return (size_t)(__stop_cuda_shared - __start_cuda_shared);
}

const char *emulator_error(void)
{
    return now.error;
}

/* ---- switching ---- */

#if defined(__x86_64__)
/* Saves what a function must keep, and the stack; goes on where the other one saved. */
__attribute__((naked, noinline)) static void switch_stacks(void **save __attribute__((unused)),
                                                           void *load __attribute__((unused)))
{
    __asm__("pushq %rbp\n\tpushq %rbx\n\tpushq %r12\n\tpushq %r13\n\tpushq %r14\n\tpushq %r15\n\t"
            "movq %rsp, (%rdi)\n\tmovq %rsi, %rsp\n\t"
            "popq %r15\n\tpopq %r14\n\tpopq %r13\n\tpopq %r12\n\tpopq %rbx\n\tpopq %rbp\n\tret");
}
#endif

static void to_fibre(fibre_t *fibre)
{
#ifdef WITH_ASAN
    void *fake = NULL;
    __sanitizer_start_switch_fiber(&fake, fibre->stack, STACK_BYTES);
#endif
#if defined(__x86_64__)
    switch_stacks(&now.scheduler, fibre->stack_pointer);
#else
    (void)swapcontext(&now.scheduler, &fibre->context);
#endif
#ifdef WITH_ASAN
    __sanitizer_finish_switch_fiber(fake, NULL, NULL);
#endif
}

static void to_scheduler(int for_good)
{
    fibre_t *fibre = now.running;
#ifdef WITH_ASAN
    void *fake = NULL;
    __sanitizer_start_switch_fiber(for_good ? NULL : &fake, now.host_stack, now.host_stack_bytes);
#else
    (void)for_good;
#endif
#if defined(__x86_64__)
    switch_stacks(&fibre->stack_pointer, now.scheduler);
#else
    (void)swapcontext(&fibre->context, &now.scheduler);
#endif
#ifdef WITH_ASAN
    __sanitizer_finish_switch_fiber(fake, NULL, NULL);
#endif
}

static void fibre_main(void)
{
#ifdef WITH_ASAN
    __sanitizer_finish_switch_fiber(NULL, &now.host_stack, &now.host_stack_bytes);
#endif
    now.kernel(now.args);
    now.running->state = FIBRE_DONE;
    now.running->block->done++;
    to_scheduler(1);
}

static void fibre_start(fibre_t *fibre)
{
#ifdef WITH_ASAN
    ASAN_UNPOISON_MEMORY_REGION(fibre->stack, STACK_BYTES); /* whatever was left there has ended */
#endif
#if defined(__x86_64__)
    /* As if fibre_main had been called from address 0: six registers, where to go, where that returns to. */
    void **top = (void **)(void *)(fibre->stack + STACK_BYTES) - 8;
    memset(top, 0, 8 * sizeof *top);
    void (*const start)(void) = fibre_main;
    memcpy(&top[6], &start, sizeof start);
    fibre->stack_pointer = top;
#else
    (void)getcontext(&fibre->context);
    fibre->context.uc_stack.ss_sp = fibre->stack;
    fibre->context.uc_stack.ss_size = STACK_BYTES;
    fibre->context.uc_link = NULL;
    makecontext(&fibre->context, fibre_main, 0);
#endif
    fibre->state = FIBRE_READY;
}

/* ---- what fibres call ---- */

/* Ends the whole grid. */
static void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    (void)vsnprintf(now.error, sizeof now.error, format, args);
    va_end(args);
    now.failed = 1;
}

static void give_way(fibre_state_t state)
{
    now.running->state = state;
    to_scheduler(0);
}

static int shuffled_one_in(uint64_t chances)
{
    return now.order == EMULATOR_SHUFFLED && random_below(&now.random, chances) == 0;
}

void emulator_barrier(int line)
{
    block_t *block = now.running->block;
    if (block->waiting > 0 && block->barrier_line != line) {
        fail("thread %u of block %u is at the barrier of line %d while others wait at that of line %d",
             now.running->thread, block->number, line, block->barrier_line);
        give_way(FIBRE_READY);
    }
    block->barrier_line = line;
    if (++block->waiting < now.block_size) {
        give_way(FIBRE_AT_BARRIER);
        return;
    }
    block->waiting = 0;
    block->epoch = ++epochs;
    for (unsigned t = 0; t < now.block_size; t++)
        block->fibres[t].state = FIBRE_READY;
    give_way(FIBRE_READY); /* who comes last is not to be the first to go on */
}

static void warp_finish(warp_t *warp, fibre_t *lanes)
{
    uint32_t ballot = 0;
    for (unsigned l = 0; l < WARP; l++)
        ballot |= (warp->mask >> l & 1) && warp->value[l] ? 1u << l : 0;
    for (unsigned l = 0; l < WARP; l++) {
        if (!(warp->mask >> l & 1))
            continue;
        const unsigned by = warp->argument[l];
        unsigned from = l;
        switch (warp->op) {
        case EMULATOR_SHUFFLE: from = by % WARP; break;
        case EMULATOR_SHUFFLE_UP: from = l >= by ? l - by : l; break;
        case EMULATOR_SHUFFLE_DOWN: from = l + by < WARP ? l + by : l; break;
        case EMULATOR_SHUFFLE_XOR: from = (l ^ by) % WARP; break;
        default: break;
        }
        if (!(warp->mask >> from & 1))
            fail("lane %u shuffles from lane %u, which takes no part (line %d)", l, from, warp->line);
        warp->result[l] = warp->op == EMULATOR_BALLOT ? ballot : warp->value[from];
        lanes[l].state = FIBRE_READY;
    }
    warp->arrived = 0;
    warp->synced += warp->op == EMULATOR_SYNC; /* shuffles and ballots order no memory */
}

uint32_t emulator_warp(emulator_warp_op_t op, uint32_t mask, uint32_t value, uint32_t argument, int line)
{
    fibre_t *self = now.running;
    const unsigned lane = self->thread % WARP;
    warp_t *warp = &self->block->warps[self->thread / WARP];
    if (!(mask >> lane & 1))
        fail("lane %u is not in its own mask %08x (line %d)", lane, mask, line);
    else if (warp->arrived && (warp->op != op || warp->mask != mask || warp->line != line))
        fail("lanes of one warp are at different operations: lines %d and %d", warp->line, line);
    if (now.failed)
        give_way(FIBRE_READY);
    warp->op = op;
    warp->mask = mask;
    warp->line = line;
    warp->value[lane] = value;
    warp->argument[lane] = argument;
    warp->arrived |= 1u << lane;
    if (warp->arrived != mask) {
        give_way(FIBRE_IN_WARP);
    } else {
        warp_finish(warp, self - lane);
        if (now.failed || shuffled_one_in(2))
            give_way(FIBRE_READY);
    }
    return warp->result[lane];
}

void emulator_spin(void)
{
    now.running->spins = 1;
    give_way(FIBRE_READY);
}

__attribute__((weak)) void emulator_saw_atomic(const void *address)
{
    (void)address;
}

void emulator_atomic(const void *address)
{
    emulator_saw_atomic(address);
    if (shuffled_one_in(8))
        give_way(FIBRE_READY);
}

/* ---- for cuda_races.c ---- */

emulator_moment_t emulator_moment(void)
{
    const fibre_t *fibre = now.running;
    if (!fibre)
        return (emulator_moment_t){0};
    const block_t *block = fibre->block;
    return (emulator_moment_t){
        .runs = 1,
        .slot = (unsigned)(block - kept.blocks),
        .block = block->number,
        .thread = fibre->thread,
        .line = (unsigned)block->barrier_line,
        .epoch = block->epoch,
        .synced = block->warps[fibre->thread / WARP].synced,
    };
}

void emulator_fail(const char *text)
{
    if (!now.failed)
        fail("%s", text);
    give_way(FIBRE_READY);
}

size_t emulator_shared_place(const void *address)
{
    const char *at = address;
    return at >= __start_cuda_shared && at < __stop_cuda_shared ? (size_t)(at - __start_cuda_shared) : SIZE_MAX;
}

size_t emulator_shared_bytes(void)
{
    return shared_bytes();
}

/* ---- memory of the emulator, kept from one grid to the next ---- */

static void *allocate(size_t count, size_t size)
{
    void *block = calloc(count, size);
    if (!block)
        abort();
    return block;
}

static void kept_free(void)
{
    for (unsigned b = 0; b < kept.count; b++) {
        for (unsigned t = 0; t < kept.block_size; t++)
            (void)munmap(kept.blocks[b].fibres[t].stack, STACK_BYTES);
        free(kept.blocks[b].fibres);
        free(kept.blocks[b].warps);
        free(kept.blocks[b].order);
        free(kept.blocks[b].shared);
    }
    free(kept.blocks);
    kept.blocks = NULL;
    kept.count = 0;
}

static void keep(unsigned count, unsigned block_size)
{
    static int registered;
    if (count <= kept.count && block_size == kept.block_size)
        return;
    kept_free();
    if (!registered)
        registered = atexit(kept_free) == 0;
    kept.blocks = allocate(count, sizeof *kept.blocks);
    kept.count = count;
    kept.block_size = block_size;
    for (unsigned b = 0; b < count; b++) {
        block_t *block = &kept.blocks[b];
        block->fibres = allocate(block_size, sizeof *block->fibres);
        block->warps = allocate((block_size + WARP - 1) / WARP, sizeof *block->warps);
        block->order = allocate(block_size, sizeof *block->order);
        block->shared = allocate(shared_bytes() + 1, 1);
        for (unsigned t = 0; t < block_size; t++) {
            void *stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (stack == MAP_FAILED)
                abort();
            block->fibres[t] = (fibre_t){.stack = stack, .thread = t, .block = block};
        }
    }
}

/* ---- the scheduler ---- */

static void order_make(unsigned *order, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        order[i] = now.order == EMULATOR_BACKWARD ? count - 1 - i : i;
        if (now.order == EMULATOR_SHUFFLED) {
            const unsigned j = (unsigned)random_below(&now.random, i + 1);
            order[i] = order[j];
            order[j] = i;
        }
    }
}

static void block_start(block_t *block, unsigned number)
{
    block->number = number;
    block->waiting = block->done = block->turns = 0;
    block->held = 0;
    block->live = 1;
    block->barrier_line = 0;
    block->epoch = ++epochs;
    memset(block->warps, 0, (now.block_size + WARP - 1) / WARP * sizeof *block->warps);
    for (unsigned t = 0; t < now.block_size; t++)
        fibre_start(&block->fibres[t]);
    for (size_t i = 0; i < shared_bytes(); i++)
        block->shared[i] = (char)random_u64(&now.random);
}

static void block_into_place(block_t *block)
{
    if (now.in_place == block || shared_bytes() == 0)
        return;
    if (now.in_place)
        memcpy(now.in_place->shared, __start_cuda_shared, shared_bytes());
    memcpy(__start_cuda_shared, block->shared, shared_bytes());
    now.in_place = block;
}

/* Lets each thread that can run do so once. Returns 1 when that was any use. Shuffled, some warps are held back for some
 * turns, so that others get far ahead of them. */
static int block_turn(block_t *block)
{
    int progress = 0;
    if (now.order == EMULATOR_SHUFFLED && block->turns-- == 0) {
        block->held = shuffled_one_in(4) ? UINT64_MAX
                                         : random_u64(&now.random); /* all: others get ahead of the block */
        block->turns = 1u << random_below(&now.random, 6);
    }
    block_into_place(block);
    order_make(block->order, now.block_size);
    for (unsigned i = 0; i < now.block_size && !now.failed; i++) {
        fibre_t *fibre = &block->fibres[block->order[i]];
        if (fibre->state != FIBRE_READY)
            continue;
        if (block->held >> fibre->thread / WARP % 64 & 1) {
            progress = 1;
            continue;
        }
        fibre->spins = 0;
        now.running = fibre;
        emulator_place = (emulator_place_t){{fibre->thread}, {block->number}, {now.block_size}, {now.grid}};
        to_fibre(fibre);
        now.running = NULL;
        progress |= !fibre->spins;
    }
    return progress;
}

/* Who waits for what; those that spin first, because others may wait for them. */
static void describe_hang(const block_t *blocks, unsigned count)
{
    static const fibre_state_t causes[] = {FIBRE_READY, FIBRE_IN_WARP, FIBRE_AT_BARRIER};
    for (unsigned i = 0; i < 3 * count * now.block_size && !now.failed; i++) {
        const block_t *block = &blocks[i / now.block_size % count];
        const unsigned t = i % now.block_size;
        const fibre_state_t cause = causes[i / (count * now.block_size)];
        const warp_t *warp = &block->warps[t / WARP];
        if (!block->live || block->fibres[t].state != cause)
            continue;
        if (cause == FIBRE_READY)
            fail("block %u hangs: thread %u spins for what nobody will do", block->number, t);
        else if (cause == FIBRE_IN_WARP)
            fail("block %u hangs: lanes %08x of warp %u wait at line %d for lanes %08x, which do not come",
                 block->number, warp->arrived, t / WARP, warp->line, warp->mask & ~warp->arrived);
        else
            fail("block %u hangs: %u of %u threads wait at the barrier of line %d, %u have ended", block->number,
                 block->waiting, now.block_size, block->barrier_line, block->done);
    }
}

static void schedule(unsigned resident)
{
    block_t *blocks = kept.blocks;
    unsigned *numbers = allocate(now.grid, sizeof *numbers), *order = allocate(resident, sizeof *order), next = 0;
    order_make(numbers, now.grid);
    for (unsigned b = 0; b < resident; b++)
        block_start(&blocks[b], numbers[next++]);
    for (unsigned live = resident; live > 0 && !now.failed;) {
        int progress = 0;
        order_make(order, resident);
        for (unsigned i = 0; i < resident && !now.failed; i++) {
            block_t *block = &blocks[order[i]];
            if (!block->live)
                continue;
            progress |= block_turn(block);
            if (block->done < now.block_size || now.failed)
                continue;
            block->live = 0;
            if (now.in_place == block)
                now.in_place = NULL;
            if (next < now.grid)
                block_start(block, numbers[next++]);
            else
                live--;
        }
        if (!progress && !now.failed)
            describe_hang(blocks, resident);
    }
    free(numbers);
    free(order);
}

int emulator_run(emulator_kernel_fn kernel, const void *args, unsigned grid, unsigned block, int cooperative,
                 emulator_order_t order, uint64_t seed)
{
    (void)pthread_mutex_lock(&turn);
    memset(&now, 0, sizeof now);
    now.kernel = kernel;
    now.args = args;
    now.grid = grid;
    now.block_size = block;
    now.order = order;
    now.random = (random_state_t){seed};
    unsigned resident = cooperative ? grid : order == EMULATOR_SHUFFLED ? RESIDENT_MAX : 1;
    resident = resident < grid ? resident : grid;
    if (grid == 0 || block == 0)
        fail("a grid of %u blocks of %u threads", grid, block);
    else {
        const fpenv_t saved = fpenv_enter(); /* a GPU does not know the caller's flags */
        keep(resident, block);
        schedule(resident);
        fpenv_leave(saved);
    }
    const int failed = now.failed;
    (void)pthread_mutex_unlock(&turn);
    return failed ? -1 : 0;
}
