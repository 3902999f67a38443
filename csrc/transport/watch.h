/* Somebody who watches over a call that waits for other processes and knows no deadline, as MPI_Init. */
#ifndef GTOPK_TRANSPORT_WATCH_H
#define GTOPK_TRANSPORT_WATCH_H

typedef struct watch watch_t;

/* From now on: a warning after `warn_after` seconds (0: none), and after `timeout` seconds an error and the end of the process, status 1.
 * `what` begins both texts. NULL when there is no memory or no thread for it. */
watch_t *watch_begin(const char *what, double warn_after, double timeout);

/* The call has returned. NULL is accepted. */
void watch_end(watch_t *watch);

#endif
