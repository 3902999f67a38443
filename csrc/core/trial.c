/* Timing steps of a reducer. */
#include "core/trial.h"

#include <math.h>

#include "exchange/collective.h"
#include "util/clock.h"
#include "util/memory.h"

enum { STEPS = 4 }; /* the first of which does not count */

/* A gradient in the device's memory, a tensor of it for each segment, and what all ranks say of a step. */
typedef struct gradient {
    device_t *device;
    float *values, *part; /* part: pinned */
    gtopk_tensor_t *tensors;
    double *seconds; /* of each rank */
} gradient_t;

/* A step that failed may have left something in the stream that reads the gradient. */
static void gradient_destroy(gradient_t *gradient, const gtopk_reducer_t *reducer)
{
    if (!reducer->comm->link.stream_lost) {
        const device_ops_t *ops = gradient->device->ops;
        device_drain(gradient->device, NULL);
        ops->release(gradient->device, gradient->values);
        ops->release_pinned(gradient->device, gradient->part);
    }
    memory_free(gradient->tensors);
    memory_free(gradient->seconds);
}

static gtopk_status_t gradient_create(gradient_t *gradient, const gtopk_reducer_t *reducer)
{
    const device_ops_t *ops = reducer->device->ops;
    const segments_t *segments = &reducer->segments;
    const uint64_t dim = reducer->record.dim;
    void *values = NULL, *part = NULL;
    *gradient = (gradient_t){.device = reducer->device};
    gtopk_status_t status = ops->allocate(reducer->device, dim * sizeof(float), "a gradient to time steps with",
                                          &values);
    gradient->values = values;
    if (status == GTOPK_OK)
        status = ops->allocate_pinned(reducer->device, (dim < REDUCER_PART ? dim : REDUCER_PART) * sizeof(float),
                                      "a part of it", &part);
    gradient->part = part;
    if (status == GTOPK_OK)
        status = memory_alloc(&gradient->tensors, segments->count, sizeof *gradient->tensors, "its tensors");
    if (status == GTOPK_OK)
        status = memory_alloc(&gradient->seconds, (size_t)comm_size(reducer->comm), sizeof *gradient->seconds,
                              "the ranks' times");
    for (size_t s = 0; s < segments->count && status == GTOPK_OK; s++)
        gradient->tensors[s] = (gtopk_tensor_t){gradient->values + segments->offsets[s], segments->lengths[s],
                                                GTOPK_F32, 0};
    return status;
}

/* Cubes of uniform numbers: few are large, as it is with gradients. */
static gtopk_status_t gradient_fill(const gradient_t *gradient, const gtopk_reducer_t *reducer, uint32_t seed)
{
    const device_ops_t *ops = gradient->device->ops;
    gtopk_status_t status = GTOPK_OK;
    uint32_t state = seed * 2654435761u + 1;
    for (uint64_t at = 0; at < reducer->record.dim && status == GTOPK_OK; at += REDUCER_PART) {
        const uint64_t left = reducer->record.dim - at, length = left < REDUCER_PART ? left : REDUCER_PART;
        for (uint64_t i = 0; i < length; i++) {
            state = state * 1664525u + 1013904223u;
            const float x = (float)(int32_t)state * 0x1p-31f;
            gradient->part[i] = x * x * x;
        }
        status = ops->copy(gradient->device, gradient->values + at, gradient->part, length * sizeof(float), NULL);
        if (status == GTOPK_OK)
            status = ops->synchronize(gradient->device, NULL);
    }
    return status;
}

static gtopk_status_t time_step(gtopk_reducer_t *reducer, const gradient_t *gradient, double *seconds)
{
    const size_t count = reducer->segments.count;
    gtopk_status_t status = gtopk_barrier(reducer->comm);
    const double start = clock_now();
    if (status == GTOPK_OK)
        status = gtopk_reducer_accumulate(reducer, NULL, gradient->tensors, count, 1.0,
                                          GTOPK_ZERO_INPUT | GTOPK_INPUT_STAYS, NULL);
    if (status == GTOPK_OK)
        status = gtopk_reducer_reduce(reducer, gradient->tensors, count, GTOPK_OUTPUT_IS_ZERO, NULL, NULL);
    if (status == GTOPK_OK)
        status = gtopk_reducer_wait(reducer, NULL);
    *seconds = clock_now() - start;
    return status;
}

/* The longest time of any rank. */
static gtopk_status_t slowest(gtopk_comm_t *comm, double mine, double *all, double *seconds)
{
    const gtopk_status_t status = gtopk_allgather(comm, &mine, sizeof mine, all);
    *seconds = 0.0;
    for (int32_t r = 0; r < comm_size(comm) && status == GTOPK_OK; r++)
        *seconds = fmax(*seconds, all[r]);
    return status;
}

/* What one rank cannot do alone is an error on all. */
static gtopk_status_t agree(gtopk_comm_t *comm, gtopk_status_t mine)
{
    gtopk_status_t status = comm_enter(comm);
    if (status != GTOPK_OK)
        return status;
    status = comm_agree(comm, mine, "timing steps");
    comm_leave(comm);
    return status;
}

gtopk_status_t trial_time(gtopk_reducer_t *reducer, double *seconds)
{
    gtopk_comm_t *comm = reducer->comm;
    gradient_t gradient;
    double best = INFINITY, taken = 0.0;
    gtopk_status_t status = agree(comm, gradient_create(&gradient, reducer));
    for (int step = 0; step < STEPS && status == GTOPK_OK; step++) {
        status = gradient_fill(&gradient, reducer, (uint32_t)(step * comm_size(comm) + comm_rank(comm)));
        if (status != GTOPK_OK)
            status = reducer_lose(reducer, status); /* the others would wait */
        if (status == GTOPK_OK)
            status = time_step(reducer, &gradient, &taken);
        if (status == GTOPK_OK && step > 0)
            best = fmin(best, taken);
    }
    if (status == GTOPK_OK)
        status = slowest(comm, best, gradient.seconds, seconds);
    gradient_destroy(&gradient, reducer);
    return status;
}
