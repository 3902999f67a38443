#include "transport/mpi/last_words.h"

#include <stdlib.h>
#include <string.h>

#include "transport/mpi/module.h"

#define NOTICE_SIZE 64

/* A last word and its memory, which is kept until it was sent. */
struct notice {
    struct notice *next;
    MPI_Request request;
    unsigned char bytes[NOTICE_SIZE];
};

/* The number is the communicator's: MPI may deliver what was under way in one that was freed to the next one. */
typedef struct last_word {
    uint64_t number;
    int32_t farewell;
} last_word_t;

/* ---- what others said ---- */

/* Takes the last words that came, each once. Under mpi_mutex. */
static void take_last_words(mpi_transport_t *self)
{
    for (;;) {
        last_word_t word;
        int there = 0, count = 0;
        MPI_Message message;
        MPI_Status found;
        if (MPI_Improbe(MPI_ANY_SOURCE, LAST_WORD_TAG, self->comm, &there, &message, &found) != MPI_SUCCESS || !there)
            return;
        (void)MPI_Get_count(&found, MPI_BYTE, &count);
        const int whole = count == (int)sizeof word;
        if (MPI_Mrecv(&word, whole ? count : 0, MPI_BYTE, &message, MPI_STATUS_IGNORE) != MPI_SUCCESS || !whole)
            continue;
        if (word.number == self->number && found.MPI_SOURCE < self->base.size)
            self->farewells[found.MPI_SOURCE] = (unsigned char)word.farewell;
    }
}

farewell_t last_words_of(mpi_transport_t *self, int32_t rank, int32_t *which)
{
    take_last_words(self);
    const int32_t first = rank == MPI_ANY_SOURCE ? 0 : rank;
    const int32_t end = rank == MPI_ANY_SOURCE ? self->base.size : rank + 1;
    farewell_t found = FAREWELL_NONE;
    for (int32_t r = first; r < end; r++)
        if (self->farewells[r] > found) {
            found = (farewell_t)self->farewells[r];
            *which = r;
        }
    return found;
}

gtopk_status_t last_words_end_wait(mpi_transport_t *self, farewell_t farewell, int32_t rank, double now, double grace)
{
    if (farewell == FAREWELL_GAVE_UP)
        return library->status_set(GTOPK_ERR_ABORTED,
                                   "rank %d gave up: its own output says why; restart from a checkpoint", (int)rank);
    if (farewell == FAREWELL_NONE || self->ended_at == 0.0) {
        self->ended_at = farewell == FAREWELL_NONE ? 0.0 : now;
        return GTOPK_OK;
    }
    if (now - self->ended_at < grace)
        return GTOPK_OK;
    return library->status_set(
        GTOPK_ERR_ABORTED,
        "rank %d has ended, or called gtopk.shutdown(), and this rank still waits for it. Its loop was "
        "shorter, or it left by sys.exit or an exception that its own output shows: give every rank the "
        "same number of steps, or call optimizer.join() after a rank's last one",
        (int)rank);
}

int last_words_all_ended(mpi_transport_t *self)
{
    take_last_words(self);
    for (int32_t r = 0; r < self->base.size; r++)
        if (r != self->base.rank && self->farewells[r] != FAREWELL_ENDED)
            return 0;
    return 1;
}

/* ---- what this rank says ---- */

void last_words_test(mpi_transport_t *self)
{
    for (notice_t **place = &self->notices; *place;) {
        notice_t *notice = *place;
        int sent = 0;
        if (MPI_Test(&notice->request, &sent, MPI_STATUS_IGNORE) != MPI_SUCCESS || !sent) {
            place = &notice->next;
            continue;
        }
        *place = notice->next;
        free(notice);
    }
}

/* Under mpi_mutex. */
static void send_notice(mpi_transport_t *self, int32_t to, const void *message, size_t bytes, int tag)
{
    notice_t *notice = calloc(1, sizeof *notice);
    if (!notice)
        return;
    memcpy(notice->bytes, message, bytes);
    if (MPI_Isend(notice->bytes, (int)bytes, MPI_BYTE, to, tag, self->comm, &notice->request) != MPI_SUCCESS) {
        free(notice);
        return;
    }
    notice->next = self->notices;
    self->notices = notice;
}

void last_words_send(mpi_transport_t *self, int32_t to, farewell_t farewell)
{
    last_word_t word;
    memset(&word, 0, sizeof word);
    word.number = self->number;
    word.farewell = (int32_t)farewell;
    send_notice(self, to, &word, sizeof word, LAST_WORD_TAG);
}

void last_words_notify(transport_t *transport, int32_t to, const void *message, size_t bytes)
{
    mpi_transport_t *self = (mpi_transport_t *)transport;
    communicator_mark_broken(self);
    if (bytes > NOTICE_SIZE)
        return;
    (void)pthread_mutex_lock(&mpi_mutex);
    send_notice(self, to, message, bytes, MESSAGE_TAG);
    last_words_send(self, to, FAREWELL_GAVE_UP);
    last_words_test(self);
    (void)pthread_mutex_unlock(&mpi_mutex);
}

int32_t last_words_gone(transport_t *transport)
{
    int32_t rank = TRANSPORT_NONE;
    farewell_t farewell;
    LOCKED(farewell = last_words_of((mpi_transport_t *)transport, MPI_ANY_SOURCE, &rank));
    return farewell == FAREWELL_GAVE_UP ? rank : TRANSPORT_NONE;
}
