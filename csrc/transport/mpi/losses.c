#include "transport/mpi/losses.h"

#if defined(OPEN_MPI) && __has_include(<mpi-ext.h>)
#include <mpi-ext.h>
#endif

#if defined(OMPI_HAVE_MPI_EXT_FTMPI) && OMPI_HAVE_MPI_EXT_FTMPI

int losses_are_survived(void)
{
    int *value = NULL, found = 0;
    return MPI_Comm_get_attr(MPI_COMM_WORLD, MPIX_FT, (void *)&value, &found) == MPI_SUCCESS && found && *value;
}

int losses_revoke(MPI_Comm comm)
{
    return MPIX_Comm_revoke(comm);
}

int losses_agree(MPI_Comm comm, int *flag, MPI_Request *request)
{
    return MPIX_Comm_iagree(comm, flag, request);
}

int losses_shrink(MPI_Comm comm, MPI_Comm *left)
{
    return MPIX_Comm_shrink(comm, left);
}

int losses_are_all(int code)
{
    int kind = MPI_SUCCESS;
    (void)MPI_Error_class(code, &kind);
    return kind == MPIX_ERR_PROC_FAILED;
}

#else

int losses_are_survived(void)
{
    return 0;
}

int losses_revoke(MPI_Comm comm)
{
    (void)comm;
    return MPI_ERR_OTHER;
}

int losses_agree(MPI_Comm comm, int *flag, MPI_Request *request)
{
    (void)comm;
    (void)flag;
    (void)request;
    return MPI_ERR_OTHER;
}

int losses_shrink(MPI_Comm comm, MPI_Comm *left)
{
    (void)comm;
    (void)left;
    return MPI_ERR_OTHER;
}

int losses_are_all(int code)
{
    (void)code;
    return 0;
}

#endif
