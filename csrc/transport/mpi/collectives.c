#include "transport/mpi/collectives.h"

#include "transport/mpi/counts.h"
#include "transport/mpi/module.h"
#include "transport/mpi/wait.h"

/* An all-reduce is a ring when each rank's share of it is this many floats or more. Of shorter ones latency is what counts, and
 * MPI's own takes log2 P of it. Tests set a small limit. */
#ifndef MPI_MODULE_RING_SHARE
#define MPI_MODULE_RING_SHARE 8192
#endif

gtopk_status_t collectives_allgather(transport_t *transport, const void *in, size_t bytes, void *out, double deadline,
                                     void *stream)
{
    (void)stream;
    mpi_transport_t *self = (mpi_transport_t *)transport;
    MPI_Request request = MPI_REQUEST_NULL;
    MPI_Datatype type;
    int count, code;
    (void)pthread_mutex_lock(&mpi_mutex);
    code = counts_describe(bytes, &count, &type);
    if (code == MPI_SUCCESS)
        code = MPI_Iallgather(in, count, type, out, count, type, self->comm, &request);
    counts_forget(&type);
    (void)pthread_mutex_unlock(&mpi_mutex);
    const gtopk_status_t status = code == MPI_SUCCESS ? wait_for_request(self, &request, deadline, "an all-gather")
                                                      : module_failed(code, "an all-gather");
    if (status != GTOPK_OK)
        communicator_mark_broken(self);
    return status;
}

static gtopk_status_t reduce_short(mpi_transport_t *self, float *buffer, size_t count, double deadline)
{
    MPI_Request request = MPI_REQUEST_NULL;
    int code;
    LOCKED(code = MPI_Iallreduce(MPI_IN_PLACE, buffer, (int)count, MPI_FLOAT, MPI_SUM, self->comm, &request));
    return code == MPI_SUCCESS ? wait_for_request(self, &request, deadline, "an all-reduce")
                               : module_failed(code, "an all-reduce");
}

gtopk_status_t collectives_allreduce(transport_t *transport, float *buffer, size_t count, double deadline, void *stream)
{
    mpi_transport_t *self = (mpi_transport_t *)transport;
    gtopk_status_t status = GTOPK_OK;
    (void)stream;
    if (transport->size > 1 && count / (size_t)transport->size < MPI_MODULE_RING_SHARE) {
        status = reduce_short(self, buffer, count, deadline);
    } else if (transport->size > 1) {
        ring_open(&self->ring, self->comm, transport->rank, transport->size, buffer, count, self->arrived);
        status = wait_for_attempt(self, &(attempt_t){.ring = &self->ring}, deadline, "an all-reduce");
    }
    if (status != GTOPK_OK)
        communicator_mark_broken(self);
    return status;
}
