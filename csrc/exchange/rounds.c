/* The executor of schedules. */
#include "exchange/rounds.h"

#include "exchange/message.h"
#include "exchange/policy.h"
#include "exchange/schedule.h"
#include "exchange/sets.h"
#include "util/clock.h"
#include "util/memory.h"

typedef struct rounds {
    exchange_t base;
    policy_t policy;
    schedule_t schedule;
    uint32_t level_k[SCHEDULE_MAX_ROUNDS];
    device_set_t selected; /* what this rank chose */
    device_set_t first;    /* what the others decode of it */
    device_set_t incoming, all, kept, decoded;
    device_set_t *deposits; /* one a merge */
    uint8_t *out, *in;      /* messages */

    /* Of the step under way. */
    uint32_t deposit_count;
    const schedule_round_t *addressed; /* the round that the header of `out` names, NULL: none */
    device_set_t current;              /* the set that this rank stands for */
} rounds_t;

/* ---- life ---- */

static uint32_t last_k(const rounds_t *rounds)
{
    return rounds->level_k[rounds->schedule.levels];
}

static message_bounds_t bounds_of(const rounds_t *rounds, uint32_t level)
{
    return (message_bounds_t){rounds->base.setup.config.dim, rounds->level_k[level]};
}

static int merges(const schedule_round_t *round)
{
    return round->kind == SCHEDULE_MERGE || round->kind == SCHEDULE_TAKE;
}

static int sends(const schedule_round_t *round)
{
    return round->kind == SCHEDULE_MERGE || round->kind == SCHEDULE_GIVE || round->kind == SCHEDULE_PUBLISH;
}

/* Of the sets that are merged with another one. With growth the last set is larger than these. */
static uint32_t merged_level(const schedule_t *schedule)
{
    uint32_t highest = 0;
    for (uint32_t r = 0; r < schedule->count; r++)
        if (merges(&schedule->rounds[r]) && schedule->rounds[r].level_in > highest)
            highest = schedule->rounds[r].level_in;
    return highest;
}

/* Of the sets that are encoded or come as messages. */
static uint32_t encoded_level(const schedule_t *schedule)
{
    uint32_t highest = 0;
    for (uint32_t r = 0; r < schedule->count; r++) {
        const schedule_round_t *round = &schedule->rounds[r];
        const uint32_t level = round->quantise ? round->level_out : round->level_in;
        if (level > highest)
            highest = level;
    }
    return highest;
}

static gtopk_status_t allocate_deposits(rounds_t *rounds)
{
    const schedule_t *schedule = &rounds->schedule;
    gtopk_status_t status = memory_alloc(&rounds->deposits, schedule->merges, sizeof *rounds->deposits, "the journal");
    uint32_t merge = 0;
    for (uint32_t r = 0; r < schedule->count && status == GTOPK_OK; r++) {
        const schedule_round_t *round = &schedule->rounds[r];
        if (merges(round))
            status = set_allocate(
                rounds->base.setup.device, &rounds->deposits[merge++],
                set_at_most(rounds->base.setup.config.dim, 2 * (uint64_t)rounds->level_k[round->level_in]));
    }
    return status;
}

static gtopk_status_t allocate(rounds_t *rounds)
{
    const exchange_setup_t *setup = &rounds->base.setup;
    device_t *device = setup->device;
    const uint32_t encoded = encoded_level(&rounds->schedule);
    const uint64_t incoming = rounds->level_k[merged_level(&rounds->schedule)];
    const size_t capacity = message_capacity(setup, bounds_of(rounds, encoded));
    gtopk_status_t status = set_allocate(device, &rounds->selected, setup->config.k);
    if (status == GTOPK_OK && setup->places.size == 1)
        return status;
    if (status == GTOPK_OK)
        status = set_allocate(device, &rounds->first, setup->config.k);
    if (status == GTOPK_OK)
        status = set_allocate(device, &rounds->incoming, incoming);
    if (status == GTOPK_OK)
        status = set_allocate(device, &rounds->kept, last_k(rounds));
    if (status == GTOPK_OK)
        status = set_allocate(device, &rounds->decoded, rounds->level_k[encoded]);
    if (status == GTOPK_OK)
        status = set_allocate_union(device, &rounds->all, incoming, incoming);
    if (status == GTOPK_OK && rounds->policy.deposit)
        status = allocate_deposits(rounds);
    if (status == GTOPK_OK)
        status = message_allocate(setup, capacity, "a send buffer", &rounds->out);
    if (status == GTOPK_OK)
        status = message_allocate(setup, capacity, "a receive buffer", &rounds->in);
    return status;
}

static void rounds_destroy(exchange_t *exchange)
{
    rounds_t *rounds = (rounds_t *)exchange;
    if (!rounds)
        return;
    device_t *device = exchange->setup.device;
    device_set_t *sets[] = {&rounds->selected, &rounds->first, &rounds->incoming,
                            &rounds->all,      &rounds->kept,  &rounds->decoded};
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        set_release(device, sets[i]);
    for (uint32_t i = 0; rounds->deposits && i < rounds->schedule.merges; i++)
        set_release(device, &rounds->deposits[i]);
    memory_free(rounds->deposits);
    message_release(&exchange->setup, rounds->out);
    message_release(&exchange->setup, rounds->in);
    memory_free(rounds);
}

static gtopk_status_t create(exchange_t **out, const exchange_setup_t *setup, const exchange_ops_t *ops,
                             void (*make)(schedule_t *schedule, int32_t size, int32_t rank))
{
    rounds_t *rounds;
    gtopk_status_t status = exchange_allocate(&rounds, sizeof *rounds, ops, setup);
    if (status != GTOPK_OK)
        return status;
    rounds->policy = policy_of(setup->config.policy);
    make(&rounds->schedule, setup->places.size, setup->places.place);
    for (uint32_t level = 0; level <= rounds->schedule.levels; level++)
        rounds->level_k[level] = schedule_level_k(setup->config.dim, setup->config.k, setup->config.growth, level);
    status = allocate(rounds);
    if (status != GTOPK_OK) {
        rounds_destroy(&rounds->base);
        return status;
    }
    *out = &rounds->base;
    return GTOPK_OK;
}

static uint64_t rounds_max_count(const exchange_t *exchange)
{
    return last_k((const rounds_t *)exchange);
}

/* ---- one step ---- */

/* The next round from r on that sends the message, or NULL. */
static const schedule_round_t *next_to_send(const rounds_t *rounds, uint32_t r)
{
    for (; r < rounds->schedule.count; r++)
        if (sends(&rounds->schedule.rounds[r]))
            return &rounds->schedule.rounds[r];
    return NULL;
}

/* Encodes `set` as the message of the next round, from r on, that sends one; *decoded is what the receivers will hold. */
static gtopk_status_t encode(rounds_t *rounds, const exchange_step_t *step, uint32_t r, const device_set_t *set,
                             device_set_t *decoded)
{
    const exchange_setup_t *setup = &rounds->base.setup;
    const schedule_round_t *round = next_to_send(rounds, r);
    const wire_header_t header = message_header(setup, step, round ? round->number : 0,
                                                bounds_of(rounds, round ? round->level_in : rounds->schedule.levels));
    rounds->addressed = round;
    rounds->current = *decoded;
    return setup->device->ops->encode(setup->device, set, &header, rounds->out, decoded, step->words, step->stream);
}

/* Sends the message, or receives one into rounds->in, or both, as the round says. */
static gtopk_status_t carry(rounds_t *rounds, const exchange_step_t *step, const schedule_round_t *round)
{
    const exchange_setup_t *setup = &rounds->base.setup;
    message_route_t route = {
        .to = TRANSPORT_NONE,
        .from = TRANSPORT_NONE,
        .round = round->number,
        .out = bounds_of(rounds, round->level_in),
        .in = bounds_of(rounds, round->level_in),
        .send = rounds->out,
        .receive = rounds->in,
    };
    gtopk_status_t status = GTOPK_OK;
    if (sends(round)) {
        route.to = round->peer;
        if (rounds->addressed != round)
            status = setup->device->ops->address(setup->device, rounds->out,
                                                 (uint32_t)setup->places.ranks[setup->places.place], round->number,
                                                 route.out.k, step->words, step->stream);
        rounds->addressed = round;
    }
    if (merges(round) || round->kind == SCHEDULE_FINAL)
        route.from = round->peer;
    return status == GTOPK_OK ? message_carry(setup, step, &route) : status;
}

static gtopk_status_t decode(rounds_t *rounds, const exchange_step_t *step, const schedule_round_t *round,
                             device_set_t *into)
{
    const exchange_setup_t *setup = &rounds->base.setup;
    const message_bounds_t bounds = bounds_of(rounds, round->level_in);
    const wire_expect_t expect = message_expect(setup, step, round->peer, round->number, bounds);
    return setup->device->ops->decode(setup->device, rounds->in, message_capacity(setup, bounds), &expect, into,
                                      step->words, step->stream);
}

/* Adds the received set to the current one, keeps k, stages what is dropped and rounded off. */
static gtopk_status_t merge_received(rounds_t *rounds, const exchange_step_t *step, uint32_t r)
{
    const schedule_round_t *round = &rounds->schedule.rounds[r];
    device_t *device = rounds->base.setup.device;
    gtopk_status_t status = decode(rounds, step, round, &rounds->incoming);
    if (status == GTOPK_OK)
        status = device->ops->merge(device, &rounds->current, &rounds->incoming, rounds->level_k[round->level_out],
                                    &rounds->kept, &rounds->all, step->words, step->stream);
    rounds->current = rounds->kept;
    if (status == GTOPK_OK && round->quantise)
        status = encode(rounds, step, r + 1, &rounds->kept, &rounds->decoded);
    if (status == GTOPK_OK && rounds->policy.deposit)
        status = device->ops->deposit(device, &rounds->all, &rounds->current, 1.0f / (float)round->group,
                                      &rounds->deposits[rounds->deposit_count++], step->words, step->stream);
    return status;
}

/* The final set as received; the message itself is passed on to others as it is. */
static gtopk_status_t take_final(rounds_t *rounds, const exchange_step_t *step, const schedule_round_t *round)
{
    const gtopk_status_t status = decode(rounds, step, round, &rounds->decoded);
    uint8_t *received = rounds->in;
    rounds->current = rounds->decoded;
    rounds->in = rounds->out;
    rounds->out = received;
    rounds->addressed = NULL;
    return status;
}

static gtopk_status_t run_schedule(rounds_t *rounds, const exchange_step_t *step)
{
    gtopk_status_t status = encode(rounds, step, 0, &rounds->selected, &rounds->first);
    for (uint32_t r = 0; r < rounds->schedule.count && status == GTOPK_OK; r++) {
        const schedule_round_t *round = &rounds->schedule.rounds[r];
        status = carry(rounds, step, round);
        if (status == GTOPK_OK && merges(round))
            status = merge_received(rounds, step, r);
        if (status == GTOPK_OK && round->kind == SCHEDULE_FINAL)
            status = take_final(rounds, step, round);
        if (status != GTOPK_OK)
            status = status_prefix(status, "step %llu, round %u with rank %d", (unsigned long long)step->number,
                                   (unsigned)round->number, (int)rounds->base.setup.places.ranks[round->peer]);
    }
    return status;
}

/* From the selected set on. With one member there is nothing to exchange, and nothing is quantised. */
static gtopk_status_t exchange_selected(rounds_t *rounds, exchange_step_t *step)
{
    const double start = clock_now();
    gtopk_status_t status = GTOPK_OK;
    rounds->deposit_count = 0;
    rounds->current = rounds->selected;
    if (rounds->base.setup.places.size > 1)
        status = run_schedule(rounds, step);
    step->final = &rounds->current;
    step->exchange_s = clock_now() - start;
    return status;
}

static gtopk_status_t rounds_run(exchange_t *exchange, exchange_step_t *step)
{
    rounds_t *rounds = (rounds_t *)exchange;
    const gtopk_status_t status = exchange_select(exchange, step, &rounds->selected);
    return status == GTOPK_OK ? exchange_selected(rounds, step) : status;
}

static gtopk_status_t rounds_commit(exchange_t *exchange, const exchange_step_t *step, const device_target_t *target)
{
    const rounds_t *rounds = (const rounds_t *)exchange;
    const exchange_setup_t *setup = &exchange->setup;
    const device_journal_t journal = {
        .selected = rounds->selected,
        .first = setup->places.size == 1 ? rounds->selected : rounds->first,
        .deposits = rounds->deposits,
        .deposit_count = rounds->deposit_count,
        .final = rounds->current,
        .clear_final_only = rounds->policy.clear_final_only,
        .divisor = setup->places.contributors,
        .others = places_others(&setup->places),
    };
    return setup->device->ops->commit(setup->store, &journal, target, step->words, step->stream);
}

/* ---- the algorithms ---- */

static gtopk_status_t create_butterfly(exchange_t **exchange, const exchange_setup_t *setup)
{
    return create(exchange, setup, &exchange_gtopk, schedule_butterfly);
}

static gtopk_status_t create_tree(exchange_t **exchange, const exchange_setup_t *setup)
{
    return create(exchange, setup, &exchange_gtopk_tree, schedule_tree);
}

const exchange_ops_t exchange_gtopk = {
    .name = "gtopk",
    .selects = 1,
    .create = create_butterfly,
    .run = rounds_run,
    .commit = rounds_commit,
    .max_count = rounds_max_count,
    .destroy = rounds_destroy,
};

const exchange_ops_t exchange_gtopk_tree = {
    .name = "gtopk-tree",
    .selects = 1,
    .create = create_tree,
    .run = rounds_run,
    .commit = rounds_commit,
    .max_count = rounds_max_count,
    .destroy = rounds_destroy,
};

/* ---- bare headers ---- */

static gtopk_status_t headers_run(exchange_t *exchange, exchange_step_t *step)
{
    return exchange_selected((rounds_t *)exchange, step);
}

static const exchange_ops_t headers_ops = {.name = "headers", .run = headers_run, .destroy = rounds_destroy};

gtopk_status_t rounds_create_headers(exchange_t **exchange, const exchange_setup_t *setup)
{
    return create(exchange, setup, &headers_ops, schedule_butterfly);
}
