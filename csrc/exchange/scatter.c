/* The reduce-scatter of a node, in pieces: of each piece every rank sends every other one what is in that one's share. */
#include "exchange/scatter.h"

#include "exchange/message.h"
#include "exchange/node.h"
#include "exchange/sets.h"
#include "util/memory.h"

/* Floats of a piece. Where messages are queued, each takes the host some tens of microseconds, and little time to travel. */
#define PIECE ((uint64_t)1 << 18)
#define PIECE_QUEUED ((uint64_t)1 << 20)

struct scatter {
    exchange_setup_t setup;
    uint64_t dim;
    uint64_t piece; /* floats, if there are as many */
    uint64_t most;  /* those of the longest piece */
    uint8_t *out;   /* a message */
    uint8_t *in;    /* one of each place, headers included; this rank's own part among them */
    float *sum;
    device_set_t nothing, decoded; /* for headers that the device writes and judges */
};

/* ---- life ---- */

/* Parts are aligned as messages are. */
static size_t message_bytes(const scatter_t *scatter)
{
    return WIRE_HEADER_SIZE + ((size_t)scatter->most * sizeof(float) + 63) / 64 * 64;
}

void scatter_destroy(scatter_t *scatter)
{
    if (!scatter)
        return;
    message_release(&scatter->setup, scatter->out);
    message_release(&scatter->setup, scatter->in);
    scatter->setup.device->ops->release(scatter->setup.device, scatter->sum);
    set_release(scatter->setup.device, &scatter->nothing);
    set_release(scatter->setup.device, &scatter->decoded);
    memory_free(scatter);
}

gtopk_status_t scatter_create(scatter_t **out, const exchange_setup_t *setup, uint64_t dim)
{
    scatter_t *scatter;
    const uint64_t share = setup->config.dim;
    gtopk_status_t status = memory_alloc(&scatter, 1, sizeof *scatter, "the sums of a node");
    if (status != GTOPK_OK)
        return status;
    scatter->setup = *setup;
    scatter->dim = dim;
    scatter->piece = message_transport(setup)->ops->stream_ordered ? PIECE_QUEUED : PIECE;
    scatter->most = share < scatter->piece ? share : scatter->piece;
    const size_t bytes = message_bytes(scatter);
    void *sum = NULL;
    status = message_allocate(setup, bytes, "a send buffer", &scatter->out);
    if (status == GTOPK_OK)
        status = message_allocate(setup, bytes * (size_t)setup->places.size, "receive buffers", &scatter->in);
    if (status == GTOPK_OK)
        status = setup->device->ops->allocate(setup->device, (size_t)share * sizeof(float), "the node's sum of a share",
                                              &sum);
    scatter->sum = sum;
    if (status == GTOPK_OK)
        status = set_allocate(setup->device, &scatter->nothing, 0);
    if (status == GTOPK_OK)
        status = set_allocate(setup->device, &scatter->decoded, 0);
    if (status != GTOPK_OK) {
        scatter_destroy(scatter);
        return status;
    }
    *out = scatter;
    return GTOPK_OK;
}

/* ---- pieces ---- */

/* Entries [begin, end) of all. */
typedef struct range {
    uint64_t begin, end;
} range_t;

static range_t piece_of(const scatter_t *scatter, int32_t place, uint64_t piece)
{
    const uint64_t share = scatter->setup.config.dim, first = (uint64_t)place * share;
    const uint64_t begin = first + piece * scatter->piece;
    const uint64_t end = set_at_most(begin + scatter->piece, first + share);
    return (range_t){set_at_most(begin, scatter->dim), set_at_most(end, scatter->dim)};
}

static float *floats_of(const scatter_t *scatter, int32_t place)
{
    return (float *)(void *)(scatter->in + (size_t)place * message_bytes(scatter) + WIRE_HEADER_SIZE);
}

/* The first part that ends behind `at`. */
static size_t find(const scatter_part_t *parts, size_t count, uint64_t at)
{
    size_t low = 0, high = count;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (parts[middle].span.offset + parts[middle].span.length <= at)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

#define SPANS 64

/* Writes what this rank gives for a range; parts that are alike go to the device together. */
static gtopk_status_t stage(const scatter_t *scatter, const exchange_step_t *step, const scatter_part_t *parts,
                            size_t count, range_t range, float *out)
{
    device_t *device = scatter->setup.device;
    const device_span_t whole = {.length = range.end - range.begin};
    device_stage_t params = {.scale = 1.0f};
    device_span_t spans[SPANS];
    size_t held = 0, i = find(parts, count, range.begin);
    /* Parts that cover the range leave nothing to be cleared. */
    uint64_t covered = 0;
    for (size_t j = i; j < count && parts[j].span.offset < range.end; j++)
        covered += parts[j].span.data ? device_span_part(&parts[j].span, range.begin, range.end).length : 0;
    gtopk_status_t status = covered == whole.length ? GTOPK_OK
                                                    : device->ops->stage(device, &whole, 1, &params, out, step->stream);
    for (; i < count && parts[i].span.offset < range.end && status == GTOPK_OK; i++) {
        const scatter_part_t *part = &parts[i];
        if (!part->span.data || part->span.length == 0)
            continue;
        const int alike = part->scale == params.scale && part->zero_input == params.zero_input;
        if (held == SPANS || (held > 0 && !alike)) {
            status = device->ops->stage(device, spans, held, &params, out, step->stream);
            held = 0;
        }
        params = (device_stage_t){.scale = part->scale, .zero_input = part->zero_input};
        spans[held++] = device_span_part(&part->span, range.begin, range.end);
    }
    return status == GTOPK_OK && held > 0 ? device->ops->stage(device, spans, held, &params, out, step->stream)
                                          : status;
}

/* ---- messages ---- */

/* Of a message without entries. */
static message_bounds_t nothing_of(const exchange_setup_t *setup)
{
    return (message_bounds_t){setup->config.dim, 0};
}

/* Where the host writes headers, a piece is a message of bytes; where it does not, a message without entries stands before
 * the floats. */
static gtopk_status_t address(scatter_t *scatter, const exchange_step_t *step, uint64_t piece, size_t bytes)
{
    const exchange_setup_t *setup = &scatter->setup;
    wire_header_t header = message_header(setup, step, NODE_PIECE(piece), nothing_of(setup));
    header.flags = 0; /* floats stand where the tail would be */
    if (message_transport(setup)->ops->stream_ordered)
        return setup->device->ops->encode(setup->device, &scatter->nothing, &header, scatter->out, &scatter->decoded,
                                          step->words, step->stream);
    header.value_type = WIRE_VALUE_BYTES;
    header.algorithm = WIRE_REDUCE_SCATTER;
    header.count = (uint32_t)bytes;
    wire_header_write(&header, scatter->out);
    return GTOPK_OK;
}

static gtopk_status_t check_length(int32_t from, const wire_header_t *got, size_t bytes)
{
    if (got->count == bytes)
        return GTOPK_OK;
    return status_set(GTOPK_ERR_DESYNC,
                      "rank %d sent %u bytes where %zu were awaited: give the same lengths on all ranks", (int)from,
                      got->count, bytes);
}

/* Sends the message to one place and receives that of another one. A side without floats has no message. */
static gtopk_status_t carry(scatter_t *scatter, const exchange_step_t *step, uint64_t piece, int32_t to,
                            size_t to_bytes, int32_t from, size_t from_bytes)
{
    const exchange_setup_t *setup = &scatter->setup;
    const int queued = message_transport(setup)->ops->stream_ordered;
    const int32_t *ranks = setup->places.ranks;
    uint8_t *in = scatter->in + (size_t)from * message_bytes(scatter);
    wire_expect_t expect = message_expect(setup, step, from, NODE_PIECE(piece), nothing_of(setup));
    expect.tail = 0;
    wire_header_t got = {.count = (uint32_t)from_bytes};
    const link_message_t message = {
        .to = to_bytes > 0 ? ranks[to] : TRANSPORT_NONE,
        .from = from_bytes > 0 ? ranks[from] : TRANSPORT_NONE,
        .send = scatter->out,
        .send_capacity = WIRE_HEADER_SIZE + to_bytes,
        .receive = in,
        .receive_capacity = WIRE_HEADER_SIZE + from_bytes,
    };
    if (to_bytes == 0 && from_bytes == 0)
        return GTOPK_OK;
    if (!queued) {
        expect.value_type = WIRE_VALUE_BYTES;
        expect.algorithm = WIRE_REDUCE_SCATTER;
    }
    gtopk_status_t status = message_flush(setup, step);
    if (status == GTOPK_OK)
        status = link_exchange(setup->link, message_transport(setup), &message, step->deadline, &expect, &got,
                               step->stream);
    if (status != GTOPK_OK || from_bytes == 0)
        return status;
    if (!queued)
        return check_length(ranks[from], &got, from_bytes);
    return setup->device->ops->decode(setup->device, in, WIRE_HEADER_SIZE, &expect, &scatter->decoded, step->words,
                                      step->stream);
}

static gtopk_status_t add_piece(scatter_t *scatter, const exchange_step_t *step, const scatter_part_t *parts,
                                size_t count, uint64_t piece)
{
    const exchange_setup_t *setup = &scatter->setup;
    const int32_t size = setup->places.size, place = setup->places.place;
    const range_t mine = piece_of(scatter, place, piece);
    const size_t my_bytes = (size_t)(mine.end - mine.begin) * sizeof(float);
    gtopk_status_t status = stage(scatter, step, parts, count, mine, floats_of(scatter, place));
    for (int32_t shift = 1; shift < size && status == GTOPK_OK; shift++) {
        const int32_t to = (place + shift) % size, from = (place - shift + size) % size;
        const range_t theirs = piece_of(scatter, to, piece);
        const size_t bytes = (size_t)(theirs.end - theirs.begin) * sizeof(float);
        status = stage(scatter, step, parts, count, theirs, (float *)(void *)(scatter->out + WIRE_HEADER_SIZE));
        if (status == GTOPK_OK)
            status = address(scatter, step, piece, bytes);
        if (status == GTOPK_OK)
            status = carry(scatter, step, piece, to, bytes, from, my_bytes);
        if (status != GTOPK_OK)
            return status_prefix(status, "step %llu, sum of the node", (unsigned long long)step->number);
    }
    if (status != GTOPK_OK || my_bytes == 0)
        return status;
    return setup->device->ops->add_up(setup->device, floats_of(scatter, 0), message_bytes(scatter) / sizeof(float),
                                      (uint32_t)size, scatter->sum + piece * scatter->piece, mine.end - mine.begin,
                                      step->stream);
}

gtopk_status_t scatter_run(scatter_t *scatter, const exchange_step_t *step, const scatter_part_t *parts, size_t count,
                           float **sum)
{
    const uint64_t pieces = (scatter->setup.config.dim + scatter->piece - 1) / scatter->piece;
    gtopk_status_t status = GTOPK_OK;
    *sum = scatter->sum;
    for (uint64_t piece = 0; piece < pieces && status == GTOPK_OK; piece++)
        status = add_piece(scatter, step, parts, count, piece);
    return status;
}
