/* The transport joint: messages between ranks. A transport knows nothing of sets, rounds or reducers.
 *
 * Between two ranks messages arrive whole and in the order of sending. */
#ifndef GTOPK_TRANSPORT_TRANSPORT_H
#define GTOPK_TRANSPORT_TRANSPORT_H

#include <stddef.h>
#include <stdint.h>

#include "transport/watch.h"
#include "util/status.h"

#define TRANSPORT_ABI 5u
#define TRANSPORT_NONE (-1)
#define TRANSPORT_GREETING 64u

/* How often a wait asks the caller whether it is to go on. */
#define TRANSPORT_INTERRUPT_SECONDS 0.1

typedef struct transport transport_t;

/* Said of a message that does not fit, after what came and what fits. */
#define TRANSPORT_TOO_LONG                                                                           \
    "it is damaged, or of another call than this rank is in; all ranks must make the same calls in " \
    "the same order"

/* One exchange: a message to one rank, a message from one rank (TRANSPORT_NONE: no such side). Both ends know the
 * capacity, so a transport that cannot carry lengths sends `send_capacity` bytes (the buffer is that long). */
typedef struct transport_exchange {
    int32_t to, from;
    const void *send;
    size_t send_bytes, send_capacity;
    void *receive;
    size_t receive_capacity;
} transport_exchange_t;

/* Buffers are host memory, and post starts an exchange that wait ends; one is under way at a time. A transport that is
 * stream_ordered queues on the caller's stream in place of that: any number of exchanges and collectives may be queued
 * between the device's own operations, buffers are the device's memory (device_memory), what travels is padded, and one
 * wait is for all. */
typedef struct transport_ops {
    const char *name;
    int device_memory;  /* 1: buffers are memory of the device; 0: host memory, pinned where the device has such */
    int stream_ordered; /* 1: post, allgather and allreduce queue on the stream */
    int padded;         /* 1: send_capacity bytes travel, not send_bytes */

    /* Frees the transport. Never waits for a peer. Requests that were abandoned may leave their memory behind. */
    void (*close)(transport_t *transport);

    /* Seconds on the clock that deadlines are given in. */
    double (*now)(transport_t *transport);

    /* Starts an exchange; the description is copied. Buffers stay untouched until wait says that it ended. `deadline` is
     * for what must be waited for before anything can be started or queued. */
    gtopk_status_t (*post)(transport_t *transport, const transport_exchange_t *exchange, double deadline, void *stream);

    /* Waits for the exchange under way, or for all that was queued, until `deadline`. OK: it ended, and *received is the
     * length of the message that came. TIMEOUT: not yet; wait may be called again. Anything else: the transport is broken
     * (the text names the peer where it is known). CORRUPT: a message longer than receive_capacity came. Where *received
     * is more than receive_capacity, it is the length of that message, whose head fills the buffer. */
    gtopk_status_t (*wait)(transport_t *transport, double deadline, size_t *received);

    /* Gives up the exchange under way, or all that is queued: the stream passes then, with buffers half written. Returns 1
     * when the buffers are free again, 0 when they must stay allocated until the process ends. */
    int (*abandon)(transport_t *transport);

    /* Sends a copy of `bytes` bytes (at most 64) to a rank without waiting: the last word of a rank that gives up.
     * NULL: the transport has `abort` alone. */
    void (*notify)(transport_t *transport, int32_t to, const void *message, size_t bytes);

    /* Optional: a rank that has said its last word, or TRANSPORT_NONE. For whoever waits on another transport. */
    int32_t (*gone)(transport_t *transport);

    /* Ends the group so that others notice. NULL: nothing to do. */
    void (*abort)(transport_t *transport);

    /* Optional: for transports on which the first message to a rank takes long. Exchanges TRANSPORT_GREETING bytes with each
     * of these ranks, all of which do the same; those of peers[i] are at i * TRANSPORT_GREETING. As post. */
    gtopk_status_t (*connect)(transport_t *transport, const int32_t *peers, size_t count, const void *send,
                              void *receive, double deadline, void *stream);

    /* Optional; asks transport_interrupted while it waits. in: `bytes` bytes; out: size * bytes. */
    gtopk_status_t (*allgather)(transport_t *transport, const void *in, size_t bytes, void *out, double deadline,
                                void *stream);

    /* Optional, but for device_memory; asks as well. Sums `count` floats in place; all ranks get the same bits. */
    gtopk_status_t (*allreduce)(transport_t *transport, float *buffer, size_t count, double deadline, void *stream);

    /* Optional: another transport among the ranks of this one that are left, which all call this; calls of any of them on
     * this one end, and it is of no more use. What fails on one of them is an error on all. */
    gtopk_status_t (*survivors)(transport_t *transport, const gtopk_comm_config_t *config, transport_t **left);

    /* Where there is the one above: OK if `mine` is OK on all ranks that are left, else an error on all of these. */
    gtopk_status_t (*agree)(transport_t *transport, gtopk_status_t mine, double deadline);
} transport_ops_t;

struct transport {
    const transport_ops_t *ops;
    int32_t rank, size;
    char description[128];           /* "mpi (Open MPI 5.0.11)" */
    int (*interrupt)(void *context); /* the config's, NULL: nobody asks to stop */
    void *interrupt_context;
    const char *device; /* the one on whose streams it queues, in full; NULL: any */
    int survives;       /* 1: `survivors` works, as the ranks were started */
};

/* How long it may take to open it. */
static inline double transport_setup_seconds(const gtopk_comm_config_t *config)
{
    return config->setup_timeout > 0.0 ? config->setup_timeout : config->timeout;
}

/* Called by whoever waits, without a lock: nonzero when the caller asked to stop waiting. */
static inline int transport_interrupted(const transport_t *transport)
{
    return transport->interrupt && transport->interrupt(transport->interrupt_context) != 0;
}

/* Opens the transport that the config names, in which a timeout is given. INVALID for an unknown name, listing those that exist. */
gtopk_status_t transport_open(const gtopk_comm_config_t *config, transport_t **transport);

/* Ends what transports started for the whole process; see gtopk_finalize. */
gtopk_status_t transport_finalize(void);

/* The same from exit(), which was given `status`; see gtopk_finalize_at_exit. */
void transport_end_process(int status);

/* ---- transports that queue on a device's streams, beside one that moves host memory ---- */

#define TRANSPORT_KEY 128u

/* What such a transport asks of the device. */
typedef struct transport_device {
    void *device;
    const char *name;                                                  /* in full; it lives as long as the transport */
    gtopk_status_t (*passed)(void *device, void *stream, int *passed); /* does not wait */
    gtopk_status_t (*enter)(void *device); /* between the two the device is the current one of this thread */
    void (*leave)(void *device);
    void (*halt)(void *device); /* from any thread: nothing that it computes is to be committed any more */
} transport_device_t;

typedef struct transport_data_config {
    const char *name;     /* "nccl"; "auto": the best one */
    const char *library;  /* a file, where the caller knows one better than the system's */
    transport_t *control; /* rank, size, clock, last words */
    transport_device_t device;
    double deadline; /* for the others to come */
} transport_data_config_t;

/* In two parts. What one rank can fail in by itself; `key` is made on rank 0 and has to get to all. */
gtopk_status_t transport_data_prepare(const transport_data_config_t *config, uint8_t key[TRANSPORT_KEY]);

/* Collective. Closed before the control transport and the device. */
gtopk_status_t transport_data_open(const transport_data_config_t *config, const uint8_t key[TRANSPORT_KEY],
                                   transport_t **transport);

gtopk_status_t transport_nccl_prepare(const transport_data_config_t *config, uint8_t key[TRANSPORT_KEY]);
gtopk_status_t transport_nccl_open(const transport_data_config_t *config, const uint8_t key[TRANSPORT_KEY],
                                   transport_t **transport);

/* ---- one file each ---- */

gtopk_status_t transport_self_open(const gtopk_comm_config_t *config, transport_t **transport);
gtopk_status_t transport_thread_open(const gtopk_comm_config_t *config, transport_t **transport);
gtopk_status_t transport_callback_open(const gtopk_comm_config_t *config, transport_t **transport);
gtopk_status_t transport_mpi_open(const gtopk_comm_config_t *config, transport_t **transport);

/* What libgtopk_mpi.so exports as `gtopk_mpi_module`: the module is linked with MPI and nothing else; error texts and
 * log lines go back to the library through `host`. */
typedef struct transport_host {
    gtopk_status_t (*status_set)(gtopk_status_t status, const char *format, ...);
    void (*log_write)(int level, const char *format, ...);
    watch_t *(*watch_begin)(const char *what, double warn_after, double timeout);
    void (*watch_end)(watch_t *watch);
} transport_host_t;

typedef struct transport_module {
    uint32_t abi; /* TRANSPORT_ABI */
    gtopk_status_t (*open)(const gtopk_comm_config_t *config, const transport_host_t *host, transport_t **transport);
    gtopk_status_t (*finalize)(void);
    void (*end_process)(int status); /* from exit(): finalizes MPI, without ever waiting long after a failure */
} transport_module_t;

#endif
