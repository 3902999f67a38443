/* How long a step takes, by formulas: pure. The README's, with rounds as schedule.c has them, and the machine's own part.
 * Knows no device, no transport and no reducer. */
#ifndef GTOPK_EXCHANGE_COST_H
#define GTOPK_EXCHANGE_COST_H

#include "exchange/exchange.h"

/* What is exchanged, and between how many. */
typedef struct cost_job {
    int32_t size;
    int32_t value_type; /* gtopk_value_type_t */
    uint64_t dim, k;
    double growth;
} cost_job_t;

/* Seconds of a step of an algorithm (below WIRE_ALGORITHMS), every rank by itself. */
double cost_of(const gtopk_costs_t *costs, const cost_job_t *job, int32_t algorithm);

/* The same on nodes of costs->each_node ranks, each of which has a share; job->k is of all entries. size is a multiple. */
double cost_on_nodes(const gtopk_costs_t *costs, const cost_job_t *job, int32_t algorithm);

#endif
