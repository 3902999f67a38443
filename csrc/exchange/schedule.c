/* Round lists of the butterfly and of the tree. */
#include "exchange/schedule.h"

#include <math.h>
#include <string.h>

static schedule_round_t *append(schedule_t *schedule, schedule_kind_t kind, uint32_t number, int32_t peer)
{
    schedule_round_t *round = &schedule->rounds[schedule->count++];
    round->kind = kind;
    round->number = (uint16_t)number;
    round->peer = peer;
    round->group = 1;
    if (kind == SCHEDULE_MERGE || kind == SCHEDULE_TAKE)
        schedule->merges++;
    return round;
}

void schedule_butterfly(schedule_t *schedule, int32_t size, int32_t rank)
{
    memset(schedule, 0, sizeof *schedule);
    int64_t core = 1;
    uint32_t doublings = 0;
    while (2 * core <= size) {
        core *= 2;
        doublings++;
    }
    const int32_t folded = (int32_t)(size - core); /* so many ranks have a partner beyond the core */
    const uint32_t hand_back = doublings + 1;
    schedule->levels = doublings;

    if (rank >= core) {
        append(schedule, SCHEDULE_GIVE, 0, (int32_t)(rank - core));
        append(schedule, SCHEDULE_FINAL, hand_back, (int32_t)(rank - core))->level_in = doublings;
        return;
    }
    if (rank < folded)
        append(schedule, SCHEDULE_TAKE, 0, (int32_t)(rank + core))->quantise = 1;
    for (uint32_t bit = 0; bit < doublings; bit++) {
        const int32_t distance = (int32_t)(1u << bit);
        schedule_round_t *round = append(schedule, SCHEDULE_MERGE, bit + 1, rank ^ distance);
        round->group = 2u << bit;
        round->level_in = bit;
        round->level_out = bit + 1;
        round->quantise = bit + 1 < doublings || folded > 0;
    }
    if (rank < folded)
        append(schedule, SCHEDULE_PUBLISH, hand_back, (int32_t)(rank + core))->level_in = doublings;
}

void schedule_tree(schedule_t *schedule, int32_t size, int32_t rank)
{
    memset(schedule, 0, sizeof *schedule);
    uint32_t depth = 0;
    while (((int64_t)1 << depth) < size)
        depth++;
    schedule->levels = depth;

    uint32_t bit = 0;
    for (; bit < depth; bit++) {
        const int64_t distance = (int64_t)1 << bit;
        if (rank & distance) {
            append(schedule, SCHEDULE_GIVE, bit + 1, (int32_t)(rank - distance))->level_in = bit;
            break;
        }
        if (rank + distance >= size)
            continue;
        schedule_round_t *round = append(schedule, SCHEDULE_TAKE, bit + 1, (int32_t)(rank + distance));
        round->level_in = bit;
        round->level_out = bit + 1;
        round->quantise = 1;
    }
    /* The broadcast walks the same edges backwards; the edge of bit b has number 2 depth - b. */
    if (bit < depth)
        append(schedule, SCHEDULE_FINAL, 2 * depth - bit, (int32_t)(rank - ((int64_t)1 << bit)))->level_in = depth;
    while (bit-- > 0) {
        const int64_t child = rank + ((int64_t)1 << bit);
        if (child < size)
            append(schedule, SCHEDULE_PUBLISH, 2 * depth - bit, (int32_t)child)->level_in = depth;
    }
}

uint32_t schedule_level_k(uint64_t dim, uint64_t k, double growth, uint32_t level)
{
    double entries = (double)k;
    const double most = fmin((double)dim, 4.0 * (double)k);
    for (uint32_t r = 0; r < level && entries < most; r++) {
        const double grown = ceil(entries * growth);
        if (grown == entries)
            break;
        entries = fmin(most, grown);
    }
    return (uint32_t)entries;
}
