/* What is one for the process: MPI, the mutex around all calls of it, and the way back to the library. */
#ifndef GTOPK_TRANSPORT_MPI_MODULE_H
#define GTOPK_TRANSPORT_MPI_MODULE_H

#include <pthread.h>

#include "transport/transport.h"

extern pthread_mutex_t mpi_mutex;

#define LOCKED(statement)                       \
    do {                                        \
        (void)pthread_mutex_lock(&mpi_mutex);   \
        statement;                              \
        (void)pthread_mutex_unlock(&mpi_mutex); \
    } while (0)

/* Under mpi_mutex. */
typedef struct mpi_process {
    int started_here;
    int open;   /* communicators */
    int broken; /* a request may never end */
    int lost;   /* ranks were, and others went on: MPI_Finalize would wait for them */
} mpi_process_t;

extern mpi_process_t mpi_process;
extern const transport_host_t *library;

/* The error of a call that gave `code`. */
gtopk_status_t module_failed(int code, const char *what);

#endif
