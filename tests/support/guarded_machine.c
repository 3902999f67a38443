/* Memory and streams of guarded devices. Nothing here is allocated by calloc but the notes of blocks, so that tests which
 * count and fail allocations (oom.c) see one a block of device memory. */
#include "support/guarded_machine.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "util/memory.h"

#define ARENA ((size_t)256 << 20)
#define ALIGNMENT 64u
#define CHUNK ((size_t)256 << 10)

#if defined(__SANITIZE_ADDRESS__)
#define ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ADDRESS_SANITIZER 1
#endif
#endif
#ifdef ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#define POISON(at, bytes) __asan_poison_memory_region(at, bytes)
#define UNPOISON(at, bytes) __asan_unpoison_memory_region(at, bytes)
#else
#define POISON(at, bytes) ((void)(at), (void)(bytes))
#define UNPOISON(at, bytes) ((void)(at), (void)(bytes))
#endif

static void *map(size_t bytes, int access)
{
    void *at = mmap(NULL, bytes, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

static void fail(machine_t *machine, const char *text);

/* ---- one machine a thread ---- */

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Machines without a thread: mapping and unmapping that much is slow under sanitizers. */
static pthread_mutex_t spare_mutex = PTHREAD_MUTEX_INITIALIZER;
static machine_t *spare;

static void leave_thread(void *machine)
{
    machine_release(machine);
}

static void create_key(void)
{
    if (pthread_key_create(&key, leave_thread) != 0)
        abort();
}

static machine_t *machine_create(void)
{
    (void)pthread_mutex_lock(&spare_mutex);
    machine_t *machine = spare;
    if (machine)
        spare = machine->next;
    (void)pthread_mutex_unlock(&spare_mutex);
    if (machine)
        return machine;
    machine = map(sizeof *machine, PROT_READ | PROT_WRITE);
    if (!machine)
        return NULL;
    machine->shown = map(ARENA, PROT_NONE);
    machine->real = map(ARENA, PROT_READ | PROT_WRITE);
    if (!machine->shown || !machine->real || pthread_mutex_init(&machine->mutex, NULL) != 0)
        abort();
    return machine;
}

machine_t *machine_of_thread(void)
{
    (void)pthread_once(&once, create_key);
    machine_t *machine = pthread_getspecific(key);
    if (machine)
        return machine;
    machine = machine_create();
    if (!machine)
        return NULL;
    if (pthread_setspecific(key, machine) != 0)
        abort();
    machine->references = 1;
    return machine;
}

void machine_retain(machine_t *machine)
{
    (void)pthread_mutex_lock(&machine->mutex);
    machine->references++;
    (void)pthread_mutex_unlock(&machine->mutex);
}

void machine_release(machine_t *machine)
{
    (void)pthread_mutex_lock(&machine->mutex);
    const int left = --machine->references;
    (void)pthread_mutex_unlock(&machine->mutex);
    if (left > 0)
        return;
    fail(machine, "its thread has ended"); /* what the host left in streams */
    UNPOISON(machine->real, machine->touched);
    if (madvise(machine->real, machine->touched, MADV_DONTNEED) != 0)
        abort();
    machine->touched = machine->stream_count = 0;
    machine->failed = 0;
    machine->fault = GUARDED_NO_FAULT;
    (void)pthread_mutex_lock(&spare_mutex);
    machine->next = spare;
    spare = machine;
    (void)pthread_mutex_unlock(&spare_mutex);
}

/* ---- memory ---- */

/* Blocks stand apart, so that what is written behind one is seen by AddressSanitizer. */
static size_t room(size_t bytes)
{
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT + ALIGNMENT;
}

gtopk_status_t machine_allocate(machine_t *machine, size_t bytes, const char *what, void **out)
{
    block_t *block;
    *out = NULL;
    if (bytes == 0)
        return GTOPK_OK;
    gtopk_status_t status = bytes < ARENA ? memory_alloc(&block, 1, sizeof *block, what) : STATUS_NOMEM(what, bytes);
    if (status != GTOPK_OK)
        return status;
    (void)pthread_mutex_lock(&machine->mutex);
    block_t **link = &machine->blocks;
    size_t at = 0;
    while (*link && (*link)->at - at < room(bytes)) {
        at = (*link)->at + room((*link)->bytes);
        link = &(*link)->next;
    }
    if (ARENA - at >= room(bytes)) {
        *block = (block_t){*link, at, bytes};
        *link = block;
        UNPOISON(machine->real + at, room(bytes));
        if (at < machine->touched)
            memset(machine->real + at, 0, bytes);
        if (machine->touched < at + room(bytes))
            machine->touched = at + room(bytes);
        POISON(machine->real + at + bytes, room(bytes) - bytes);
        *out = machine->shown + at;
    }
    (void)pthread_mutex_unlock(&machine->mutex);
    if (!*out) {
        memory_free(block);
        return STATUS_NOMEM(what, bytes);
    }
    return GTOPK_OK;
}

static void must_be_passed_locked(const machine_t *machine, const void *block, size_t bytes);

void machine_free(machine_t *machine, void *block)
{
    if (!block)
        return;
    (void)pthread_mutex_lock(&machine->mutex);
    block_t **link = &machine->blocks;
    while (*link && machine->shown + (*link)->at != block)
        link = &(*link)->next;
    block_t *found = *link;
    if (!found) {
        (void)fprintf(stderr, "guarded: %p is released and is no block of the device's memory\n", block);
        abort();
    }
    *link = found->next;
    must_be_passed_locked(machine, machine->real + found->at, found->bytes);
    POISON(machine->real + found->at, room(found->bytes));
    (void)pthread_mutex_unlock(&machine->mutex);
    memory_free(found);
}

static int is_shown(const machine_t *machine, const void *address)
{
    return (uintptr_t)address - (uintptr_t)machine->shown < ARENA;
}

void *machine_reach(const machine_t *machine, const void *address)
{
    const uintptr_t at = (uintptr_t)address;
    return (void *)(is_shown(machine, address) ? at - (uintptr_t)machine->shown + (uintptr_t)machine->real : at);
}

/* NULL when nothing was opened on this thread. */
static const machine_t *machine_if_any(void)
{
    (void)pthread_once(&once, create_key);
    return pthread_getspecific(key);
}

int guarded_owns(const void *address)
{
    const machine_t *machine = machine_if_any();
    return machine && is_shown(machine, address);
}

void *guarded_reach(const void *address)
{
    const machine_t *machine = machine_if_any();
    return machine ? machine_reach(machine, address) : (void *)(uintptr_t)address;
}

/* ---- calls ---- */

void *call_keep(machine_t *machine, const void *data, size_t bytes)
{
    const size_t needed = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    const size_t head = (sizeof(chunk_t) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    chunk_t *chunk = machine->chunks;
    if (!chunk || chunk->bytes - chunk->used < needed) {
        const size_t size = needed + head > CHUNK ? needed + head : CHUNK;
        chunk = map(size, PROT_READ | PROT_WRITE);
        if (!chunk)
            abort();
        *chunk = (chunk_t){machine->chunks, size, head};
        machine->chunks = chunk;
    }
    void *kept = (uint8_t *)chunk + chunk->used;
    chunk->used += needed;
    if (data && bytes > 0)
        memcpy(kept, data, bytes);
    return kept;
}

/* Nothing is queued: the memory of calls is free again; one chunk stays. */
static void forget_calls(machine_t *machine)
{
    while (machine->chunks && machine->chunks->next) {
        chunk_t *next = machine->chunks->next;
        (void)munmap(machine->chunks, machine->chunks->bytes);
        machine->chunks = next;
    }
    if (machine->chunks)
        machine->chunks->used = (sizeof(chunk_t) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

call_t *call_begin(machine_t *machine, guarded_t *device, void *stream,
                   gtopk_status_t (*run)(call_t *call, double deadline))
{
    (void)pthread_mutex_lock(&machine->mutex);
    if (machine->queued == 0)
        forget_calls(machine);
    call_t *call = call_keep(machine, NULL, sizeof *call);
    *call = (call_t){.device = device, .stream = stream, .run = run};
    return call;
}

/* ---- streams ---- */

static stream_t *stream_find(machine_t *machine, void *name)
{
    stream_t *empty = NULL;
    for (size_t s = 0; s < machine->stream_count; s++) {
        if (machine->streams[s].name == name)
            return &machine->streams[s];
        if (!machine->streams[s].first)
            empty = &machine->streams[s];
    }
    if (machine->stream_count < MACHINE_STREAMS)
        empty = &machine->streams[machine->stream_count++];
    if (!empty)
        abort();
    *empty = (stream_t){.name = name};
    return empty;
}

static call_t *pop(machine_t *machine, stream_t *stream)
{
    call_t *call = stream->first;
    stream->first = call->next;
    if (!stream->first)
        stream->last = NULL;
    machine->queued--;
    if (call->device)
        call->device->queued--;
    return call;
}

/* The device is lost, with everything that is queued. */
static void fail(machine_t *machine, const char *text)
{
    machine->failed = 1;
    (void)snprintf(machine->text, sizeof machine->text, "%s", text);
    for (size_t s = 0; s < machine->stream_count; s++)
        while (machine->streams[s].first) {
            const call_t *call = pop(machine, &machine->streams[s]);
            if (call->drop)
                call->drop(call->arg);
        }
}

static gtopk_status_t failure(const machine_t *machine)
{
    return status_set(GTOPK_ERR_DEVICE, "the guarded device failed: %s", machine->text);
}

/* Counts an operation. 1: it is the one that is to fail. */
static int is_fault(machine_t *machine, guarded_fault_t fault)
{
    return machine->fault == fault && machine->counted == machine->fault_at;
}

static gtopk_status_t append(machine_t *machine, call_t *call)
{
    const int refused = is_fault(machine, GUARDED_AT_QUEUE);
    call->fails = is_fault(machine, GUARDED_AT_RUN);
    machine->counted++;
    if (refused)
        return status_set(GTOPK_ERR_DEVICE, "the guarded device takes no more work: a test wants it so");
    if (machine->failed)
        return failure(machine);
    stream_t *stream = stream_find(machine, call->stream);
    if (stream->last)
        stream->last->next = call;
    else
        stream->first = call;
    stream->last = call;
    machine->queued++;
    if (call->device)
        call->device->queued++;
    return GTOPK_OK;
}

/* Until the stream is empty or *pending is zero. */
static gtopk_status_t run(machine_t *machine, void *name, double deadline, const int *pending)
{
    stream_t *stream = stream_find(machine, name);
    while (!machine->failed && stream->first && (!pending || *pending)) {
        call_t *call = stream->first;
        gtopk_status_t status = call->fails ? status_set(GTOPK_ERR_DEVICE, "a test wants operation %ld to fail",
                                                         machine->fault_at)
                                            : call->run(call, deadline);
        if (status == GTOPK_ERR_TIMEOUT && !call->device)
            return status;
        if (status != GTOPK_OK)
            fail(machine, gtopk_last_error());
        else
            (void)pop(machine, stream);
    }
    return machine->failed ? failure(machine) : GTOPK_OK;
}

gtopk_status_t call_queue(machine_t *machine, call_t *call)
{
    const gtopk_status_t status = append(machine, call);
    (void)pthread_mutex_unlock(&machine->mutex);
    return status;
}

gtopk_status_t call_wait(machine_t *machine, call_t *call)
{
    gtopk_status_t status = append(machine, call);
    if (status == GTOPK_OK)
        status = run(machine, call->stream, INFINITY, NULL);
    (void)pthread_mutex_unlock(&machine->mutex);
    return status;
}

/* ---- what must not go yet ---- */

static void stop(const char *what)
{
    (void)fprintf(stderr, "guarded: %s, and something that is queued needs it\n", what);
    abort();
}

void must_be_idle(const guarded_t *device)
{
    (void)pthread_mutex_lock(&device->machine->mutex);
    const int queued = device->queued;
    (void)pthread_mutex_unlock(&device->machine->mutex);
    if (queued > 0)
        stop("a device is closed");
}

void must_be_unused(machine_t *machine, const device_store_t *store, const char *what)
{
    (void)pthread_mutex_lock(&machine->mutex);
    for (size_t s = 0; s < machine->stream_count; s++)
        for (const call_t *call = machine->streams[s].first; call; call = call->next)
            if (call->store == store)
                stop(what);
    (void)pthread_mutex_unlock(&machine->mutex);
}

typedef struct range {
    uintptr_t at;
    size_t bytes;
} range_t;

static int in(range_t range, const void *address)
{
    return (uintptr_t)address - range.at < range.bytes;
}

static int set_in(range_t range, const device_set_t *set)
{
    return in(range, set->index) || in(range, set->value) || in(range, set->count);
}

static int target_in(range_t range, const device_target_t *target)
{
    int used = in(range, target->indices) || in(range, target->values);
    for (size_t i = 0; target->spans && i < target->count; i++)
        used |= in(range, target->spans[i].data);
    return used;
}

/* Work of the host is taken to use everything: its arguments are not known here. */
static int call_uses(const call_t *call, range_t range)
{
    int used = !call->device || in(range, call->words) || in(range, call->to) || in(range, call->from) ||
               target_in(range, &call->target);
    for (size_t i = 0; i < MACHINE_SETS; i++)
        used |= set_in(range, &call->sets[i]);
    for (size_t i = 0; call->spans && i < call->count; i++)
        used |= in(range, call->spans[i].data);
    for (size_t i = 0; call->words_list && i < call->count; i++)
        used |= in(range, call->words_list[i]);
    for (uint32_t i = 0; i < call->journal.deposit_count; i++)
        used |= set_in(range, &call->journal.deposits[i]);
    return used || set_in(range, &call->journal.selected) || set_in(range, &call->journal.first) ||
           set_in(range, &call->journal.final);
}

static void must_be_passed_locked(const machine_t *machine, const void *block, size_t bytes)
{
    const range_t range = {(uintptr_t)block, bytes};
    for (size_t s = 0; s < machine->stream_count; s++)
        for (const call_t *call = machine->streams[s].first; call; call = call->next)
            if (call_uses(call, range))
                stop("memory is released");
}

void must_be_passed(machine_t *machine, const void *block, size_t bytes)
{
    (void)pthread_mutex_lock(&machine->mutex);
    must_be_passed_locked(machine, block, bytes);
    (void)pthread_mutex_unlock(&machine->mutex);
}

/* ---- the host's work in a stream ---- */

static gtopk_status_t run_host(call_t *call, double deadline)
{
    return call->fn(call->arg, deadline);
}

gtopk_status_t guarded_enqueue(void *stream, guarded_fn fn, void (*drop)(void *arg), void *arg)
{
    machine_t *machine = machine_of_thread();
    call_t *call = call_begin(machine, NULL, stream, run_host);
    call->fn = fn;
    call->drop = drop;
    call->arg = arg;
    return call_queue(machine, call);
}

gtopk_status_t guarded_run(void *stream, double deadline, const int *pending)
{
    machine_t *machine = machine_of_thread();
    (void)pthread_mutex_lock(&machine->mutex);
    const gtopk_status_t status = run(machine, stream, deadline, pending);
    (void)pthread_mutex_unlock(&machine->mutex);
    return status;
}

/* ---- for tests ---- */

void guarded_arm(guarded_fault_t fault, long at)
{
    machine_t *machine = machine_of_thread();
    (void)pthread_mutex_lock(&machine->mutex);
    machine->fault = fault;
    machine->fault_at = at;
    machine->counted = 0;
    machine->failed = 0;
    (void)pthread_mutex_unlock(&machine->mutex);
}

long guarded_counted(void)
{
    return machine_of_thread()->counted;
}

long guarded_queued(void)
{
    return machine_of_thread()->queued;
}
