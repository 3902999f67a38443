#include "transport/nccl/watchdog.h"

#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>

#include "transport/condition.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/memory.h"

/* How long a thread may be inside NCCL, after the end was asked for, until a line in the log says so. */
#define INSIDE_SECONDS 1.0

struct watchdog {
    const nccl_library_t *nccl;
    nccl_comm_t comm;
    transport_device_t device;
    int32_t rank;
    pthread_t thread;

    pthread_mutex_t calls; /* held by whoever is inside NCCL */
    int is_ending;         /* under `calls`: nobody goes inside any more */

    pthread_mutex_t mutex; /* of the rest */
    pthread_cond_t changed;
    double deadline;
    watchdog_wish_t wish;
    int is_late, has_ended, is_orphan;
};

static void release(watchdog_t *self)
{
    (void)pthread_cond_destroy(&self->changed);
    (void)pthread_mutex_destroy(&self->mutex);
    (void)pthread_mutex_destroy(&self->calls);
    memory_free(self);
}

/* ---- the thread ---- */

static watchdog_wish_t await_wish(watchdog_t *self)
{
    (void)pthread_mutex_lock(&self->mutex);
    while (self->wish == WATCHDOG_NONE)
        if (clock_now() >= self->deadline) {
            self->is_late = 1;
            self->wish = WATCHDOG_ABORT;
        } else {
            (void)condition_wait(&self->changed, &self->mutex, self->deadline);
        }
    const watchdog_wish_t wish = self->wish;
    (void)pthread_mutex_unlock(&self->mutex);
    return wish;
}

static void await_outside(watchdog_t *self)
{
    const struct timespec pause = {.tv_nsec = 5000000};
    const double start = clock_now();
    while (pthread_mutex_trylock(&self->calls) != 0) {
        if (clock_now() - start > INSIDE_SECONDS) {
            LOG(GTOPK_LOG_ERROR,
                "rank %d: the exchange is over, but a call of NCCL does not return, and cannot be ended",
                (int)self->rank);
            (void)pthread_mutex_lock(&self->calls);
            break;
        }
        (void)nanosleep(&pause, NULL);
    }
    self->is_ending = 1;
    (void)pthread_mutex_unlock(&self->calls);
}

static void *watchdog_main(void *argument)
{
    watchdog_t *self = argument;
    const watchdog_wish_t wish = await_wish(self);
    if (wish == WATCHDOG_ABORT)
        self->device.halt(self->device.device); /* before the stream can go on with half of a message */
    await_outside(self);
    const int entered = self->device.enter(self->device.device) == GTOPK_OK;
    const nccl_result_t result = wish == WATCHDOG_ABORT ? self->nccl->ncclCommAbort(self->comm)
                                                        : self->nccl->ncclCommDestroy(self->comm);
    if (result != NCCL_SUCCESS && result != NCCL_IN_PROGRESS)
        LOG(GTOPK_LOG_INFO, "rank %d: the end of an NCCL communicator gave error %d", (int)self->rank, result);
    (void)pthread_mutex_lock(&self->mutex);
    self->has_ended = 1;
    const int is_orphan = self->is_orphan; /* then the device may be gone as well */
    if (entered && !is_orphan)
        self->device.leave(self->device.device);
    (void)pthread_cond_broadcast(&self->changed);
    (void)pthread_mutex_unlock(&self->mutex);
    if (is_orphan)
        release(self);
    return NULL;
}

/* Signals are for the caller's threads. */
static int start_thread(watchdog_t *self)
{
    sigset_t all, before;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    const int done = pthread_create(&self->thread, NULL, watchdog_main, self) == 0;
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    return done;
}

/* ---- its owner ---- */

gtopk_status_t watchdog_start(watchdog_t **out, const nccl_library_t *nccl, nccl_comm_t comm,
                              const transport_device_t *device, int32_t rank)
{
    watchdog_t *self;
    gtopk_status_t status = memory_alloc(&self, 1, sizeof *self, "the watchdog of a communicator");
    if (status != GTOPK_OK)
        goto no_memory;
    *self = (watchdog_t){.nccl = nccl, .comm = comm, .device = *device, .rank = rank, .deadline = INFINITY};
    if (pthread_mutex_init(&self->calls, NULL) != 0)
        goto no_calls;
    if (pthread_mutex_init(&self->mutex, NULL) != 0)
        goto no_mutex;
    if (!condition_init(&self->changed))
        goto no_condition;
    if (!start_thread(self))
        goto no_thread;
    *out = self;
    return GTOPK_OK;

no_thread:
    (void)pthread_cond_destroy(&self->changed);
no_condition:
    (void)pthread_mutex_destroy(&self->mutex);
no_mutex:
    (void)pthread_mutex_destroy(&self->calls);
no_calls:
    memory_free(self);
    status = status_set(GTOPK_ERR_NOMEM,
                        "transport nccl: the system gives no more threads; raise the limit (ulimit -u)");
no_memory:
    (void)nccl->ncclCommAbort(comm);
    return status;
}

int watchdog_enter(watchdog_t *self)
{
    (void)pthread_mutex_lock(&self->calls);
    if (!self->is_ending && self->device.enter(self->device.device) == GTOPK_OK)
        return 1;
    (void)pthread_mutex_unlock(&self->calls);
    return 0;
}

void watchdog_leave(watchdog_t *self)
{
    self->device.leave(self->device.device);
    (void)pthread_mutex_unlock(&self->calls);
}

int watchdog_arm(watchdog_t *self, double deadline)
{
    (void)pthread_mutex_lock(&self->mutex);
    const int in_time = !self->is_late;
    self->deadline = deadline;
    (void)pthread_cond_broadcast(&self->changed);
    (void)pthread_mutex_unlock(&self->mutex);
    return in_time;
}

int watchdog_end(watchdog_t *self, watchdog_wish_t wish, double deadline)
{
    (void)pthread_mutex_lock(&self->mutex);
    if (self->wish == WATCHDOG_NONE)
        self->wish = wish;
    (void)pthread_cond_broadcast(&self->changed);
    while (!self->has_ended && clock_now() < deadline)
        (void)condition_wait(&self->changed, &self->mutex, deadline);
    const int has_ended = self->has_ended;
    (void)pthread_mutex_unlock(&self->mutex);
    return has_ended;
}

void watchdog_close(watchdog_t *self)
{
    const pthread_t thread = self->thread;
    (void)pthread_mutex_lock(&self->mutex);
    const int has_ended = self->has_ended;
    self->is_orphan = !has_ended;
    (void)pthread_mutex_unlock(&self->mutex);
    if (!has_ended) {
        (void)pthread_detach(thread);
        return;
    }
    (void)pthread_join(thread, NULL);
    release(self);
}
