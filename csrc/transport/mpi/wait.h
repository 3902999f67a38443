/* Waiting for MPI, which knows no deadline: everything is non-blocking and polled. */
#ifndef GTOPK_TRANSPORT_MPI_WAIT_H
#define GTOPK_TRANSPORT_MPI_WAIT_H

#include "transport/mpi/communicator.h"

/* After so long a wait no longer only gives the processor away, but sleeps. */
#define YIELD_SECONDS 1e-3

/* Between two tests, `waited` seconds after the first one. */
void wait_pause(double waited, double yield_seconds);

/* What a rank that waits for a collective does again and again. */
typedef struct attempt {
    MPI_Request *request; /* one of MPI's, or NULL: */
    ring_t *ring;
    int survives; /* it ends without the ranks that are lost, and what these have said is no matter */
} attempt_t;

/* Until a collective ends. */
gtopk_status_t wait_for_attempt(mpi_transport_t *self, const attempt_t *attempt, double deadline, const char *what);
gtopk_status_t wait_for_request(mpi_transport_t *self, MPI_Request *request, double deadline, const char *what);

#endif
