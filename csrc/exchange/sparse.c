/* The executor of schedules, and the all-gather of topk. Section by section this is the protocol of docs/architecture.md:
 * whatever is sent is quantised first, and its owner goes on with what the others decode. */
#include "exchange/sparse.h"

#include <string.h>

#include "exchange/policy.h"
#include "exchange/schedule.h"
#include "util/memory.h"

struct sparse {
    device_t *device;
    link_t *link;
    sparse_config_t config;
    policy_t policy;
    schedule_t schedule;
    uint32_t level_k[SCHEDULE_MAX_ROUNDS];
    uint64_t max_count;
    device_set_t selected; /* what this rank chose */
    device_set_t first;    /* what the others decode of it */
    device_set_t incoming, all, kept, decoded;
    device_set_t *deposits; /* one a merge */
    uint32_t deposit_count; /* staged in this step */
    uint8_t *out, *in;      /* messages */
    uint8_t *gathered;      /* topk: one message of each rank */
    size_t capacity;        /* of a message */
};

/* ---- memory ---- */

static gtopk_status_t set_allocate(device_t *device, device_set_t *set, uint64_t capacity)
{
    set->capacity = (uint32_t)capacity;
    void *index = NULL, *value = NULL, *count = NULL;
    gtopk_status_t status = device->ops->allocate(device, (capacity + 1) * sizeof(uint32_t), "a set's indices", &index);
    if (status == GTOPK_OK)
        status = device->ops->allocate(device, (capacity + 1) * sizeof(float), "a set's values", &value);
    if (status == GTOPK_OK)
        status = device->ops->allocate(device, sizeof(uint32_t), "a set's count", &count);
    set->index = index;
    set->value = value;
    set->count = count;
    return status;
}

static void set_release(device_t *device, device_set_t *set)
{
    device->ops->release(device, set->index);
    device->ops->release(device, set->value);
    device->ops->release(device, set->count);
}

static uint64_t at_most(uint64_t limit, uint64_t value)
{
    return value < limit ? value : limit;
}

static gtopk_status_t allocate_messages(sparse_t *sparse)
{
    device_t *device = sparse->device;
    const uint32_t k = sparse->level_k[sparse->schedule.levels];
    void *out = NULL, *in = NULL;
    sparse->capacity = wire_message_capacity(sparse->config.dim, k, (int)sparse->config.value_type);
    gtopk_status_t status = device->ops->allocate_pinned(device, sparse->capacity, "a send buffer", &out);
    if (status == GTOPK_OK)
        status = device->ops->allocate_pinned(device, sparse->capacity, "a receive buffer", &in);
    if (status == GTOPK_OK && sparse->config.algorithm == GTOPK_ALGORITHM_TOPK)
        status = memory_alloc(&sparse->gathered, (size_t)sparse->link->transport->size, sparse->capacity,
                              "the messages that topk gathers");
    sparse->out = out;
    sparse->in = in;
    return status;
}

static gtopk_status_t allocate_deposits(sparse_t *sparse)
{
    const schedule_t *schedule = &sparse->schedule;
    gtopk_status_t status = memory_alloc(&sparse->deposits, schedule->merges, sizeof *sparse->deposits, "the journal");
    uint32_t merge = 0;
    for (uint32_t r = 0; r < schedule->count && status == GTOPK_OK; r++) {
        const schedule_round_t *round = &schedule->rounds[r];
        if (round->kind == SCHEDULE_MERGE || round->kind == SCHEDULE_TAKE)
            status = set_allocate(sparse->device, &sparse->deposits[merge++],
                                  at_most(sparse->config.dim, 2 * (uint64_t)sparse->level_k[round->level_in]));
    }
    return status;
}

static gtopk_status_t allocate_sets(sparse_t *sparse)
{
    device_t *device = sparse->device;
    const uint64_t k = sparse->config.k;
    const uint32_t last = sparse->level_k[sparse->schedule.levels];
    gtopk_status_t status = set_allocate(device, &sparse->selected, k);
    if (status == GTOPK_OK && sparse->link->transport->size == 1)
        return status;
    if (status == GTOPK_OK)
        status = set_allocate(device, &sparse->first, k);
    if (status == GTOPK_OK)
        status = set_allocate(device, &sparse->incoming, last);
    if (status == GTOPK_OK)
        status = set_allocate(device, &sparse->kept, sparse->max_count);
    if (status == GTOPK_OK)
        status = set_allocate(device, &sparse->decoded, sparse->max_count);
    if (status == GTOPK_OK && sparse->policy.deposit && 2 * (uint64_t)last > UINT32_MAX)
        status = status_set(GTOPK_ERR_UNSUPPORTED,
                            "an exchange of %u entries a rank is too large: at most 2^31 - 1; use a "
                            "lower density or more reducers",
                            last);
    if (status == GTOPK_OK && sparse->policy.deposit)
        status = set_allocate(device, &sparse->all, at_most(UINT32_MAX, 2 * (uint64_t)last));
    if (status == GTOPK_OK && sparse->policy.deposit)
        status = allocate_deposits(sparse);
    if (status == GTOPK_OK)
        status = allocate_messages(sparse);
    return status;
}

static policy_t policy_of_config(const sparse_config_t *config)
{
    const int merges = config->algorithm == GTOPK_ALGORITHM_GTOPK || config->algorithm == GTOPK_ALGORITHM_GTOPK_TREE;
    return merges ? policy_of(config->policy) : policy_of_topk();
}

gtopk_status_t sparse_create(sparse_t **out, device_t *device, link_t *link, const sparse_config_t *config)
{
    sparse_t *sparse;
    const int32_t size = link->transport->size, rank = link->transport->rank;
    gtopk_status_t status = memory_alloc(&sparse, 1, sizeof *sparse, "an exchange");
    if (status != GTOPK_OK)
        return status;
    sparse->device = device;
    sparse->link = link;
    sparse->config = *config;
    sparse->policy = policy_of_config(config);
    if (config->algorithm == GTOPK_ALGORITHM_GTOPK_TREE)
        schedule_tree(&sparse->schedule, size, rank);
    else if (config->algorithm != GTOPK_ALGORITHM_TOPK)
        schedule_butterfly(&sparse->schedule, size, rank);
    for (uint32_t level = 0; level <= sparse->schedule.levels; level++)
        sparse->level_k[level] = schedule_level_k(config->dim, config->k, config->growth, level);
    sparse->max_count = config->algorithm == GTOPK_ALGORITHM_TOPK ? at_most(config->dim, config->k * (uint64_t)size)
                                                                  : sparse->level_k[sparse->schedule.levels];
    status = allocate_sets(sparse);
    if (status != GTOPK_OK) {
        sparse_destroy(sparse);
        return status;
    }
    *out = sparse;
    return GTOPK_OK;
}

void sparse_destroy(sparse_t *sparse)
{
    if (!sparse)
        return;
    device_t *device = sparse->device;
    device_set_t *sets[] = {&sparse->selected, &sparse->first, &sparse->incoming,
                            &sparse->all,      &sparse->kept,  &sparse->decoded};
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        set_release(device, sets[i]);
    for (uint32_t i = 0; sparse->deposits && i < sparse->schedule.merges; i++)
        set_release(device, &sparse->deposits[i]);
    memory_free(sparse->deposits);
    if (!sparse->link->buffers_lost) { /* a request that was given up may still write there */
        device->ops->release_pinned(device, sparse->out);
        device->ops->release_pinned(device, sparse->in);
        memory_free(sparse->gathered);
    }
    memory_free(sparse);
}

device_set_t *sparse_selected(sparse_t *sparse)
{
    return &sparse->selected;
}

uint64_t sparse_max_count(const sparse_t *sparse)
{
    return sparse->max_count;
}

/* ---- one step ---- */

typedef struct step {
    sparse_t *sparse;
    uint64_t number;
    uint32_t config_hash;
    double deadline;
    device_words_t *words;
    device_set_t current; /* the set that this rank stands for */
} step_t;

/* Encodes `set` as the next message to send; *decoded is what the receivers will hold. */
static gtopk_status_t encode_next(step_t *step, const device_set_t *set, device_set_t *decoded)
{
    sparse_t *sparse = step->sparse;
    const wire_header_t header = {
        .value_type = (uint8_t)sparse->config.value_type,
        .algorithm = (uint8_t)sparse->config.algorithm,
        .sender = (uint32_t)sparse->link->transport->rank,
        .epoch = sparse->link->epoch,
        .reducer = sparse->config.reducer,
        .k = sparse->level_k[sparse->schedule.levels],
        .dim = (uint32_t)sparse->config.dim,
        .config_hash = step->config_hash,
        .step = step->number,
        .scale = 1.0f,
    };
    return sparse->device->ops->encode(sparse->device, set, &header, sparse->out, decoded, step->words, NULL);
}

static link_expect_t expect_of(const step_t *step, uint16_t round, uint32_t k)
{
    const sparse_config_t *config = &step->sparse->config;
    return (link_expect_t){
        .algorithm = (uint8_t)config->algorithm,
        .value_type = (uint8_t)config->value_type,
        .round = round,
        .reducer = config->reducer,
        .config_hash = step->config_hash,
        .dim = (uint32_t)config->dim,
        .k = k,
        .step = step->number,
    };
}

/* Sends the next message, or receives one into sparse->in, or both, as the round says. */
static gtopk_status_t carry(step_t *step, const schedule_round_t *round, wire_header_t *got)
{
    sparse_t *sparse = step->sparse;
    const schedule_kind_t kind = round->kind;
    const uint32_t k = sparse->level_k[round->level_in];
    const size_t capacity = wire_message_capacity(sparse->config.dim, k, (int)sparse->config.value_type);
    link_message_t message = {.to = TRANSPORT_NONE, .from = TRANSPORT_NONE};
    if (kind == SCHEDULE_MERGE || kind == SCHEDULE_GIVE || kind == SCHEDULE_PUBLISH) {
        const size_t bytes = wire_own_size(sparse->out);
        wire_readdress(sparse->out, (uint32_t)sparse->link->transport->rank, round->number, k);
        wire_seal(sparse->out, bytes - WIRE_HEADER_SIZE);
        message.to = round->peer;
        message.send = sparse->out;
        message.send_bytes = bytes;
        message.send_capacity = capacity;
    }
    if (kind == SCHEDULE_MERGE || kind == SCHEDULE_TAKE || kind == SCHEDULE_FINAL) {
        message.from = round->peer;
        message.receive = sparse->in;
        message.receive_capacity = capacity;
    }
    const link_expect_t expect = expect_of(step, round->number, k);
    return link_exchange(sparse->link, &message, step->deadline, &expect, got);
}

/* Adds the received set to the current one, keeps k, stages what is dropped and rounded off. */
static gtopk_status_t merge_received(step_t *step, const schedule_round_t *round, const wire_header_t *got)
{
    sparse_t *sparse = step->sparse;
    device_t *device = sparse->device;
    const device_ops_t *ops = device->ops;
    device_set_t *all = sparse->policy.deposit ? &sparse->all : NULL;
    gtopk_status_t status = ops->decode(device, sparse->in, got, &sparse->incoming, step->words, NULL);
    if (status == GTOPK_OK)
        status = ops->merge(device, &step->current, &sparse->incoming, sparse->level_k[round->level_out], &sparse->kept,
                            all, step->words, NULL);
    step->current = sparse->kept;
    if (status == GTOPK_OK && round->quantise) {
        status = encode_next(step, &sparse->kept, &sparse->decoded);
        step->current = sparse->decoded;
    }
    if (status == GTOPK_OK && all)
        status = ops->deposit(device, all, &step->current, 1.0f / (float)round->group,
                              &sparse->deposits[sparse->deposit_count++], NULL);
    return status;
}

/* The final set as received; the message itself is passed on to others as it is. */
static gtopk_status_t take_final(step_t *step, const wire_header_t *got)
{
    sparse_t *sparse = step->sparse;
    const gtopk_status_t status = sparse->device->ops->decode(sparse->device, sparse->in, got, &sparse->decoded,
                                                              step->words, NULL);
    step->current = sparse->decoded;
    uint8_t *received = sparse->in;
    sparse->in = sparse->out;
    sparse->out = received;
    return status;
}

static gtopk_status_t run_schedule(step_t *step)
{
    sparse_t *sparse = step->sparse;
    gtopk_status_t status = encode_next(step, &sparse->selected, &sparse->first);
    step->current = sparse->first;
    for (uint32_t r = 0; r < sparse->schedule.count && status == GTOPK_OK; r++) {
        const schedule_round_t *round = &sparse->schedule.rounds[r];
        wire_header_t got;
        status = carry(step, round, &got);
        if (status == GTOPK_OK && (round->kind == SCHEDULE_MERGE || round->kind == SCHEDULE_TAKE))
            status = merge_received(step, round, &got);
        if (status == GTOPK_OK && round->kind == SCHEDULE_FINAL)
            status = take_final(step, &got);
        if (status != GTOPK_OK)
            status = status_prefix(status, "step %llu, round %u with rank %d", (unsigned long long)step->number,
                                   (unsigned)round->number, (int)round->peer);
    }
    return status;
}

/* ---- topk ---- */

static gtopk_status_t gather_by_link(step_t *step, size_t bytes)
{
    sparse_t *sparse = step->sparse;
    const int32_t size = sparse->link->transport->size, rank = sparse->link->transport->rank;
    for (int32_t shift = 1; shift < size; shift++) {
        const int32_t from = (rank - shift + size) % size;
        const uint32_t k = (uint32_t)sparse->config.k;
        wire_readdress(sparse->out, (uint32_t)rank, (uint16_t)shift, k);
        wire_seal(sparse->out, bytes - WIRE_HEADER_SIZE);
        const link_message_t message = {
            .to = (rank + shift) % size,
            .from = from,
            .send = sparse->out,
            .send_bytes = bytes,
            .send_capacity = sparse->capacity,
            .receive = sparse->gathered + (size_t)from * sparse->capacity,
            .receive_capacity = sparse->capacity,
        };
        const link_expect_t expect = expect_of(step, (uint16_t)shift, k);
        const gtopk_status_t status = link_exchange(sparse->link, &message, step->deadline, &expect, NULL);
        if (status != GTOPK_OK)
            return status;
    }
    return GTOPK_OK;
}

/* One message of every rank, checked, in sparse->gathered. */
static gtopk_status_t gather(step_t *step)
{
    sparse_t *sparse = step->sparse;
    link_t *link = sparse->link;
    const size_t bytes = wire_own_size(sparse->out);
    if (!link->transport->ops->allgather)
        return gather_by_link(step, bytes);

    wire_readdress(sparse->out, (uint32_t)link->transport->rank, 0, (uint32_t)sparse->config.k);
    wire_seal(sparse->out, bytes - WIRE_HEADER_SIZE);
    gtopk_status_t status = link_allgather(link, sparse->out, sparse->capacity, sparse->gathered, step->deadline);
    const link_expect_t expect = expect_of(step, 0, (uint32_t)sparse->config.k);
    for (int32_t r = 0; r < link->transport->size && status == GTOPK_OK; r++)
        if (r != link->transport->rank)
            status = link_check(link, sparse->gathered + (size_t)r * sparse->capacity, sparse->capacity, 1, r, &expect,
                                NULL);
    return status;
}

/* Adds up the sets in the order of ranks, own included, so that all ranks compute the same bits. */
static gtopk_status_t add_up(step_t *step)
{
    sparse_t *sparse = step->sparse;
    device_t *device = sparse->device;
    device_set_t *sum = &sparse->kept, *next = &sparse->decoded;
    gtopk_status_t status = GTOPK_OK;
    for (int32_t r = 0; r < sparse->link->transport->size && status == GTOPK_OK; r++) {
        const uint8_t *message = sparse->gathered + (size_t)r * sparse->capacity;
        const device_set_t *set = &sparse->first;
        if (r != sparse->link->transport->rank) {
            wire_header_t header;
            status = wire_header_read(message, sparse->capacity, 1, &header);
            if (status == GTOPK_OK)
                status = device->ops->decode(device, message, &header, &sparse->incoming, step->words, NULL);
            if (status != GTOPK_OK)
                return status_prefix(status, "message of rank %d", (int)r);
            set = &sparse->incoming;
        }
        if (r == 0) {
            status = device->ops->copy_set(device, set, sum, NULL);
            continue;
        }
        status = device->ops->merge(device, sum, set, sparse->max_count, next, NULL, step->words, NULL);
        device_set_t *swap = sum;
        sum = next;
        next = swap;
    }
    step->current = *sum;
    return status;
}

static gtopk_status_t run_topk(step_t *step)
{
    sparse_t *sparse = step->sparse;
    gtopk_status_t status = encode_next(step, &sparse->selected, &sparse->first);
    if (status == GTOPK_OK)
        status = gather(step);
    if (status == GTOPK_OK)
        status = add_up(step);
    if (status != GTOPK_OK)
        status = status_prefix(status, "step %llu, all-gather of topk", (unsigned long long)step->number);
    return status;
}

gtopk_status_t sparse_run(sparse_t *sparse, uint64_t number, uint32_t config_hash, double deadline,
                          device_words_t *words, device_journal_t *journal)
{
    const int alone = sparse->link->transport->size == 1;
    step_t step = {
        .sparse = sparse,
        .number = number,
        .config_hash = config_hash,
        .deadline = deadline,
        .words = words,
        .current = sparse->selected,
    };
    gtopk_status_t status = GTOPK_OK;
    sparse->deposit_count = 0;
    if (!alone)
        status = sparse->config.algorithm == GTOPK_ALGORITHM_TOPK ? run_topk(&step) : run_schedule(&step);
    *journal = (device_journal_t){
        .selected = sparse->selected,
        .first = alone ? sparse->selected : sparse->first,
        .deposits = sparse->deposits,
        .deposit_count = sparse->deposit_count,
        .final = step.current,
        .clear_final_only = sparse->policy.clear_final_only,
        .size = (uint32_t)sparse->link->transport->size,
    };
    return status;
}
