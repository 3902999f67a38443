/* What a reducer is made with, checked, and compared between the ranks. */
#ifndef GTOPK_CORE_CONFIG_H
#define GTOPK_CORE_CONFIG_H

#include "core/comm.h"

/* What all ranks must have alike. Fixed size, compared field by field. */
typedef struct config_record {
    int32_t algorithm, value_type, residual_policy, momentum_correction, rollback, hierarchy;
    uint64_t dim, segments, lengths_hash;
    double density, merge_growth;
    uint64_t run;           /* random id of rank 0's, kept in checkpoints */
    uint32_t reducer;       /* id within the communicator */
    int32_t status;         /* of this rank's own checks and allocations */
    int32_t each_node;      /* ranks of a node that have a share each; 1: there are no shares */
    int32_t over_data;      /* 1: messages go over the data transport beside the control transport */
    int32_t open;           /* 1: the algorithm is chosen by the library: GTOPK_ALGORITHM_AUTO */
    int32_t residual_dtype; /* no padding is left: all bytes are hashed */
} config_record_t;

_Static_assert(sizeof(config_record_t) == 6 * sizeof(int32_t) + 6 * sizeof(uint64_t) + 6 * sizeof(int32_t),
               "no byte of it is padding");

/* The caller's config in full, defaults where its struct ends earlier. INVALID for any value out of range. */
gtopk_status_t config_check(const gtopk_reducer_config_t *config, gtopk_reducer_config_t *full);

gtopk_status_t config_check_density(double density);

/* Sums up the lengths: INVALID when there are no entries or more than 2^32 - 1. */
gtopk_status_t config_check_lengths(const uint64_t *lengths, size_t count, uint64_t *dim);

uint64_t config_k(uint64_t dim, double density);

/* Order-dependent hash of the lengths. */
uint64_t config_hash_lengths(const uint64_t *lengths, size_t count);

/* Collective. `mine` holds this rank's record, its status included. If all are well and alike: OK, mine->run is rank
 * 0's. Otherwise this rank's own error, or MISMATCH naming the first difference. */
gtopk_status_t config_agree(gtopk_comm_t *comm, config_record_t *mine);

/* The hash that every message carries. */
uint32_t config_hash(const config_record_t *record);

#endif
