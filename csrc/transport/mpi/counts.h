/* Counts in MPI are int: longer messages travel as one item of a derived type. */
#ifndef GTOPK_TRANSPORT_MPI_COUNTS_H
#define GTOPK_TRANSPORT_MPI_COUNTS_H

#include <mpi.h>
#include <stddef.h>

/* How `bytes` bytes are described to MPI: as that many MPI_BYTE, or as one item of a type to be forgotten. An MPI code. */
int counts_describe(size_t bytes, int *count, MPI_Datatype *type);
void counts_forget(MPI_Datatype *type);

#endif
