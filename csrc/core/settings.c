/* What can be set between steps: momentum, density, algorithm. */
#include "core/settings.h"

#include "core/choice.h"

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

/* ---- density and algorithm ---- */

/* Makes this rank ready for another exchange: on failure it is as before, and *fresh is NULL. */
static gtopk_status_t prepare(gtopk_reducer_t *reducer, int32_t algorithm, double density, exchange_t **fresh)
{
    const uint64_t k = config_k(reducer_store_dim(reducer), density);
    if (reducer->shares && !exchange_find(algorithm)->selects)
        return status_set(GTOPK_ERR_UNSUPPORTED, "algorithm \"%s\" has no hierarchy \"node\": create a reducer for it",
                          exchange_find(algorithm)->name);
    /* The commit before it may be queued. */
    gtopk_status_t status = reducer->device->ops->synchronize(reducer->device, reducer->stream);
    if (status == GTOPK_OK)
        status = reducer_create_exchange(reducer, algorithm, k, fresh);
    if (status == GTOPK_OK)
        status = reducer->device->ops->store_resize(reducer->store, reducer_store_k(algorithm, k));
    if (status != GTOPK_OK) {
        reducer_destroy_exchange(*fresh);
        *fresh = NULL;
    }
    return status;
}

/* `mine`: what this rank has found wrong so far. The record of all ranks becomes the reducer's. */
static gtopk_status_t change(gtopk_reducer_t *reducer, gtopk_status_t mine, const config_record_t *wanted)
{
    gtopk_comm_t *comm = reducer->comm;
    exchange_t *fresh = NULL;
    config_record_t record = *wanted;
    record.status = mine == GTOPK_OK ? prepare(reducer, record.algorithm, record.density, &fresh) : mine;
    const int ready = record.status == GTOPK_OK;
    gtopk_status_t status = config_agree(comm, &record);
    if (status == GTOPK_OK) {
        record.run = reducer->record.run; /* a state of another run is for the next exchange to find */
        reducer_destroy_exchange(reducer->exchange);
        reducer->exchange = fresh;
        reducer->record = record;
        reducer->hash = config_hash(&record);
        reducer->k = config_k(reducer_store_dim(reducer), record.density);
    } else if (ready) {
        reducer_destroy_exchange(fresh);
        if (reducer->device->ops->store_resize(reducer->store,
                                               reducer_store_k(reducer->record.algorithm, reducer->k)) != GTOPK_OK)
            status = comm_settle(comm, GTOPK_ERR_NOMEM, reducer->step);
    }
    return status;
}

gtopk_status_t settings_change(gtopk_reducer_t *reducer, int32_t algorithm)
{
    config_record_t record = reducer->record;
    record.algorithm = algorithm;
    return change(reducer, GTOPK_OK, &record);
}

static gtopk_status_t enter(gtopk_reducer_t *reducer)
{
    gtopk_status_t status = reducer_enter(reducer);
    if (status != GTOPK_OK)
        return status;
    status = comm_enter(reducer->comm);
    if (status != GTOPK_OK)
        reducer_leave(reducer);
    return status;
}

static void leave(gtopk_reducer_t *reducer)
{
    comm_leave(reducer->comm);
    reducer_leave(reducer);
}

gtopk_status_t gtopk_reducer_set_density(gtopk_reducer_t *reducer, double density)
{
    gtopk_status_t status = enter(reducer);
    if (status != GTOPK_OK)
        return status;
    config_record_t record = reducer->record;
    choice_t choice = reducer->choice;
    record.density = density;
    status = reducer_check_between_steps(reducer, "gtopk_reducer_set_density");
    if (status == GTOPK_OK)
        status = config_check_density(density);
    if (status == GTOPK_OK && choice_is_open(reducer))
        record.algorithm = choice_predict(reducer, density, &choice);
    const int32_t before = reducer->record.algorithm;
    status = change(reducer, status, &record);
    if (status == GTOPK_OK)
        reducer->choice = choice;
    if (status == GTOPK_OK && record.algorithm != before)
        choice_log(reducer, "another density");
    leave(reducer);
    return status;
}

gtopk_status_t gtopk_reducer_set_algorithm(gtopk_reducer_t *reducer, int32_t algorithm)
{
    gtopk_status_t status = enter(reducer);
    if (status != GTOPK_OK)
        return status;
    config_record_t record = reducer->record;
    record.algorithm = algorithm;
    record.open = 0;
    status = reducer_check_between_steps(reducer, "gtopk_reducer_set_algorithm");
    if (status == GTOPK_OK && !exchange_find(algorithm))
        status = status_set(GTOPK_ERR_INVALID,
                            "algorithm %d cannot be set: give one that is there, or create a reducer with "
                            "GTOPK_ALGORITHM_AUTO",
                            (int)algorithm);
    status = change(reducer, status, &record);
    leave(reducer);
    return status;
}
