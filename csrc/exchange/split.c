/* gtopk-split: recursive halving over ranges of the indices, then an all-gather by recursive doubling.
 *
 * In each halving a rank keeps one half of its range, sends the other one, pruned to its budget, and merges what comes. So a
 * partial sum exists once: what is dropped or rounded off goes whole to the residual of the rank that holds it. After the last
 * halving a rank owns the sum over its own range, and the doublings put the owners' sets together. Sets of a range have
 * their places in it as indices, in messages as well.
 *
 * Of the ranks beyond the largest power of two each gives its set to one below, and gets the update back at the end. */
#include "exchange/exchange.h"
#include "exchange/message.h"
#include "exchange/policy.h"
#include "exchange/ranges.h"
#include "exchange/schedule.h"
#include "exchange/sets.h"
#include "util/clock.h"
#include "util/memory.h"

/* Two a halving, and one of the entries that came from beyond. */
#define SPLIT_MAX_LEVELS 31u
#define MOST_DEPOSITS (2 * SPLIT_MAX_LEVELS + 1)

typedef struct split {
    exchange_t base;
    policy_t policy;
    uint32_t levels; /* halvings; 2^levels owners */
    int32_t partner; /* the place beyond the owners that this one takes from, or the owner that it gives to; or NONE */
    int gives;       /* this place is beyond the owners */
    int all_hand_back; /* some place is, so the update is quantised */
    uint64_t most;     /* entries of any set but `all` */

    device_set_t selected; /* what this rank chose */
    device_set_t first;    /* of a rank that gives: what the others decode of it */
    device_set_t mine, other, pruned, decoded, incoming, kept, joined, spare;
    device_set_t all;     /* the last merge: in the end that of this rank's own range, before it was pruned */
    device_set_t nothing; /* always empty */
    device_set_t deposits[MOST_DEPOSITS];
    uint32_t deposits_made; /* sets that were allocated */
    uint8_t *out, *in;      /* messages */

    /* Of the step under way. */
    uint32_t deposit_count;
    device_set_t final;
} split_t;

/* ---- bounds ---- */

/* Rounds have the numbers 0 (to the owners), 1 to levels (halvings), to 2 levels (doublings), and hand-back. */
static uint16_t halving_number(uint32_t level)
{
    return (uint16_t)(level + 1);
}

static uint16_t doubling_number(const split_t *split, uint32_t level)
{
    return (uint16_t)(2 * split->levels - level);
}

static uint16_t hand_back_number(const split_t *split)
{
    return (uint16_t)(2 * split->levels + 1);
}

static uint64_t level_k(const split_t *split, uint32_t level)
{
    const exchange_config_t *config = &split->base.setup.config;
    return schedule_level_k(config->dim, config->k, config->growth, level);
}

static uint32_t place_of(const split_t *split)
{
    return (uint32_t)split->base.setup.places.place;
}

/* The place that a rank exchanges with at a level, for both ways. */
static uint32_t peer_of(const split_t *split, uint32_t level)
{
    return place_of(split) ^ (uint32_t)((uint64_t)1 << level);
}

/* Of the sum over a range on its way to the owners: its budget. */
static message_bounds_t halving_bounds(const split_t *split, uint32_t level, uint32_t owner)
{
    const uint64_t dim = split->base.setup.config.dim, part = range_dim(ranges_at(level, owner), dim);
    return (message_bounds_t){part, ranges_budget(dim, level_k(split, level), part)};
}

/* Of the update in a range: what all owners in it have kept. */
static message_bounds_t doubling_bounds(const split_t *split, uint32_t level, uint32_t owner)
{
    const uint64_t dim = split->base.setup.config.dim;
    return (message_bounds_t){
        range_dim(ranges_at(level, owner), dim),
        (uint32_t)ranges_kept(dim, level_k(split, split->levels), split->levels, level, owner),
    };
}

/* ---- life ---- */

static gtopk_status_t allocate_deposit(split_t *split, uint64_t capacity)
{
    return set_allocate(split->base.setup.device, &split->deposits[split->deposits_made++], capacity);
}

static gtopk_status_t allocate_deposits(split_t *split)
{
    const uint64_t dim = split->base.setup.config.dim;
    gtopk_status_t status = GTOPK_OK;
    if (split->partner != TRANSPORT_NONE)
        status = allocate_deposit(split, set_at_most(dim, 2 * split->base.setup.config.k));
    for (uint32_t level = 0; level < split->levels && status == GTOPK_OK; level++) {
        const uint64_t before = halving_bounds(split, level, place_of(split)).k;
        const message_bounds_t after = halving_bounds(split, level + 1, place_of(split));
        const message_bounds_t away = halving_bounds(split, level + 1, peer_of(split, level));
        status = allocate_deposit(split, set_at_most(away.dim, before));
        if (status == GTOPK_OK)
            status = allocate_deposit(split, set_at_most(after.dim, before + after.k));
    }
    return status;
}

static size_t at_least(size_t capacity, size_t other)
{
    return capacity > other ? capacity : other;
}

/* Of the longest message. */
static size_t longest_message(const split_t *split)
{
    const exchange_setup_t *setup = &split->base.setup;
    size_t capacity = 0;
    if (split->all_hand_back)
        capacity = at_least(message_capacity(setup, halving_bounds(split, 0, 0)),
                            message_capacity(setup, doubling_bounds(split, 0, 0)));
    for (uint32_t level = 0; level < split->levels && !split->gives; level++) {
        const uint32_t places[] = {place_of(split), peer_of(split, level)};
        for (int i = 0; i < 2; i++) {
            capacity = at_least(capacity, message_capacity(setup, halving_bounds(split, level + 1, places[i])));
            capacity = at_least(capacity, message_capacity(setup, doubling_bounds(split, level + 1, places[i])));
        }
    }
    return capacity;
}

static gtopk_status_t allocate(split_t *split)
{
    const exchange_setup_t *setup = &split->base.setup;
    device_t *device = setup->device;
    device_set_t *sets[] = {&split->first, &split->mine,     &split->other, &split->pruned, &split->decoded,
                            &split->kept,  &split->incoming, &split->spare, &split->joined};
    gtopk_status_t status = set_allocate(device, &split->selected, setup->config.k);
    if (status == GTOPK_OK && setup->places.size == 1)
        return status;
    const size_t capacity = longest_message(split);
    for (size_t i = 0; i < sizeof sets / sizeof *sets && status == GTOPK_OK; i++)
        status = set_allocate(device, sets[i], split->most);
    if (status == GTOPK_OK)
        status = set_allocate(device, &split->nothing, 0);
    if (status == GTOPK_OK)
        status = set_allocate_union(device, &split->all, split->most, split->most);
    if (status == GTOPK_OK && split->policy.deposit && !split->gives)
        status = allocate_deposits(split);
    if (status == GTOPK_OK)
        status = message_allocate(setup, capacity, "a send buffer", &split->out);
    if (status == GTOPK_OK)
        status = message_allocate(setup, capacity, "a receive buffer", &split->in);
    return status;
}

static void split_destroy(exchange_t *exchange)
{
    split_t *split = (split_t *)exchange;
    if (!split)
        return;
    device_t *device = exchange->setup.device;
    device_set_t *sets[] = {&split->selected, &split->first,   &split->mine, &split->other,
                            &split->pruned,   &split->decoded, &split->kept, &split->incoming,
                            &split->spare,    &split->joined,  &split->all,  &split->nothing};
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        set_release(device, sets[i]);
    for (uint32_t i = 0; i < split->deposits_made; i++)
        set_release(device, &split->deposits[i]);
    message_release(&exchange->setup, split->out);
    message_release(&exchange->setup, split->in);
    memory_free(split);
}

/* Who halves, who gives. */
static void arrange(split_t *split)
{
    const places_t *places = &split->base.setup.places;
    while (((int64_t)2 << split->levels) <= places->size)
        split->levels++;
    const int32_t owners = (int32_t)((uint32_t)1 << split->levels);
    split->all_hand_back = places->size > owners;
    split->gives = places->place >= owners;
    split->partner = split->gives                            ? places->place - owners
                     : places->place < places->size - owners ? places->place + owners
                                                             : TRANSPORT_NONE;
}

static gtopk_status_t split_create(exchange_t **out, const exchange_setup_t *setup)
{
    split_t *split;
    gtopk_status_t status = exchange_allocate(&split, sizeof *split, &exchange_gtopk_split, setup);
    if (status != GTOPK_OK)
        return status;
    split->policy = policy_of(setup->config.policy);
    arrange(split);
    const uint64_t kept = doubling_bounds(split, 0, 0).k;
    split->most = kept > setup->config.k ? kept : setup->config.k;
    status = allocate(split);
    if (status != GTOPK_OK) {
        split_destroy(&split->base);
        return status;
    }
    *out = &split->base;
    return GTOPK_OK;
}

static uint64_t split_max_count(const exchange_t *exchange)
{
    return ((const split_t *)exchange)->most;
}

/* ---- messages ---- */

/* Encodes `set` as the message of a round; *decoded is what its receiver will hold. */
static gtopk_status_t encode(split_t *split, const exchange_step_t *step, uint16_t round, message_bounds_t bounds,
                             const device_set_t *set, device_set_t *decoded)
{
    const exchange_setup_t *setup = &split->base.setup;
    const wire_header_t header = message_header(setup, step, round, bounds);
    return setup->device->ops->encode(setup->device, set, &header, split->out, decoded, step->words, step->stream);
}

/* Sends what was encoded, unless out is NULL; receives and decodes, unless in is NULL. */
static gtopk_status_t carry(split_t *split, const exchange_step_t *step, uint32_t peer, uint16_t round,
                            const message_bounds_t *out, const message_bounds_t *in, device_set_t *incoming)
{
    const exchange_setup_t *setup = &split->base.setup;
    message_route_t route = {
        .to = TRANSPORT_NONE,
        .from = TRANSPORT_NONE,
        .round = round,
        .send = split->out,
        .receive = split->in,
    };
    if (out) {
        route.to = (int32_t)peer;
        route.out = *out;
    }
    if (in) {
        route.from = (int32_t)peer;
        route.in = *in;
    }
    gtopk_status_t status = message_carry(setup, step, &route);
    if (status == GTOPK_OK && in) {
        const wire_expect_t expect = message_expect(setup, step, (int32_t)peer, round, *in);
        status = setup->device->ops->decode(setup->device, split->in, message_capacity(setup, *in), &expect, incoming,
                                            step->words, step->stream);
    }
    if (status != GTOPK_OK)
        status = status_prefix(status, "step %llu, round %u with rank %d", (unsigned long long)step->number,
                               (unsigned)round, (int)setup->places.ranks[peer]);
    return status;
}

/* ---- what goes back ---- */

/* What `sent` has less than `all`, both of a range of that level, goes to this rank's residual. */
static gtopk_status_t deposit(split_t *split, const exchange_step_t *step, const device_set_t *all,
                              const device_set_t *sent, device_range_t range)
{
    device_t *device = split->base.setup.device;
    if (!split->policy.deposit)
        return GTOPK_OK;
    device_set_t *into = &split->deposits[split->deposit_count++];
    gtopk_status_t status = device->ops->deposit(device, all, sent, 1.0f, into, step->words, step->stream);
    if (status == GTOPK_OK)
        status = device->ops->widen(device, into, range, step->stream);
    return status;
}

/* ---- to the owners ---- */

/* Sends the half of `current` that is the peer's, and leaves this rank's half in split->mine. */
static gtopk_status_t send_half(split_t *split, const exchange_step_t *step, uint32_t level,
                                const device_set_t *current, const message_bounds_t *away)
{
    device_t *device = split->base.setup.device;
    const uint32_t peer = peer_of(split, level);
    gtopk_status_t status = device->ops->cut(device, current, ranges_half(level, place_of(split)), &split->mine,
                                             step->words, step->stream);
    if (status == GTOPK_OK)
        status = device->ops->cut(device, current, ranges_half(level, peer), &split->other, step->words, step->stream);
    if (status == GTOPK_OK)
        status = device->ops->merge(device, &split->other, &split->nothing, away->k, &split->pruned, &split->all,
                                    step->words, step->stream);
    if (status == GTOPK_OK)
        status = encode(split, step, halving_number(level), *away, &split->pruned, &split->decoded);
    if (status == GTOPK_OK)
        status = deposit(split, step, &split->other, &split->decoded, ranges_at(level + 1, peer));
    return status;
}

/* From the sum over a range to that over one half of it. The deposit of the last one waits for the update. */
static gtopk_status_t halve(split_t *split, const exchange_step_t *step, uint32_t level, const device_set_t *current)
{
    device_t *device = split->base.setup.device;
    const uint32_t peer = peer_of(split, level);
    const message_bounds_t away = halving_bounds(split, level + 1, peer);
    const message_bounds_t here = halving_bounds(split, level + 1, place_of(split));
    gtopk_status_t status = send_half(split, step, level, current, &away);
    if (status == GTOPK_OK)
        status = carry(split, step, peer, halving_number(level), &away, &here, &split->incoming);
    if (status == GTOPK_OK)
        status = device->ops->merge(device, &split->mine, &split->incoming, here.k, &split->kept, &split->all,
                                    step->words, step->stream);
    if (status == GTOPK_OK && level + 1 < split->levels)
        status = deposit(split, step, &split->all, &split->kept, ranges_at(level + 1, place_of(split)));
    return status;
}

/* Adds the set of the partner beyond the owners to the one of this rank. */
static gtopk_status_t take(split_t *split, const exchange_step_t *step)
{
    device_t *device = split->base.setup.device;
    const message_bounds_t bounds = halving_bounds(split, 0, 0);
    gtopk_status_t status = carry(split, step, (uint32_t)split->partner, 0, NULL, &bounds, &split->incoming);
    if (status == GTOPK_OK)
        status = device->ops->merge(device, &split->selected, &split->incoming, bounds.k, &split->kept, &split->all,
                                    step->words, step->stream);
    if (status == GTOPK_OK)
        status = deposit(split, step, &split->all, &split->kept, ranges_at(0, 0));
    return status;
}

/* ---- from the owners ---- */

/* The update in the range of a level, of both halves: what this rank has encoded, and the peer's. */
static gtopk_status_t join(split_t *split, const exchange_step_t *step, uint32_t level)
{
    device_t *device = split->base.setup.device;
    const uint32_t peer = peer_of(split, level);
    const message_bounds_t here = doubling_bounds(split, level + 1, place_of(split));
    const message_bounds_t there = doubling_bounds(split, level + 1, peer);
    gtopk_status_t status = carry(split, step, peer, doubling_number(split, level), &here, &there, &split->incoming);
    if (status == GTOPK_OK)
        status = device->ops->widen(device, &split->decoded, ranges_half(level, place_of(split)), step->stream);
    if (status == GTOPK_OK)
        status = device->ops->widen(device, &split->incoming, ranges_half(level, peer), step->stream);
    if (status == GTOPK_OK)
        status = device->ops->merge(device, &split->decoded, &split->incoming, (uint64_t)here.k + there.k,
                                    &split->joined, &split->spare, step->words, step->stream);
    return status;
}

/* From the sum over this rank's own range to the update. What is sent on is decoded first, here as on all others: where that
 * rounds, the owner gets the difference. */
static gtopk_status_t double_up(split_t *split, const exchange_step_t *step)
{
    gtopk_status_t status = GTOPK_OK;
    split->final = split->kept;
    for (uint32_t level = split->levels; level-- > 0 && status == GTOPK_OK;) {
        status = encode(split, step, doubling_number(split, level), doubling_bounds(split, level + 1, place_of(split)),
                        &split->final, &split->decoded);
        if (status == GTOPK_OK)
            status = join(split, step, level);
        split->final = split->joined;
    }
    return status;
}

/* The update, quantised, to the partner beyond the owners; without one it is quantised all the same. */
static gtopk_status_t hand_back(split_t *split, const exchange_step_t *step)
{
    const message_bounds_t bounds = doubling_bounds(split, 0, 0);
    gtopk_status_t status = encode(split, step, hand_back_number(split), bounds, &split->final, &split->decoded);
    split->final = split->decoded;
    if (status == GTOPK_OK && split->partner != TRANSPORT_NONE)
        status = carry(split, step, (uint32_t)split->partner, hand_back_number(split), &bounds, NULL, NULL);
    return status;
}

/* What is not in the update of this rank's range was dropped or rounded off by its owner, who is this rank. */
static gtopk_status_t settle(split_t *split, const exchange_step_t *step)
{
    device_t *device = split->base.setup.device;
    const device_range_t range = ranges_at(split->levels, place_of(split));
    gtopk_status_t status = device->ops->cut(device, &split->final, range, &split->mine, step->words, step->stream);
    return status == GTOPK_OK ? deposit(split, step, &split->all, &split->mine, range) : status;
}

/* ---- one step ---- */

static gtopk_status_t give(split_t *split, const exchange_step_t *step)
{
    const message_bounds_t bounds = halving_bounds(split, 0, 0), back = doubling_bounds(split, 0, 0);
    gtopk_status_t status = encode(split, step, 0, bounds, &split->selected, &split->first);
    if (status == GTOPK_OK)
        status = carry(split, step, (uint32_t)split->partner, 0, &bounds, NULL, NULL);
    if (status == GTOPK_OK)
        status = carry(split, step, (uint32_t)split->partner, hand_back_number(split), NULL, &back, &split->incoming);
    split->final = split->incoming;
    return status;
}

static gtopk_status_t own(split_t *split, const exchange_step_t *step)
{
    gtopk_status_t status = GTOPK_OK;
    const device_set_t *current = &split->selected;
    if (split->partner != TRANSPORT_NONE) {
        status = take(split, step);
        current = &split->kept;
    }
    for (uint32_t level = 0; level < split->levels && status == GTOPK_OK; level++) {
        status = halve(split, step, level, current);
        current = &split->kept;
    }
    if (status == GTOPK_OK)
        status = double_up(split, step);
    if (status == GTOPK_OK && split->all_hand_back)
        status = hand_back(split, step);
    return status == GTOPK_OK ? settle(split, step) : status;
}

static gtopk_status_t split_run(exchange_t *exchange, exchange_step_t *step)
{
    split_t *split = (split_t *)exchange;
    gtopk_status_t status = exchange_select(exchange, step, &split->selected);
    const double start = clock_now();
    split->deposit_count = 0;
    split->final = split->selected;
    if (status == GTOPK_OK && exchange->setup.places.size > 1)
        status = split->gives ? give(split, step) : own(split, step);
    step->final = &split->final;
    step->exchange_s = clock_now() - start;
    return status;
}

/* Owners send nothing as it was selected: all of it leaves the residual, and what was not sent on comes back as deposits. */
static gtopk_status_t split_commit(exchange_t *exchange, const exchange_step_t *step, const device_target_t *target)
{
    const split_t *split = (const split_t *)exchange;
    const exchange_setup_t *setup = &exchange->setup;
    const device_journal_t journal = {
        .selected = split->selected,
        .first = split->gives ? split->first : split->selected,
        .deposits = split->deposits,
        .deposit_count = split->deposit_count,
        .final = split->final,
        .clear_final_only = split->policy.clear_final_only,
        .divisor = setup->places.contributors,
        .others = places_others(&setup->places),
    };
    return setup->device->ops->commit(setup->store, &journal, target, step->words, step->stream);
}

const exchange_ops_t exchange_gtopk_split = {
    .name = "gtopk-split",
    .selects = 1,
    .create = split_create,
    .run = split_run,
    .commit = split_commit,
    .max_count = split_max_count,
    .destroy = split_destroy,
};
