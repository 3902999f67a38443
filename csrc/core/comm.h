/* The communicator: a link with an owner, what all ranks know of each other, and the devices of its reducers. */
#ifndef GTOPK_CORE_COMM_H
#define GTOPK_CORE_COMM_H

#include <stdatomic.h>
#include <sys/types.h>

#include "device/device.h"
#include "exchange/link.h"
#include "util/fpenv.h"

/* Devices that the reducers of one communicator may use. */
#define COMM_DEVICES 8

typedef struct comm_device {
    device_t *device;
    gtopk_allocator_t allocator;
} comm_device_t;

/* What a peer tells of its step. */
typedef struct peer_word {
    int32_t status;
    uint32_t nonfinite;
} peer_word_t;

struct gtopk_comm {
    link_t link;
    places_map_t map;
    gtopk_costs_t costs; /* measured; struct_size 0: not yet */
    comm_device_t devices[COMM_DEVICES];
    gtopk_comm_t *peers;     /* whose ranks take each step together with this one; NULL: none */
    peer_word_t *peer_words; /* room for what each of them tells */
    device_t *data_device;   /* whose streams the data transport queues on; NULL: none */
    atomic_flag busy;
    fpenv_t environment;    /* the caller's, while in a call */
    pid_t owner;            /* the process that created it */
    uint32_t reducers_made; /* ids: the same on all ranks, as creation is collective */
    atomic_int references;  /* the handle and its reducers */
};

static inline int32_t comm_rank(const gtopk_comm_t *comm)
{
    return comm->link.control->rank;
}

static inline int32_t comm_size(const gtopk_comm_t *comm)
{
    return comm->link.control->size;
}

/* Collective. A communicator on open transports, which it owns from now on, also on failure. data NULL: one transport does
 * both. The config has a timeout. */
gtopk_status_t comm_open(gtopk_comm_t **comm, transport_t *control, transport_t *data,
                         const gtopk_comm_config_t *config);

/* Takes the communicator for one call: STATE in a forked child or when another thread is in it; the first error when
 * it is broken. Every OK is matched by comm_leave, and in between the floating-point environment is the exact one. */
gtopk_status_t comm_enter(gtopk_comm_t *comm);
void comm_leave(gtopk_comm_t *comm);

/* Ends a collective part of a call: an error of an exchange breaks the communicator. Returns `status`. */
gtopk_status_t comm_settle(gtopk_comm_t *comm, gtopk_status_t status, uint64_t step);

void comm_retain(gtopk_comm_t *comm);
void comm_release(gtopk_comm_t *comm);

/* The device of a name (NULL: GTOPK_DEVICE, else "cpu") and an allocator (NULL: none): one for all reducers that name them,
 * closed with the communicator. */
gtopk_status_t comm_device(gtopk_comm_t *comm, const char *name, const gtopk_allocator_t *allocator, device_t **device);

/* Halts all devices of that full name, which differ in their allocators. From any thread. */
void comm_halt(const gtopk_comm_t *comm, const char *name);

/* Closes it, unless it may still be written to: whoever names it next gets another one. No reducer uses it. */
void comm_forget_device(gtopk_comm_t *comm, const device_t *device);

/* All ranks tell how a step of set-up went: OK only if it went well everywhere. Otherwise the rank's own status, or
 * MISMATCH that names the first rank that failed. Does not break the communicator unless the exchange itself fails. */
gtopk_status_t comm_agree(gtopk_comm_t *comm, gtopk_status_t mine, const char *what);

/* How a step went on this rank, and whether it was finite, told to the peers: OK only if it went well on all. Otherwise this
 * rank's own error, or ABORTED that names the first peer that failed. *nonfinite becomes that of all. */
gtopk_status_t comm_agree_with_peers(gtopk_comm_t *comm, gtopk_status_t mine, uint32_t *nonfinite);

/* Of a communicator that broke after its peers had agreed on a step, or between two: theirs breaks as well, as they would wait
 * for this rank, whose next step begins with an error. Does nothing while it is alive. Keeps the error text. */
void comm_tell_peers(gtopk_comm_t *comm, uint64_t step);

/* A random number, for epochs and run ids. */
uint64_t comm_random(void);

#endif
