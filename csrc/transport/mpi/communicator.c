#include "transport/mpi/communicator.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "transport/mpi/collectives.h"
#include "transport/mpi/last_words.h"
#include "transport/mpi/losses.h"
#include "transport/mpi/messages.h"
#include "transport/mpi/module.h"
#include "transport/mpi/survivors.h"
#include "transport/mpi/wait.h"
#include "util/clock.h"

static mpi_transport_t *closed; /* in order, but other ranks may still send their goodbyes; under mpi_mutex */

void communicator_mark_broken(mpi_transport_t *self)
{
    self->broken = 1;
    LOCKED(mpi_process.broken = 1);
}

static double mpi_now(transport_t *transport)
{
    (void)transport;
    return clock_now();
}

/* ---- closing ---- */

void communicator_free_closed(void)
{
    for (mpi_transport_t **place = &closed; *place;) {
        mpi_transport_t *self = *place;
        last_words_test(self);
        if (self->notices || !last_words_all_ended(self)) {
            place = &self->next_closed;
            continue;
        }
        *place = self->next_closed;
        (void)MPI_Comm_free(&self->comm);
        free(self->arrived);
        free(self->farewells);
        free(self);
    }
}

/* Who ends in order says so, so that a rank which goes on does not wait for it until its deadline. Under mpi_mutex. */
static void say_goodbye(mpi_transport_t *self)
{
    for (int32_t r = 0; r < self->base.size; r++)
        if (r != self->base.rank)
            last_words_send(self, r, FAREWELL_ENDED);
    self->next_closed = closed;
    closed = self;
    communicator_free_closed();
}

static void mpi_close(transport_t *transport)
{
    mpi_transport_t *self = (mpi_transport_t *)transport;
    int finalized = 0;
    (void)pthread_mutex_lock(&mpi_mutex);
    mpi_process.open--;
    (void)MPI_Finalized(&finalized);
    if (!self->broken && !finalized) {
        say_goodbye(self);
        (void)pthread_mutex_unlock(&mpi_mutex);
        return;
    }
    /* A communicator with requests that never end stays, and so do they; what they refer to is not freed here. */
    for (const double end = clock_now() + FINAL_SECONDS; self->notices && !finalized && clock_now() < end;)
        last_words_test(self);
    (void)pthread_mutex_unlock(&mpi_mutex);
    if (ring_ended(&self->ring))
        free(self->arrived);
    free(self->farewells);
    free(self);
}

static const transport_ops_t MPI_OPS = {
    .name = "mpi",
    .close = mpi_close,
    .now = mpi_now,
    .post = messages_post,
    .wait = messages_wait,
    .abandon = messages_abandon,
    .notify = last_words_notify,
    .gone = last_words_gone,
    .allgather = collectives_allgather,
    .allreduce = collectives_allreduce,
    .survivors = survivors_open,
    .agree = survivors_agree,
};

/* ---- opening ---- */

/* Ranks of the caller's communicator must agree with what the config expects. */
static gtopk_status_t check_parent(const gtopk_comm_config_t *config, MPI_Comm parent, transport_t *base)
{
    int inter = 0, size = 0, rank = 0;
    if (parent == MPI_COMM_NULL)
        return library->status_set(GTOPK_ERR_INVALID, "mpi_comm is MPI_COMM_NULL: this rank is in no communicator");
    (void)MPI_Comm_test_inter(parent, &inter);
    if (inter)
        return library->status_set(GTOPK_ERR_INVALID,
                                   "mpi_comm is an inter-communicator: merge it with MPI_Intercomm_merge");
    (void)MPI_Comm_size(parent, &size);
    (void)MPI_Comm_rank(parent, &rank);
    if ((config->size != -1 && config->size != size) || (config->rank != -1 && config->rank != rank))
        return library->status_set(
            GTOPK_ERR_INVALID,
            "MPI has this process as rank %d of %d, but rank %d of %d was asked for: start it with "
            "mpirun -n %d, or leave size and rank at -1",
            rank, size, (int)config->rank, (int)config->size, (int)config->size);
    base->size = size;
    base->rank = rank;
    return GTOPK_OK;
}

/* A communicator of our own: no tag of the caller's can meet ours. Errors come back in place of ending the job. */
static gtopk_status_t duplicate(mpi_transport_t *self, MPI_Comm parent, double deadline)
{
    MPI_Request request = MPI_REQUEST_NULL;
    MPI_Errhandler handler;
    int code;
    /* One at a time, so that what is put back in the end is the caller's handler and not another thread's. */
    static pthread_mutex_t handler_mutex = PTHREAD_MUTEX_INITIALIZER;
    (void)pthread_mutex_lock(&handler_mutex);
    LOCKED((void)MPI_Comm_get_errhandler(parent, &handler); (void)MPI_Comm_set_errhandler(parent, MPI_ERRORS_RETURN);
           code = MPI_Comm_idup(parent, &self->comm, &request));
    const gtopk_status_t status = code == MPI_SUCCESS
                                      ? wait_for_request(self, &request, deadline, "duplicating the communicator")
                                      : module_failed(code, "duplicating the communicator");
    if (status == GTOPK_OK)
        LOCKED((void)MPI_Comm_set_errhandler(self->comm, MPI_ERRORS_RETURN));
    LOCKED((void)MPI_Comm_set_errhandler(parent, handler); (void)MPI_Errhandler_free(&handler));
    (void)pthread_mutex_unlock(&handler_mutex);
    return status;
}

/* A number that tells this communicator from others of this job: rank 0's. */
static gtopk_status_t agree_on_number(mpi_transport_t *self, double deadline)
{
    static uint64_t opened; /* under mpi_mutex */
    uint64_t *all = calloc((size_t)self->base.size + 1, sizeof *all), *mine = all + self->base.size;
    self->farewells = calloc((size_t)self->base.size, 1);
    self->arrived = calloc((size_t)RING_WINDOW * RING_SEGMENT, sizeof *self->arrived); /* no memory until it is used */
    if (!all || !self->farewells || !self->arrived) {
        free(all);
        return library->status_set(GTOPK_ERR_NOMEM, "out of memory: transport mpi with %d ranks", (int)self->base.size);
    }
    LOCKED(*mine = ++opened);
    *mine += (uint64_t)(clock_now() * 1e9);
    const gtopk_status_t status = collectives_allgather(&self->base, mine, sizeof *mine, all, deadline, NULL);
    if (status != GTOPK_OK)
        return status; /* MPI may go on writing to `all`, so it stays */
    self->number = all[0];
    self->complete = 1;
    free(all);
    return GTOPK_OK;
}

/* "mpi (Open MPI 5.0.11)" out of "Open MPI v5.0.11, package: ...", the same for others. */
static void describe(transport_t *base)
{
    char version[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int length = 0;
    LOCKED((void)MPI_Get_library_version(version, &length));
    version[strcspn(version, ",\r\n")] = 0;
    char *v = strstr(version, " v");
    if (v && v[2] >= '0' && v[2] <= '9')
        memmove(v + 1, v + 2, strlen(v + 2) + 1);
    (void)snprintf(base->description, sizeof base->description, "mpi (%.100s)", version);
}

gtopk_status_t communicator_open(const gtopk_comm_config_t *config, MPI_Comm parent, double deadline,
                                 transport_t **transport)
{
    gtopk_status_t status;
    mpi_transport_t *self = calloc(1, sizeof *self);
    if (!self)
        return library->status_set(GTOPK_ERR_NOMEM, "out of memory: transport mpi");
    self->base.ops = &MPI_OPS;
    self->base.interrupt = config->interrupt; /* opening waits too */
    self->base.interrupt_context = config->interrupt_context;
    self->receive = self->send = MPI_REQUEST_NULL;
    self->left = MPI_COMM_NULL;
    LOCKED(status = check_parent(config, parent, &self->base));
    if (status != GTOPK_OK) {
        free(self);
        return status;
    }
    /* When one of these fails MPI may go on writing to *self, so it stays. */
    status = duplicate(self, parent, deadline);
    if (status == GTOPK_OK)
        status = agree_on_number(self, deadline);
    if (status != GTOPK_OK) {
        communicator_mark_broken(self);
        return status;
    }
    describe(&self->base);
    LOCKED(self->base.survives = losses_are_survived(); mpi_process.open++);
    *transport = &self->base;
    return GTOPK_OK;
}
