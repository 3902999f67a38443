/* Where ranks are: which of them take part in an exchange, and on which host each one runs. Knows no messages. */
#ifndef GTOPK_TRANSPORT_PLACES_H
#define GTOPK_TRANSPORT_PLACES_H

#include "util/status.h"

/* Characters kept of a host's name, the final zero included. */
#define PLACES_HOST 64

/* Who takes part in an exchange. Schedules count places, 0 to size - 1; messages go to ranks[place] of the transport. */
typedef struct places {
    int32_t size, place;   /* members, and which of them this rank is */
    const int32_t *ranks;  /* of each place; ascending */
    uint32_t contributors; /* ranks whose values are in the sum over all places: a mean is divided by it */
} places_t;

/* How many ranks a member stands for beside itself. */
static inline uint32_t places_others(const places_t *places)
{
    return places->contributors / (uint32_t)places->size - 1;
}

/* What a rank says of the machine that it runs on. */
typedef struct places_host {
    uint64_t node; /* two ranks are on one node when it is equal */
    char name[PLACES_HOST];
} places_host_t;

/* node: a name for the node, NULL: GTOPK_NODE, else the host's name and the kernel's boot id together: machines may have
 * one name, and containers of one machine, which have one boot id, are given names of their own. */
void places_host_find(places_host_t *host, const char *node);

/* What all ranks of a communicator know of each other. */
typedef struct places_map {
    int32_t size;
    int32_t nodes;              /* nodes in all */
    int32_t *ranks;             /* 0 to size - 1: the members of an exchange of all */
    int32_t *node;              /* of each rank; numbered in the order of their lowest ranks */
    int32_t *local;             /* place of each rank among those of its node */
    char (*names)[PLACES_HOST]; /* of each rank's host */
} places_map_t;

/* Room for `size` ranks, nothing known yet. */
gtopk_status_t places_map_create(places_map_t *map, int32_t size);

/* hosts[r] is what rank r says, `stride` bytes from the one before. */
void places_map_fill(places_map_t *map, const places_host_t *hosts, size_t stride);

void places_map_destroy(places_map_t *map);

/* All ranks, of which this is `rank`. Lives as long as the map. */
places_t places_of_all(const places_map_t *map, int32_t rank);

/* How many ranks every node has; 0 where they are not equally many. */
int32_t places_each_node(const places_map_t *map);

/* The ranks on this rank's node; and those that have the same place on theirs, who together stand for all where each
 * node has equally many. `ranks` has room for all ranks, and lives as long as what is returned. */
places_t places_of_node(const places_map_t *map, int32_t rank, int32_t *ranks);
places_t places_of_peers(const places_map_t *map, int32_t rank, int32_t *ranks);

#endif
