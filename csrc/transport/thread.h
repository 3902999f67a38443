/* The part of the thread transport that only tests and simulations use. */
#ifndef GTOPK_TRANSPORT_THREAD_H
#define GTOPK_TRANSPORT_THREAD_H

#include "transport/transport.h"

/* With a virtual clock: says that this rank does nothing for now (on) though its transport is open, so that time goes
 * on without it; or that it works again (0). A rank that waits or has closed its transport needs no such word. */
void transport_thread_idle(transport_t *transport, int on);

/* For a transport beside this one, on the same clock. Sleeps until ready(arg) is not 0, or until `deadline`; returns what
 * it said last. It is asked with the group locked: it must not call the transport. */
int transport_thread_wait(transport_t *transport, int (*ready)(void *arg), void *arg, double deadline);

/* Has a rank that waits so ask again. */
void transport_thread_wake(transport_t *transport, int32_t rank);

#endif
