/* Collectives on plain bytes. Data travels in pieces of at most PIECE bytes behind a header each. */
#include "exchange/collective.h"

#include <string.h>

#include "util/memory.h"

#define PIECE LINK_PIECE

/* Both sides of one collective's messages, in the link's own buffers. */
typedef struct mailbox {
    link_t *link;
    transport_t *transport; /* one that moves host memory */
    uint8_t algorithm;
    uint32_t total; /* low 32 bits of the whole length: the same on all ranks */
    uint64_t step;
    double deadline;
} mailbox_t;

static mailbox_t mailbox_open(link_t *link, transport_t *transport, uint8_t algorithm, size_t total)
{
    return (mailbox_t){
        .link = link,
        .transport = transport,
        .algorithm = algorithm,
        .total = (uint32_t)(total & UINT32_MAX),
        .step = link->sequence++,
        .deadline = link_deadline(link),
    };
}

/* The bytes that the latest exchange received. */
static const uint8_t *mailbox_received(const mailbox_t *box)
{
    return box->link->box_in + WIRE_HEADER_SIZE;
}

/* Sends `out_bytes` (at most PIECE) of `out` to one rank and receives `in_bytes` from one. */
static gtopk_status_t mailbox_exchange(const mailbox_t *box, uint32_t piece, int32_t to, const void *out,
                                       size_t out_bytes, int32_t from, size_t in_bytes)
{
    link_t *link = box->link;
    gtopk_status_t status = link_reserve(link, out_bytes > in_bytes ? out_bytes : in_bytes);
    if (status != GTOPK_OK)
        return status;
    if (to != TRANSPORT_NONE) {
        const wire_header_t header = {
            .value_type = WIRE_VALUE_BYTES,
            .algorithm = box->algorithm,
            .sender = (uint32_t)box->transport->rank,
            .epoch = link->epoch,
            .k = piece,
            .dim = box->total,
            .count = (uint32_t)out_bytes,
            .step = box->step,
            .scale = 1.0f,
        };
        wire_header_write(&header, link->box_out);
        if (out_bytes > 0)
            memcpy(link->box_out + WIRE_HEADER_SIZE, out, out_bytes);
    }
    const link_message_t message = {
        .to = to,
        .from = from,
        .send = link->box_out,
        .send_capacity = WIRE_HEADER_SIZE + out_bytes,
        .receive = link->box_in,
        .receive_capacity = WIRE_HEADER_SIZE + in_bytes,
    };
    const wire_expect_t expect = {
        .algorithm = box->algorithm, .value_type = WIRE_VALUE_BYTES, .step = box->step, .dim = box->total, .k = piece};
    wire_header_t got = {.count = (uint32_t)in_bytes};
    status = link_exchange(link, box->transport, &message, box->deadline, &expect, &got, NULL);
    if (status == GTOPK_OK && from != TRANSPORT_NONE && got.count != in_bytes)
        status = status_set(GTOPK_ERR_DESYNC,
                            "rank %d sent %u bytes where %zu were awaited: give the same lengths on all ranks",
                            (int)from, got.count, in_bytes);
    return status;
}

static size_t piece_size(size_t bytes, size_t at)
{
    return bytes - at < PIECE ? bytes - at : PIECE;
}

gtopk_status_t collective_broadcast(link_t *link, void *buffer, size_t bytes, int32_t root)
{
    const int32_t size = link->control->size;
    const int32_t from_root = (link->control->rank - root + size) % size; /* place in the tree */
    const mailbox_t box = mailbox_open(link, link->control, WIRE_BROADCAST, bytes);
    gtopk_status_t status = GTOPK_OK;
    uint8_t *data = buffer;
    size_t at = 0;
    uint32_t piece = 0;
    do { /* at least one message, so that a broadcast of nothing is checked too */
        const size_t part = piece_size(bytes, at);
        int64_t distance = 1;
        while (distance < size && !(from_root & distance))
            distance *= 2;
        if (status == GTOPK_OK && from_root != 0) {
            const int32_t parent = (int32_t)((from_root - distance + root) % size);
            status = mailbox_exchange(&box, piece, TRANSPORT_NONE, NULL, 0, parent, part);
            if (status == GTOPK_OK && part > 0)
                memcpy(data + at, mailbox_received(&box), part);
        }
        for (distance /= 2; distance > 0 && status == GTOPK_OK; distance /= 2)
            if (from_root + distance < size)
                status = mailbox_exchange(&box, piece, (int32_t)((from_root + distance + root) % size), data + at, part,
                                          TRANSPORT_NONE, 0);
        at += part;
        piece++;
    } while (at < bytes && status == GTOPK_OK);
    return status;
}

typedef void (*combine_fn)(void *into, const uint8_t *from, size_t bytes);

/* Sends [out, out + out_bytes) to the right and combines in_bytes from the left into `in`, in as many pieces as
 * `longest` bytes take: the lengths differ from rank to rank, the number of messages may not. */
static gtopk_status_t ring_shift(const mailbox_t *box, const places_t *places, uint32_t *piece, size_t longest,
                                 const uint8_t *out, size_t out_bytes, uint8_t *in, size_t in_bytes, combine_fn combine)
{
    const int32_t size = places->size, place = places->place;
    const int32_t right = places->ranks[(place + 1) % size], left = places->ranks[(place + size - 1) % size];
    size_t sent = 0, received = 0, done = 0;
    do {
        const size_t out_part = piece_size(out_bytes, sent), in_part = piece_size(in_bytes, received);
        const gtopk_status_t status = mailbox_exchange(box, (*piece)++, right, out + sent, out_part, left, in_part);
        if (status != GTOPK_OK)
            return status;
        combine(in + received, mailbox_received(box), in_part);
        sent += out_part;
        received += in_part;
        done += PIECE;
    } while (done < longest);
    return GTOPK_OK;
}

static void combine_copy(void *into, const uint8_t *from, size_t bytes)
{
    if (bytes > 0)
        memcpy(into, from, bytes);
}

static void combine_float(void *into, const uint8_t *from, size_t bytes)
{
    float *sum = into;
    for (size_t i = 0; i < bytes / sizeof(float); i++) {
        float value;
        memcpy(&value, from + i * sizeof value, sizeof value);
        sum[i] += value;
    }
}

static void combine_double(void *into, const uint8_t *from, size_t bytes)
{
    double *sum = into;
    for (size_t i = 0; i < bytes / sizeof(double); i++) {
        double value;
        memcpy(&value, from + i * sizeof value, sizeof value);
        sum[i] += value;
    }
}

gtopk_status_t collective_allgather(link_t *link, const void *in, size_t bytes, void *out)
{
    const int32_t size = link->control->size, rank = link->control->rank;
    const int32_t right = (rank + 1) % size, left = (rank + size - 1) % size;
    uint8_t *all = out;
    gtopk_status_t status = GTOPK_OK;
    uint32_t piece = 0;
    combine_copy(all + (size_t)rank * bytes, in, bytes);
    if (size == 1)
        return GTOPK_OK;
    const mailbox_t box = mailbox_open(link, link->control, WIRE_ALLGATHER, bytes);
    for (int32_t shift = 0; shift < size - 1; shift++) {
        uint8_t *mine = all + (size_t)((rank - shift + size) % size) * bytes;
        uint8_t *next = all + (size_t)((rank - shift - 1 + size) % size) * bytes;
        size_t at = 0;
        do {
            const size_t part = piece_size(bytes, at);
            status = mailbox_exchange(&box, piece++, right, mine + at, part, left, part);
            if (status != GTOPK_OK)
                return status;
            combine_copy(next + at, mailbox_received(&box), part);
            at += PIECE;
        } while (at < bytes);
    }
    return GTOPK_OK;
}

/* Start of chunk c when `count` items are split into `parts`. */
static size_t chunk_start(size_t count, int32_t parts, int32_t c)
{
    return count / (size_t)parts * (size_t)c + (count % (size_t)parts) * (size_t)c / (size_t)parts;
}

static gtopk_status_t ring_allreduce(link_t *link, transport_t *transport, const places_t *places, uint8_t *data,
                                     size_t count, size_t item, combine_fn sum)
{
    const int32_t size = places->size, place = places->place;
    const mailbox_t box = mailbox_open(link, transport, WIRE_REDUCE_SCATTER, count * item);
    const size_t longest = (count / (size_t)size + 1) * item;
    gtopk_status_t status = GTOPK_OK;
    uint32_t piece = 0;
    for (int32_t shift = 0; shift < 2 * (size - 1) && status == GTOPK_OK; shift++) {
        /* The first size - 1 shifts leave the sum of chunk place + 1 here, the others pass the sums around. */
        const int32_t c = ((place - shift) % size + size) % size, d = (c + size - 1) % size;
        const size_t out = chunk_start(count, size, c) * item, in = chunk_start(count, size, d) * item;
        status = ring_shift(&box, places, &piece, longest, data + out, chunk_start(count, size, c + 1) * item - out,
                            data + in, chunk_start(count, size, d + 1) * item - in,
                            shift < size - 1 ? sum : combine_copy);
    }
    return status;
}

gtopk_status_t collective_swap(link_t *link, transport_t *transport, int32_t peer, const void *data, size_t bytes)
{
    const mailbox_t box = mailbox_open(link, transport, WIRE_ALLGATHER, bytes);
    return peer < transport->size ? mailbox_exchange(&box, 0, peer, data, bytes, peer, bytes) : GTOPK_OK;
}

/* Dissemination; `total` is compared with what the neighbours are about to do. */
static gtopk_status_t disseminate(link_t *link, uint8_t algorithm, size_t total)
{
    const int32_t size = link->control->size, rank = link->control->rank;
    const mailbox_t box = mailbox_open(link, link->control, algorithm, total);
    gtopk_status_t status = GTOPK_OK;
    uint32_t round = 0;
    for (int64_t distance = 1; distance < size && status == GTOPK_OK; distance *= 2)
        status = mailbox_exchange(&box, round++, (int32_t)((rank + distance) % size), NULL, 0,
                                  (int32_t)((rank - distance + size) % size), 0);
    return status;
}

gtopk_status_t collective_sum(link_t *link, transport_t *transport, const places_t *places, float *buffer, size_t count,
                              void *stream)
{
    if (places->size == 1)
        return GTOPK_OK;
    if (transport->ops->allreduce && count > 0 && places->size == transport->size)
        return link_allreduce(link, transport, buffer, count, link_deadline(link), stream);
    if (transport->ops->device_memory)
        return status_set(GTOPK_ERR_UNSUPPORTED, "transport %s adds up over all of its ranks or not at all",
                          transport->ops->name);
    return ring_allreduce(link, transport, places, (uint8_t *)buffer, count, sizeof(float), combine_float);
}

gtopk_status_t collective_union(link_t *link, const places_t *places, uint8_t *bits, size_t bytes)
{
    const int32_t size = places->size, place = places->place;
    const mailbox_t box = mailbox_open(link, link->control, WIRE_ALLGATHER, bytes);
    uint32_t piece = 0;
    uint8_t mine[4096];
    for (size_t at = 0; at < bytes; at += sizeof mine) {
        const size_t part = bytes - at < sizeof mine ? bytes - at : sizeof mine;
        memcpy(mine, bits + at, part);
        for (int32_t shift = 1; shift < size; shift++) {
            const int32_t to = places->ranks[(place + shift) % size],
                          from = places->ranks[(place - shift + size) % size];
            const gtopk_status_t status = mailbox_exchange(&box, piece++, to, mine, part, from, part);
            if (status != GTOPK_OK)
                return status;
            for (size_t i = 0; i < part; i++)
                bits[at + i] |= mailbox_received(&box)[i];
        }
    }
    return GTOPK_OK;
}

#define SUM_PART ((size_t)1 << 22)

/* A transport's own all-reduce that was given up may go on writing: it never gets memory of the caller's. */
static gtopk_status_t sum_by_copy(link_t *link, float *buffer, size_t count)
{
    const size_t most = count < SUM_PART ? count : SUM_PART;
    const double deadline = link_deadline(link);
    float *part;
    gtopk_status_t status = memory_alloc(&part, most, sizeof *part, "an all-reduce");
    for (size_t at = 0; at < count && status == GTOPK_OK; at += most) {
        const size_t length = count - at < most ? count - at : most;
        memcpy(part, buffer + at, length * sizeof *part);
        status = link_allreduce(link, link->control, part, length, deadline, NULL);
        if (status == GTOPK_OK)
            memcpy(buffer + at, part, length * sizeof *part);
    }
    if (!link->buffers_lost)
        memory_free(part);
    return status;
}

gtopk_status_t collective_allreduce(link_t *link, const places_t *all, void *buffer, size_t count, gtopk_dtype_t dtype)
{
    transport_t *transport = link->control;
    if (transport->size == 1 || count == 0)
        return GTOPK_OK;
    if (dtype == GTOPK_F64)
        return ring_allreduce(link, transport, all, buffer, count, sizeof(double), combine_double);
    if (transport->ops->allreduce)
        return sum_by_copy(link, buffer, count);
    return ring_allreduce(link, transport, all, buffer, count, sizeof(float), combine_float);
}

gtopk_status_t collective_agree_on(link_t *link, uint8_t algorithm, size_t bytes)
{
    return link->control->size == 1 ? GTOPK_OK : disseminate(link, algorithm, bytes);
}

gtopk_status_t collective_barrier(link_t *link)
{
    return disseminate(link, WIRE_BARRIER, 0);
}
