/* The one thread that ends an NCCL communicator: when a step's deadline passes, when its owner gives up, when it closes.
 * Ending it may hang, in NCCL or in a peer; then the communicator is left behind, with this thread.
 *
 * It never ends one while another thread is inside NCCL, because NCCL may hang for that reason: calls are made between
 * watchdog_enter and watchdog_leave. */
#ifndef GTOPK_TRANSPORT_NCCL_WATCHDOG_H
#define GTOPK_TRANSPORT_NCCL_WATCHDOG_H

#include "transport/nccl/library.h"
#include "transport/transport.h"

typedef struct watchdog watchdog_t;

typedef enum watchdog_wish {
    WATCHDOG_NONE,
    WATCHDOG_ABORT,  /* the device is halted first; what is queued is given up, and the stream passes */
    WATCHDOG_DESTROY /* in order; nothing is queued */
} watchdog_wish_t;

/* Takes the communicator over: on failure it has been aborted. */
gtopk_status_t watchdog_start(watchdog_t **watchdog, const nccl_library_t *nccl, nccl_comm_t comm,
                              const transport_device_t *device, int32_t rank);

/* 1: this thread may call NCCL, with the device current, until watchdog_leave. 0: the communicator is at its end. */
int watchdog_enter(watchdog_t *watchdog);
void watchdog_leave(watchdog_t *watchdog);

/* When to abort (seconds, as clock_now); INFINITY: never. Returns 0 when the deadline before has passed already. */
int watchdog_arm(watchdog_t *watchdog, double deadline);

/* Waits for the end until `deadline`: 1 when it has come. The first wish counts. */
int watchdog_end(watchdog_t *watchdog, watchdog_wish_t wish, double deadline);

/* After watchdog_end. Where the end has not come, the thread cleans up when it does. */
void watchdog_close(watchdog_t *watchdog);

#endif
