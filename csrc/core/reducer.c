/* The reducer: its life and its settings. */
#include "core/step.h"

#include <unistd.h>

#include "util/log.h"
#include "util/memory.h"

/* ---- life ---- */

/* An exchange for k entries of this reducer. */
static gtopk_status_t create_exchange(const gtopk_reducer_t *reducer, uint64_t k, exchange_t **exchange)
{
    const config_record_t *record = &reducer->record;
    gtopk_comm_t *comm = reducer->comm;
    const exchange_setup_t setup = {
        .device = reducer->device,
        .store = reducer->store,
        .link = &comm->link,
        .places = places_of_all(&comm->map, comm_rank(comm)),
        .config =
            {
                .algorithm = record->algorithm,
                .value_type = record->value_type,
                .policy = record->residual_policy,
                .growth = record->merge_growth,
                .dim = record->dim,
                .k = k,
                .reducer = record->reducer,
            },
    };
    return exchange_find(record->algorithm)->create(exchange, &setup);
}

static void destroy_exchange(exchange_t *exchange)
{
    if (exchange)
        exchange->ops->destroy(exchange);
}

/* The store of an exchange that selects nothing is made for one entry. */
static gtopk_status_t create_on_device(gtopk_reducer_t *reducer, const gtopk_reducer_config_t *config)
{
    const config_record_t *record = &reducer->record;
    const device_parallel_t parallel = {config->parallel_for, config->parallel_context};
    const uint64_t k = exchange_find(record->algorithm)->selects ? reducer->k : 1;
    const int with = (record->momentum_correction ? DEVICE_WITH_VELOCITY : 0) |
                     (record->rollback ? DEVICE_WITH_SECOND : 0);
    void *words = NULL, *verdict = NULL;
    gtopk_status_t status = comm_device(reducer->comm, config->device, config->allocator, &reducer->device);
    if (status != GTOPK_OK)
        return status;
    const device_ops_t *ops = reducer->device->ops;
    /* What an allocator gives may be in use by earlier work of the stream. */
    reducer->stream = config->stream;
    status = ops->synchronize(reducer->device, reducer->stream);
    if (status == GTOPK_OK)
        status = ops->store_create(reducer->device, record->dim, k, with, &parallel, &reducer->store);
    if (status == GTOPK_OK)
        status = ops->allocate(reducer->device, sizeof *reducer->words, "the words of a step", &words);
    reducer->words = words;
    if (status == GTOPK_OK)
        status = ops->allocate_pinned(reducer->device, sizeof *reducer->verdict, "the verdict of a step", &verdict);
    reducer->verdict = verdict;
    return status == GTOPK_OK ? create_exchange(reducer, reducer->k, &reducer->exchange) : status;
}

/* Everything that can fail on one rank alone. */
static gtopk_status_t create_local(gtopk_reducer_t *reducer, const gtopk_reducer_config_t *config,
                                   const uint64_t *lengths, size_t count)
{
    gtopk_reducer_config_t full;
    config_record_t *record = &reducer->record;
    gtopk_status_t status = config_check(config, &full);
    if (status == GTOPK_OK)
        status = config_check_lengths(lengths, count, &record->dim);
    if (status != GTOPK_OK)
        return status;
    record->algorithm = full.algorithm;
    record->value_type = full.value_type;
    record->residual_policy = full.residual_policy;
    record->momentum_correction = full.momentum_correction;
    record->rollback = full.rollback;
    record->segments = count;
    record->lengths_hash = config_hash_lengths(lengths, count);
    record->density = full.density;
    record->merge_growth = full.merge_growth;
    record->run = comm_random();
    reducer->k = config_k(record->dim, full.density);

    status = segments_create(&reducer->segments, lengths, count);
    return status == GTOPK_OK ? create_on_device(reducer, &full) : status;
}

gtopk_status_t gtopk_reducer_create(gtopk_reducer_t **out, gtopk_comm_t *comm, const gtopk_reducer_config_t *config,
                                    const uint64_t *lengths, size_t count)
{
    if (!out)
        return status_set(GTOPK_ERR_INVALID, "gtopk_reducer_create needs a place for the handle");
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
    reducer->record.status = create_local(reducer, config, lengths, count);
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

void gtopk_reducer_destroy(gtopk_reducer_t *reducer)
{
    if (!reducer)
        return;
    if (reducer->device) {
        const device_ops_t *ops = reducer->device->ops;
        if (!reducer->comm->link.buffers_lost)
            (void)ops->synchronize(reducer->device, reducer->stream);
        destroy_exchange(reducer->exchange);
        ops->release(reducer->device, reducer->words);
        ops->release_pinned(reducer->device, reducer->verdict);
        if (reducer->store)
            ops->store_destroy(reducer->store);
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

/* ---- settings ---- */

gtopk_status_t gtopk_reducer_set_momentum(gtopk_reducer_t *reducer, double momentum, int nesterov)
{
    gtopk_status_t status = reducer_enter(reducer);
    if (status != GTOPK_OK)
        return status;
    status = reducer_check_between_steps(reducer, "gtopk_reducer_set_momentum");
    if (status == GTOPK_OK && !reducer->record.momentum_correction)
        status = status_set(GTOPK_ERR_STATE, "this reducer keeps no velocity: create it with momentum_correction = 1");
    if (status == GTOPK_OK && !(momentum >= 0.0 && momentum < 1.0))
        status = status_set(GTOPK_ERR_INVALID, "momentum %g is out of range: at least 0, below 1", momentum);
    if (status == GTOPK_OK) {
        reducer->momentum = (float)momentum;
        reducer->nesterov = nesterov != 0;
    }
    reducer_leave(reducer);
    return status;
}

/* Makes this rank ready for another k: on failure it is as before, and *fresh is NULL. */
static gtopk_status_t prepare_density(gtopk_reducer_t *reducer, double density, exchange_t **fresh)
{
    gtopk_status_t status = reducer_check_between_steps(reducer, "gtopk_reducer_set_density");
    if (status == GTOPK_OK)
        status = config_check_density(density);
    if (status != GTOPK_OK)
        return status;
    const uint64_t k = config_k(reducer->record.dim, density);
    /* The commit before it may be queued. */
    status = reducer->device->ops->synchronize(reducer->device, reducer->stream);
    if (status == GTOPK_OK)
        status = create_exchange(reducer, k, fresh);
    if (status == GTOPK_OK && reducer_selects(reducer))
        status = reducer->device->ops->store_resize(reducer->store, k);
    if (status != GTOPK_OK) {
        destroy_exchange(*fresh);
        *fresh = NULL;
    }
    return status;
}

gtopk_status_t gtopk_reducer_set_density(gtopk_reducer_t *reducer, double density)
{
    gtopk_status_t status = reducer_enter(reducer);
    if (status != GTOPK_OK)
        return status;
    gtopk_comm_t *comm = reducer->comm;
    status = comm_enter(comm);
    if (status != GTOPK_OK) {
        reducer_leave(reducer);
        return status;
    }
    exchange_t *fresh = NULL;
    config_record_t record = reducer->record;
    record.status = prepare_density(reducer, density, &fresh);
    record.density = density;
    const int ready = record.status == GTOPK_OK;
    status = config_agree(comm, &record);
    if (status == GTOPK_OK) {
        record.run = reducer->record.run; /* a state of another run is for the next exchange to find */
        destroy_exchange(reducer->exchange);
        reducer->exchange = fresh;
        reducer->record = record;
        reducer->hash = config_hash(&record);
        reducer->k = config_k(record.dim, density);
    } else if (ready) {
        destroy_exchange(fresh);
        if (reducer_selects(reducer) && reducer->device->ops->store_resize(reducer->store, reducer->k) != GTOPK_OK)
            status = comm_settle(comm, GTOPK_ERR_NOMEM, reducer->step);
    }
    comm_leave(comm);
    reducer_leave(reducer);
    return status;
}
