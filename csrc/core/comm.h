/* The communicator: a link with an owner. */
#ifndef GTOPK_CORE_COMM_H
#define GTOPK_CORE_COMM_H

#include <stdatomic.h>
#include <sys/types.h>

#include "exchange/link.h"
#include "util/fpenv.h"

struct gtopk_comm {
    link_t link;
    transport_t *transport;
    atomic_flag busy;
    fpenv_t environment;    /* the caller's, while in a call */
    pid_t owner;            /* the process that created it */
    uint32_t reducers_made; /* ids: the same on all ranks, as creation is collective */
    atomic_int references;  /* the handle and its reducers */
};

/* Collective. A communicator on an open transport, which it owns from now on, also on failure. */
gtopk_status_t comm_open(gtopk_comm_t **comm, transport_t *transport, const gtopk_comm_config_t *config);

/* Takes the communicator for one call: STATE in a forked child or when another thread is in it; the first error when
 * it is broken. Every OK is matched by comm_leave, and in between the floating-point environment is the exact one. */
gtopk_status_t comm_enter(gtopk_comm_t *comm);
void comm_leave(gtopk_comm_t *comm);

/* Ends a collective part of a call: an error of an exchange breaks the communicator. Returns `status`. */
gtopk_status_t comm_settle(gtopk_comm_t *comm, gtopk_status_t status, uint64_t step);

void comm_retain(gtopk_comm_t *comm);
void comm_release(gtopk_comm_t *comm);

/* All ranks tell how a step of set-up went: OK only if it went well everywhere. Otherwise the rank's own status, or
 * MISMATCH that names the first rank that failed. Does not break the communicator unless the exchange itself fails. */
gtopk_status_t comm_agree(gtopk_comm_t *comm, gtopk_status_t mine, const char *what);

/* A random number, for epochs and run ids. */
uint64_t comm_random(void);

#endif
