/* Costs: of the network by timed messages, of the machine by steps of this rank alone. */
#include "core/measure.h"

#include <math.h>
#include <string.h>

#include "core/trial.h"
#include "exchange/collective.h"
#include "exchange/cost.h"
#include "exchange/probe.h"
#include "util/memory.h"

/* Of a step that is timed. */
enum { ENTRIES = 1 << 20 };

/* ---- this rank alone ---- */

static gtopk_status_t time_alone(gtopk_comm_t *self, const gtopk_reducer_config_t *config, int32_t algorithm,
                                 double density, double *seconds)
{
    const uint64_t length = ENTRIES;
    gtopk_reducer_config_t alone = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    alone.device = config->device;
    alone.parallel_for = config->parallel_for;
    alone.parallel_context = config->parallel_context;
    alone.allocator = config->allocator;
    alone.stream = config->stream;
    alone.algorithm = algorithm;
    alone.density = density;
    gtopk_status_t status = gtopk_reducer_create(&reducer, self, &alone, &length, 1);
    if (status == GTOPK_OK)
        status = trial_time(reducer, seconds);
    gtopk_reducer_destroy(reducer);
    return status;
}

/* What two densities differ in is the time of the entries that are selected. */
static gtopk_status_t measure_steps(gtopk_comm_t *self, const gtopk_reducer_config_t *config, gtopk_costs_t *costs)
{
    const double few = 1.0 / 1024.0, many = 1.0 / 64.0;
    double few_s, many_s, dense_s;
    gtopk_status_t status = time_alone(self, config, GTOPK_ALGORITHM_GTOPK, few, &few_s);
    if (status == GTOPK_OK)
        status = time_alone(self, config, GTOPK_ALGORITHM_GTOPK, many, &many_s);
    if (status == GTOPK_OK)
        status = time_alone(self, config, GTOPK_ALGORITHM_DENSE, few, &dense_s);
    if (status != GTOPK_OK)
        return status;
    costs->select_s = fmax(0.0, (many_s - few_s) / ((many - few) * ENTRIES));
    costs->accumulate_s = fmax(0.0, few_s / ENTRIES - few * costs->select_s);
    costs->dense_s = dense_s / ENTRIES;
    return GTOPK_OK;
}

static gtopk_status_t measure_alone(const gtopk_reducer_config_t *config, gtopk_costs_t *costs)
{
    gtopk_comm_t *self;
    gtopk_status_t status = gtopk_comm_create(&self, NULL);
    if (status != GTOPK_OK)
        return status;
    status = measure_steps(self, config, costs);
    gtopk_comm_destroy(self);
    return status;
}

/* ---- between the ranks ---- */

/* Every number is the largest of any rank's. The last two fields are alike everywhere. */
static gtopk_status_t take_slowest(link_t *link, gtopk_costs_t *costs)
{
    gtopk_costs_t *all;
    gtopk_status_t status = memory_alloc(&all, (size_t)link->map->size, sizeof *all, "the ranks' costs");
    if (status == GTOPK_OK)
        status = collective_allgather(link, costs, sizeof *costs, all);
    for (int32_t r = 0; r < link->map->size && status == GTOPK_OK; r++) {
        costs->message_s = fmax(costs->message_s, all[r].message_s);
        costs->byte_s = fmax(costs->byte_s, all[r].byte_s);
        costs->near_message_s = fmax(costs->near_message_s, all[r].near_message_s);
        costs->near_byte_s = fmax(costs->near_byte_s, all[r].near_byte_s);
        costs->sum_message_s = fmax(costs->sum_message_s, all[r].sum_message_s);
        costs->sum_byte_s = fmax(costs->sum_byte_s, all[r].sum_byte_s);
        costs->accumulate_s = fmax(costs->accumulate_s, all[r].accumulate_s);
        costs->select_s = fmax(costs->select_s, all[r].select_s);
        costs->merge_s = fmax(costs->merge_s, all[r].merge_s);
        costs->dense_s = fmax(costs->dense_s, all[r].dense_s);
    }
    memory_free(all);
    return status;
}

/* The communicator is taken. What one rank can fail in by itself comes first, and all hear of it. */
static gtopk_status_t measure(gtopk_comm_t *comm, const gtopk_reducer_config_t *config, gtopk_costs_t *costs)
{
    link_t *link = &comm->link;
    device_t *device = NULL;
    void *buffer = NULL;
    gtopk_status_t status = measure_alone(config, costs);
    if (status == GTOPK_OK)
        status = comm_device(comm, config->device, config->allocator, &device);
    if (status == GTOPK_OK)
        status = probe_merge(device, &costs->merge_s);
    if (status == GTOPK_OK)
        status = probe_allocate(link, device, &buffer);
    status = comm_agree(comm, status, "measuring what a step costs");
    if (status == GTOPK_OK) {
        status = probe_network(link, device, buffer, costs);
        if (status == GTOPK_OK)
            status = take_slowest(link, costs);
        status = comm_settle(comm, status, 0);
        if (status != GTOPK_OK)
            (void)link_give_up(link);
    }
    if (device && !link->stream_lost) {
        device_drain(device, NULL); /* what is queued needs the buffer */
        probe_release(link, device, buffer);
    }
    return status;
}

static gtopk_status_t enter_and_measure(gtopk_comm_t *comm, const gtopk_reducer_config_t *config, gtopk_costs_t *costs)
{
    const gtopk_costs_t none = GTOPK_COSTS_INIT;
    gtopk_status_t status = comm_enter(comm);
    if (status != GTOPK_OK)
        return status;
    *costs = none;
    status = measure(comm, config, costs);
    comm_leave(comm);
    return status;
}

gtopk_status_t measure_once(gtopk_comm_t *comm, const gtopk_reducer_config_t *config)
{
    gtopk_costs_t costs;
    if (comm->costs.struct_size > 0)
        return GTOPK_OK;
    const gtopk_status_t status = enter_and_measure(comm, config, &costs);
    if (status == GTOPK_OK)
        comm->costs = costs;
    return status;
}

gtopk_status_t gtopk_comm_measure(gtopk_comm_t *comm, const gtopk_reducer_config_t *config, gtopk_costs_t *costs)
{
    gtopk_reducer_config_t full;
    gtopk_costs_t found;
    if (!costs || costs->struct_size < sizeof(size_t) || costs->struct_size > sizeof *costs)
        return status_set(GTOPK_ERR_INVALID, "gtopk_comm_measure needs costs filled with GTOPK_COSTS_INIT");
    gtopk_status_t status = config_check(config, &full);
    if (status == GTOPK_OK)
        status = enter_and_measure(comm, &full, &found);
    if (status != GTOPK_OK)
        return status;
    found.struct_size = costs->struct_size;
    memcpy(costs, &found, costs->struct_size);
    return GTOPK_OK;
}

/* ---- prediction ---- */

static gtopk_status_t check_costs(const gtopk_costs_t *costs, gtopk_costs_t *full)
{
    const gtopk_costs_t none = GTOPK_COSTS_INIT;
    *full = none;
    if (!costs || costs->struct_size < sizeof(size_t) || costs->struct_size > sizeof *full)
        return status_set(GTOPK_ERR_INVALID, "gtopk_predict needs costs filled with GTOPK_COSTS_INIT");
    memcpy(full, costs, costs->struct_size);
    const double seconds[] = {full->message_s,     full->byte_s,     full->near_message_s, full->near_byte_s,
                              full->sum_message_s, full->sum_byte_s, full->accumulate_s,   full->select_s,
                              full->merge_s,       full->dense_s};
    for (size_t i = 0; i < sizeof seconds / sizeof *seconds; i++)
        if (!(seconds[i] >= 0.0 && isfinite(seconds[i])))
            return status_set(GTOPK_ERR_INVALID, "a cost of %g s is out of range: it must be finite and not negative",
                              seconds[i]);
    if (full->each_node < 1)
        return status_set(GTOPK_ERR_INVALID, "each_node %d is out of range: a node has at least 1 rank",
                          (int)full->each_node);
    return GTOPK_OK;
}

gtopk_status_t gtopk_predict(const gtopk_costs_t *costs, const gtopk_reducer_config_t *config, uint64_t dim,
                             int32_t size, double *seconds)
{
    gtopk_reducer_config_t full;
    gtopk_costs_t known;
    if (!seconds)
        return status_set(GTOPK_ERR_INVALID, "gtopk_predict needs a place for the result");
    gtopk_status_t status = check_costs(costs, &known);
    if (status == GTOPK_OK)
        status = config_check(config, &full);
    if (status != GTOPK_OK)
        return status;
    if (full.algorithm == GTOPK_ALGORITHM_AUTO)
        return status_set(GTOPK_ERR_INVALID, "gtopk_predict takes one algorithm, not GTOPK_ALGORITHM_AUTO");
    if (size < 1 || dim < 1 || dim > UINT32_MAX)
        return status_set(GTOPK_ERR_INVALID, "%d ranks and %llu entries are out of range: 1 or more, up to 2^32 - 1",
                          (int)size, (unsigned long long)dim);
    const cost_job_t job = {size, full.value_type, dim, config_k(dim, full.density), full.merge_growth};
    if (full.hierarchy != GTOPK_HIERARCHY_NODE) {
        *seconds = cost_of(&known, &job, full.algorithm);
        return GTOPK_OK;
    }
    if (size % known.each_node != 0)
        return status_set(GTOPK_ERR_INVALID, "hierarchy node with %d ranks on nodes of %d: not equally many", (int)size,
                          (int)known.each_node);
    *seconds = cost_on_nodes(&known, &job, full.algorithm);
    return GTOPK_OK;
}
