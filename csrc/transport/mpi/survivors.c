#include "transport/mpi/survivors.h"

#include "transport/mpi/losses.h"
#include "transport/mpi/module.h"
#include "transport/mpi/wait.h"
#include "util/clock.h"

/* *yes: 1 if it is 1 on all ranks of `comm` that are left. */
static gtopk_status_t agree_among(mpi_transport_t *self, MPI_Comm comm, int *yes, double deadline)
{
    static const char what[] = "the agreement of the ranks that are left";
    MPI_Request request = MPI_REQUEST_NULL;
    int code;
    LOCKED(code = losses_agree(comm, yes, &request));
    return code == MPI_SUCCESS
               ? wait_for_attempt(self, &(attempt_t){.request = &request, .survives = 1}, deadline, what)
               : module_failed(code, what);
}

gtopk_status_t survivors_agree(transport_t *transport, gtopk_status_t mine, double deadline)
{
    mpi_transport_t *self = (mpi_transport_t *)transport;
    static _Thread_local int yes; /* MPI may go on writing to it */
    yes = mine == GTOPK_OK;
    const gtopk_status_t status = agree_among(self, self->left, &yes, deadline);
    LOCKED((void)MPI_Comm_free(&self->left));
    if (status != GTOPK_OK || mine != GTOPK_OK)
        return mine != GTOPK_OK ? mine : status;
    return yes ? GTOPK_OK
               : library->status_set(GTOPK_ERR_TRANSPORT,
                                     "another of the ranks that are left failed while they made a communicator: one "
                                     "more is lost, or its own output says why");
}

/* Those who are left have all come when they agree. Only then do they shrink, a call of MPI's that knows no deadline. */
static gtopk_status_t shrink(mpi_transport_t *before, MPI_Comm *left, double deadline)
{
    static _Thread_local int yes;
    int code;
    yes = 1;
    communicator_mark_broken(before);
    LOCKED((void)losses_revoke(before->comm));
    const gtopk_status_t status = agree_among(before, before->comm, &yes, deadline);
    if (status != GTOPK_OK)
        return status;
    LOCKED(code = losses_shrink(before->comm, left));
    return code == MPI_SUCCESS ? GTOPK_OK : module_failed(code, "MPIX_Comm_shrink");
}

gtopk_status_t survivors_open(transport_t *transport, const gtopk_comm_config_t *config, transport_t **left)
{
    mpi_transport_t *before = (mpi_transport_t *)transport;
    const double deadline = clock_now() + transport_setup_seconds(config);
    MPI_Comm shrunk = MPI_COMM_NULL;
    if (!transport->survives)
        return library->status_set(
            GTOPK_ERR_UNSUPPORTED,
            "this MPI, as it was started, cannot go on when a rank is lost: use Open MPI 5 or newer, "
            "and start with mpirun --with-ft ulfm");
    gtopk_status_t status = shrink(before, &shrunk, deadline);
    if (status != GTOPK_OK)
        return status;
    LOCKED((void)MPI_Comm_set_errhandler(shrunk, MPI_ERRORS_RETURN));
    status = communicator_open(config, shrunk, deadline, left);
    if (status == GTOPK_OK) {
        ((mpi_transport_t *)*left)->left = shrunk;
        LOCKED(mpi_process.lost = 1);
        return GTOPK_OK;
    }
    static _Thread_local int no;
    no = 0;
    LOCKED((void)losses_revoke(shrunk)); /* for those who still wait */
    (void)agree_among(before, shrunk, &no, clock_now() + transport_setup_seconds(config)); /* for those who have it */
    return status;
}
