/* The part of the thread transport that only tests and simulations use. */
#ifndef GTOPK_TRANSPORT_THREAD_H
#define GTOPK_TRANSPORT_THREAD_H

#include "transport/transport.h"

/* With a virtual clock: says that this rank does nothing for now (on) though its transport is open, so that time goes
 * on without it; or that it works again (0). A rank that waits or has closed its transport needs no such word. */
void transport_thread_idle(transport_t *transport, int on);

#endif
