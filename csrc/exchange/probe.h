/* Timed messages: what the network between these ranks gives. Knows ranks and messages, and no sets. */
#ifndef GTOPK_EXCHANGE_PROBE_H
#define GTOPK_EXCHANGE_PROBE_H

#include "exchange/exchange.h"

/* Memory for what is sent, zeros, where the transport that moves messages of `device` takes it. */
gtopk_status_t probe_allocate(link_t *link, device_t *device, void **buffer);
void probe_release(link_t *link, device_t *device, void *buffer);

/* Collective. Fills in what costs say of messages and sums, as this rank saw it, on the transport that moves messages of
 * `device`: swaps with the partners of a butterfly, and all-reduces, each of two sizes, the median of five. A transport that
 * queues on the device's streams is measured by its sums alone. On an error the link is the caller's to break. */
gtopk_status_t probe_network(link_t *link, device_t *device, void *buffer, gtopk_costs_t *costs);

/* Seconds that encoding, decoding and merging an entry of a message take on a device. */
gtopk_status_t probe_merge(device_t *device, double *entry_s);

#endif
