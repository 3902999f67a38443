/* Predicted times. P ranks, m = floor(log2 P); where P is no power of two, the ranks beyond 2^m hand their set over first and
 * get the update last. */
#include "exchange/cost.h"

#include <math.h>

#include "exchange/schedule.h"

/* A message of `bytes` bytes, while every rank exchanges one with a rank `distance` away. */
static double carry(const gtopk_costs_t *costs, int64_t distance, double bytes)
{
    const int near = distance < costs->each_node;
    return (near ? costs->near_message_s : costs->message_s) + bytes * (near ? costs->near_byte_s : costs->byte_s);
}

static double send_set(const gtopk_costs_t *costs, const cost_job_t *job, int64_t distance, uint64_t dim, uint64_t k)
{
    return carry(costs, distance, (double)wire_message_size(dim, k < dim ? k : dim, job->value_type));
}

/* Merging k entries that came with k that were there, and putting the deposits where they belong: as many places of the
 * residual as a commit of k entries touches, which is half of select_s. */
static double merge(const gtopk_costs_t *costs, double k)
{
    return k * (costs->merge_s + 0.5 * costs->select_s);
}

/* m: rounds of the butterfly. */
static uint32_t doublings(int32_t size)
{
    uint32_t count = 0;
    while ((int64_t)2 << count <= size)
        count++;
    return count;
}

/* 2^m: ranks in the butterfly. */
static int64_t core_of(int32_t size)
{
    return (int64_t)1 << doublings(size);
}

/* ceil(log2 P): rounds of the tree in one direction. */
static uint32_t depth_of(int32_t size)
{
    return doublings(size) + (core_of(size) < size);
}

static double level(const cost_job_t *job, uint32_t rounds)
{
    return schedule_level_k(job->dim, job->k, job->growth, rounds);
}

/* ---- what follows accumulate and select ---- */

static double butterfly(const gtopk_costs_t *costs, const cost_job_t *job)
{
    const int64_t core = core_of(job->size);
    const uint32_t rounds = doublings(job->size);
    double seconds = 0.0;
    if (core < job->size)
        seconds += send_set(costs, job, core, job->dim, job->k) + merge(costs, (double)job->k);
    for (uint32_t bit = 0; bit < rounds; bit++) {
        const double k = level(job, bit);
        seconds += send_set(costs, job, (int64_t)1 << bit, job->dim, (uint64_t)k) + merge(costs, k);
    }
    if (core < job->size)
        seconds += send_set(costs, job, core, job->dim, (uint64_t)level(job, rounds));
    return seconds;
}

static double tree(const gtopk_costs_t *costs, const cost_job_t *job)
{
    const uint32_t depth = depth_of(job->size);
    const uint64_t last = (uint64_t)level(job, depth);
    double seconds = 0.0;
    for (uint32_t bit = 0; bit < depth; bit++) {
        const double k = level(job, bit);
        seconds += send_set(costs, job, (int64_t)1 << bit, job->dim, (uint64_t)k) + merge(costs, k);
        seconds += send_set(costs, job, (int64_t)1 << bit, job->dim, last);
    }
    return seconds;
}

/* Halves of halves there and back, each in a range of as few indices. */
static double split(const gtopk_costs_t *costs, const cost_job_t *job)
{
    const int64_t core = core_of(job->size);
    const double k = (double)job->k;
    double seconds = 0.0;
    if (core < job->size)
        seconds += 2.0 * send_set(costs, job, core, job->dim, job->k) + merge(costs, k);
    for (uint32_t bit = 0; bit < doublings(job->size); bit++) {
        const double part = ceil(k / (double)((int64_t)2 << bit));
        const uint64_t range = job->dim >> (bit + 1);
        const double message = send_set(costs, job, (int64_t)1 << bit, range ? range : 1, (uint64_t)part);
        seconds += 2.0 * message + merge(costs, part) + part * costs->merge_s;
    }
    return seconds;
}

/* P sets one after the other into a union that grows to P k, which is committed. */
static double gather(const gtopk_costs_t *costs, const cost_job_t *job)
{
    const double others = job->size - 1, k = (double)job->k;
    const double message = (double)wire_message_size(job->dim, job->k, job->value_type);
    const double latency = carry(costs, job->size - 1, 0.0);
    const double bytes = carry(costs, job->size - 1, others * message) - latency;
    const uint32_t depth = depth_of(job->size);
    const double all = fmin((double)job->dim, k * (double)job->size);
    return latency * (costs->gathers ? (double)depth : others) + bytes +
           costs->merge_s * k * others * (others + 3.0) / 4.0 + 0.5 * costs->select_s * (all - k);
}

/* A ring, and the headers of every rank before. */
static double dense(const gtopk_costs_t *costs, const cost_job_t *job)
{
    const int64_t core = core_of(job->size);
    const double others = job->size - 1, bytes = 4.0 * (double)job->dim;
    double headers = core < job->size ? 2.0 * carry(costs, core, WIRE_HEADER_SIZE) : 0.0;
    for (int64_t distance = 1; distance < core; distance *= 2)
        headers += carry(costs, distance, WIRE_HEADER_SIZE);
    return headers + 2.0 * others * (costs->sum_message_s + bytes / (double)job->size * costs->sum_byte_s);
}

double cost_of(const gtopk_costs_t *costs, const cost_job_t *job, int32_t algorithm)
{
    const double sparse = costs->accumulate_s * (double)job->dim + costs->select_s * (double)job->k;
    switch (algorithm) {
    case GTOPK_ALGORITHM_DENSE: return costs->dense_s * (double)job->dim + dense(costs, job);
    case GTOPK_ALGORITHM_TOPK: return sparse + gather(costs, job);
    case GTOPK_ALGORITHM_GTOPK: return sparse + butterfly(costs, job);
    case GTOPK_ALGORITHM_GTOPK_TREE: return sparse + tree(costs, job);
    case GTOPK_ALGORITHM_GTOPK_SPLIT: return sparse + split(costs, job);
    default: return INFINITY;
    }
}

/* The node's sum is read once by each of its ranks; a share's update is handed to all of the node as floats. */
double cost_on_nodes(const gtopk_costs_t *costs, const cost_job_t *job, int32_t algorithm)
{
    const uint64_t each = (uint64_t)costs->each_node;
    const double others = (double)each - 1.0;
    gtopk_costs_t far = *costs;
    cost_job_t share = *job;
    if (each <= 1 || algorithm == GTOPK_ALGORITHM_DENSE)
        return cost_of(costs, job, algorithm);
    far.each_node = 1;
    share.size = job->size / costs->each_node;
    share.dim = (job->dim + each - 1) / each;
    share.k = job->k / each > 0 ? job->k / each : 1;
    const double sum = carry(costs, 1, 4.0 * (double)share.dim) + costs->accumulate_s * (double)share.dim;
    const double update = carry(costs, 1, (double)wire_message_size(share.dim, share.k, GTOPK_VALUE_F32)) +
                          costs->merge_s * (double)share.k;
    return others * (sum + update) + cost_of(&far, &share, algorithm);
}
