/* An all-reduce of floats as a ring over MPI's messages: reduce-scatter, then all-gather, in segments that overlap.
 *
 * MPI's own all-reduce has no deadline, and its non-blocking one took up to three times as long over Ethernet. Segments are
 * short enough that MPI sends them at once: a longer message is first asked for, and where both directions share a
 * connection the answer waits behind what goes the other way, so that the two take turns (Open MPI 5: half the rate).
 *
 * Chunk c of `size` is added up on its way through ranks c, c + 1, .., c - 1, in this order, and copied from the last one to
 * the others: all ranks get the same bits. Message t of 2 (size - 1) * segments goes to the right; what comes in its
 * place from the left is chunk rank - 1 - t / segments. */
#ifndef GTOPK_TRANSPORT_MPI_RING_H
#define GTOPK_TRANSPORT_MPI_RING_H

#include <mpi.h>
#include <stddef.h>

#define RING_TAG 9
#define RING_SEGMENT 16000 /* floats: with MPI's header less than 64 KiB, up to which Open MPI sends at once over TCP */
#define RING_WINDOW 32     /* messages that may be under way each way */

typedef struct ring {
    MPI_Comm comm;
    size_t rank, size;
    float *data;
    size_t count, segments, messages;
    size_t posted, received; /* receives that were started, that ended */
    size_t started, sent;    /* sends, likewise */
    MPI_Request receives[RING_WINDOW], sends[RING_WINDOW];
    float *arrived; /* [RING_WINDOW * RING_SEGMENT] parts of sums */
} ring_t;

/* `arrived`: RING_WINDOW * RING_SEGMENT floats of memory. */
void ring_open(ring_t *ring, MPI_Comm comm, int rank, int size, float *data, size_t count, float *arrived);

/* Does what can be done now; *moved: whether that was anything. An MPI code. */
int ring_advance(ring_t *ring, int *moved);

int ring_ended(const ring_t *ring);

#endif
