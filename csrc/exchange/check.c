/* Messages on their way in. */
#include "exchange/check.h"

#include <stdio.h>
#include <string.h>

#include "exchange/exchange.h"

/* DESYNC when a field of the header is not what this rank awaits. */
static gtopk_status_t compare(const char *peer, const char *field, uint64_t theirs, uint64_t ours, const char *advice)
{
    if (theirs == ours)
        return GTOPK_OK;
    return status_set(GTOPK_ERR_DESYNC, "%s sent %s %llu, this rank is at %llu: %s", peer, field,
                      (unsigned long long)theirs, (unsigned long long)ours, advice);
}

/* What a rank does that sends or awaits a message of this `algorithm`. */
static const char *call_name(uint8_t algorithm, int greets, char text[64])
{
    const exchange_ops_t *exchange = exchange_find(algorithm);
    if (greets)
        return "the greeting of a new communicator";
    switch (algorithm) {
    case WIRE_BROADCAST: return "a broadcast";
    case WIRE_ALLGATHER: return "an all-gather (new reducers and collectives begin with one)";
    case WIRE_REDUCE_SCATTER: return "an all-reduce";
    case WIRE_BARRIER: return "a barrier";
    default: break;
    }
    if (!exchange)
        return "an encoded block";
    (void)snprintf(text, 64, "a gradient exchange (%s)", exchange->name);
    return text;
}

/* DESYNC when the peer is in another call. Communicators that greet have the epoch 0. */
static gtopk_status_t compare_calls(const char *peer, const wire_header_t *header, const wire_expect_t *expect,
                                    uint32_t epoch)
{
    char theirs[64], ours[64];
    const int one_greets = (header->epoch == 0) != (epoch == 0);
    if (header->algorithm == expect->algorithm && !one_greets)
        return GTOPK_OK;
    return status_set(GTOPK_ERR_DESYNC,
                      "%s sent a message of %s, this rank is in %s: all ranks must make the same calls in the same "
                      "order (while one is in join(), gradient exchanges only), and add, freeze and load parameters on "
                      "every rank or on none",
                      peer, call_name(header->algorithm, one_greets && header->epoch == 0, theirs),
                      call_name(expect->algorithm, one_greets && epoch == 0, ours));
}

#define SAME_ORDER "all ranks must make the same calls on the same reducers in the same order"

static gtopk_status_t compare_all(const char *peer, const wire_header_t *header, const wire_expect_t *expect)
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
        status = compare(peer, "dim", header->dim, expect->dim,
                         expect->value_type == WIRE_VALUE_BYTES
                             ? "give the same lengths on every rank, and make the same calls (while one is in join(), "
                               "gradient exchanges only)"
                             : "give the same lengths on every rank");
    if (status == GTOPK_OK)
        status = compare(peer, "k", header->k, expect->k, "give the same density on every rank");
    if (status == GTOPK_OK)
        status = compare(peer, "value type", header->value_type, expect->value_type,
                         "give the same value type on every rank");
    return status;
}

static gtopk_status_t read_header(const uint8_t *message, size_t received, check_form_t form, wire_header_t *header)
{
    switch (form) {
    case CHECK_HEAD: return wire_header_peek(message, received, header);
    case CHECK_TRUSTED: return wire_header_trust(message, received, header);
    default: return wire_header_read(message, received, form == CHECK_PADDED, header);
    }
}

/* Whose message it is, whatever call this rank is in. */
static gtopk_status_t check_sender(const link_t *link, const char *peer, const wire_header_t *header, int32_t from,
                                   const wire_expect_t *expect)
{
    const int last_word = (header->flags & WIRE_ABORT) != 0;
    gtopk_status_t status = GTOPK_OK;
    if (expect && !last_word && (header->epoch == 0 || link->epoch == 0))
        status = compare_calls(peer, header, expect, link->epoch);
    if (status == GTOPK_OK && !(last_word && header->epoch == 0)) /* else it gave up in the greeting */
        status = compare(peer, "a message of communicator epoch", header->epoch, link->epoch,
                         "it is of another job or of an earlier communicator: give each job its own ranks and ports");
    if (status == GTOPK_OK)
        status = compare(peer, "a message of sender", header->sender, (uint32_t)from,
                         "the transport delivered it to the wrong rank");
    if (status == GTOPK_OK && last_word)
        status = status_set(GTOPK_ERR_ABORTED,
                            "%s gave up in step %llu (%s): its own output says why; restart from a checkpoint", peer,
                            (unsigned long long)header->step, gtopk_status_text((int)(0u - header->attachment)));
    return status;
}

static gtopk_status_t check(const link_t *link, const uint8_t *message, size_t received, check_form_t form,
                            int32_t from, const wire_expect_t *expect, wire_header_t *got)
{
    char peer[96];
    wire_header_t header;
    (void)link_peer_name(link, from, peer, sizeof peer);
    if (received >= WIRE_HEADER_SIZE && memcmp(message, "GTK1", 4) == 0 && message[4] != WIRE_FORMAT_VERSION)
        return status_set(GTOPK_ERR_MISMATCH,
                          "%s speaks wire format %u, this rank %u: install the same version on all machines", peer,
                          message[4], WIRE_FORMAT_VERSION);
    gtopk_status_t status = read_header(message, received, form, &header);
    if (status != GTOPK_OK)
        return status_prefix(status, "message of %s", peer);
    status = check_sender(link, peer, &header, from, expect);
    if (status == GTOPK_OK && expect)
        status = compare_all(peer, &header, expect);
    if (status == GTOPK_OK && got)
        *got = header;
    return status;
}

gtopk_status_t check_head(const link_t *link, const uint8_t *message, size_t held, int32_t from,
                          const wire_expect_t *expect, gtopk_status_t status)
{
    char text[STATUS_TEXT_SIZE];
    status_keep(text);
    const gtopk_status_t found = check(link, message, held, CHECK_HEAD, from, expect, NULL);
    if (found == GTOPK_ERR_DESYNC || found == GTOPK_ERR_MISMATCH)
        return found;
    return status_set(status, "%s", text);
}

gtopk_status_t check_message(const link_t *link, const uint8_t *message, size_t received, check_form_t form,
                             int32_t from, const wire_expect_t *expect, wire_header_t *got)
{
    const gtopk_status_t status = check(link, message, received, form, from, expect, got);
    if (status == GTOPK_ERR_CORRUPT && (form == CHECK_PADDED || form == CHECK_TRUSTED))
        return check_head(link, message, received, from, expect, status);
    return status;
}
