/* The residual as its owner may look at it and set it, segment by segment, and its norm. */
#include <math.h>

#include "core/reducer.h"
#include "util/memory.h"

gtopk_status_t reducer_read(gtopk_reducer_t *reducer, int which, uint64_t at, uint64_t length, float *out)
{
    return reducer->shares ? shares_read(reducer, which, at, length, out)
                           : reducer->device->ops->store_read(reducer->store, which, at, length, out, reducer->stream);
}

gtopk_status_t reducer_write(gtopk_reducer_t *reducer, int which, uint64_t at, uint64_t length, const float *in)
{
    return reducer->shares ? shares_write(reducer, which, at, length, in)
                           : reducer->device->ops->store_write(reducer->store, which, at, length, in, reducer->stream);
}

static gtopk_status_t check_segment(const gtopk_reducer_t *reducer, uint32_t segment, const void *data, uint64_t length)
{
    if (segment >= reducer->segments.count)
        return status_set(GTOPK_ERR_INVALID, "segment %u does not exist: the reducer has %zu", segment,
                          reducer->segments.count);
    if (length != reducer->segments.lengths[segment] || (length > 0 && !data))
        return status_set(GTOPK_ERR_INVALID, "segment %u has %llu entries, the array has %llu", segment,
                          (unsigned long long)reducer->segments.lengths[segment],
                          data ? (unsigned long long)length : 0ull);
    return GTOPK_OK;
}

static gtopk_status_t check_has(const gtopk_reducer_t *reducer, int which)
{
    if (which == DEVICE_RESIDUAL || reducer->record.momentum_correction)
        return GTOPK_OK;
    return status_set(GTOPK_ERR_STATE, "this reducer has no velocity: create it with momentum correction");
}

/* Of an array as it is in the middle of a step: what was accumulated is not yet where the residual is. */
static gtopk_status_t read_array(gtopk_reducer_t *reducer, int which, uint32_t segment, float *out, uint64_t length)
{
    const device_ops_t *ops = reducer->device->ops;
    const int written = reducer->record.rollback && reducer->in_step && reducer->segments.seen[segment] &&
                        !reducer->shares;
    gtopk_status_t status = written ? ops->swap(reducer->store, reducer->stream) : GTOPK_OK;
    if (status != GTOPK_OK)
        return status;
    status = reducer_read(reducer, which, reducer->segments.offsets[segment], length, out);
    const gtopk_status_t back = written ? ops->swap(reducer->store, reducer->stream) : GTOPK_OK;
    return status == GTOPK_OK ? back : status;
}

static gtopk_status_t read_segment(gtopk_reducer_t *reducer, int which, uint32_t segment, float *out, uint64_t length)
{
    gtopk_status_t status = reducer_enter(reducer);
    if (status != GTOPK_OK)
        return status;
    status = check_has(reducer, which);
    if (status == GTOPK_OK)
        status = check_segment(reducer, segment, out, length);
    if (status == GTOPK_OK)
        status = read_array(reducer, which, segment, out, length);
    reducer_leave(reducer);
    return status;
}

static gtopk_status_t write_segment(gtopk_reducer_t *reducer, int which, uint32_t segment, const float *in,
                                    uint64_t length, const char *call)
{
    gtopk_status_t status = reducer_enter(reducer);
    if (status != GTOPK_OK)
        return status;
    status = reducer_check_between_steps(reducer, call);
    if (status == GTOPK_OK)
        status = check_has(reducer, which);
    if (status == GTOPK_OK)
        status = check_segment(reducer, segment, in, length);
    for (uint64_t i = 0; i < length && status == GTOPK_OK; i++)
        if (!isfinite(in[i]))
            status = status_set(GTOPK_ERR_INVALID, "entry %llu is %g: a %s holds finite values", (unsigned long long)i,
                                (double)in[i], which == DEVICE_VELOCITY ? "velocity" : "residual");
    if (status == GTOPK_OK)
        status = reducer_write(reducer, which, reducer->segments.offsets[segment], length, in);
    reducer_leave(reducer);
    return status;
}

gtopk_status_t gtopk_reducer_residual(gtopk_reducer_t *reducer, uint32_t segment, float *out, uint64_t length)
{
    return read_segment(reducer, DEVICE_RESIDUAL, segment, out, length);
}

gtopk_status_t gtopk_reducer_set_residual(gtopk_reducer_t *reducer, uint32_t segment, const float *in, uint64_t length)
{
    return write_segment(reducer, DEVICE_RESIDUAL, segment, in, length, "gtopk_reducer_set_residual");
}

gtopk_status_t gtopk_reducer_velocity(gtopk_reducer_t *reducer, uint32_t segment, float *out, uint64_t length)
{
    return read_segment(reducer, DEVICE_VELOCITY, segment, out, length);
}

gtopk_status_t gtopk_reducer_set_velocity(gtopk_reducer_t *reducer, uint32_t segment, const float *in, uint64_t length)
{
    return write_segment(reducer, DEVICE_VELOCITY, segment, in, length, "gtopk_reducer_set_velocity");
}

/* Of a residual in shares to which something pending belongs: by way of the host. */
static gtopk_status_t square_of_parts(gtopk_reducer_t *reducer, double *sum)
{
    enum { PART = 1 << 16 };
    float *part;
    gtopk_status_t status = memory_alloc(&part, PART, sizeof *part, "a part of a residual");
    for (uint64_t at = 0; at < reducer->record.dim && status == GTOPK_OK; at += PART) {
        const uint64_t length = reducer->record.dim - at < PART ? reducer->record.dim - at : PART;
        status = reducer_read(reducer, DEVICE_RESIDUAL, at, length, part);
        for (uint64_t i = 0; i < length && status == GTOPK_OK; i++)
            *sum += (double)part[i] * (double)part[i];
    }
    memory_free(part);
    return status;
}

gtopk_status_t gtopk_reducer_residual_norm(gtopk_reducer_t *reducer, double *norm)
{
    if (!norm)
        return status_set(GTOPK_ERR_INVALID, "gtopk_reducer_residual_norm needs a place for the result");
    gtopk_status_t status = reducer_enter(reducer);
    if (status != GTOPK_OK)
        return status;
    double sum = 0.0;
    if (reducer->record.rollback)
        status = reducer_check_between_steps(reducer, "gtopk_reducer_residual_norm, with rollback,");
    if (status == GTOPK_OK)
        status = reducer->shares && reducer->shares->pending_holds
                     ? square_of_parts(reducer, &sum)
                     : reducer->device->ops->store_square(reducer->store, &sum, reducer->stream);
    if (status == GTOPK_OK)
        *norm = sqrt(sum);
    reducer_leave(reducer);
    return status;
}
