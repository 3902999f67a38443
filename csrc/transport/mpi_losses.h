/* What MPI knows of ranks that are lost: ULFM, "user-level failure mitigation" (mpi-ext.h), which Open MPI 5 has where mpirun was
 * given --with-ft ulfm. The part of mpi_module.c that knows it; with another MPI nothing of it is there.
 *
 * The way on is ULFM's own: revoke ends the calls of all ranks on a communicator; agree comes to the same answer on all that
 * are left, whoever dies meanwhile; shrink makes a communicator of these. */
#ifndef GTOPK_TRANSPORT_MPI_LOSSES_H
#define GTOPK_TRANSPORT_MPI_LOSSES_H

#include <mpi.h>

#if defined(OPEN_MPI) && __has_include(<mpi-ext.h>)
#include <mpi-ext.h>
#endif

#if defined(OMPI_HAVE_MPI_EXT_FTMPI) && OMPI_HAVE_MPI_EXT_FTMPI

/* Whether this MPI, as it was started, goes on when a process is lost. */
static int losses_are_survived(void)
{
    int *value = NULL, found = 0;
    return MPI_Comm_get_attr(MPI_COMM_WORLD, MPIX_FT, (void *)&value, &found) == MPI_SUCCESS && found && *value;
}

static int losses_revoke(MPI_Comm comm)
{
    return MPIX_Comm_revoke(comm);
}

/* *flag: that of all, bit by bit. */
static int losses_agree(MPI_Comm comm, int *flag, MPI_Request *request)
{
    return MPIX_Comm_iagree(comm, flag, request);
}

static int losses_shrink(MPI_Comm comm, MPI_Comm *left)
{
    return MPIX_Comm_shrink(comm, left);
}

/* Whether an error says that somebody is lost, and no more: so does an agreement that has been reached without him. */
static int losses_are_all(int code)
{
    int kind = MPI_SUCCESS;
    (void)MPI_Error_class(code, &kind);
    return kind == MPIX_ERR_PROC_FAILED;
}

#else

static int losses_are_survived(void)
{
    return 0;
}

static int losses_revoke(MPI_Comm comm)
{
    (void)comm;
    return MPI_ERR_OTHER;
}

static int losses_agree(MPI_Comm comm, int *flag, MPI_Request *request)
{
    (void)comm;
    (void)flag;
    (void)request;
    return MPI_ERR_OTHER;
}

static int losses_shrink(MPI_Comm comm, MPI_Comm *left)
{
    (void)comm;
    (void)left;
    return MPI_ERR_OTHER;
}

static int losses_are_all(int code)
{
    (void)code;
    return 0;
}

#endif

#endif
