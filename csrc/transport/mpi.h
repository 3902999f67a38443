/* The library's side of the mpi transport. */
#ifndef GTOPK_TRANSPORT_MPI_H
#define GTOPK_TRANSPORT_MPI_H

#include "transport/transport.h"

/* Ends MPI if the module started it and nothing of it is open or broken. OK when no module was loaded. */
gtopk_status_t transport_mpi_finalize(void);

#endif
