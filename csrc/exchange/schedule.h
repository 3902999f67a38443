/* Which messages a rank exchanges, with whom and in which order. Pure: size, rank and algorithm give a list of rounds.
 * Knows no device, no transport and no message. */
#ifndef GTOPK_EXCHANGE_SCHEDULE_H
#define GTOPK_EXCHANGE_SCHEDULE_H

#include <stdint.h>

#include "util/status.h"

typedef enum schedule_kind {
    SCHEDULE_MERGE,   /* send the set to peer, receive the peer's, merge */
    SCHEDULE_TAKE,    /* receive the peer's set, merge */
    SCHEDULE_GIVE,    /* send the set; the peer goes on with it */
    SCHEDULE_PUBLISH, /* send the final set */
    SCHEDULE_FINAL    /* receive the final set */
} schedule_kind_t;

typedef struct schedule_round {
    schedule_kind_t kind;
    uint16_t number; /* in the header; the same on both sides */
    int32_t peer;
    uint32_t group;     /* ranks that share what the merge drops (a power of two; 1: this rank takes all) */
    uint32_t level_in;  /* the sets exchanged have at most k_(level_in) entries */
    uint32_t level_out; /* the merge keeps k_(level_out) */
    int quantise;       /* the merged set is sent on, by this rank or by one that must end with the same bits */
} schedule_round_t;

/* Two rounds for each bit of a 31-bit size, and fold and hand-back. */
#define SCHEDULE_MAX_ROUNDS 66

typedef struct schedule {
    uint32_t count;
    uint32_t merges; /* rounds of kind MERGE and TAKE */
    uint32_t levels; /* the last level of growth: the final set has at most k_(levels) entries */
    schedule_round_t rounds[SCHEDULE_MAX_ROUNDS];
} schedule_t;

/* gtopk, and the headers of dense: recursive doubling among the first 2^m ranks; rank 2^m + i hands its set to rank i
 * before and gets the final set back after. */
void schedule_butterfly(schedule_t *schedule, int32_t size, int32_t rank);

/* gtopk-tree, as published (Shi et al., ICDCS 2019, algorithm 3): binomial tree to rank 0, then binomial broadcast. */
void schedule_tree(schedule_t *schedule, int32_t size, int32_t rank);

/* Entries kept at a level: k_0 = k, k_(r+1) = min(n, 4k, ceil(k_r * growth)), in double. */
uint32_t schedule_level_k(uint64_t dim, uint64_t k, double growth, uint32_t level);

#endif
