/* What takes a step on one rank: a reducer, or two that take it together, whose entries follow each other. For tests. */
#ifndef TESTS_SUPPORT_PARTS_H
#define TESTS_SUPPORT_PARTS_H

#include "gtopk.h"
#include "support/check.h"

#define PARTS_TOGETHER \
    10 /* beside the algorithms of gtopk.h: a dense reducer, of a third of the entries, and a gtopk one */

typedef struct parts {
    gtopk_reducer_t *reducers[2];
    uint64_t length[2];
    size_t count;
} parts_t;

/* How many there are, and of how many of the `dim` entries. */
static inline size_t parts_of(int algorithm, uint64_t dim, uint64_t length[2])
{
    const int together = algorithm == PARTS_TOGETHER;
    length[0] = together ? dim / 3 : dim;
    length[1] = dim - dim / 3;
    return together ? 2 : 1;
}

static inline void parts_create(parts_t *parts, gtopk_comm_t *comm, gtopk_reducer_config_t config, uint64_t dim)
{
    const int32_t algorithm = config.algorithm;
    parts->count = parts_of(algorithm, dim, parts->length);
    for (size_t i = 0; i < parts->count; i++) {
        config.algorithm = parts->count == 1 ? algorithm : i == 0 ? GTOPK_ALGORITHM_DENSE : GTOPK_ALGORITHM_GTOPK;
        REQUIRE(gtopk_reducer_create(&parts->reducers[i], comm, &config, &parts->length[i], 1) == GTOPK_OK);
    }
}

static inline void parts_destroy(const parts_t *parts)
{
    for (size_t i = 0; i < parts->count; i++)
        gtopk_reducer_destroy(parts->reducers[i]);
}

static inline void parts_tensors(const parts_t *parts, float *values, gtopk_tensor_t tensors[2])
{
    for (size_t i = 0; i < parts->count; i++) {
        tensors[i] = (gtopk_tensor_t){values, parts->length[i], GTOPK_F32, 0};
        values += parts->length[i];
    }
}

static inline void parts_residual(const parts_t *parts, float *values)
{
    for (size_t i = 0; i < parts->count; i++) {
        REQUIRE(gtopk_reducer_residual(parts->reducers[i], 0, values, parts->length[i]) == GTOPK_OK);
        values += parts->length[i];
    }
}

#endif
