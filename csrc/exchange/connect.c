/* The first messages of a new data transport: to all partners at once, and a sum over all ranks. They show that it works,
 * and the first step need not wait for connections. */
#include <string.h>

#include "exchange/exchange.h"
#include "exchange/schedule.h"
#include "util/memory.h"

/* Partners in the butterfly, which has those of the tree, too; at most one a bit of the rank, and one beyond the butterfly. */
static size_t find_partners(int32_t size, int32_t rank, int32_t partners[SCHEDULE_MAX_ROUNDS])
{
    schedule_t schedules[2];
    size_t count = 0;
    schedule_butterfly(&schedules[0], size, rank);
    schedule_tree(&schedules[1], size, rank);
    for (size_t s = 0; s < 2; s++)
        for (uint32_t r = 0; r < schedules[s].count; r++) {
            size_t i = 0;
            while (i < count && partners[i] != schedules[s].rounds[r].peer)
                i++;
            partners[i] = schedules[s].rounds[r].peer;
            count = i < count ? count : i + 1;
        }
    return count;
}

/* What lies in device memory, and in pinned memory for the host. */
typedef struct greeting {
    float sum;
    char unused[TRANSPORT_GREETING - sizeof(float)];
    struct {
        int32_t rank;
        char unused[TRANSPORT_GREETING - sizeof(int32_t)];
    } sent[SCHEDULE_MAX_ROUNDS], received[SCHEDULE_MAX_ROUNDS];
} greeting_t;

static gtopk_status_t greet(device_t *device, link_t *link, greeting_t *there, greeting_t *here, double deadline)
{
    const device_ops_t *ops = device->ops;
    transport_t *data = link->data;
    int32_t partners[SCHEDULE_MAX_ROUNDS];
    const size_t count = find_partners(data->size, data->rank, partners);
    here->sum = (float)(data->rank + 1);
    for (size_t i = 0; i < count; i++)
        here->sent[i].rank = data->rank;
    gtopk_status_t status = ops->copy(device, there, here, sizeof *here, NULL);
    if (status == GTOPK_OK && data->ops->connect)
        status = data->ops->connect(data, partners, count, there->sent, there->received, deadline, NULL);
    if (status == GTOPK_OK)
        status = data->ops->allreduce(data, &there->sum, 1, deadline, NULL);
    if (status == GTOPK_OK)
        status = link_finish(link, deadline);
    if (status == GTOPK_OK)
        status = ops->copy(device, here, there, sizeof *here, NULL);
    if (status == GTOPK_OK)
        status = ops->synchronize(device, NULL);
    for (size_t i = 0; i < count && status == GTOPK_OK && data->ops->connect; i++)
        if (here->received[i].rank != partners[i])
            status = status_set(GTOPK_ERR_TRANSPORT, "%s brings this rank something else than what rank %d sent",
                                data->ops->name, (int)partners[i]);
    const float all = (float)(0.5 * data->size * (data->size + 1.0));
    if (status == GTOPK_OK && here->sum != all && data->size < 5000) /* beyond that a sum of floats need not be exact */
        status = status_set(GTOPK_ERR_TRANSPORT, "%s adds the ranks' numbers up to %g, not to %g", data->ops->name,
                            (double)here->sum, (double)all);
    return status;
}

gtopk_status_t exchange_connect(device_t *device, link_t *link, double deadline)
{
    const device_ops_t *ops = device->ops;
    void *there = NULL, *here = NULL;
    gtopk_status_t status = ops->allocate(device, sizeof(greeting_t), "a greeting", &there);
    if (status == GTOPK_OK)
        status = ops->allocate_pinned(device, sizeof(greeting_t), "a greeting", &here);
    if (status == GTOPK_OK)
        status = greet(device, link, there, here, deadline);
    if (status != GTOPK_OK && !link_give_up(link))
        return status; /* what may still be written to stays */
    ops->release(device, there);
    ops->release_pinned(device, here);
    return status;
}
