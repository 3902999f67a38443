/* Residuals in shares. */
#include "core/shares.h"

#include <string.h>

#include "core/reducer.h"
#include "exchange/collective.h"
#include "util/memory.h"

/* ---- life ---- */

static size_t bits_bytes(size_t count)
{
    return (count + 7) / 8;
}

static int bit_is_set(const uint8_t *bits, size_t i)
{
    return bits[i / 8] >> (i % 8) & 1;
}

gtopk_status_t shares_create(shares_t **out, const places_map_t *map, int32_t rank, uint64_t dim, size_t segments)
{
    shares_t *shares;
    gtopk_status_t status = memory_alloc(&shares, 1, sizeof *shares, "the shares of a node");
    if (status != GTOPK_OK)
        return status;
    status = memory_alloc(&shares->ranks, 2 * (size_t)map->size, sizeof *shares->ranks, "the places of shares");
    if (status == GTOPK_OK)
        status = memory_alloc(&shares->parts, segments, sizeof *shares->parts, "the parts of a step");
    if (status == GTOPK_OK)
        status = memory_alloc(&shares->given, bits_bytes(segments), 1, "the segments of a step");
    if (status == GTOPK_OK)
        status = memory_alloc(&shares->anywhere, bits_bytes(segments), 1, "the segments of a step");
    if (status != GTOPK_OK) {
        shares_destroy(shares, NULL);
        return status;
    }
    shares->node = places_of_node(map, rank, shares->ranks);
    shares->peers = places_of_peers(map, rank, shares->ranks + map->size);
    const uint64_t size = (uint64_t)shares->node.size, place = (uint64_t)shares->node.place;
    shares->dim = dim;
    shares->length = (dim + size - 1) / size;
    shares->begin = place * shares->length < dim ? place * shares->length : dim;
    shares->end = dim - shares->begin < shares->length ? dim : shares->begin + shares->length;
    shares->segments = segments;
    *out = shares;
    return GTOPK_OK;
}

void shares_destroy(shares_t *shares, device_t *device)
{
    if (!shares)
        return;
    scatter_destroy(shares->scatter);
    if (shares->pending)
        device->ops->release(device, shares->pending);
    memory_free(shares->parts);
    memory_free(shares->given);
    memory_free(shares->anywhere);
    memory_free(shares->ranks);
    memory_free(shares);
}

/* ---- ranges of entries ---- */

typedef struct range {
    uint64_t begin, end;
} range_t;

/* What of [at, at + length) is in this rank's share. */
static range_t own_range(const shares_t *shares, uint64_t at, uint64_t length)
{
    const uint64_t begin = at > shares->begin ? at : shares->begin;
    const uint64_t end = at + length < shares->end ? at + length : shares->end;
    return (range_t){begin, end > begin ? end : begin};
}

/* ---- what is pending ---- */

static gtopk_status_t pending_open(gtopk_reducer_t *reducer)
{
    shares_t *shares = reducer->shares;
    void *block = NULL;
    if (shares->pending)
        return GTOPK_OK;
    const gtopk_status_t status = reducer->device->ops->allocate(
        reducer->device, shares->dim * sizeof *shares->pending, "what was accumulated for other ranks' shares", &block);
    shares->pending = block;
    return status;
}

static gtopk_status_t pending_add(gtopk_reducer_t *reducer, const device_span_t *spans, size_t count, float scale,
                                  int zero_input, void *stream)
{
    const device_stage_t params = {.scale = scale, .zero_input = zero_input, .add = 1};
    const gtopk_status_t status = pending_open(reducer);
    if (status != GTOPK_OK)
        return status;
    reducer->shares->pending_holds = 1;
    return reducer->device->ops->stage(reducer->device, spans, count, &params, reducer->shares->pending, stream);
}

/* With zeros. */
static gtopk_status_t pending_fill(gtopk_reducer_t *reducer, uint64_t at, uint64_t length, void *stream)
{
    const device_span_t nothing = {.offset = at, .length = length};
    const device_stage_t params = {.scale = 1.0f};
    return reducer->device->ops->stage(reducer->device, &nothing, 1, &params, reducer->shares->pending, stream);
}

static gtopk_status_t pending_clear(gtopk_reducer_t *reducer, void *stream)
{
    if (!reducer->shares->pending_holds)
        return GTOPK_OK;
    reducer->shares->pending_holds = 0;
    return pending_fill(reducer, 0, reducer->shares->dim, stream);
}

/* ---- one step ---- */

gtopk_status_t shares_give(gtopk_reducer_t *reducer, const uint32_t *which, size_t count,
                           const device_accumulate_t *params, int stays, void *stream)
{
    shares_t *shares = reducer->shares;
    const device_span_t *spans = reducer->segments.spans;
    if (params->found_inf)
        return reducer->device->ops->accumulate(reducer->store, NULL, 0, params, reducer->words, stream);
    for (size_t i = 0; i < count; i++) {
        const size_t s = which ? which[i] : i;
        shares->given[s / 8] |= (uint8_t)(1u << (s % 8));
        if (stays)
            shares->parts[s] = (scatter_part_t){spans[i], params->scale, params->zero_input};
    }
    if (stays || count == 0)
        return GTOPK_OK;
    shares->copied = 1;
    return pending_add(reducer, spans, count, params->scale, params->zero_input, stream);
}

static gtopk_status_t keep_parts(gtopk_reducer_t *reducer, void *stream)
{
    shares_t *shares = reducer->shares;
    gtopk_status_t status = GTOPK_OK;
    for (size_t s = 0; s < shares->segments && status == GTOPK_OK; s++) {
        const scatter_part_t *part = &shares->parts[s];
        if (part->span.data)
            status = pending_add(reducer, &part->span, 1, part->scale, part->zero_input, stream);
        shares->parts[s] = (scatter_part_t){.scale = 0.0f};
    }
    return status;
}

/* Parts of segments that nothing came for have their place, too: the list is in order. */
static void place_parts(gtopk_reducer_t *reducer)
{
    for (size_t s = 0; s < reducer->shares->segments; s++)
        if (!reducer->shares->parts[s].span.data)
            reducer->shares->parts[s].span = (device_span_t){.offset = reducer->segments.offsets[s],
                                                             .length = reducer->segments.lengths[s]};
}

gtopk_status_t shares_sum(gtopk_reducer_t *reducer, const exchange_step_t *step, float **sum)
{
    shares_t *shares = reducer->shares;
    gtopk_status_t status = GTOPK_OK;
    if (reducer->record.momentum_correction) {
        memcpy(shares->anywhere, shares->given, bits_bytes(shares->segments));
        status = collective_union(&reducer->comm->link, &shares->node, shares->anywhere, bits_bytes(shares->segments));
    }
    if (status == GTOPK_OK && !shares->pending_holds) {
        place_parts(reducer);
        return scatter_run(shares->scatter, step, shares->parts, shares->segments, sum);
    }
    if (status == GTOPK_OK)
        status = keep_parts(reducer, step->stream);
    const scatter_part_t all = {.span = {.length = shares->dim, .data = shares->pending}, .scale = 1.0f};
    return status == GTOPK_OK ? scatter_run(shares->scatter, step, &all, 1, sum) : status;
}

/* Spans of the share, one a segment: without data where no rank gave any, so that its velocity stays. */
static size_t spans_by_segment(gtopk_reducer_t *reducer, float *sum)
{
    const shares_t *shares = reducer->shares;
    const segments_t *segments = &reducer->segments;
    size_t count = 0;
    for (size_t s = 0; s < segments->count; s++) {
        const range_t range = own_range(shares, segments->offsets[s], segments->lengths[s]);
        const uint64_t at = range.begin - shares->begin;
        if (range.end > range.begin)
            segments->spans[count++] = (device_span_t){
                .offset = at,
                .length = range.end - range.begin,
                .data = bit_is_set(shares->anywhere, s) ? sum + at : NULL,
            };
    }
    return count;
}

gtopk_status_t shares_take(gtopk_reducer_t *reducer, const exchange_step_t *step, float *sum)
{
    const device_span_t share = {.length = reducer->shares->length, .data = sum};
    const int by_segment = reducer->record.momentum_correction;
    const size_t count = by_segment ? spans_by_segment(reducer, sum) : 1;
    const device_accumulate_t params = {
        .scale = 1.0f,
        .momentum = reducer->momentum,
        .nesterov = reducer->nesterov,
    };
    gtopk_status_t status = reducer->device->ops->accumulate(
        reducer->store, by_segment ? reducer->segments.spans : &share, count, &params, reducer->words, step->stream);
    if (status == GTOPK_OK && reducer->record.rollback)
        status = reducer->device->ops->swap(reducer->store, step->stream);
    reducer->settled = status == GTOPK_OK;
    return status == GTOPK_OK ? pending_clear(reducer, step->stream) : status;
}

gtopk_status_t shares_keep(gtopk_reducer_t *reducer)
{
    if (!reducer->record.rollback)
        return keep_parts(reducer, reducer->stream);
    memset(reducer->shares->parts, 0, reducer->shares->segments * sizeof *reducer->shares->parts);
    return pending_clear(reducer, reducer->stream);
}

void shares_end(gtopk_reducer_t *reducer)
{
    shares_t *shares = reducer->shares;
    memset(shares->parts, 0, shares->segments * sizeof *shares->parts);
    /* Tensors that stay take no memory but now and then. The verdict has come since it was cleared, if all went well. */
    if (shares->pending && !shares->pending_holds && !shares->copied && reducer->comm->link.broken == GTOPK_OK) {
        reducer->device->ops->release(reducer->device, shares->pending);
        shares->pending = NULL;
    }
    shares->copied = 0;
    if (!shares->pending_holds)
        memset(shares->given, 0, bits_bytes(shares->segments));
}

/* ---- arrays ---- */

/* Adds what is pending to values on the host. */
static gtopk_status_t pending_read(gtopk_reducer_t *reducer, uint64_t at, uint64_t length, float *out)
{
    const device_ops_t *ops = reducer->device->ops;
    const uint64_t most = length < REDUCER_PART ? length : REDUCER_PART;
    void *block = NULL;
    gtopk_status_t status = ops->allocate_pinned(reducer->device, most * sizeof(float), "a part of a residual", &block);
    for (uint64_t done = 0; done < length && status == GTOPK_OK; done += most) {
        const size_t bytes = (size_t)(length - done < most ? length - done : most) * sizeof(float);
        status = ops->copy(reducer->device, block, reducer->shares->pending + at + done, bytes, reducer->stream);
        if (status == GTOPK_OK)
            status = ops->synchronize(reducer->device, reducer->stream);
        for (size_t i = 0; i < bytes / sizeof(float) && status == GTOPK_OK; i++)
            out[done + i] += ((const float *)block)[i];
    }
    ops->release_pinned(reducer->device, block);
    return status;
}

gtopk_status_t shares_read(gtopk_reducer_t *reducer, int which, uint64_t at, uint64_t length, float *out)
{
    const shares_t *shares = reducer->shares;
    const range_t own = own_range(shares, at, length);
    gtopk_status_t status = GTOPK_OK;
    if (length > 0)
        memset(out, 0, (size_t)length * sizeof *out);
    if (own.end > own.begin)
        status = reducer->device->ops->store_read(reducer->store, which, own.begin - shares->begin, own.end - own.begin,
                                                  out + (own.begin - at), reducer->stream);
    if (status == GTOPK_OK && which == DEVICE_RESIDUAL && shares->pending_holds && length > 0)
        status = pending_read(reducer, at, length, out);
    return status;
}

gtopk_status_t shares_write(gtopk_reducer_t *reducer, int which, uint64_t at, uint64_t length, const float *in)
{
    const shares_t *shares = reducer->shares;
    const range_t own = own_range(shares, at, length);
    gtopk_status_t status = GTOPK_OK;
    if (which == DEVICE_RESIDUAL && shares->pending_holds && length > 0)
        status = pending_fill(reducer, at, length, reducer->stream);
    if (status == GTOPK_OK && own.end > own.begin)
        status = reducer->device->ops->store_write(reducer->store, which, own.begin - shares->begin,
                                                   own.end - own.begin, in + (own.begin - at), reducer->stream);
    return status;
}
