/* Waiting with a deadline, and giving up: the part of an exchange that is the same for all. */
#include "exchange/link.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "exchange/check.h"
#include "util/log.h"
#include "util/memory.h"

#define WARNING_GROWTH 2.0

/* What agreements take. */
#define BOX_BYTES 4096u

gtopk_status_t link_open(link_t *link)
{
    link_stats_reset(link);
    return link_reserve(link, BOX_BYTES);
}

gtopk_status_t link_reserve(link_t *link, size_t bytes)
{
    uint8_t *out, *in;
    if (bytes <= link->box_bytes)
        return GTOPK_OK;
    gtopk_status_t status = memory_alloc(&out, WIRE_HEADER_SIZE + bytes, 1, "a collective's send buffer");
    if (status != GTOPK_OK)
        return status;
    status = memory_alloc(&in, WIRE_HEADER_SIZE + bytes, 1, "a collective's receive buffer");
    if (status != GTOPK_OK) {
        memory_free(out);
        return status;
    }
    memory_free(link->box_out);
    memory_free(link->box_in);
    link->box_out = out;
    link->box_in = in;
    link->box_bytes = bytes;
    return GTOPK_OK;
}

void link_close(link_t *link)
{
    if (link->buffers_lost)
        return;
    memory_free(link->box_out);
    memory_free(link->box_in);
}

const char *link_peer_name(const link_t *link, int32_t rank, char *text, size_t size)
{
    const places_map_t *map = link->map;
    if (map && map->nodes > 1 && rank >= 0 && rank < map->size && map->names[rank][0])
        (void)snprintf(text, size, "rank %d (%s)", (int)rank, map->names[rank]);
    else
        (void)snprintf(text, size, "rank %d", (int)rank);
    return text;
}

transport_t *link_transport(const link_t *link, const char *device)
{
    transport_t *data = link->data;
    return data->device && strcmp(data->device, device) != 0 ? link->control : data;
}

double link_deadline(const link_t *link)
{
    return link->control->ops->now(link->control) + link->timeout;
}

void link_stats_reset(link_t *link)
{
    link->stats = (link_stats_t){.slowest_peer = -1};
}

/* ---- waiting ---- */

static void count_wait(link_t *link, int32_t peer, double seconds)
{
    link->stats.wait_s += seconds;
    if (seconds > link->stats.slowest_s && peer >= 0) {
        link->stats.slowest_s = seconds;
        link->stats.slowest_peer = peer;
    }
}

static gtopk_status_t give_up_text(const link_t *link, int32_t peer)
{
    char name[96];
    return status_set(GTOPK_ERR_ABORTED, "%s gave up: its own output says why; restart from a checkpoint",
                      link_peer_name(link, peer, name, sizeof name));
}

/* A rank that gave up says so on the control transport; who waits on another one looks there. */
static int32_t gone_elsewhere(const link_t *link, const transport_t *transport)
{
    if (transport == link->control || !link->control->ops->gone)
        return TRANSPORT_NONE;
    return link->control->ops->gone(link->control);
}

static void warn_of_wait(const link_t *link, int32_t peer, double waited, double left)
{
    char name[96];
    if (peer >= 0)
        (void)link_peer_name(link, peer, name, sizeof name);
    LOG(GTOPK_LOG_WARN, "rank %d has waited %.0f s for %s; it gives up after %.0f s more", (int)link->control->rank,
        waited, peer >= 0 ? name : "the other ranks", left);
}

/* Waits for what is under way; warns when it takes long, and asks the caller whether to go on. */
static gtopk_status_t wait_until(link_t *link, transport_t *transport, int32_t peer, double deadline, size_t *received)
{
    const double start = transport->ops->now(transport);
    const int looks = transport->interrupt || transport != link->control;
    const double pause = looks ? TRANSPORT_INTERRUPT_SECONDS : INFINITY;
    double warn_at = start + link->warn_after, now = start;
    gtopk_status_t status;
    for (;;) {
        status = transport->ops->wait(transport, fmin(fmin(deadline, warn_at), now + pause), received);
        now = transport->ops->now(transport);
        if (status == GTOPK_OK)
            break;
        /* Also when the wait failed: what interrupts this rank often ends its peers, and is the better reason. */
        if (transport_interrupted(transport)) {
            status = status_set(GTOPK_ERR_INTERRUPTED, "the wait was interrupted after %.1f s", now - start);
            break;
        }
        const int32_t gone = gone_elsewhere(link, transport);
        if (gone != TRANSPORT_NONE) {
            status = give_up_text(link, gone);
            break;
        }
        if (status != GTOPK_ERR_TIMEOUT || now >= deadline)
            break;
        if (now >= warn_at) {
            warn_of_wait(link, peer, now - start, deadline - now);
            warn_at = now + WARNING_GROWTH * (warn_at - start);
        }
    }
    count_wait(link, peer, transport->ops->now(transport) - start);
    return status;
}

/* Gives up what is under way, or queued. What cannot be given up keeps its memory. */
static void abandon(link_t *link, transport_t *transport)
{
    if (transport->ops->abandon(transport))
        return;
    link->buffers_lost = 1;
    link->stream_lost |= transport->ops->stream_ordered;
}

/* One of the two sides that a message names is the one waited for. */
static gtopk_status_t fail_wait(link_t *link, transport_t *transport, int32_t peer, gtopk_status_t status)
{
    char name[96];
    const char *who = peer >= 0 ? link_peer_name(link, peer, name, sizeof name) : "the other ranks";
    abandon(link, transport);
    if (status == GTOPK_ERR_TIMEOUT)
        return status_set(
            status,
            "no message exchanged with %s within %.6g s (the deadline of one exchange): it died, is stuck, "
            "ended its loop without join(), or is slower than that; look at its output, or raise timeout= "
            "(GTOPK_TIMEOUT)",
            who, link->timeout);
    return status_prefix(status, "exchange with %s", who);
}

/* ---- exchanges ---- */

static int is_elsewhere(const link_t *link, int32_t rank)
{
    const places_map_t *map = link->map;
    return !map || map->node[rank] != map->node[link->control->rank];
}

/* Of what a collective of the transport sends, the part that leaves the node, if every rank sends every other as much. */
static uint64_t share_elsewhere(const link_t *link, uint64_t bytes)
{
    const int32_t size = link->control->size;
    uint64_t elsewhere = 0;
    for (int32_t r = 0; r < size; r++)
        elsewhere += (uint64_t)is_elsewhere(link, r);
    return size > 1 ? bytes / (uint64_t)(size - 1) * elsewhere : 0;
}

/* On a stream-ordered transport nothing has come yet; its capacity will. */
static void count_messages(link_t *link, const transport_t *transport, const transport_exchange_t *exchange,
                           size_t received)
{
    const uint64_t sent = transport->ops->padded ? exchange->send_capacity : exchange->send_bytes;
    link->stats.rounds++;
    if (exchange->to != TRANSPORT_NONE) {
        link->stats.bytes_sent += sent;
        link->stats.network_bytes_sent += is_elsewhere(link, exchange->to) ? sent : 0;
    }
    if (exchange->from != TRANSPORT_NONE)
        link->stats.bytes_received += transport->ops->stream_ordered ? exchange->receive_capacity : received;
}

static gtopk_status_t end_exchange(link_t *link, transport_t *transport, const link_message_t *message,
                                   const transport_exchange_t *exchange, double deadline, const wire_expect_t *expect,
                                   wire_header_t *got)
{
    const int32_t peer = message->from != TRANSPORT_NONE ? message->from : message->to;
    const size_t held = message->receive_capacity;
    size_t received = 0;
    gtopk_status_t status = wait_until(link, transport, peer, deadline, &received);
    if (status != GTOPK_OK) {
        status = fail_wait(link, transport, peer, status);
        return status == GTOPK_ERR_CORRUPT && received > held
                   ? check_head(link, message->receive, held, message->from, expect, status)
                   : status;
    }
    count_messages(link, transport, exchange, received);
    if (message->from == TRANSPORT_NONE)
        return GTOPK_OK;
    return check_message(link, message->receive, received, transport->ops->padded ? CHECK_PADDED : CHECK_WHOLE,
                         message->from, expect, got);
}

gtopk_status_t link_exchange(link_t *link, transport_t *transport, const link_message_t *message, double deadline,
                             const wire_expect_t *expect, wire_header_t *got, void *stream)
{
    transport_exchange_t exchange = {
        .to = message->to,
        .from = message->from,
        .send = message->send,
        .send_bytes = message->send_capacity,
        .send_capacity = message->send_capacity,
        .receive = message->receive,
        .receive_capacity = message->receive_capacity,
    };
    if (message->to != TRANSPORT_NONE && !transport->ops->stream_ordered) {
        exchange.send_bytes = wire_own_size(message->send);
        wire_seal(message->send, exchange.send_bytes - WIRE_HEADER_SIZE);
    }
    const int32_t peer = message->from != TRANSPORT_NONE ? message->from : message->to;
    const gtopk_status_t status = transport->ops->post(transport, &exchange, deadline, stream);
    if (status != GTOPK_OK)
        return fail_wait(link, transport, peer, status);
    if (!transport->ops->stream_ordered)
        return end_exchange(link, transport, message, &exchange, deadline, expect, got);
    count_messages(link, transport, &exchange, 0);
    return GTOPK_OK;
}

gtopk_status_t link_finish(link_t *link, double deadline)
{
    size_t unused;
    if (!link->data->ops->stream_ordered)
        return GTOPK_OK;
    const gtopk_status_t status = wait_until(link, link->data, TRANSPORT_NONE, deadline, &unused);
    return status == GTOPK_OK ? status : fail_wait(link, link->data, TRANSPORT_NONE, status);
}

int link_give_up(link_t *link)
{
    if (link->data->ops->stream_ordered)
        abandon(link, link->data);
    return !link->stream_lost;
}

/* ---- the transport's own collectives ---- */

/* One that blocks cannot be called back; what is queued can be given up. */
static void fail_collective(link_t *link, transport_t *transport, gtopk_status_t status)
{
    if (status != GTOPK_OK && transport->ops->stream_ordered)
        abandon(link, transport);
    else if (status != GTOPK_OK)
        link->buffers_lost = 1;
}

gtopk_status_t link_allgather(link_t *link, transport_t *transport, uint8_t *message, size_t capacity,
                              uint8_t *gathered, double deadline, void *stream)
{
    const double start = transport->ops->now(transport);
    if (!transport->ops->stream_ordered)
        wire_seal(message, wire_own_size(message) - WIRE_HEADER_SIZE);
    const gtopk_status_t status = transport->ops->allgather(transport, message, capacity, gathered, deadline, stream);
    count_wait(link, -1, transport->ops->now(transport) - start);
    fail_collective(link, transport, status);
    link->stats.rounds++;
    link->stats.bytes_sent += capacity * (uint64_t)(transport->size - 1);
    link->stats.network_bytes_sent += share_elsewhere(link, capacity * (uint64_t)(transport->size - 1));
    link->stats.bytes_received += capacity * (uint64_t)(transport->size - 1);
    return status;
}

gtopk_status_t link_check_gathered(link_t *link, const transport_t *transport, const uint8_t *message, size_t capacity,
                                   const wire_expect_t *expect)
{
    if (transport->ops->stream_ordered)
        return GTOPK_OK;
    return check_message(link, message, capacity, CHECK_PADDED, (int32_t)expect->sender, expect, NULL);
}

gtopk_status_t link_allreduce(link_t *link, transport_t *transport, float *buffer, size_t count, double deadline,
                              void *stream)
{
    const double start = transport->ops->now(transport);
    const gtopk_status_t status = transport->ops->allreduce(transport, buffer, count, deadline, stream);
    count_wait(link, -1, transport->ops->now(transport) - start);
    fail_collective(link, transport, status);
    /* What a bandwidth-optimal all-reduce sends; the transport does not tell. */
    const uint64_t bytes = 8 * (uint64_t)count * (uint64_t)(transport->size - 1) / (uint64_t)transport->size;
    link->stats.rounds += 2 * (uint32_t)(transport->size - 1);
    link->stats.bytes_sent += bytes;
    link->stats.network_bytes_sent += share_elsewhere(link, bytes);
    link->stats.bytes_received += bytes;
    return status;
}

/* ---- the end ---- */

/* Everybody is told, not the partners of one schedule alone: whatever they wait for next is from this rank or from one
 * that was told. */
static void tell_all(const link_t *link, gtopk_status_t status, uint64_t step)
{
    transport_t *transport = link->control;
    uint8_t message[WIRE_HEADER_SIZE];
    const wire_header_t header = {
        .value_type = WIRE_VALUE_BYTES,
        .algorithm = WIRE_BARRIER,
        .flags = WIRE_ABORT,
        .attachment = (uint32_t)(-(int)status),
        .sender = (uint32_t)transport->rank,
        .epoch = link->epoch,
        .step = step,
        .scale = 1.0f,
    };
    wire_header_write(&header, message);
    wire_seal(message, 0);
    for (int32_t peer = 0; transport->ops->notify && peer < transport->size; peer++)
        if (peer != transport->rank)
            transport->ops->notify(transport, peer, message, sizeof message);
}

gtopk_status_t link_break(link_t *link, gtopk_status_t status, uint64_t step)
{
    if (link->broken != GTOPK_OK)
        return status;
    status_keep(link->broken_text);
    /* Another thread may ask: the text comes first. */
    atomic_store_explicit(&link->broken, status, memory_order_release);
    LOG(GTOPK_LOG_INFO, "rank %d: communicator broken in step %llu: %s", (int)link->control->rank,
        (unsigned long long)step, link->broken_text);
    tell_all(link, status, step);
    if (link->data != link->control && link->data->ops->abort)
        link->data->ops->abort(link->data);
    if (link->control->ops->abort)
        link->control->ops->abort(link->control);
    return status;
}

gtopk_status_t link_check_alive(const link_t *link)
{
    const gtopk_status_t broken = (gtopk_status_t)atomic_load_explicit(&link->broken, memory_order_acquire);
    if (broken == GTOPK_OK)
        return GTOPK_OK;
    return status_set(broken, "the communicator is broken since an earlier call: %s", link->broken_text);
}
