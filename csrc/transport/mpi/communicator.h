/* A communicator over MPI: what it consists of, its beginning and its end. */
#ifndef GTOPK_TRANSPORT_MPI_COMMUNICATOR_H
#define GTOPK_TRANSPORT_MPI_COMMUNICATOR_H

#include <mpi.h>

#include "transport/mpi/ring.h"
#include "transport/transport.h"

/* Beside RING_TAG. */
#define MESSAGE_TAG 7
#define LAST_WORD_TAG 8

/* How long what is under way is given the chance to end. */
#define FINAL_SECONDS 0.05

typedef struct notice notice_t;

typedef struct mpi_transport {
    transport_t base;
    MPI_Comm comm;
    transport_exchange_t exchange;
    size_t received;  /* length of the message that came */
    double posted_at; /* when the exchange under way was started */
    int awaited;      /* the message to be received has not shown itself yet */
    MPI_Request receive, send;
    unsigned char *overlong; /* where a message goes that does not fit, else NULL */
    notice_t *notices;
    int broken;               /* a request may never end: leave the communicator and MPI alone */
    uint64_t number;          /* tells this communicator from others */
    unsigned char *farewells; /* [size] what each rank has said last */
    struct mpi_transport *next_closed;
    double ended_at; /* when a rank that is waited for was first seen to have ended, 0: none was */
    int complete;    /* all ranks have it, and know its number */
    ring_t ring;     /* the all-reduce under way */
    float *arrived;  /* its memory, which stays when it is given up */
    MPI_Comm left;   /* of ranks that are left, until they have agreed that all of them have this */
} mpi_transport_t;

/* A transport among the ranks of `parent`. */
gtopk_status_t communicator_open(const gtopk_comm_config_t *config, MPI_Comm parent, double deadline,
                                 transport_t **transport);

void communicator_mark_broken(mpi_transport_t *self);

/* Frees what was closed and is done with. A goodbye that came after MPI_Comm_free would be delivered to the communicator
 * that gets the number next. Under mpi_mutex. */
void communicator_free_closed(void);

#endif
