/* Hosts of ranks, and members of exchanges. */
#include "transport/places.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "util/memory.h"

#define HASH_START 14695981039346656037u

/* FNV-1a, 64 bit, going on from `hash`. */
static uint64_t hash_on(uint64_t hash, const char *text)
{
    for (; *text; text++)
        hash = (hash ^ (unsigned char)*text) * 1099511628211u;
    return hash;
}

static uint64_t hash_boot_id(uint64_t hash)
{
    char id[64] = "";
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (!file)
        return hash;
    const char *line = fgets(id, sizeof id, file);
    (void)fclose(file);
    return line ? hash_on(hash, line) : hash;
}

void places_host_find(places_host_t *host, const char *node)
{
    memset(host, 0, sizeof *host);
    if (gethostname(host->name, sizeof host->name - 1) != 0)
        host->name[0] = 0;
    if (!node)
        node = getenv("GTOPK_NODE");
    host->node = node && *node ? hash_on(HASH_START, node) : hash_boot_id(hash_on(HASH_START, host->name));
}

gtopk_status_t places_map_create(places_map_t *map, int32_t size)
{
    *map = (places_map_t){.size = size};
    gtopk_status_t status = memory_alloc(&map->ranks, (size_t)size, sizeof *map->ranks, "the ranks of a communicator");
    if (status == GTOPK_OK)
        status = memory_alloc(&map->node, (size_t)size, sizeof *map->node, "the nodes of the ranks");
    if (status == GTOPK_OK)
        status = memory_alloc(&map->local, (size_t)size, sizeof *map->local, "the local ranks");
    if (status == GTOPK_OK)
        status = memory_alloc(&map->names, (size_t)size, sizeof *map->names, "the names of the ranks' hosts");
    for (int32_t r = 0; r < size && status == GTOPK_OK; r++)
        map->ranks[r] = r;
    return status;
}

static const places_host_t *host_at(const places_host_t *hosts, size_t stride, int32_t rank)
{
    return (const places_host_t *)(const void *)((const char *)hosts + (size_t)rank * stride);
}

void places_map_fill(places_map_t *map, const places_host_t *hosts, size_t stride)
{
    map->nodes = 0;
    for (int32_t r = 0; r < map->size; r++) {
        const places_host_t *host = host_at(hosts, stride, r);
        (void)snprintf(map->names[r], sizeof map->names[r], "%.*s", (int)sizeof host->name - 1, host->name);
        int32_t lowest = 0; /* rank of the same node */
        while (lowest < r && host_at(hosts, stride, lowest)->node != host->node)
            lowest++;
        map->node[r] = lowest < r ? map->node[lowest] : map->nodes++;
        map->local[r] = 0;
        for (int32_t before = lowest; before < r; before++)
            map->local[r] += map->node[before] == map->node[r];
    }
}

void places_map_destroy(places_map_t *map)
{
    memory_free(map->ranks);
    memory_free(map->node);
    memory_free(map->local);
    memory_free(map->names);
    *map = (places_map_t){.size = 0};
}

places_t places_of_all(const places_map_t *map, int32_t rank)
{
    return (places_t){.size = map->size, .place = rank, .ranks = map->ranks, .contributors = (uint32_t)map->size};
}

int32_t places_each_node(const places_map_t *map)
{
    const int32_t each = map->nodes > 0 ? map->size / map->nodes : 0;
    if (each * map->nodes != map->size)
        return 0;
    for (int32_t r = 0; r < map->size; r++)
        if (map->local[r] >= each) /* then another node has fewer */
            return 0;
    return each;
}

/* The ranks for which key[] is what it is for this one. */
static places_t places_alike(const places_map_t *map, const int32_t *key, int32_t rank, int32_t *ranks)
{
    places_t places = {.ranks = ranks};
    for (int32_t r = 0; r < map->size; r++) {
        if (key[r] != key[rank])
            continue;
        if (r == rank)
            places.place = places.size;
        ranks[places.size++] = r;
    }
    return places;
}

places_t places_of_node(const places_map_t *map, int32_t rank, int32_t *ranks)
{
    places_t places = places_alike(map, map->node, rank, ranks);
    places.contributors = (uint32_t)places.size;
    return places;
}

places_t places_of_peers(const places_map_t *map, int32_t rank, int32_t *ranks)
{
    places_t places = places_alike(map, map->local, rank, ranks);
    places.contributors = (uint32_t)map->size;
    return places;
}
