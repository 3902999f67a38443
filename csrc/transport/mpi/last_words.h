/* What a rank says last: that it gave up, or that it ended in order. A last word also goes out as a message, but a rank whose
 * own large message is never taken, or who only sends, or is in a collective of MPI's, would not read it there. */
#ifndef GTOPK_TRANSPORT_MPI_LAST_WORDS_H
#define GTOPK_TRANSPORT_MPI_LAST_WORDS_H

#include "transport/mpi/communicator.h"

/* A rank that waits longer than this looks for last words: messages that were under way before them come first. */
#define LAST_WORD_AFTER 1.0 /* seconds */

/* After the goodbye of a rank that ended in order, what it sent before may still be under way for this long: its messages,
 * and the other ranks' parts of a collective of MPI's that it is through with. */
#define GOODBYE_GRACE 0.5 /* seconds */
#define GOODBYE_GRACE_COLLECTIVE 30.0

typedef enum farewell { FAREWELL_NONE, FAREWELL_ENDED, FAREWELL_GAVE_UP } farewell_t;

/* What `rank` (MPI_ANY_SOURCE: the first rank that said anything, *which) has said last. Under mpi_mutex. */
farewell_t last_words_of(mpi_transport_t *self, int32_t rank, int32_t *which);

/* GTOPK_OK, or that the wait is over because `rank` said so. One that ended in order has sent all it had to. */
gtopk_status_t last_words_end_wait(mpi_transport_t *self, farewell_t farewell, int32_t rank, double now, double grace);

/* Whether all others have said that they ended, so that nothing more can come. Under mpi_mutex. */
int last_words_all_ended(mpi_transport_t *self);

/* Under mpi_mutex. */
void last_words_send(mpi_transport_t *self, int32_t to, farewell_t farewell);

/* Frees the notices that were sent. Under mpi_mutex. */
void last_words_test(mpi_transport_t *self);

/* As the table of functions in transport.h has them. */
void last_words_notify(transport_t *transport, int32_t to, const void *message, size_t bytes);
int32_t last_words_gone(transport_t *transport);

#endif
