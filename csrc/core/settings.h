/* What can be set between steps. */
#ifndef GTOPK_CORE_SETTINGS_H
#define GTOPK_CORE_SETTINGS_H

#include "core/reducer.h"

/* Collective, between steps; reducer and communicator are taken. Another algorithm from the next step on. On an error nothing
 * has changed, unless the communicator broke. */
gtopk_status_t settings_change(gtopk_reducer_t *reducer, int32_t algorithm);

#endif
