/* The reducer's insides, for the files of core/. */
#ifndef GTOPK_CORE_REDUCER_H
#define GTOPK_CORE_REDUCER_H

#include "core/config.h"
#include "core/segments.h"
#include "core/shares.h"
#include "device/device.h"
#include "exchange/exchange.h"
#include "util/fpenv.h"

/* Floats that go between a device and the host at a time: 1 MiB. */
#define REDUCER_PART ((size_t)1 << 18)

/* Steps until the times of an algorithm that was taken are looked at, the first time and at last. */
enum { CHOICE_FIRST = 4, CHOICE_LAST = 1024, CHOICE_TIMES = 32 };

/* What is known of the algorithms, by their numbers, where the choice is the library's: see choice.h. */
typedef struct choice {
    double predicted[GTOPK_CHOICES], measured[GTOPK_CHOICES]; /* seconds of a step; measured 0: not yet */
    double times[CHOICE_TIMES];                               /* of this rank's last steps before the next time */
    uint32_t timed;                                           /* how many there are */
    uint32_t steps, window;                                   /* since then, and until the next time */
    int warm;                                                 /* this algorithm has taken a step */
} choice_t;

struct gtopk_reducer {
    gtopk_comm_t *comm;
    device_t *device; /* the communicator's */
    device_store_t *store;
    device_words_t *words;   /* device memory */
    device_words_t *verdict; /* pinned memory: the words as the host learnt them */
    exchange_t *exchange;
    shares_t *shares; /* NULL: the residual is of all entries */
    config_record_t record;
    uint32_t hash; /* of the record */
    uint64_t k;
    segments_t segments;
    int in_step;
    int settled; /* every segment of the step has come; with rollback, what accumulate wrote is the residual now */
    uint64_t step, steps_before;
    float momentum;
    int nesterov;
    void *stream;        /* where the latest work was queued */
    gtopk_status_t lost; /* the error of the device outside of a step's exchange: the next step fails with it */
    char lost_text[STATUS_TEXT_SIZE];
    gtopk_stats_t stats; /* of the step under way, then of the latest */
    atomic_flag busy;
    fpenv_t environment;  /* the caller's, while in a call */
    double off_s, node_s; /* a step of either hierarchy, as it was tried; 0: it was not */
    choice_t choice;
};

/* Whether updates are made of entries that ranks select. */
static inline int reducer_selects(const gtopk_reducer_t *reducer)
{
    return reducer->exchange->ops->selects;
}

/* Entries of the store: all of them, or those of a share. */
static inline uint64_t reducer_store_dim(const gtopk_reducer_t *reducer)
{
    return reducer->shares ? reducer->shares->length : reducer->record.dim;
}

/* Entries that the store selects at most: one, where the exchange selects nothing. */
static inline uint64_t reducer_store_k(int32_t algorithm, uint64_t k)
{
    return exchange_find(algorithm)->selects ? k : 1;
}

/* An exchange of an algorithm for k entries of this reducer. NULL can be destroyed. */
gtopk_status_t reducer_create_exchange(const gtopk_reducer_t *reducer, int32_t algorithm, uint64_t k,
                                       exchange_t **exchange);
void reducer_destroy_exchange(exchange_t *exchange);

/* Parts of the residual (or velocity) by the indices of all entries. reducer_write: see shares_write. */
gtopk_status_t reducer_read(gtopk_reducer_t *reducer, int which, uint64_t at, uint64_t length, float *out);
gtopk_status_t reducer_write(gtopk_reducer_t *reducer, int which, uint64_t at, uint64_t length, const float *in);

/* Takes the reducer for one call: INVALID, or STATE in a forked child or when another thread is in it. Until
 * reducer_leave the call computes in the exact floating-point environment: means, conversions and sums of the core too. */
gtopk_status_t reducer_enter(gtopk_reducer_t *reducer);
void reducer_leave(gtopk_reducer_t *reducer);

/* Of an error of the device outside of a step's exchange: the communicator breaks, at once where no other thread is in it,
 * else in the next step. Returns `status`, with its text. */
gtopk_status_t reducer_lose(gtopk_reducer_t *reducer, gtopk_status_t status);

/* OK, or that error again. */
gtopk_status_t reducer_check_device(const gtopk_reducer_t *reducer);

/* STATE between accumulate and reduce. */
gtopk_status_t reducer_check_between_steps(gtopk_reducer_t *reducer, const char *call);

#endif
