/* The exchange joint: how the ranks come from what each one has in its residual to one update that all have alike.
 *
 * One exchange a reducer and a set of settings; one entry an algorithm. An exchange knows the device, the link and the
 * places of its members. It may own others and hand steps on to them. */
#ifndef GTOPK_EXCHANGE_EXCHANGE_H
#define GTOPK_EXCHANGE_EXCHANGE_H

#include "device/device.h"
#include "exchange/link.h"
#include "transport/places.h"

typedef struct exchange exchange_t;

/* What all members have alike. */
typedef struct exchange_config {
    int32_t algorithm;  /* gtopk_algorithm_t */
    int32_t value_type; /* gtopk_value_type_t */
    int32_t policy;     /* gtopk_residual_policy_t */
    double growth;
    uint64_t dim, k;
    uint32_t reducer; /* id, the same on all ranks */
} exchange_config_t;

/* What an exchange works on; all of it outlives the exchange. */
typedef struct exchange_setup {
    device_t *device;
    device_store_t *store;
    link_t *link;
    places_t places;
    exchange_config_t config;
} exchange_setup_t;

typedef struct exchange_step {
    uint64_t number;
    uint32_t config_hash;
    double deadline;
    device_words_t *words; /* device memory; step_begin and words_join have passed */
    void *stream;

    /* out */
    const device_set_t *final;   /* the update, in device memory; NULL: it is dense */
    double select_s, exchange_s; /* on the host's clock */
} exchange_step_t;

typedef struct exchange_ops {
    const char *name;
    int selects; /* 1: an update is made of the entries that ranks select; 0: of everything, and nothing is selected */

    /* All memory that a step takes is allocated here. */
    gtopk_status_t (*create)(exchange_t **exchange, const exchange_setup_t *setup);

    /* Selects, and brings the update about, up to what commit changes: queued, as far as the transport allows. Nothing
     * here touches the residual. */
    gtopk_status_t (*run)(exchange_t *exchange, exchange_step_t *step);

    /* After the verdict on that step: changes the residual and writes the update. Queued. */
    gtopk_status_t (*commit)(exchange_t *exchange, const exchange_step_t *step, const device_target_t *target);

    /* Entries that an update can have. */
    uint64_t (*max_count)(const exchange_t *exchange);

    /* What was queued has passed. NULL is accepted. */
    void (*destroy)(exchange_t *exchange);
} exchange_ops_t;

struct exchange {
    const exchange_ops_t *ops;
    exchange_setup_t setup;
};

/* The operations of an algorithm, NULL for a number that is none. */
const exchange_ops_t *exchange_find(int32_t algorithm);

/* Memory for an exchange of `bytes` bytes, whose first member is an exchange_t. */
gtopk_status_t exchange_allocate(void *out, size_t bytes, const exchange_ops_t *ops, const exchange_setup_t *setup);

/* Selects k entries into a set; the time goes to the step. */
gtopk_status_t exchange_select(const exchange_t *exchange, exchange_step_t *step, device_set_t *selected);

/* One file each. */
extern const exchange_ops_t exchange_dense, exchange_topk, exchange_gtopk, exchange_gtopk_tree, exchange_gtopk_split;

#endif
