/* What the parts of a step cost between these ranks, measured; and the prediction that follows. */
#ifndef GTOPK_CORE_MEASURE_H
#define GTOPK_CORE_MEASURE_H

#include "core/reducer.h"

/* Collective. The communicator's costs, as gtopk_comm_measure finds them; measured once, and kept in comm->costs. */
gtopk_status_t measure_once(gtopk_comm_t *comm, const gtopk_reducer_config_t *config);

#endif
