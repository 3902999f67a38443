/* Messages between GPUs, by NCCL, on the caller's stream. Nothing but padded messages in device memory travels here; set-up,
 * agreements and last words go over the control transport, which this one stands beside.
 *
 * The communicator is non-blocking: a call of NCCL may return before it has queued what it was asked for, and until then
 * nothing else may be queued on that stream (NCCL's documentation of ncclCommInitRankConfig). So each call is polled to its
 * end here, with the deadline of the exchange. The stream is asked, never waited for, so that every wait has an end. */
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "transport/nccl/watchdog.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/memory.h"

/* After the deadline, which the thread of the exchange sees by itself unless it is stuck. */
#define WATCHDOG_GRACE 0.25

/* How long an abort, and what the stream then has to do, may take until they count as hung; the same for an orderly end. */
#define END_SECONDS 5.0

/* Between two questions. NCCL takes some microseconds to queue a round, and a sleep, however short, fifty and more: so at first
 * others on this processor have their turn, and no more. */
#define YIELD_SECONDS 150e-6
#define PAUSE_FIRST 20000L
#define PAUSE_LAST 200000L

typedef struct nccl_transport {
    transport_t base;
    const nccl_library_t *nccl;
    transport_t *control;
    transport_device_t device;
    nccl_comm_t comm;
    watchdog_t *watchdog;
    void *stream; /* of what is queued */
    int is_queued, is_left_behind;
    gtopk_status_t status; /* the first failure: nothing is queued any more */
    char text[STATUS_TEXT_SIZE];
} nccl_transport_t;

static nccl_transport_t *of(transport_t *transport)
{
    return (nccl_transport_t *)transport;
}

/* ---- waiting and failing ---- */

static double nccl_now(transport_t *transport)
{
    transport_t *control = of(transport)->control;
    return control->ops->now(control);
}

typedef struct pauses {
    double sleep_from;
    long nanoseconds;
} pauses_t;

static pauses_t pauses_begin(void)
{
    return (pauses_t){clock_now() + YIELD_SECONDS, PAUSE_FIRST};
}

static void pause_longer(pauses_t *pauses)
{
    const struct timespec pause = {.tv_nsec = pauses->nanoseconds};
    if (clock_now() < pauses->sleep_from) {
        (void)sched_yield();
        return;
    }
    (void)nanosleep(&pause, NULL);
    pauses->nanoseconds = 2 * pauses->nanoseconds < PAUSE_LAST ? 2 * pauses->nanoseconds : PAUSE_LAST;
}

/* The thread's present error text is why. */
static gtopk_status_t fail(nccl_transport_t *self, gtopk_status_t status)
{
    if (self->status == GTOPK_OK) {
        self->status = status;
        status_keep(self->text);
    }
    return status;
}

static gtopk_status_t failed_before(const nccl_transport_t *self)
{
    return status_set(self->status, "%s", self->text);
}

static gtopk_status_t is_over(void)
{
    return status_set(GTOPK_ERR_TIMEOUT, "the deadline of the exchange passed while it was being queued");
}

/* For calls that block here: another rank has said its last word, or the caller asks to stop. */
static gtopk_status_t look_around(nccl_transport_t *self)
{
    transport_t *control = self->control;
    const int32_t gone = control->ops->gone ? control->ops->gone(control) : TRANSPORT_NONE;
    if (transport_interrupted(&self->base))
        return status_set(GTOPK_ERR_INTERRUPTED, "the wait for NCCL was interrupted");
    if (gone != TRANSPORT_NONE)
        return status_set(GTOPK_ERR_ABORTED, "rank %d gave up: its own output says why; restart from a checkpoint",
                          (int)gone);
    return GTOPK_OK;
}

/* What NCCL says of what it was asked for: OK, TIMEOUT: it is still at it, or an error. */
static gtopk_status_t ask(nccl_transport_t *self, const char *what)
{
    nccl_result_t state = NCCL_SUCCESS;
    if (!watchdog_enter(self->watchdog))
        return is_over();
    nccl_result_t result = self->nccl->ncclCommGetAsyncError(self->comm, &state);
    watchdog_leave(self->watchdog);
    if (result == NCCL_SUCCESS)
        result = state;
    if (result == NCCL_IN_PROGRESS)
        return status_set(GTOPK_ERR_TIMEOUT, "%s: NCCL is still at it", what);
    return result == NCCL_SUCCESS ? GTOPK_OK : nccl_error(self->nccl, result, what);
}

/* Until NCCL has done, or queued, what it was asked for. */
static gtopk_status_t poll(nccl_transport_t *self, const char *what, double deadline)
{
    pauses_t pauses = pauses_begin();
    double look_at = nccl_now(&self->base) + TRANSPORT_INTERRUPT_SECONDS;
    for (;;) {
        gtopk_status_t status = ask(self, what);
        const double now = nccl_now(&self->base);
        if (status == GTOPK_ERR_TIMEOUT && now < deadline && now >= look_at) {
            const gtopk_status_t around = look_around(self);
            status = around == GTOPK_OK ? status : around;
            look_at = now + TRANSPORT_INTERRUPT_SECONDS;
        }
        if (status != GTOPK_ERR_TIMEOUT || now >= deadline)
            return status;
        pause_longer(&pauses);
    }
}

/* ---- queueing ---- */

/* Takes NCCL for a call; every OK is followed by queue_end. */
static gtopk_status_t queue_begin(nccl_transport_t *self, double deadline, void *stream)
{
    if (self->status != GTOPK_OK)
        return failed_before(self);
    if (self->is_queued && self->stream != stream)
        return fail(self,
                    status_set(GTOPK_ERR_STATE, "a step is queued on one stream, and goes on in another: use one"));
    const double left = deadline - nccl_now(&self->base);
    if (!watchdog_arm(self->watchdog, clock_now() + left + WATCHDOG_GRACE) || !watchdog_enter(self->watchdog))
        return fail(self, is_over());
    self->stream = stream;
    self->is_queued = 1;
    return GTOPK_OK;
}

static gtopk_status_t queue_end(nccl_transport_t *self, nccl_result_t result, const char *what, double deadline)
{
    watchdog_leave(self->watchdog);
    gtopk_status_t status = GTOPK_OK;
    if (result != NCCL_SUCCESS && result != NCCL_IN_PROGRESS)
        status = nccl_error(self->nccl, result, what);
    if (status == GTOPK_OK)
        status = poll(self, what, deadline);
    return status == GTOPK_OK ? status : fail(self, status);
}

static int went_well(nccl_result_t result)
{
    return result == NCCL_SUCCESS || result == NCCL_IN_PROGRESS;
}

static gtopk_status_t nccl_post(transport_t *transport, const transport_exchange_t *exchange, double deadline,
                                void *stream)
{
    nccl_transport_t *self = of(transport);
    const nccl_library_t *nccl = self->nccl;
    const gtopk_status_t status = queue_begin(self, deadline, stream);
    if (status != GTOPK_OK)
        return status;
    nccl_result_t result = nccl->ncclGroupStart();
    if (went_well(result)) {
        if (exchange->to != TRANSPORT_NONE)
            result = nccl->ncclSend(exchange->send, exchange->send_capacity, NCCL_UINT8, exchange->to, self->comm,
                                    stream);
        if (went_well(result) && exchange->from != TRANSPORT_NONE)
            result = nccl->ncclRecv(exchange->receive, exchange->receive_capacity, NCCL_UINT8, exchange->from,
                                    self->comm, stream);
        const nccl_result_t ended = nccl->ncclGroupEnd(); /* also after a failure, or the next group would not start */
        result = went_well(result) ? ended : result;
    }
    return queue_end(self, result, "a message", deadline);
}

static gtopk_status_t nccl_connect(transport_t *transport, const int32_t *peers, size_t count, const void *send,
                                   void *receive, double deadline, void *stream)
{
    nccl_transport_t *self = of(transport);
    const nccl_library_t *nccl = self->nccl;
    const gtopk_status_t status = queue_begin(self, deadline, stream);
    if (status != GTOPK_OK)
        return status;
    nccl_result_t result = nccl->ncclGroupStart();
    if (went_well(result)) {
        for (size_t i = 0; i < count && went_well(result); i++) {
            result = nccl->ncclSend((const char *)send + i * TRANSPORT_GREETING, TRANSPORT_GREETING, NCCL_UINT8,
                                    peers[i], self->comm, stream);
            if (went_well(result))
                result = nccl->ncclRecv((char *)receive + i * TRANSPORT_GREETING, TRANSPORT_GREETING, NCCL_UINT8,
                                        peers[i], self->comm, stream);
        }
        const nccl_result_t ended = nccl->ncclGroupEnd();
        result = went_well(result) ? ended : result;
    }
    return queue_end(self, result, "connecting the ranks", deadline);
}

static gtopk_status_t nccl_allgather(transport_t *transport, const void *in, size_t bytes, void *out, double deadline,
                                     void *stream)
{
    nccl_transport_t *self = of(transport);
    const gtopk_status_t status = queue_begin(self, deadline, stream);
    if (status != GTOPK_OK)
        return status;
    const nccl_result_t result = self->nccl->ncclAllGather(in, out, bytes, NCCL_UINT8, self->comm, stream);
    return queue_end(self, result, "an all-gather", deadline);
}

static gtopk_status_t nccl_allreduce(transport_t *transport, float *buffer, size_t count, double deadline, void *stream)
{
    nccl_transport_t *self = of(transport);
    const gtopk_status_t status = queue_begin(self, deadline, stream);
    if (status != GTOPK_OK)
        return status;
    const nccl_result_t result = self->nccl->ncclAllReduce(buffer, buffer, count, NCCL_FLOAT32, NCCL_SUM, self->comm,
                                                           stream);
    return queue_end(self, result, "an all-reduce", deadline);
}

/* ---- the end of a step ---- */

/* The stream has passed, so everything has come, unless the watchdog ended it, which the watchdog knows. NCCL is not asked:
 * an error that it tells of now is of a rank that has left since, and is the next step's. */
static gtopk_status_t end_step(nccl_transport_t *self)
{
    if (!watchdog_arm(self->watchdog, INFINITY))
        return fail(self, is_over());
    self->is_queued = 0;
    return GTOPK_OK;
}

static gtopk_status_t nccl_wait(transport_t *transport, double deadline, size_t *received)
{
    nccl_transport_t *self = of(transport);
    pauses_t pauses = pauses_begin();
    *received = 0;
    if (self->status != GTOPK_OK)
        return failed_before(self);
    while (self->is_queued) {
        int passed = 0;
        gtopk_status_t status = self->device.passed(self->device.device, self->stream, &passed);
        if (status != GTOPK_OK)
            return fail(self, status);
        if (passed)
            return end_step(self);
        status = ask(self, "the exchange");
        if (status != GTOPK_OK && status != GTOPK_ERR_TIMEOUT)
            return fail(self, status);
        if (nccl_now(transport) >= deadline)
            return status_set(GTOPK_ERR_TIMEOUT, "what is queued has not passed yet");
        pause_longer(&pauses);
    }
    return GTOPK_OK;
}

/* What has hung once is not waited for again. */
static double end_by(const nccl_transport_t *self)
{
    return self->is_left_behind ? 0.0 : clock_now() + END_SECONDS;
}

/* 1 when nothing writes to buffers any more. */
static int await_stream(nccl_transport_t *self, double deadline)
{
    pauses_t pauses = pauses_begin();
    int passed = !self->is_queued;
    while (!passed) {
        if (self->device.passed(self->device.device, self->stream, &passed) != GTOPK_OK || clock_now() >= deadline)
            break;
        if (!passed)
            pause_longer(&pauses);
    }
    return passed;
}

static int nccl_abandon(transport_t *transport)
{
    nccl_transport_t *self = of(transport);
    char text[STATUS_TEXT_SIZE];
    const double deadline = end_by(self);
    status_keep(text); /* of the failure that this follows */
    if (self->status == GTOPK_OK)
        (void)fail(self, status_set(GTOPK_ERR_TRANSPORT, "an exchange was given up"));
    const int has_ended = watchdog_end(self->watchdog, WATCHDOG_ABORT, deadline);
    const int passed = await_stream(self, deadline);
    if (!has_ended && !self->is_left_behind)
        LOG(GTOPK_LOG_ERROR,
            "rank %d: NCCL does not come back from ending a communicator; it is left behind, with its memory: end this "
            "process when you can",
            (int)transport->rank);
    (void)status_set(GTOPK_OK, "%s", text);
    if (passed)
        self->is_queued = 0;
    self->is_left_behind = !(has_ended && passed);
    return !self->is_left_behind;
}

static void nccl_abort(transport_t *transport)
{
    (void)nccl_abandon(transport);
}

static void nccl_close(transport_t *transport)
{
    nccl_transport_t *self = of(transport);
    const int is_well = self->status == GTOPK_OK && !self->is_queued;
    (void)watchdog_end(self->watchdog, is_well ? WATCHDOG_DESTROY : WATCHDOG_ABORT, end_by(self));
    watchdog_close(self->watchdog);
    memory_free(self);
}

static const transport_ops_t NCCL_OPS = {
    .name = "nccl",
    .device_memory = 1,
    .stream_ordered = 1,
    .padded = 1,
    .close = nccl_close,
    .now = nccl_now,
    .post = nccl_post,
    .wait = nccl_wait,
    .abandon = nccl_abandon,
    .abort = nccl_abort,
    .connect = nccl_connect,
    .allgather = nccl_allgather,
    .allreduce = nccl_allreduce,
};

/* ---- opening ---- */

gtopk_status_t transport_nccl_prepare(const transport_data_config_t *config, uint8_t key[TRANSPORT_KEY])
{
    const nccl_library_t *nccl;
    nccl_id_t id = {{0}};
    gtopk_status_t status = nccl_library_get(config->library, &nccl);
    if (status == GTOPK_OK && config->control->rank == 0) {
        const nccl_result_t result = nccl->ncclGetUniqueId(&id);
        if (result != NCCL_SUCCESS)
            status = nccl_error(nccl, result, "a new communicator (NCCL_SOCKET_IFNAME names the network to use)");
    }
    memcpy(key, &id, sizeof id);
    return status;
}

/* Asks for the communicator; it is there, but not ready, when this returns. */
static gtopk_status_t begin(nccl_transport_t *self, const uint8_t key[TRANSPORT_KEY])
{
    nccl_config_t config = {
        .size = sizeof config,
        .magic = NCCL_CONFIG_MAGIC,
        .version = NCCL_OLDEST,
        .blocking = 0,
        .cga_cluster_size = NCCL_UNDEFINED,
        .min_ctas = NCCL_UNDEFINED,
        .max_ctas = NCCL_UNDEFINED,
        .split_share = NCCL_UNDEFINED,
    };
    nccl_id_t id;
    memcpy(&id, key, sizeof id);
    gtopk_status_t status = self->device.enter(self->device.device);
    if (status != GTOPK_OK)
        return status;
    const nccl_result_t result = self->nccl->ncclCommInitRankConfig(&self->comm, self->base.size, id, self->base.rank,
                                                                    &config);
    if (!went_well(result) || !self->comm) {
        status = nccl_error(self->nccl, result, "a new communicator");
        if (self->comm)
            (void)self->nccl->ncclCommAbort(self->comm);
    } else {
        status = watchdog_start(&self->watchdog, self->nccl, self->comm, &self->device, self->base.rank);
    }
    self->device.leave(self->device.device);
    return status;
}

gtopk_status_t transport_nccl_open(const transport_data_config_t *config, const uint8_t key[TRANSPORT_KEY],
                                   transport_t **transport)
{
    _Static_assert(sizeof(nccl_id_t) == TRANSPORT_KEY, "an id travels as the key");
    char version[16];
    nccl_transport_t *self;
    gtopk_status_t status = memory_alloc(&self, 1, sizeof *self, "transport nccl");
    if (status != GTOPK_OK)
        return status;
    self->control = config->control;
    self->device = config->device;
    self->base = (transport_t){
        .ops = &NCCL_OPS,
        .rank = config->control->rank,
        .size = config->control->size,
        .device = config->device.name,
        .interrupt = config->control->interrupt,
        .interrupt_context = config->control->interrupt_context,
    };
    status = nccl_library_get(config->library, &self->nccl);
    if (status == GTOPK_OK)
        status = begin(self, key);
    if (status != GTOPK_OK) {
        memory_free(self);
        return status;
    }
    status = poll(self, "a new communicator (each rank needs a GPU of its own: torch.cuda.set_device comes first)",
                  config->deadline);
    if (status != GTOPK_OK) {
        (void)nccl_abandon(&self->base);
        nccl_close(&self->base);
        return status;
    }
    (void)snprintf(self->base.description, sizeof self->base.description, "nccl (NCCL %s), control %.80s",
                   nccl_version_text(self->nccl->version, version), config->control->description);
    *transport = &self->base;
    return GTOPK_OK;
}
