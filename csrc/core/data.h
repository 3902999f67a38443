/* The second transport of a communicator, which moves the messages of exchanges. */
#ifndef GTOPK_CORE_DATA_H
#define GTOPK_CORE_DATA_H

#include "core/comm.h"

/* Collective. Opens the data transport that the config names beside the control transport, on the device that it queues on;
 * with "auto" where all ranks can, and none otherwise. On failure the communicator is as it was, unless it broke. */
gtopk_status_t data_open(gtopk_comm_t *comm, const gtopk_comm_config_t *config);

#endif
