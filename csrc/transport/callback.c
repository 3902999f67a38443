/* Send and receive by functions of the caller, for a network that gtopk does not know.
 *
 * The caller's functions block, and nothing can interrupt them. They run on a helper thread, one call at a time, so
 * that waiting can end at a deadline: the call that is given up keeps the helper and its buffers until it returns, and
 * its helper then cleans up if the transport was closed meanwhile. */
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "transport/condition.h"
#include "transport/transport.h"
#include "util/clock.h"
#include "util/memory.h"
#include "util/text.h"

#define ERROR_SIZE 256 /* what gtopk_callbacks_t promises */
#define DEFAULT_TIMEOUT 1800.0

typedef enum call_state { CALL_NONE, CALL_RUNS, CALL_ENDED } call_state_t;

typedef struct callback_transport {
    transport_t base;
    transport_ops_t ops; /* without allreduce where the caller has none */
    gtopk_callbacks_t callbacks;
    double timeout;
    pthread_t helper;
    pthread_mutex_t mutex;
    pthread_cond_t started, ended;

    /* Under the mutex. */
    call_state_t state;
    int abandoned, closed;

    /* The call: written before it runs, read after it ended. */
    transport_exchange_t request;
    float *buffer; /* NULL: an exchange, else an all-reduce */
    size_t count;
    int result;
    char error[ERROR_SIZE];
} callback_transport_t;

/* ---- the helper ---- */

static void run_call(callback_transport_t *self)
{
    const gtopk_callbacks_t *c = &self->callbacks;
    const transport_exchange_t *r = &self->request;
    if (!self->buffer)
        self->result = c->exchange(c->context, r->to, r->send, r->to == TRANSPORT_NONE ? 0 : r->send_capacity, r->from,
                                   r->receive, r->from == TRANSPORT_NONE ? 0 : r->receive_capacity, self->timeout,
                                   self->error);
    else
        self->result = c->allreduce(c->context, self->buffer, self->count, self->timeout, self->error);
}

static void release(callback_transport_t *self)
{
    (void)pthread_cond_destroy(&self->ended);
    (void)pthread_cond_destroy(&self->started);
    (void)pthread_mutex_destroy(&self->mutex);
    memory_free(self);
}

static void *helper_main(void *argument)
{
    callback_transport_t *self = argument;
    int orphaned = 0;
    (void)pthread_mutex_lock(&self->mutex);
    for (;;) {
        while (self->state != CALL_RUNS && !self->closed)
            (void)pthread_cond_wait(&self->started, &self->mutex);
        if (self->state != CALL_RUNS)
            break;
        (void)pthread_mutex_unlock(&self->mutex);
        run_call(self);
        (void)pthread_mutex_lock(&self->mutex);
        self->state = self->abandoned ? CALL_NONE : CALL_ENDED;
        self->abandoned = 0;
        (void)pthread_cond_signal(&self->ended);
        if (self->closed) {
            orphaned = 1;
            break;
        }
    }
    (void)pthread_mutex_unlock(&self->mutex);
    if (orphaned)
        release(self);
    return NULL;
}

/* Signals are for the caller's threads. */
static int start_helper(callback_transport_t *self)
{
    sigset_t all, before;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    const int done = pthread_create(&self->helper, NULL, helper_main, self) == 0;
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    return done;
}

/* ---- the transport ---- */

static double callback_now(transport_t *transport)
{
    (void)transport;
    return clock_now();
}

static gtopk_status_t start_call(callback_transport_t *self, const transport_exchange_t *exchange, float *buffer,
                                 size_t count)
{
    gtopk_status_t status = GTOPK_OK;
    (void)pthread_mutex_lock(&self->mutex);
    if (self->state == CALL_NONE) {
        if (exchange)
            self->request = *exchange;
        self->buffer = buffer;
        self->count = count;
        self->error[0] = 0;
        self->state = CALL_RUNS;
        (void)pthread_cond_signal(&self->started);
    } else {
        status = status_set(GTOPK_ERR_STATE, "an earlier call of the caller's functions has not returned");
    }
    (void)pthread_mutex_unlock(&self->mutex);
    return status;
}

static gtopk_status_t callback_post(transport_t *transport, const transport_exchange_t *exchange, double deadline,
                                    void *stream)
{
    (void)deadline;
    (void)stream;
    return start_call((callback_transport_t *)transport, exchange, NULL, 0);
}

static gtopk_status_t end_call(callback_transport_t *self, size_t *received)
{
    const char *what = self->buffer ? "allreduce" : "exchange";
    self->state = CALL_NONE;
    self->error[ERROR_SIZE - 1] = 0;
    text_drop_cut_character(self->error);
    if (self->result != 0)
        return status_set(GTOPK_ERR_TRANSPORT, "the caller's %s function returned %d: %s", what, self->result,
                          self->error[0] ? self->error : "it gave no reason");
    if (!self->buffer && self->request.from != TRANSPORT_NONE)
        *received = self->request.receive_capacity;
    return GTOPK_OK;
}

static gtopk_status_t callback_wait(transport_t *transport, double deadline, size_t *received)
{
    callback_transport_t *self = (callback_transport_t *)transport;
    gtopk_status_t status = GTOPK_OK;
    *received = 0;
    (void)pthread_mutex_lock(&self->mutex);
    while (self->state == CALL_RUNS && clock_now() < deadline)
        (void)condition_wait(&self->ended, &self->mutex, deadline);
    if (self->state == CALL_RUNS)
        status = status_set(GTOPK_ERR_TIMEOUT, "the caller's %s function has not returned yet",
                            self->buffer ? "allreduce" : "exchange");
    else if (self->state == CALL_ENDED)
        status = end_call(self, received);
    (void)pthread_mutex_unlock(&self->mutex);
    return status;
}

static int callback_abandon(transport_t *transport)
{
    callback_transport_t *self = (callback_transport_t *)transport;
    (void)pthread_mutex_lock(&self->mutex);
    if (self->state == CALL_RUNS)
        self->abandoned = 1;
    else
        self->state = CALL_NONE;
    const int free_again = self->state == CALL_NONE;
    (void)pthread_mutex_unlock(&self->mutex);
    return free_again;
}

static gtopk_status_t callback_allreduce(transport_t *transport, float *buffer, size_t count, double deadline,
                                         void *stream)
{
    size_t unused;
    const double pause = transport->interrupt ? TRANSPORT_INTERRUPT_SECONDS : INFINITY;
    (void)stream;
    gtopk_status_t status = start_call((callback_transport_t *)transport, NULL, buffer, count);
    if (status != GTOPK_OK)
        return status;
    do {
        status = callback_wait(transport, fmin(deadline, clock_now() + pause), &unused);
        if (status == GTOPK_ERR_TIMEOUT && transport_interrupted(transport))
            status = status_set(GTOPK_ERR_INTERRUPTED, "the wait for an all-reduce was interrupted");
    } while (status == GTOPK_ERR_TIMEOUT && clock_now() < deadline);
    if (status == GTOPK_ERR_TIMEOUT || status == GTOPK_ERR_INTERRUPTED)
        (void)callback_abandon(transport);
    return status;
}

/* On the thread of the call that failed: the helper may be stuck in the very call that this is to end. */
static void callback_abort(transport_t *transport)
{
    callback_transport_t *self = (callback_transport_t *)transport;
    self->callbacks.abort(self->callbacks.context);
}

static void callback_close(transport_t *transport)
{
    callback_transport_t *self = (callback_transport_t *)transport;
    const pthread_t helper = self->helper;
    (void)pthread_mutex_lock(&self->mutex);
    const int runs = self->state == CALL_RUNS;
    self->closed = 1;
    (void)pthread_cond_signal(&self->started);
    (void)pthread_mutex_unlock(&self->mutex);
    if (runs) {
        (void)pthread_detach(helper); /* it releases the transport when its call returns */
        return;
    }
    (void)pthread_join(helper, NULL);
    release(self);
}

static const transport_ops_t CALLBACK_OPS = {
    .name = "callback",
    .padded = 1, /* the functions are not told how long a message is, so both sides agree on its capacity */
    .close = callback_close,
    .now = callback_now,
    .post = callback_post,
    .wait = callback_wait,
    .abandon = callback_abandon,
};

static gtopk_status_t check_config(const gtopk_comm_config_t *config, gtopk_callbacks_t *callbacks)
{
    const gtopk_callbacks_t *given = config->callbacks;
    memset(callbacks, 0, sizeof *callbacks);
    if (!given)
        return status_set(GTOPK_ERR_INVALID,
                          "transport callback needs config.callbacks: functions that send and receive");
    if (given->struct_size < sizeof(size_t) || given->struct_size > sizeof *callbacks)
        return status_set(GTOPK_ERR_INVALID,
                          "gtopk_callbacks_t has struct_size %zu, this library knows up to %zu: set it to "
                          "sizeof(gtopk_callbacks_t), and do not use a newer header than the library",
                          given->struct_size, sizeof *callbacks);
    memcpy(callbacks, given, given->struct_size);
    if (!callbacks->exchange)
        return status_set(GTOPK_ERR_INVALID, "transport callback needs the function exchange");
    if (config->size < 1 || config->rank < 0 || config->rank >= config->size)
        return status_set(GTOPK_ERR_INVALID, "transport callback: rank %d of %d: give 0 <= rank < size",
                          (int)config->rank, (int)config->size);
    return GTOPK_OK;
}

gtopk_status_t transport_callback_open(const gtopk_comm_config_t *config, transport_t **transport)
{
    gtopk_callbacks_t callbacks;
    callback_transport_t *self;
    gtopk_status_t status = check_config(config, &callbacks);
    if (status == GTOPK_OK)
        status = memory_alloc(&self, 1, sizeof *self, "transport callback");
    if (status != GTOPK_OK)
        return status;
    self->callbacks = callbacks;
    self->timeout = config->timeout > 0.0 ? config->timeout : DEFAULT_TIMEOUT;
    self->ops = CALLBACK_OPS;
    self->ops.allreduce = callbacks.allreduce ? callback_allreduce : NULL;
    self->ops.abort = callbacks.abort ? callback_abort : NULL;
    self->base.ops = &self->ops;
    self->base.size = config->size;
    self->base.rank = config->rank;
    (void)snprintf(self->base.description, sizeof self->base.description, "callback");

    if (pthread_mutex_init(&self->mutex, NULL) != 0)
        goto no_mutex;
    if (!condition_init(&self->started))
        goto no_started;
    if (!condition_init(&self->ended))
        goto no_ended;
    if (!start_helper(self))
        goto no_helper;
    *transport = &self->base;
    return GTOPK_OK;

no_helper:
    (void)pthread_cond_destroy(&self->ended);
no_ended:
    (void)pthread_cond_destroy(&self->started);
no_started:
    (void)pthread_mutex_destroy(&self->mutex);
no_mutex:
    memory_free(self);
    return status_set(GTOPK_ERR_NOMEM,
                      "transport callback: the system gives no more threads; raise the limit (ulimit -u)");
}
