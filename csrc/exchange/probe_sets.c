/* How long a round's work on sets takes on a device: encode, decode, merge. */
#include <math.h>
#include <stddef.h>

#include "exchange/probe.h"
#include "exchange/sets.h"
#include "util/clock.h"

/* Entries of a set, of a vector; the first time does not count. */
enum { SET = 1 << 14, DIM = SET << 10, TIMES = 5 };

/* Two sets with every other index in common, and where things go. */
typedef struct round {
    device_t *device;
    device_set_t mine, theirs, decoded, incoming, kept, all;
    uint8_t *message; /* device memory, as the words */
    device_words_t *words;
    struct {
        uint32_t index[SET];
        float value[SET];
        uint32_t count;
        device_words_t words;
    } *here; /* pinned */
} round_t;

static size_t capacity(void)
{
    return wire_message_capacity(DIM, SET, GTOPK_VALUE_BF16);
}

static gtopk_status_t fill(const round_t *round, device_set_t *set, uint32_t stride)
{
    const device_ops_t *ops = round->device->ops;
    for (uint32_t i = 0; i < SET; i++) {
        round->here->index[i] = i * stride;
        round->here->value[i] = (float)(1 + (i * 2654435761u >> 20));
    }
    round->here->count = SET;
    gtopk_status_t status = ops->copy(round->device, set->index, round->here->index, sizeof round->here->index, NULL);
    if (status == GTOPK_OK)
        status = ops->copy(round->device, set->value, round->here->value, sizeof round->here->value, NULL);
    if (status == GTOPK_OK)
        status = ops->copy(round->device, set->count, &round->here->count, sizeof round->here->count, NULL);
    return status == GTOPK_OK ? ops->synchronize(round->device, NULL) : status;
}

static gtopk_status_t allocate(round_t *round)
{
    device_t *device = round->device;
    void *message = NULL, *words = NULL, *here = NULL;
    gtopk_status_t status = device->ops->allocate(device, capacity(), "a message to be timed", &message);
    round->message = message;
    if (status == GTOPK_OK)
        status = device->ops->allocate(device, sizeof *round->words, "words", &words);
    round->words = words;
    if (status == GTOPK_OK)
        status = device->ops->allocate_pinned(device, sizeof *round->here, "a set to be timed", &here);
    round->here = here;
    device_set_t *sets[] = {&round->mine, &round->theirs, &round->decoded, &round->incoming, &round->kept};
    for (size_t i = 0; i < sizeof sets / sizeof *sets && status == GTOPK_OK; i++)
        status = set_allocate(device, sets[i], SET);
    return status == GTOPK_OK ? set_allocate_union(device, &round->all, SET, SET) : status;
}

/* What failed may have left something in the stream that needs all of it. */
static void release(round_t *round)
{
    device_t *device = round->device;
    device_set_t *sets[] = {&round->mine, &round->theirs, &round->decoded, &round->incoming, &round->kept, &round->all};
    (void)device->ops->synchronize(device, NULL);
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        set_release(device, sets[i]);
    device->ops->release(device, round->message);
    device->ops->release(device, round->words);
    device->ops->release_pinned(device, round->here);
}

static gtopk_status_t prepare(round_t *round)
{
    gtopk_status_t status = allocate(round);
    if (status == GTOPK_OK)
        status = fill(round, &round->mine, 512);
    if (status == GTOPK_OK)
        status = fill(round, &round->theirs, 1024);
    if (status != GTOPK_OK)
        return status;
    round->here->words = (device_words_t){.ok = 1};
    return round->device->ops->copy(round->device, round->words, &round->here->words, sizeof *round->words, NULL);
}

static gtopk_status_t take(round_t *round)
{
    const device_ops_t *ops = round->device->ops;
    const wire_header_t header = {
        .value_type = GTOPK_VALUE_BF16, .algorithm = GTOPK_ALGORITHM_GTOPK, .k = SET, .dim = DIM, .scale = 1.0f};
    const wire_expect_t expect = {
        .value_type = GTOPK_VALUE_BF16, .algorithm = GTOPK_ALGORITHM_GTOPK, .k = SET, .dim = DIM};
    gtopk_status_t status = ops->encode(round->device, &round->mine, &header, round->message, &round->decoded,
                                        round->words, NULL);
    if (status == GTOPK_OK)
        status = ops->decode(round->device, round->message, capacity(), &expect, &round->incoming, round->words, NULL);
    if (status == GTOPK_OK)
        status = ops->merge(round->device, &round->theirs, &round->incoming, SET, &round->kept, &round->all,
                            round->words, NULL);
    return status == GTOPK_OK ? ops->synchronize(round->device, NULL) : status;
}

gtopk_status_t probe_merge(device_t *device, double *entry_s)
{
    round_t round = {.device = device};
    double best = INFINITY;
    gtopk_status_t status = prepare(&round);
    for (int i = 0; i < TIMES && status == GTOPK_OK; i++) {
        const double start = clock_now();
        status = take(&round);
        if (i > 0)
            best = fmin(best, clock_now() - start);
    }
    *entry_s = best / SET;
    release(&round);
    return status;
}
