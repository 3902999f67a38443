/* Collectives of all ranks, as the table of functions in transport.h has them. */
#ifndef GTOPK_TRANSPORT_MPI_COLLECTIVES_H
#define GTOPK_TRANSPORT_MPI_COLLECTIVES_H

#include "transport/transport.h"

gtopk_status_t collectives_allgather(transport_t *transport, const void *in, size_t bytes, void *out, double deadline,
                                     void *stream);
gtopk_status_t collectives_allreduce(transport_t *transport, float *buffer, size_t count, double deadline,
                                     void *stream);

#endif
