/* A transport as one that lives on a GPU's streams is: post, all-gather and all-reduce only queue, on the guarded device's
 * streams; buffers are the device's memory; whole capacities travel, without lengths and unchecked. Beside a transport
 * `thread`, whose clock it goes by. On a device of host memory, which has no queue, each call blocks until it is done. For
 * tests only. */
#ifndef TESTS_SUPPORT_ORDERED_H
#define TESTS_SUPPORT_ORDERED_H

#include "transport/transport.h"

typedef struct ordered_group ordered_group_t;

/* What the ranks have in common; NULL when out of memory. Destroyed when all of them have closed. */
ordered_group_t *ordered_group_create(int32_t size);
void ordered_group_destroy(ordered_group_t *group);

/* The transport of the rank that `thread` is of. Closed before `thread` is. */
gtopk_status_t ordered_create(ordered_group_t *group, transport_t *thread, transport_t **out);

/* Sees every message of an exchange on its way out, and may change it. Returns how often it is sent. */
typedef int (*ordered_tap_fn)(void *context, int32_t to, uint8_t *message, size_t bytes);
void ordered_tap(transport_t *ordered, ordered_tap_fn tap, void *context);

/* Sends a copy of a message, at once. */
void ordered_send(transport_t *ordered, int32_t to, const void *message, size_t bytes);

/* 1: tests are to run on this transport (GTOPK_TEST_TRANSPORT=ordered). */
int ordered_wanted(void);

#endif
