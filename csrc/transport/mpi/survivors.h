/* Going on without ranks that are lost, as the table of functions in transport.h has it. */
#ifndef GTOPK_TRANSPORT_MPI_SURVIVORS_H
#define GTOPK_TRANSPORT_MPI_SURVIVORS_H

#include "transport/transport.h"

gtopk_status_t survivors_open(transport_t *transport, const gtopk_comm_config_t *config, transport_t **left);
gtopk_status_t survivors_agree(transport_t *transport, gtopk_status_t mine, double deadline);

#endif
