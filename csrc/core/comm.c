/* Communicators: creation, the lock of one call, and what ranks agree on. */
#include "core/comm.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "core/data.h"
#include "exchange/collective.h"
#include "util/clock.h"
#include "util/memory.h"

#define DEFAULT_TIMEOUT 1800.0
#define DEFAULT_WARN_AFTER 60.0

uint64_t comm_random(void)
{
    uint64_t number = 0;
    if (getrandom(&number, sizeof number, 0) != (ssize_t)sizeof number)
        number = (uint64_t)(clock_now() * 1e9) ^ (uint64_t)getpid() << 40;
    return number;
}

/* What the ranks compare before anything else. Fixed layout: it must be readable by every version. */
typedef struct hello {
    uint32_t wire_format, library;
    uint64_t random;
    places_host_t host;
} hello_t;

static gtopk_status_t compare_hellos(const hello_t *all, int32_t size, int32_t rank)
{
    const hello_t *mine = &all[rank];
    for (int32_t r = 0; r < size; r++)
        if (all[r].wire_format != mine->wire_format || all[r].library != mine->library)
            return status_set(GTOPK_ERR_MISMATCH,
                              "rank %d has gtopk %u with wire format %u, rank %d has gtopk %u with wire format %u: "
                              "install the same version on all machines",
                              (int)rank, mine->library, mine->wire_format, (int)r, all[r].library, all[r].wire_format);
    return GTOPK_OK;
}

static gtopk_status_t exchange_hello(gtopk_comm_t *comm, const char *node)
{
    hello_t mine = {.wire_format = WIRE_FORMAT_VERSION, .library = (uint32_t)gtopk_version(), .random = comm_random()};
    const int32_t size = comm_size(comm);
    hello_t *all;
    places_host_find(&mine.host, node);
    gtopk_status_t status = memory_alloc(&all, (size_t)size, sizeof *all, "the ranks' versions");
    if (status == GTOPK_OK)
        status = collective_allgather(&comm->link, &mine, sizeof mine, all);
    if (status == GTOPK_OK)
        status = compare_hellos(all, size, comm_rank(comm));
    if (status == GTOPK_OK) {
        comm->link.epoch = (uint32_t)(all[0].random >> 32) | 1u; /* never 0: that is the hello's */
        places_map_fill(&comm->map, &all[0].host, sizeof *all);
        comm->link.map = &comm->map;
    }
    memory_free(all);
    return status;
}

static gtopk_status_t default_timeout(double *seconds)
{
    const char *text = getenv("GTOPK_TIMEOUT");
    char *end;
    *seconds = DEFAULT_TIMEOUT;
    if (!text || !text[0])
        return GTOPK_OK;
    *seconds = strtod(text, &end);
    if (*end || !(*seconds > 0.0) || isinf(*seconds))
        return status_set(GTOPK_ERR_INVALID, "GTOPK_TIMEOUT is '%.64s', but must be a positive number of seconds",
                          text);
    return GTOPK_OK;
}

static int is_seconds(double value)
{
    return value >= 0.0 && !isinf(value);
}

static gtopk_status_t check_config(const gtopk_comm_config_t *config, gtopk_comm_config_t *full)
{
    const gtopk_comm_config_t defaults = GTOPK_COMM_CONFIG_INIT;
    *full = defaults;
    if (!config)
        return default_timeout(&full->timeout);
    if (config->struct_size < sizeof(size_t) || config->struct_size > sizeof *full ||
        config->struct_size % sizeof(void *) != 0)
        return status_set(GTOPK_ERR_INVALID,
                          "gtopk_comm_config_t has struct_size %zu, this library knows up to %zu: fill it "
                          "with GTOPK_COMM_CONFIG_INIT, and do not use a newer header than the library",
                          config->struct_size, sizeof *full);
    memcpy(full, config, config->struct_size);
    if (!is_seconds(full->timeout) || !is_seconds(full->warn_after) || !is_seconds(full->setup_timeout))
        return status_set(GTOPK_ERR_INVALID,
                          "timeout %g s, warn_after %g s and setup_timeout %g s must be finite and not negative",
                          full->timeout, full->warn_after, full->setup_timeout);
    if (full->warn_after == 0.0)
        full->warn_after = DEFAULT_WARN_AFTER;
    return full->timeout > 0.0 ? GTOPK_OK : default_timeout(&full->timeout);
}

/* Opens the transport, or that of the ranks which are left of another one. */
static gtopk_status_t open_control(const gtopk_comm_config_t *config, transport_t **transport)
{
    const gtopk_comm_t *before = config->survivors_of;
    if (!before)
        return transport_open(config, transport);
    if (before->owner != getpid())
        return status_set(GTOPK_ERR_STATE, "survivors_of belongs to the parent process (%d)", (int)before->owner);
    transport_t *control = before->link.control;
    if (!control->ops->survivors || !config->transport || strcmp(config->transport, control->ops->name) != 0)
        return status_set(
            GTOPK_ERR_UNSUPPORTED,
            "survivors_of is for transport mpi alone, and a communicator of that transport: here are %s and "
            "%s",
            config->transport ? config->transport : "self", control->ops->name);
    if (config->data)
        return status_set(GTOPK_ERR_UNSUPPORTED,
                          "survivors_of with data \"%s\": when a rank is lost NCCL is of no more "
                          "use in the other processes",
                          config->data);
    return control->ops->survivors(control, config, transport);
}

gtopk_status_t comm_open(gtopk_comm_t **out, transport_t *control, transport_t *data, const gtopk_comm_config_t *config)
{
    gtopk_comm_t *comm;
    gtopk_status_t status = memory_alloc(&comm, 1, sizeof *comm, "a communicator");
    if (status != GTOPK_OK) {
        if (data)
            data->ops->close(data);
        control->ops->close(control);
        return status;
    }
    atomic_flag_clear(&comm->busy);
    atomic_init(&comm->references, 1);
    comm->owner = getpid();
    comm->peers = config->peers;
    if (comm->peers)
        comm_retain(comm->peers);
    comm->link.control = control;
    comm->link.data = data ? data : control;
    comm->link.timeout = transport_setup_seconds(config);
    comm->link.warn_after = config->warn_after > 0.0 ? config->warn_after : DEFAULT_WARN_AFTER;
    status = link_open(&comm->link);
    if (status == GTOPK_OK && comm->peers)
        status = memory_alloc(&comm->peer_words, (size_t)comm_size(comm->peers), sizeof *comm->peer_words,
                              "what peers tell");
    if (status == GTOPK_OK)
        status = places_map_create(&comm->map, control->size);
    if (status == GTOPK_OK)
        status = exchange_hello(comm, config->node);
    status = comm_settle(comm, status, 0);
    if (config->survivors_of)
        status = control->ops->agree(control, status, control->ops->now(control) + comm->link.timeout);
    comm->link.timeout = config->timeout;
    if (status == GTOPK_OK)
        *out = comm;
    else
        comm_release(comm);
    return status;
}

gtopk_status_t gtopk_comm_create(gtopk_comm_t **out, const gtopk_comm_config_t *config)
{
    gtopk_comm_config_t full;
    transport_t *transport;
    if (!out)
        return status_set(GTOPK_ERR_INVALID, "gtopk_comm_create needs a place for the handle");
    *out = NULL;
    gtopk_status_t status = check_config(config, &full);
    if (status == GTOPK_OK)
        status = open_control(&full, &transport);
    if (status == GTOPK_OK)
        status = comm_open(out, transport, NULL, &full);
    if (status == GTOPK_OK)
        status = data_open(*out, &full);
    if (status != GTOPK_OK && *out) {
        comm_release(*out);
        *out = NULL;
    }
    return status;
}

void gtopk_comm_destroy(gtopk_comm_t *comm)
{
    if (comm)
        comm_release(comm);
}

void comm_retain(gtopk_comm_t *comm)
{
    atomic_fetch_add(&comm->references, 1);
}

void comm_release(gtopk_comm_t *comm)
{
    if (atomic_fetch_sub(&comm->references, 1) > 1)
        return;
    /* In a forked child the transports' sockets and threads are the parent's. */
    if (comm->owner == getpid()) {
        if (comm->link.data != comm->link.control)
            comm->link.data->ops->close(comm->link.data);
        comm->link.control->ops->close(comm->link.control);
        for (size_t i = 0; i < COMM_DEVICES && comm->devices[i].device && !comm->link.stream_lost; i++)
            comm->devices[i].device->ops->close(comm->devices[i].device);
    }
    link_close(&comm->link);
    places_map_destroy(&comm->map);
    if (comm->peers)
        comm_release(comm->peers);
    memory_free(comm->peer_words);
    memory_free(comm);
}

static int same_allocator(const gtopk_allocator_t *one, const gtopk_allocator_t *other)
{
    return one->allocate == other->allocate && one->release == other->release && one->context == other->context;
}

gtopk_status_t comm_device(gtopk_comm_t *comm, const char *name, const gtopk_allocator_t *allocator, device_t **device)
{
    const gtopk_allocator_t wanted = allocator ? *allocator : (gtopk_allocator_t){.struct_size = sizeof wanted};
    char full[DEVICE_NAME_SIZE];
    size_t i = 0;
    gtopk_status_t status = device_resolve(name, full);
    if (status != GTOPK_OK)
        return status;
    for (; i < COMM_DEVICES && comm->devices[i].device; i++)
        if (strcmp(comm->devices[i].device->name, full) == 0 && same_allocator(&comm->devices[i].allocator, &wanted)) {
            *device = comm->devices[i].device;
            return GTOPK_OK;
        }
    if (i == COMM_DEVICES)
        return status_set(GTOPK_ERR_UNSUPPORTED, "device \"%s\": a communicator's reducers use at most %d devices",
                          full, COMM_DEVICES);
    status = device_open_with(full, allocator ? &wanted : NULL, device);
    if (status != GTOPK_OK)
        return status;
    comm->devices[i].allocator = wanted;
    __atomic_store_n(&comm->devices[i].device, *device, __ATOMIC_RELEASE); /* comm_halt may be looking */
    return GTOPK_OK;
}

void comm_halt(const gtopk_comm_t *comm, const char *name)
{
    for (size_t i = 0; i < COMM_DEVICES; i++) {
        device_t *device = __atomic_load_n(&comm->devices[i].device, __ATOMIC_ACQUIRE);
        if (device && strcmp(device->name, name) == 0)
            device->ops->halt(device);
    }
}

void comm_forget_device(gtopk_comm_t *comm, const device_t *device)
{
    size_t i = 0, last = 0;
    while (i < COMM_DEVICES && comm->devices[i].device != device)
        i++;
    while (last + 1 < COMM_DEVICES && comm->devices[last + 1].device)
        last++;
    if (i == COMM_DEVICES)
        return;
    if (!comm->link.stream_lost)
        comm->devices[i].device->ops->close(comm->devices[i].device);
    comm->devices[i] = comm->devices[last];
    comm->devices[last].device = NULL;
}

gtopk_status_t comm_enter(gtopk_comm_t *comm)
{
    if (!comm)
        return status_set(GTOPK_ERR_INVALID, "the communicator is NULL: create one with gtopk_comm_create");
    if (comm->owner != getpid())
        return status_set(GTOPK_ERR_STATE,
                          "this communicator belongs to the parent process (%d): create one in the child after "
                          "fork, or do not use gtopk there",
                          (int)comm->owner);
    if (atomic_flag_test_and_set(&comm->busy))
        return status_set(GTOPK_ERR_STATE,
                          "another thread is using this communicator: one call at a time, or one communicator "
                          "for each thread");
    comm->environment = fpenv_enter();
    const gtopk_status_t status = link_check_alive(&comm->link);
    if (status != GTOPK_OK)
        comm_leave(comm);
    return status;
}

void comm_leave(gtopk_comm_t *comm)
{
    const fpenv_t environment = comm->environment;
    atomic_flag_clear(&comm->busy);
    fpenv_leave(environment);
}

gtopk_status_t comm_settle(gtopk_comm_t *comm, gtopk_status_t status, uint64_t step)
{
    return status == GTOPK_OK ? status : link_break(&comm->link, status, step);
}

gtopk_status_t comm_agree(gtopk_comm_t *comm, gtopk_status_t mine, const char *what)
{
    const int32_t size = comm_size(comm), code = mine;
    char text[STATUS_TEXT_SIZE];
    status_keep(text);
    int32_t *codes;
    gtopk_status_t status = memory_alloc(&codes, (size_t)size, sizeof *codes, "the ranks' answers");
    if (status == GTOPK_OK)
        status = collective_allgather(&comm->link, &code, sizeof code, codes);
    if (status != GTOPK_OK) {
        memory_free(codes);
        return comm_settle(comm, status, 0);
    }
    status = mine == GTOPK_OK ? GTOPK_OK : status_set(mine, "%s", text);
    for (int32_t r = 0; r < size && status == GTOPK_OK; r++)
        if (codes[r] != GTOPK_OK)
            status = status_set(GTOPK_ERR_MISMATCH,
                                "%s failed on rank %d (%s): its own error says why; nothing was changed here", what,
                                (int)r, gtopk_status_name(codes[r]));
    memory_free(codes);
    return status;
}

static gtopk_status_t gather_words(gtopk_comm_t *peers, const peer_word_t *mine, peer_word_t *all)
{
    gtopk_status_t status = comm_enter(peers);
    if (status != GTOPK_OK)
        return status;
    status = comm_settle(peers, collective_allgather(&peers->link, mine, sizeof *mine, all), 0);
    comm_leave(peers);
    return status == GTOPK_OK ? status : status_prefix(status, "while the peers told each other how the step went");
}

gtopk_status_t comm_agree_with_peers(gtopk_comm_t *comm, gtopk_status_t mine, uint32_t *nonfinite)
{
    const peer_word_t word = {mine, *nonfinite}, *words = comm->peer_words;
    char text[STATUS_TEXT_SIZE];
    status_keep(text);
    gtopk_status_t status = gather_words(comm->peers, &word, comm->peer_words);
    for (int32_t r = 0; r < comm_size(comm->peers) && status == GTOPK_OK; r++) {
        *nonfinite |= words[r].nonfinite;
        if (words[r].status != GTOPK_OK)
            status = status_set(GTOPK_ERR_ABORTED,
                                "peer %d failed in this step (%s), so it happens on none: its own output says why; "
                                "restart from a checkpoint",
                                (int)r, gtopk_status_name(words[r].status));
    }
    return mine == GTOPK_OK ? status : status_set(mine, "%s", text);
}

void comm_tell_peers(gtopk_comm_t *comm, uint64_t step)
{
    char text[STATUS_TEXT_SIZE];
    if (!comm->peers || comm->link.broken == GTOPK_OK)
        return;
    status_keep(text);
    if (comm_enter(comm->peers) == GTOPK_OK) {
        (void)comm_settle(comm->peers, link_check_alive(&comm->link), step);
        comm_leave(comm->peers);
    }
    (void)status_set(GTOPK_OK, "%s", text);
}

gtopk_status_t gtopk_comm_abort(gtopk_comm_t *comm, const char *why)
{
    const gtopk_status_t status = comm_enter(comm);
    if (status != GTOPK_OK)
        return status;
    (void)comm_settle(comm, status_set(GTOPK_ERR_ABORTED, "this rank gave up: %s", why ? why : "it did not say why"),
                      0);
    comm_tell_peers(comm, 0);
    comm_leave(comm);
    return GTOPK_OK;
}

int32_t gtopk_comm_rank(const gtopk_comm_t *comm)
{
    return comm ? comm_rank(comm) : -1;
}

int32_t gtopk_comm_size(const gtopk_comm_t *comm)
{
    return comm ? comm_size(comm) : -1;
}

int32_t gtopk_comm_local_rank(const gtopk_comm_t *comm)
{
    return comm ? comm->map.local[comm_rank(comm)] : -1;
}

int32_t gtopk_comm_survives(const gtopk_comm_t *comm)
{
    return comm && comm->link.data == comm->link.control && comm->link.control->survives;
}

const char *gtopk_comm_describe(const gtopk_comm_t *comm)
{
    return comm ? comm->link.data->description : "";
}
