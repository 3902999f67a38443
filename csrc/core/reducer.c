/* The reducer: its life and its settings. */
#include "core/step.h"

#include <string.h>
#include <unistd.h>

#include "core/choice.h"
#include "core/trial.h"
#include "exchange/node.h"
#include "util/log.h"
#include "util/memory.h"

/* ---- life ---- */

/* What an exchange for k entries of this reducer works on. In shares: one between the ranks that have the same. */
static exchange_setup_t setup_for(const gtopk_reducer_t *reducer, uint64_t k)
{
    const config_record_t *record = &reducer->record;
    const shares_t *shares = reducer->shares;
    gtopk_comm_t *comm = reducer->comm;
    return (exchange_setup_t){
        .device = reducer->device,
        .store = reducer->store,
        .link = &comm->link,
        .places = shares ? shares->peers : places_of_all(&comm->map, comm_rank(comm)),
        .config =
            {
                .algorithm = record->algorithm,
                .value_type = record->value_type,
                .policy = record->residual_policy,
                .growth = record->merge_growth,
                .dim = reducer_store_dim(reducer),
                .k = k,
                .reducer = record->reducer,
            },
    };
}

gtopk_status_t reducer_create_exchange(const gtopk_reducer_t *reducer, int32_t algorithm, uint64_t k,
                                       exchange_t **exchange)
{
    exchange_setup_t setup = setup_for(reducer, k);
    setup.config.algorithm = algorithm;
    if (!reducer->shares)
        return exchange_find(setup.config.algorithm)->create(exchange, &setup);
    const node_setup_t node = {setup, reducer->shares->node, reducer->record.dim, reducer->segments.count};
    return node_create(exchange, &node);
}

void reducer_destroy_exchange(exchange_t *exchange)
{
    if (exchange)
        exchange->ops->destroy(exchange);
}

/* What adds up the gradients of a node. */
static gtopk_status_t create_scatter(gtopk_reducer_t *reducer)
{
    exchange_setup_t setup = setup_for(reducer, reducer->k);
    setup.places = reducer->shares->node;
    return scatter_create(&reducer->shares->scatter, &setup, reducer->record.dim);
}

/* Ranks on a node. */
static int32_t count_node(const places_map_t *map, int32_t node)
{
    int32_t count = 0;
    for (int32_t r = 0; r < map->size; r++)
        count += map->node[r] == node;
    return count;
}

static gtopk_status_t check_hierarchy(const gtopk_reducer_t *reducer)
{
    const places_map_t *map = &reducer->comm->map;
    const int32_t first = count_node(map, 0);
    if (reducer->record.hierarchy != GTOPK_HIERARCHY_NODE || places_each_node(map) > 0)
        return GTOPK_OK;
    int32_t other = 0; /* a rank of a node that has another number of them */
    while (count_node(map, map->node[other]) == first)
        other++;
    return status_set(GTOPK_ERR_UNSUPPORTED,
                      "hierarchy \"node\" needs equally many ranks on every node: that of rank 0 (%s) has %d, that of "
                      "rank %d (%s) has %d; start as many everywhere, or use hierarchy \"off\" or \"auto\"",
                      map->names[0], (int)first, (int)other, map->names[other], (int)count_node(map, map->node[other]));
}

/* Each rank of a node is to have a share of the entries. */
static gtopk_status_t create_shares(gtopk_reducer_t *reducer)
{
    const config_record_t *record = &reducer->record;
    gtopk_comm_t *comm = reducer->comm;
    if (record->each_node == 1)
        return GTOPK_OK;
    return shares_create(&reducer->shares, &comm->map, comm_rank(comm), record->dim, reducer->segments.count);
}

/* Both ends of a message must have it on the same transport. */
static int goes_over_data(const gtopk_reducer_t *reducer)
{
    const link_t *link = &reducer->comm->link;
    return link->data != link->control && link_transport(link, reducer->device->name) == link->data;
}

static gtopk_status_t create_on_device(gtopk_reducer_t *reducer, const gtopk_reducer_config_t *config)
{
    const config_record_t *record = &reducer->record;
    const device_parallel_t parallel = {config->parallel_for, config->parallel_context};
    const int with = (record->momentum_correction ? DEVICE_WITH_VELOCITY : 0) |
                     (record->rollback ? DEVICE_WITH_SECOND : 0) |
                     (record->residual_dtype == GTOPK_BF16 ? DEVICE_WITH_BF16 : 0);
    void *words = NULL, *verdict = NULL;
    gtopk_status_t status = comm_device(reducer->comm, config->device, config->allocator, &reducer->device);
    if (status == GTOPK_OK)
        status = create_shares(reducer);
    if (status != GTOPK_OK)
        return status;
    reducer->record.over_data = goes_over_data(reducer);
    const device_ops_t *ops = reducer->device->ops;
    reducer->k = config_k(reducer_store_dim(reducer), record->density);
    /* What an allocator gives may be in use by earlier work of the stream. */
    reducer->stream = config->stream;
    status = ops->synchronize(reducer->device, reducer->stream);
    if (status == GTOPK_OK)
        status = ops->store_create(reducer->device, reducer_store_dim(reducer),
                                   reducer_store_k(record->algorithm, reducer->k), with, &parallel, &reducer->store);
    if (status == GTOPK_OK)
        status = ops->allocate(reducer->device, sizeof *reducer->words, "the words of a step", &words);
    reducer->words = words;
    if (status == GTOPK_OK)
        status = ops->allocate_pinned(reducer->device, sizeof *reducer->verdict, "the verdict of a step", &verdict);
    reducer->verdict = verdict;
    if (status == GTOPK_OK && reducer->shares)
        status = create_scatter(reducer);
    return status == GTOPK_OK ? reducer_create_exchange(reducer, record->algorithm, reducer->k, &reducer->exchange)
                              : status;
}

/* Everything that can fail on one rank alone. `nodes`: in shares, where the config leaves that open. */
static gtopk_status_t create_local(gtopk_reducer_t *reducer, const gtopk_reducer_config_t *config,
                                   const uint64_t *lengths, size_t count, int nodes)
{
    gtopk_reducer_config_t full;
    config_record_t *record = &reducer->record;
    gtopk_status_t status = config_check(config, &full);
    if (status == GTOPK_OK)
        status = config_check_lengths(lengths, count, &record->dim);
    if (status != GTOPK_OK)
        return status;
    record->open = full.algorithm == GTOPK_ALGORITHM_AUTO;
    record->algorithm = record->open ? GTOPK_ALGORITHM_GTOPK : full.algorithm;
    record->value_type = full.value_type;
    record->residual_policy = full.residual_policy;
    record->momentum_correction = full.momentum_correction;
    record->rollback = full.rollback;
    record->residual_dtype = full.residual_dtype;
    reducer->steps_before = full.steps_before;
    record->segments = count;
    record->lengths_hash = config_hash_lengths(lengths, count);
    record->density = full.density;
    record->merge_growth = full.merge_growth;
    record->run = comm_random();
    record->hierarchy = full.hierarchy;
    status = check_hierarchy(reducer);
    if (status != GTOPK_OK)
        return status;
    nodes |= full.hierarchy == GTOPK_HIERARCHY_NODE;
    record->each_node = nodes && exchange_find(record->algorithm)->selects ? places_each_node(&reducer->comm->map) : 1;

    status = segments_create(&reducer->segments, lengths, count);
    return status == GTOPK_OK ? create_on_device(reducer, &full) : status;
}

static gtopk_status_t create(gtopk_reducer_t **out, gtopk_comm_t *comm, const gtopk_reducer_config_t *config,
                             const uint64_t *lengths, size_t count, int nodes)
{
    *out = NULL;
    gtopk_status_t status = comm_enter(comm);
    if (status != GTOPK_OK)
        return status;
    gtopk_reducer_t *reducer;
    status = memory_alloc(&reducer, 1, sizeof *reducer, "a reducer");
    if (status != GTOPK_OK) {
        /* Without a record to exchange, the others are told by breaking. */
        (void)comm_settle(comm, status, 0);
        comm_leave(comm);
        return status;
    }
    atomic_flag_clear(&reducer->busy);
    comm_retain(comm);
    reducer->comm = comm;
    reducer->record.reducer = comm->reducers_made++;
    reducer->stats = (gtopk_stats_t){.struct_size = sizeof reducer->stats, .slowest_peer = -1};
    reducer->record.status = create_local(reducer, config, lengths, count, nodes);
    status = config_agree(comm, &reducer->record);
    comm_leave(comm);
    if (status != GTOPK_OK) {
        gtopk_reducer_destroy(reducer);
        return status;
    }
    reducer->hash = config_hash(&reducer->record);
    LOG(GTOPK_LOG_INFO, "rank %d: reducer %u of %llu entries in %zu segments, k %llu, device %s", (int)comm_rank(comm),
        reducer->record.reducer, (unsigned long long)reducer->record.dim, count, (unsigned long long)reducer->k,
        reducer->device->ops->name);
    *out = reducer;
    return GTOPK_OK;
}

/* One of both, which all ranks take alike. */
typedef struct trials {
    double off_s, node_s;
    int nodes;
} trials_t;

static gtopk_status_t try_one(gtopk_comm_t *comm, const gtopk_reducer_config_t *config, const uint64_t *lengths,
                              size_t count, int nodes, double *seconds)
{
    gtopk_reducer_t *reducer;
    gtopk_status_t status = create(&reducer, comm, config, lengths, count, nodes);
    if (status == GTOPK_OK && (nodes || reducer_selects(reducer)))
        status = trial_time(reducer, seconds);
    gtopk_reducer_destroy(reducer);
    return status;
}

/* Of two that could not both be tried, it is the one without nodes. */
static gtopk_status_t choose(gtopk_comm_t *comm, const gtopk_reducer_config_t *config, const uint64_t *lengths,
                             size_t count, trials_t *trials)
{
    gtopk_status_t status = try_one(comm, config, lengths, count, 0, &trials->off_s);
    if (status != GTOPK_OK || trials->off_s == 0.0)
        return status;
    status = try_one(comm, config, lengths, count, 1, &trials->node_s);
    if (status != GTOPK_OK) {
        trials->node_s = 0.0;
        LOG(GTOPK_LOG_INFO, "rank %d: hierarchy auto: node cannot be used (%s)", (int)comm_rank(comm),
            gtopk_last_error());
        return link_check_alive(&comm->link);
    }
    trials->nodes = trials->node_s < trials->off_s;
    LOG(GTOPK_LOG_INFO, "rank %d: hierarchy auto: a step takes %.3f ms with off, %.3f ms with node: %s is kept",
        (int)comm_rank(comm), 1e3 * trials->off_s, 1e3 * trials->node_s, trials->nodes ? "node" : "off");
    return GTOPK_OK;
}

/* A config that is no good is for create to find. */
static int is_open(const gtopk_comm_t *comm, const gtopk_reducer_config_t *config)
{
    gtopk_reducer_config_t full;
    return comm && config_check(config, &full) == GTOPK_OK && full.hierarchy == GTOPK_HIERARCHY_AUTO &&
           places_each_node(&comm->map) > 1;
}

gtopk_status_t gtopk_reducer_create(gtopk_reducer_t **out, gtopk_comm_t *comm, const gtopk_reducer_config_t *config,
                                    const uint64_t *lengths, size_t count)
{
    trials_t trials = {.nodes = 0};
    gtopk_status_t status = GTOPK_OK;
    if (!out)
        return status_set(GTOPK_ERR_INVALID, "gtopk_reducer_create needs a place for the handle");
    *out = NULL;
    if (is_open(comm, config))
        status = choose(comm, config, lengths, count, &trials);
    if (status == GTOPK_OK)
        status = create(out, comm, config, lengths, count, trials.nodes);
    if (status != GTOPK_OK)
        return status;
    (*out)->off_s = trials.off_s;
    (*out)->node_s = trials.node_s;
    if (choice_is_open(*out))
        status = choice_begin(*out, config);
    if (status != GTOPK_OK) {
        gtopk_reducer_destroy(*out);
        *out = NULL;
    }
    return status;
}

gtopk_status_t gtopk_reducer_hierarchy(const gtopk_reducer_t *reducer, gtopk_hierarchy_info_t *info)
{
    if (!reducer || !info || info->struct_size < sizeof(size_t))
        return status_set(GTOPK_ERR_INVALID,
                          "gtopk_reducer_hierarchy needs a reducer and an info with its struct_size set");
    const shares_t *shares = reducer->shares;
    const gtopk_hierarchy_info_t found = {
        .struct_size = info->struct_size,
        .hierarchy = shares ? GTOPK_HIERARCHY_NODE : GTOPK_HIERARCHY_OFF,
        .nodes = reducer->comm->map.nodes,
        .begin = shares ? shares->begin : 0,
        .end = shares ? shares->end : reducer->record.dim,
        .off_s = reducer->off_s,
        .node_s = reducer->node_s,
    };
    memcpy(info, &found, info->struct_size < sizeof found ? info->struct_size : sizeof found);
    return GTOPK_OK;
}

void gtopk_reducer_destroy(gtopk_reducer_t *reducer)
{
    if (!reducer)
        return;
    if (reducer->device && !reducer->comm->link.stream_lost) { /* what is queued needs all of it */
        const device_ops_t *ops = reducer->device->ops;
        device_drain(reducer->device, reducer->stream);
        reducer_destroy_exchange(reducer->exchange);
        ops->release(reducer->device, reducer->words);
        ops->release_pinned(reducer->device, reducer->verdict);
        if (reducer->store)
            ops->store_destroy(reducer->store);
        shares_destroy(reducer->shares, reducer->device);
    }
    segments_destroy(&reducer->segments);
    comm_release(reducer->comm);
    memory_free(reducer);
}

gtopk_status_t reducer_enter(gtopk_reducer_t *reducer)
{
    if (!reducer)
        return status_set(GTOPK_ERR_INVALID, "the reducer is NULL: create one with gtopk_reducer_create");
    if (reducer->comm->owner != getpid())
        return status_set(GTOPK_ERR_STATE,
                          "this reducer belongs to the parent process (%d): create a communicator and a reducer in "
                          "the child after fork",
                          (int)reducer->comm->owner);
    if (atomic_flag_test_and_set(&reducer->busy))
        return status_set(GTOPK_ERR_STATE, "another thread is using this reducer: one call at a time");
    reducer->environment = fpenv_enter();
    return GTOPK_OK;
}

void reducer_leave(gtopk_reducer_t *reducer)
{
    const fpenv_t environment = reducer->environment;
    atomic_flag_clear(&reducer->busy);
    fpenv_leave(environment);
}

gtopk_status_t reducer_lose(gtopk_reducer_t *reducer, gtopk_status_t status)
{
    if (reducer->lost == GTOPK_OK) {
        reducer->lost = status;
        status_keep(reducer->lost_text);
    }
    if (comm_enter(reducer->comm) == GTOPK_OK) {
        (void)comm_settle(reducer->comm, reducer_check_device(reducer), reducer->step);
        comm_tell_peers(reducer->comm, reducer->step);
        comm_leave(reducer->comm);
    }
    return reducer_check_device(reducer);
}

gtopk_status_t reducer_check_device(const gtopk_reducer_t *reducer)
{
    return reducer->lost == GTOPK_OK ? GTOPK_OK : status_set(reducer->lost, "%s", reducer->lost_text);
}

gtopk_status_t reducer_check_between_steps(gtopk_reducer_t *reducer, const char *call)
{
    /* A step that cannot be finished any more, as another reducer broke the communicator, is over. */
    if (!reducer->in_step || link_check_alive(&reducer->comm->link) != GTOPK_OK)
        return step_end(reducer);
    return status_set(GTOPK_ERR_STATE,
                      "%s is not allowed between accumulate and reduce (step %llu): finish the step first", call,
                      (unsigned long long)reducer->step);
}

uint64_t gtopk_reducer_max_count(const gtopk_reducer_t *reducer)
{
    if (!reducer)
        return 0;
    return reducer->exchange->ops->max_count(reducer->exchange);
}

uint64_t gtopk_reducer_dim(const gtopk_reducer_t *reducer)
{
    return reducer ? reducer->record.dim : 0;
}

const char *gtopk_reducer_device(const gtopk_reducer_t *reducer)
{
    return reducer ? reducer->device->name : "";
}
