/* Timed messages. */
#include "exchange/probe.h"

#include <math.h>

#include "exchange/collective.h"
#include "exchange/message.h"
#include "util/clock.h"

/* Bytes of a swap; a long one must be one piece, and well above what transports send without asking. */
enum { SHORT_SWAP = 64, LONG_SWAP = 1 << 18 };
/* Floats of a sum. */
enum { SHORT_SUM = 1 << 12, LONG_SUM = 1 << 18 };
enum { TIMES = 6 }; /* the first of which does not count */

_Static_assert(LONG_SWAP <= LINK_PIECE, "a swap is one message");

/* Where both ends of what is sent lie: LONG_SUM floats. */
typedef struct probe {
    exchange_setup_t setup; /* device and link alone */
    transport_t *transport;
    void *buffer;
} probe_t;

/* Seconds a message, and a byte, from the times of two lengths. */
static void fit(double short_s, double short_bytes, double long_s, double long_bytes, double *message_s, double *byte_s)
{
    *byte_s = fmax(0.0, (long_s - short_s) / (long_bytes - short_bytes));
    *message_s = fmax(0.0, short_s - short_bytes * *byte_s);
}

/* ---- swaps ---- */

static gtopk_status_t time_swap(const probe_t *probe, int32_t distance, size_t bytes, double *seconds)
{
    link_t *link = probe->setup.link;
    const int32_t peer = probe->transport->rank ^ distance;
    gtopk_status_t status = collective_barrier(link);
    double times[TIMES] = {0};
    for (int i = 0; i < TIMES && status == GTOPK_OK; i++) {
        const double start = clock_now();
        status = collective_swap(link, probe->transport, peer, probe->buffer, bytes);
        times[i] = clock_now() - start;
    }
    *seconds = peer < probe->transport->size ? clock_median(times + 1, TIMES - 1) : 0.0;
    return status;
}

/* Whether every rank's partner at this distance is on its own node. */
static int is_near(const places_map_t *map, int32_t distance)
{
    for (int32_t r = 0; r < map->size; r++)
        if ((r ^ distance) < map->size && map->node[r] != map->node[r ^ distance])
            return 0;
    return 1;
}

typedef struct line {
    double message_s, byte_s;
    int count;
} line_t;

static line_t mean_of(line_t line)
{
    line.message_s /= line.count;
    line.byte_s /= line.count;
    return line;
}

/* Between two ranks at least. */
static gtopk_status_t probe_swaps(const probe_t *probe, gtopk_costs_t *costs)
{
    const places_map_t *map = probe->setup.link->map;
    line_t lines[2] = {{.count = 0}, {.count = 0}}; /* far, near */
    gtopk_status_t status = GTOPK_OK;
    for (int64_t distance = 1; distance < map->size && status == GTOPK_OK; distance *= 2) {
        line_t *line = &lines[is_near(map, (int32_t)distance)];
        double short_s, long_s, message_s = 0.0, byte_s = 0.0;
        status = time_swap(probe, (int32_t)distance, SHORT_SWAP, &short_s);
        if (status == GTOPK_OK)
            status = time_swap(probe, (int32_t)distance, LONG_SWAP, &long_s);
        if (status == GTOPK_OK)
            fit(short_s, SHORT_SWAP, long_s, LONG_SWAP, &message_s, &byte_s);
        line->message_s += message_s;
        line->byte_s += byte_s;
        line->count++;
    }
    const line_t near = mean_of(lines[lines[1].count > 0]), far = mean_of(lines[lines[0].count == 0]);
    if (status != GTOPK_OK)
        return status;
    costs->message_s = far.message_s;
    costs->byte_s = far.byte_s;
    costs->near_message_s = near.message_s;
    costs->near_byte_s = near.byte_s;
    return GTOPK_OK;
}

/* ---- sums ---- */

static gtopk_status_t time_sum(const probe_t *probe, size_t count, double *seconds)
{
    link_t *link = probe->setup.link;
    const places_t all = places_of_all(link->map, probe->transport->rank);
    gtopk_status_t status = collective_barrier(link);
    double times[TIMES] = {0};
    for (int i = 0; i < TIMES && status == GTOPK_OK; i++) {
        const double start = clock_now();
        status = collective_sum(link, probe->transport, &all, probe->buffer, count, NULL);
        if (status == GTOPK_OK && probe->transport->ops->stream_ordered)
            status = link_finish(link, link_deadline(link));
        times[i] = clock_now() - start;
    }
    *seconds = clock_median(times + 1, TIMES - 1);
    return status;
}

static gtopk_status_t probe_sums(const probe_t *probe, gtopk_costs_t *costs)
{
    const double size = probe->transport->size, messages = 2.0 * (size - 1.0);
    double short_s, long_s;
    gtopk_status_t status = time_sum(probe, SHORT_SUM, &short_s);
    if (status == GTOPK_OK)
        status = time_sum(probe, LONG_SUM, &long_s);
    if (status == GTOPK_OK)
        fit(short_s / messages, SHORT_SUM * sizeof(float) / size, long_s / messages, LONG_SUM * sizeof(float) / size,
            &costs->sum_message_s, &costs->sum_byte_s);
    return status;
}

/* Ranks of a node, where they follow each other; else, or where nodes have unequally many, 1. */
static int32_t count_each(const places_map_t *map)
{
    const int32_t each = places_each_node(map);
    for (int32_t r = 0; r < map->size && each > 0; r++)
        if (map->node[r] != r / each)
            return 1;
    return each > 0 ? each : 1;
}

static exchange_setup_t setup_of(link_t *link, device_t *device)
{
    return (exchange_setup_t){.device = device, .link = link};
}

gtopk_status_t probe_allocate(link_t *link, device_t *device, void **buffer)
{
    const exchange_setup_t setup = setup_of(link, device);
    return message_allocate(&setup, LONG_SUM * sizeof(float), "messages to be timed", buffer);
}

void probe_release(link_t *link, device_t *device, void *buffer)
{
    const exchange_setup_t setup = setup_of(link, device);
    message_release(&setup, buffer);
}

gtopk_status_t probe_network(link_t *link, device_t *device, void *buffer, gtopk_costs_t *costs)
{
    const probe_t probe = {setup_of(link, device), link_transport(link, device->name), buffer};
    costs->each_node = count_each(link->map);
    costs->gathers = probe.transport->ops->allgather != NULL;
    if (link->map->size == 1)
        return GTOPK_OK;
    const gtopk_status_t status = probe_sums(&probe, costs);
    if (status == GTOPK_OK && !probe.transport->ops->device_memory)
        return probe_swaps(&probe, costs);
    costs->message_s = costs->near_message_s = costs->sum_message_s;
    costs->byte_s = costs->near_byte_s = costs->sum_byte_s;
    return status;
}
