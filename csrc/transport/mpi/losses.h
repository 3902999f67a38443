/* What MPI knows of ranks that are lost: ULFM, "user-level failure mitigation" (mpi-ext.h), which Open MPI 5 has where mpirun was
 * given --with-ft ulfm. With another MPI nothing of it is there.
 *
 * The way on is ULFM's own: revoke ends the calls of all ranks on a communicator; agree comes to the same answer on all that
 * are left, whoever dies meanwhile; shrink makes a communicator of these. Each gives an MPI code. */
#ifndef GTOPK_TRANSPORT_MPI_LOSSES_H
#define GTOPK_TRANSPORT_MPI_LOSSES_H

#include <mpi.h>

/* Whether this MPI, as it was started, goes on when a process is lost. */
int losses_are_survived(void);

int losses_revoke(MPI_Comm comm);

/* *flag: that of all, bit by bit. */
int losses_agree(MPI_Comm comm, int *flag, MPI_Request *request);

int losses_shrink(MPI_Comm comm, MPI_Comm *left);

/* Whether an error says that somebody is lost, and no more: so does an agreement that has been reached without him. */
int losses_are_all(int code);

#endif
