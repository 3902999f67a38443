/* Waiting with a deadline, checking headers, and giving up: the part of an exchange that is the same for all. */
#include "exchange/link.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "util/log.h"

#define WARNING_GROWTH 2.0

/* "rank 3 (host-b)" */
static const char *peer_name(link_t *link, int32_t rank, char *text, size_t size)
{
    const char *host = link->transport->host_of ? link->transport->host_of(link->transport, rank) : NULL;
    if (host)
        (void)snprintf(text, size, "rank %d (%s)", (int)rank, host);
    else
        (void)snprintf(text, size, "rank %d", (int)rank);
    return text;
}

double link_deadline(const link_t *link)
{
    return link->transport->ops->now(link->transport) + link->timeout;
}

void link_stats_reset(link_t *link)
{
    link->stats = (link_stats_t){.slowest_peer = -1};
}

static void count_wait(link_t *link, int32_t peer, double seconds)
{
    link->stats.wait_s += seconds;
    if (seconds > link->stats.slowest_s && peer >= 0) {
        link->stats.slowest_s = seconds;
        link->stats.slowest_peer = peer;
    }
}

/* Waits for the request under way; warns when it takes long, and asks the caller whether to go on. */
static gtopk_status_t wait_until(link_t *link, int32_t peer, double deadline)
{
    transport_t *transport = link->transport;
    const double start = transport->ops->now(transport);
    const double pause = transport->interrupt ? TRANSPORT_INTERRUPT_SECONDS : INFINITY;
    double warn_at = start + link->warn_after, now = start;
    gtopk_status_t status;
    for (;;) {
        status = transport->ops->wait(transport, fmin(fmin(deadline, warn_at), now + pause));
        now = transport->ops->now(transport);
        if (status == GTOPK_OK)
            break;
        /* Also when the wait failed: what interrupts this rank often ends its peers, and is the better reason. */
        if (transport_interrupted(transport)) {
            status = status_set(GTOPK_ERR_INTERRUPTED, "the wait was interrupted after %.1f s", now - start);
            break;
        }
        if (status != GTOPK_ERR_TIMEOUT || now >= deadline)
            break;
        if (now >= warn_at) {
            char name[96];
            LOG(GTOPK_LOG_WARN, "rank %d has waited %.0f s for %s; it gives up after %.0f s more", (int)transport->rank,
                now - start, peer_name(link, peer, name, sizeof name), deadline - now);
            warn_at = now + WARNING_GROWTH * (warn_at - start);
        }
    }
    count_wait(link, peer, transport->ops->now(transport) - start);
    return status;
}

/* One of the two sides that a message names is the one waited for. */
static gtopk_status_t fail_wait(link_t *link, int32_t peer, gtopk_status_t status)
{
    char name[96];
    if (!link->transport->ops->abandon(link->transport))
        link->buffers_lost = 1;
    if (status == GTOPK_ERR_TIMEOUT)
        return status_set(
            status,
            "no message exchanged with %s within %.6g s (the deadline of one exchange): it died, is stuck, "
            "or is slower than that; look at its output, or raise timeout= (GTOPK_TIMEOUT)",
            peer_name(link, peer, name, sizeof name), link->timeout);
    return status_prefix(status, "exchange with %s", peer_name(link, peer, name, sizeof name));
}

/* DESYNC when a field of the header is not what this rank awaits. */
static gtopk_status_t compare(const char *peer, const char *field, uint64_t theirs, uint64_t ours, const char *advice)
{
    if (theirs == ours)
        return GTOPK_OK;
    return status_set(GTOPK_ERR_DESYNC, "%s sent %s %llu, this rank is at %llu: %s", peer, field,
                      (unsigned long long)theirs, (unsigned long long)ours, advice);
}

/* What a rank does that sends or awaits a message of this `algorithm`. */
static const char *call_name(uint8_t algorithm, int greets)
{
    if (greets)
        return "the greeting of a new communicator";
    switch (algorithm) {
    case GTOPK_ALGORITHM_DENSE: return "a gradient exchange (dense)";
    case GTOPK_ALGORITHM_TOPK: return "a gradient exchange (topk)";
    case GTOPK_ALGORITHM_GTOPK: return "a gradient exchange (gtopk)";
    case GTOPK_ALGORITHM_GTOPK_TREE: return "a gradient exchange (gtopk-tree)";
    case WIRE_BROADCAST: return "a broadcast";
    case WIRE_ALLGATHER: return "an all-gather (a new reducer begins with one)";
    case WIRE_REDUCE_SCATTER: return "an all-reduce";
    case WIRE_BARRIER: return "a barrier";
    default: return "an encoded block";
    }
}

/* DESYNC when the peer is in another call. Communicators that greet have the epoch 0. */
static gtopk_status_t compare_calls(const char *peer, const wire_header_t *header, const link_expect_t *expect,
                                    uint32_t epoch)
{
    const int one_greets = (header->epoch == 0) != (epoch == 0);
    if (header->algorithm == expect->algorithm && !one_greets)
        return GTOPK_OK;
    return status_set(GTOPK_ERR_DESYNC,
                      "%s sent a message of %s, this rank is in %s: all ranks must make the same calls in the same "
                      "order, and add, freeze and load parameters on every rank or on none",
                      peer, call_name(header->algorithm, one_greets && header->epoch == 0),
                      call_name(expect->algorithm, one_greets && epoch == 0));
}

#define SAME_ORDER "all ranks must make the same calls on the same reducers in the same order"

static gtopk_status_t compare_all(const char *peer, const wire_header_t *header, const link_expect_t *expect)
{
    gtopk_status_t status = compare_calls(peer, header, expect, header->epoch);
    if (status == GTOPK_OK)
        status = compare(peer, "a message of reducer", header->reducer, expect->reducer,
                         SAME_ORDER "; step several optimizers in the same order");
    if (status == GTOPK_OK)
        status = compare(peer, "a message of step", header->step, expect->step,
                         SAME_ORDER "; after loading a checkpoint, load one of the same step on every rank");
    if (status == GTOPK_OK)
        status = compare(peer, "configuration hash", header->config_hash, expect->config_hash,
                         "after loading checkpoints, load those of one run on all ranks");
    if (status == GTOPK_OK)
        status = compare(peer, "a message of round", header->round, expect->round, SAME_ORDER);
    if (status == GTOPK_OK)
        status = compare(peer, "dim", header->dim, expect->dim, "give the same lengths on every rank");
    if (status == GTOPK_OK)
        status = compare(peer, "k", header->k, expect->k, "give the same density on every rank");
    if (status == GTOPK_OK)
        status = compare(peer, "value type", header->value_type, expect->value_type,
                         "give the same value type on every rank");
    return status;
}

/* What of a message is at hand. */
typedef enum form { FORM_WHOLE, FORM_PADDED, FORM_HEAD } form_t;

static gtopk_status_t check(link_t *link, const uint8_t *message, size_t received, form_t form, int32_t from,
                            const link_expect_t *expect, wire_header_t *got)
{
    char peer[96];
    wire_header_t header;
    (void)peer_name(link, from, peer, sizeof peer);
    if (received >= WIRE_HEADER_SIZE && memcmp(message, "GTK1", 4) == 0 && message[4] != WIRE_FORMAT_VERSION)
        return status_set(GTOPK_ERR_MISMATCH,
                          "%s speaks wire format %u, this rank %u: install the same version on all machines", peer,
                          message[4], WIRE_FORMAT_VERSION);
    gtopk_status_t status = form == FORM_HEAD ? wire_header_peek(message, received, &header)
                                              : wire_header_read(message, received, form == FORM_PADDED, &header);
    if (status != GTOPK_OK)
        return status_prefix(status, "message of %s", peer);
    if (expect && !(header.flags & WIRE_ABORT) && (header.epoch == 0 || link->epoch == 0))
        status = compare_calls(peer, &header, expect, link->epoch);
    const int before_epoch = header.flags & WIRE_ABORT && header.epoch == 0; /* it gave up in the greeting */
    if (status == GTOPK_OK && !before_epoch)
        status = compare(peer, "a message of communicator epoch", header.epoch, link->epoch,
                         "it is of another job or of an earlier communicator: give each job its own ranks and ports");
    if (status == GTOPK_OK)
        status = compare(peer, "a message of sender", header.sender, (uint32_t)from,
                         "the transport delivered it to the wrong rank");
    if (status != GTOPK_OK)
        return status;
    if (header.flags & WIRE_ABORT)
        return status_set(GTOPK_ERR_ABORTED,
                          "%s gave up in step %llu (%s): its own output says why; restart from a checkpoint", peer,
                          (unsigned long long)header.step, gtopk_status_text((int)(0u - header.attachment)));
    if (expect)
        status = compare_all(peer, &header, expect);
    if (got)
        *got = header;
    return status;
}

/* After CORRUPT because more was sent than fits: the head, of which `held` bytes are at hand, may be that of another call,
 * which then is the better error. The thread's error text is that of `status`. */
static gtopk_status_t explain_head(link_t *link, const uint8_t *message, size_t held, int32_t from,
                                   const link_expect_t *expect, gtopk_status_t status)
{
    char text[STATUS_TEXT_SIZE];
    status_keep(text);
    const gtopk_status_t found = check(link, message, held, FORM_HEAD, from, expect, NULL);
    if (found == GTOPK_ERR_DESYNC || found == GTOPK_ERR_MISMATCH)
        return found;
    return status_set(status, "%s", text);
}

gtopk_status_t link_check(link_t *link, const uint8_t *message, size_t received, int padded, int32_t from,
                          const link_expect_t *expect, wire_header_t *got)
{
    const form_t form = padded ? FORM_PADDED : FORM_WHOLE;
    const gtopk_status_t status = check(link, message, received, form, from, expect, got);
    /* Of a longer message than was awaited, a padded transport delivers the head. */
    return status == GTOPK_ERR_CORRUPT && padded ? explain_head(link, message, received, from, expect, status) : status;
}

gtopk_status_t link_exchange(link_t *link, const link_message_t *message, double deadline, const link_expect_t *expect,
                             wire_header_t *got)
{
    transport_t *transport = link->transport;
    transport_exchange_t exchange = {
        .to = message->to,
        .from = message->from,
        .send = message->send,
        .send_bytes = message->send_bytes,
        .send_capacity = message->send_capacity,
        .receive = message->receive,
        .receive_capacity = message->receive_capacity,
    };
    const int32_t peer = message->from != TRANSPORT_NONE ? message->from : message->to;
    gtopk_status_t status = transport->ops->post(transport, &exchange, NULL);
    if (status == GTOPK_OK)
        status = wait_until(link, peer, deadline);
    if (status != GTOPK_OK) {
        const size_t held = message->receive_capacity;
        status = fail_wait(link, peer, status);
        return status == GTOPK_ERR_CORRUPT && exchange.received > held
                   ? explain_head(link, message->receive, held, message->from, expect, status)
                   : status;
    }

    link->stats.rounds++;
    if (message->to != TRANSPORT_NONE)
        link->stats.bytes_sent += transport->ops->padded ? message->send_capacity : message->send_bytes;
    if (message->from == TRANSPORT_NONE)
        return GTOPK_OK;
    link->stats.bytes_received += exchange.received;
    return link_check(link, message->receive, exchange.received, transport->ops->padded, message->from, expect, got);
}

gtopk_status_t link_allgather(link_t *link, const void *in, size_t bytes, void *out, double deadline)
{
    transport_t *transport = link->transport;
    const double start = transport->ops->now(transport);
    const gtopk_status_t status = transport->ops->allgather(transport, in, bytes, out, deadline);
    count_wait(link, -1, transport->ops->now(transport) - start);
    if (status != GTOPK_OK)
        link->buffers_lost = 1;
    link->stats.rounds++;
    link->stats.bytes_sent += bytes * (uint64_t)(transport->size - 1);
    link->stats.bytes_received += bytes * (uint64_t)(transport->size - 1);
    return status;
}

gtopk_status_t link_allreduce(link_t *link, float *buffer, size_t count, double deadline)
{
    transport_t *transport = link->transport;
    const double start = transport->ops->now(transport);
    const gtopk_status_t status = transport->ops->allreduce(transport, buffer, count, deadline);
    count_wait(link, -1, transport->ops->now(transport) - start);
    if (status != GTOPK_OK)
        link->buffers_lost = 1;
    /* What a bandwidth-optimal all-reduce sends; the transport does not tell. */
    const uint64_t bytes = 8 * (uint64_t)count * (uint64_t)(transport->size - 1) / (uint64_t)transport->size;
    link->stats.rounds += 2 * (uint32_t)(transport->size - 1);
    link->stats.bytes_sent += bytes;
    link->stats.bytes_received += bytes;
    return status;
}

gtopk_status_t link_break(link_t *link, gtopk_status_t status, uint64_t step)
{
    transport_t *transport = link->transport;
    if (link->broken != GTOPK_OK)
        return status;
    status_keep(link->broken_text);
    /* Another thread may ask: the text comes first. */
    atomic_store_explicit(&link->broken, status, memory_order_release);
    LOG(GTOPK_LOG_INFO, "rank %d: communicator broken in step %llu: %s", (int)transport->rank, (unsigned long long)step,
        link->broken_text);

    /* Everybody is told, not the partners of one schedule alone: whatever they wait for next is from this rank or from
     * one that was told. */
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
    if (transport->ops->notify)
        for (int32_t peer = 0; peer < transport->size; peer++)
            if (peer != transport->rank)
                transport->ops->notify(transport, peer, message, sizeof message);
    if (transport->ops->abort)
        transport->ops->abort(transport);
    return status;
}

gtopk_status_t link_check_alive(const link_t *link)
{
    const gtopk_status_t broken = (gtopk_status_t)atomic_load_explicit(&link->broken, memory_order_acquire);
    if (broken == GTOPK_OK)
        return GTOPK_OK;
    return status_set(broken, "the communicator is broken since an earlier call: %s", link->broken_text);
}
