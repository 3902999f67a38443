/* The inside of a guarded device: one machine a thread, with memory and streams. See guarded.h. */
#ifndef TESTS_SUPPORT_GUARDED_MACHINE_H
#define TESTS_SUPPORT_GUARDED_MACHINE_H

#include <pthread.h>
#include <stdint.h>

#include "support/guarded.h"

enum { MACHINE_STREAMS = 16, MACHINE_SETS = 4 };

typedef struct machine machine_t;

typedef struct guarded {
    device_t base;
    machine_t *machine;
    device_t *inner;
    int queued; /* calls of this device */
} guarded_t;

/* One operation in a stream. Addresses are those that the device inside can use. */
typedef struct call {
    struct call *next;
    guarded_t *device; /* NULL: work of the host */
    void *stream;
    gtopk_status_t (*run)(struct call *call, double deadline);
    void (*drop)(void *arg);
    guarded_fn fn;
    int fails;

    device_store_t *store;
    device_words_t *words;
    device_set_t sets[MACHINE_SETS];
    device_span_t *spans;
    device_accumulate_t accumulate;
    device_stage_t stage;
    device_journal_t journal;
    device_target_t target;
    device_parallel_t parallel;
    wire_header_t header;
    wire_expect_t expect;
    device_range_t range;
    device_words_t **words_list;
    device_outcome_t *outcomes;
    double *square;
    void *to, *arg;
    const void *from;
    size_t count;
    uint64_t offset, k;
    uint32_t sender, divisor;
    uint16_t round;
    int which, joined;
    float share;
} call_t;

typedef struct stream {
    void *name;
    call_t *first, *last;
} stream_t;

typedef struct block {
    struct block *next;
    size_t at, bytes;
} block_t;

typedef struct chunk {
    struct chunk *next;
    size_t bytes, used;
} chunk_t;

struct machine {
    struct machine *next; /* among those without a thread */
    pthread_mutex_t mutex;
    int references; /* its thread, and its devices */

    uint8_t *shown, *real; /* the same memory, as the host sees it and as the device does */
    size_t touched;        /* bytes that were ever given out */
    block_t *blocks;       /* by address */

    stream_t streams[MACHINE_STREAMS];
    size_t stream_count;
    chunk_t *chunks; /* of calls; all are free when nothing is queued */
    long queued;

    int failed;
    char text[1024];

    guarded_fault_t fault;
    long fault_at, counted;
};

/* The calling thread's; NULL when there is no memory for it. */
machine_t *machine_of_thread(void);
void machine_retain(machine_t *machine);
void machine_release(machine_t *machine);

/* ---- memory ---- */

gtopk_status_t machine_allocate(machine_t *machine, size_t bytes, const char *what, void **out);
void machine_free(machine_t *machine, void *block); /* NULL is accepted */
void *machine_reach(const machine_t *machine, const void *address);

/* ---- streams ---- */

/* A call to be filled in, and to be ended by one of the two below. Between the two nobody else uses the machine. */
call_t *call_begin(machine_t *machine, guarded_t *device, void *stream,
                   gtopk_status_t (*run)(call_t *call, double deadline));

/* A copy that lives as long as the call. */
void *call_keep(machine_t *machine, const void *data, size_t bytes);

/* Queues it. DEVICE when the device has failed already, or is to fail here. */
gtopk_status_t call_queue(machine_t *machine, call_t *call);

/* Queues it, and waits for its stream. DEVICE when something that was queued has failed. */
gtopk_status_t call_wait(machine_t *machine, call_t *call);

/* Each ends the process when something queued still needs what is about to go: a device, a store, memory. */
void must_be_idle(const guarded_t *device);
void must_be_unused(machine_t *machine, const device_store_t *store, const char *what);
void must_be_passed(machine_t *machine, const void *block, size_t bytes);

#endif
