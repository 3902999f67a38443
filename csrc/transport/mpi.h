/* The library's side of the mpi transport. */
#ifndef GTOPK_TRANSPORT_MPI_H
#define GTOPK_TRANSPORT_MPI_H

#include "transport/transport.h"

/* Ends MPI if the module started it and nothing of it is open or broken. OK when no module was loaded. */
gtopk_status_t transport_mpi_finalize(void);

/* The same from exit(), which was given `status`, without ever waiting long. */
void transport_mpi_end_process(int status);

#endif
