/* Broadcast, all-gather, all-reduce and barrier of plain bytes over a link: for set-up, checkpoints and the dense
 * baseline. But for collective_sum they use the control transport. Messages carry headers, so that a rank in another call is found out. They do not break the link: the
 * caller does. */
#ifndef GTOPK_EXCHANGE_COLLECTIVE_H
#define GTOPK_EXCHANGE_COLLECTIVE_H

#include "exchange/link.h"

gtopk_status_t collective_broadcast(link_t *link, void *buffer, size_t bytes, int32_t root);

/* Ring: size - 1 rounds. */
gtopk_status_t collective_allgather(link_t *link, const void *in, size_t bytes, void *out);

/* Sum in place over some places, on a transport of the link and the memory that it takes; all known to give the same count:
 * the transport's own where it has one, else a ring (reduce-scatter, then all-gather). */
gtopk_status_t collective_sum(link_t *link, transport_t *transport, const places_t *places, float *buffer, size_t count,
                              void *stream);

/* Bitwise or, in place, over some places: host memory, on the control transport, which all ranks call for at once. */
gtopk_status_t collective_union(link_t *link, const places_t *places, uint8_t *bits, size_t bytes);

/* Sum in place over all ranks, of floats or doubles in host memory that is never left to a transport. */
gtopk_status_t collective_allreduce(link_t *link, const places_t *all, void *buffer, size_t count, gtopk_dtype_t dtype);

/* Before a collective that a user calls: DESYNC, here or on another rank, unless all are about to do the same with the
 * same number of bytes. A message of another length could not be received at all. */
gtopk_status_t collective_agree_on(link_t *link, uint8_t algorithm, size_t bytes);

/* Sends `bytes` bytes to a rank and takes as many from it, which are dropped: for timing, on a transport that moves host memory.
 * All ranks call it at once; those whose peer is no rank exchange nothing. */
gtopk_status_t collective_swap(link_t *link, transport_t *transport, int32_t peer, const void *data, size_t bytes);

/* Dissemination: ceil(log2 P) rounds. */
gtopk_status_t collective_barrier(link_t *link);

#endif
