#include "transport/mpi/wait.h"

#include <sched.h>
#include <time.h>

#include "transport/mpi/last_words.h"
#include "transport/mpi/losses.h"
#include "transport/mpi/module.h"
#include "util/clock.h"

/* Waiting: test without a pause for as long as a message between cores takes, then give the processor away after each
 * test, then sleep, so that ranks which share a core get on. A ring has more under way than a nap takes, and sleeps at once:
 * its own processor time is what limits it. */
#define SPIN_SECONDS 20e-6
#define SLEEP_NANOSECONDS 50000

void wait_pause(double waited, double yield_seconds)
{
    const struct timespec nap = {0, SLEEP_NANOSECONDS};
    if (waited > yield_seconds && waited > SPIN_SECONDS)
        (void)nanosleep(&nap, NULL);
    else if (waited > SPIN_SECONDS)
        (void)sched_yield();
}

/* *ended: it did; *moved: not yet, but some of it was done. Under mpi_mutex. */
static int try_again(const attempt_t *attempt, int *ended, int *moved)
{
    *moved = 0;
    if (attempt->request) {
        const int code = MPI_Test(attempt->request, ended, MPI_STATUS_IGNORE);
        if (!attempt->survives || !losses_are_all(code))
            return code;
        *ended = 1;
        return MPI_SUCCESS;
    }
    const int code = ring_advance(attempt->ring, moved);
    *ended = ring_ended(attempt->ring);
    return code;
}

gtopk_status_t wait_for_attempt(mpi_transport_t *self, const attempt_t *attempt, double deadline, const char *what)
{
    const double start = clock_now();
    double ask_at = start + TRANSPORT_INTERRUPT_SECONDS, moved_at = start;
    self->ended_at = 0.0;
    for (;;) {
        int ended = 0, moved = 0, code;
        LOCKED(code = try_again(attempt, &ended, &moved));
        if (code != MPI_SUCCESS)
            return module_failed(code, what);
        if (ended)
            return GTOPK_OK;
        const double now = clock_now();
        if (now >= deadline)
            return library->status_set(GTOPK_ERR_TIMEOUT,
                                       "%s did not end in time: a rank died, is stuck, or did not call it; look at the "
                                       "output of the others, or raise the timeout",
                                       what);
        if (now >= ask_at) {
            if (now - start > LAST_WORD_AFTER && self->complete && !attempt->survives) {
                int32_t rank = TRANSPORT_NONE;
                farewell_t farewell;
                LOCKED(farewell = last_words_of(self, MPI_ANY_SOURCE, &rank));
                const gtopk_status_t status = last_words_end_wait(self, farewell, rank, now, GOODBYE_GRACE_COLLECTIVE);
                if (status != GTOPK_OK)
                    return status;
            }
            if (transport_interrupted(&self->base))
                return library->status_set(GTOPK_ERR_INTERRUPTED, "the wait for %s was interrupted", what);
            ask_at = now + TRANSPORT_INTERRUPT_SECONDS;
        }
        if (moved)
            moved_at = now;
        else
            wait_pause(now - moved_at, attempt->ring ? 0.0 : YIELD_SECONDS);
    }
}

gtopk_status_t wait_for_request(mpi_transport_t *self, MPI_Request *request, double deadline, const char *what)
{
    return wait_for_attempt(self, &(attempt_t){.request = request}, deadline, what);
}
