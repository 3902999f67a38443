/* Saving, consolidating and loading the residual as a whole. One segment: residual.c.
 *
 * A state is a header, the segments' lengths (u64 each), the residual (dim floats) and, if there is one, the velocity.
 * Little-endian. Header offsets:
 *    0  magic "GTKS"       24  step u64            48  flags u32 (1: velocity)
 *    4  version u32        32  run u64             52  CRC-32C of everything else
 *    8  dim u64            40  rank i32 (-1: sum)  56  zero u64
 *   16  segments u64       44  size i32 */
#include <math.h>
#include <string.h>

#include "core/reducer.h"
#include "exchange/collective.h"
#include "util/memory.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "states are written in memory order, which must be little-endian"
#endif

#define STATE_HEADER 64u
#define STATE_VERSION 1u
#define STATE_CRC_AT 52u
#define HAS_VELOCITY 1u
#define CONSOLIDATED (-1)

static const char magic[4] = {'G', 'T', 'K', 'S'};

static size_t state_bytes(uint64_t dim, uint64_t segments, int has_velocity)
{
    return STATE_HEADER + (size_t)segments * sizeof(uint64_t) + (size_t)dim * sizeof(float) * (has_velocity ? 2 : 1);
}

size_t gtopk_reducer_state_size(const gtopk_reducer_t *reducer)
{
    if (!reducer)
        return 0;
    return state_bytes(reducer->record.dim, reducer->record.segments, reducer->record.momentum_correction);
}

static void put(uint8_t *state, size_t at, const void *value, size_t bytes)
{
    memcpy(state + at, value, bytes);
}

static uint32_t state_crc(const uint8_t *state, size_t bytes)
{
    const uint32_t crc = wire_crc(0, state, STATE_CRC_AT);
    return wire_crc(crc, state + STATE_CRC_AT + sizeof crc, bytes - STATE_CRC_AT - sizeof crc);
}

static void write_header(const gtopk_reducer_t *reducer, uint8_t *state, int32_t rank)
{
    const config_record_t *record = &reducer->record;
    const uint32_t version = STATE_VERSION, flags = record->momentum_correction ? HAS_VELOCITY : 0;
    const int32_t size = comm_size(reducer->comm);
    memset(state, 0, STATE_HEADER);
    put(state, 0, magic, sizeof magic);
    put(state, 4, &version, sizeof version);
    put(state, 8, &record->dim, sizeof record->dim);
    put(state, 16, &record->segments, sizeof record->segments);
    put(state, 24, &reducer->step, sizeof reducer->step);
    put(state, 32, &record->run, sizeof record->run);
    put(state, 40, &rank, sizeof rank);
    put(state, 44, &size, sizeof size);
    put(state, 48, &flags, sizeof flags);
    if (record->segments > 0)
        put(state, STATE_HEADER, reducer->segments.lengths,
            (size_t)record->segments * sizeof *reducer->segments.lengths);
}

static void seal(uint8_t *state, size_t bytes)
{
    const uint32_t crc = state_crc(state, bytes);
    put(state, STATE_CRC_AT, &crc, sizeof crc);
}

/* Where the floats of an array begin. */
static size_t array_at(const config_record_t *record, int which)
{
    return state_bytes(which == DEVICE_VELOCITY ? record->dim : 0, record->segments, 0);
}

static gtopk_status_t check_buffer(const gtopk_reducer_t *reducer, const void *buffer, size_t bytes)
{
    const size_t needed = gtopk_reducer_state_size(reducer);
    if (buffer && bytes == needed)
        return GTOPK_OK;
    return status_set(GTOPK_ERR_INVALID,
                      "a state of this reducer takes %zu bytes, the buffer has %zu: see gtopk_reducer_state_size",
                      needed, buffer ? bytes : 0);
}

/* ---- parts: between the store and a state, by way of memory that the device reaches and that is aligned ---- */

static gtopk_status_t part_create(const gtopk_reducer_t *reducer, float **part)
{
    void *block = NULL;
    const uint64_t most = reducer->record.dim < REDUCER_PART ? reducer->record.dim : REDUCER_PART;
    const gtopk_status_t status = reducer->device->ops->allocate_pinned(reducer->device, most * sizeof **part,
                                                                        "a part of a state", &block);
    *part = block;
    return status;
}

static void part_destroy(const gtopk_reducer_t *reducer, float *part)
{
    reducer->device->ops->release_pinned(reducer->device, part);
}

static uint64_t part_length(const gtopk_reducer_t *reducer, uint64_t at)
{
    const uint64_t left = reducer->record.dim - at;
    return left < REDUCER_PART ? left : REDUCER_PART;
}

/* Where in a state the entries from `at` on begin. */
static size_t part_place(const gtopk_reducer_t *reducer, int which, uint64_t at)
{
    return array_at(&reducer->record, which) + at * sizeof(float);
}

static gtopk_status_t save_array(gtopk_reducer_t *reducer, int which, float *part, uint8_t *state)
{
    gtopk_status_t status = GTOPK_OK;
    for (uint64_t at = 0; at < reducer->record.dim && status == GTOPK_OK; at += REDUCER_PART) {
        const uint64_t length = part_length(reducer, at);
        status = reducer_read(reducer, which, at, length, part);
        memcpy(state + part_place(reducer, which, at), part, length * sizeof *part);
    }
    return status;
}

/* ---- save ---- */

gtopk_status_t gtopk_reducer_state_save(gtopk_reducer_t *reducer, void *buffer, size_t bytes)
{
    gtopk_status_t status = reducer_enter(reducer);
    if (status != GTOPK_OK)
        return status;
    const config_record_t *record = &reducer->record;
    uint8_t *state = buffer;
    float *part = NULL;
    status = reducer_check_between_steps(reducer, "gtopk_reducer_state_save");
    if (status == GTOPK_OK)
        status = check_buffer(reducer, buffer, bytes);
    if (status == GTOPK_OK)
        status = part_create(reducer, &part);
    if (status == GTOPK_OK)
        write_header(reducer, state, comm_rank(reducer->comm));
    for (int which = DEVICE_RESIDUAL; which <= record->momentum_correction && status == GTOPK_OK; which++)
        status = save_array(reducer, which, part, state);
    if (status == GTOPK_OK)
        seal(state, bytes);
    part_destroy(reducer, part);
    reducer_leave(reducer);
    return status;
}

/* Sums one array over the ranks, part by part; `state` is NULL where nobody asked. */
static gtopk_status_t consolidate_array(gtopk_reducer_t *reducer, int which, float *part, uint8_t *state)
{
    gtopk_comm_t *comm = reducer->comm;
    const places_t all = places_of_all(&comm->map, comm_rank(comm));
    gtopk_status_t status = GTOPK_OK;
    for (uint64_t at = 0; at < reducer->record.dim && status == GTOPK_OK; at += REDUCER_PART) {
        const uint64_t length = part_length(reducer, at);
        status = reducer_read(reducer, which, at, length, part);
        if (status == GTOPK_OK)
            status = collective_allreduce(&comm->link, &all, part, length, GTOPK_F32);
        if (status == GTOPK_OK && state)
            memcpy(state + part_place(reducer, which, at), part, length * sizeof *part);
    }
    return status;
}

/* How far a reducer is. */
typedef struct progress {
    uint64_t step, run;
} progress_t;

static gtopk_status_t compare_progress(const progress_t *all, int32_t size)
{
    for (int32_t r = 1; r < size; r++)
        if (all[r].step != all[0].step || all[r].run != all[0].run)
            return status_set(GTOPK_ERR_DESYNC,
                              "rank 0 is at step %llu of run %016llx, rank %d at step %llu of run %016llx, so there is "
                              "no state of all: load one of the same step on every rank",
                              (unsigned long long)all[0].step, (unsigned long long)all[0].run, (int)r,
                              (unsigned long long)all[r].step, (unsigned long long)all[r].run);
    return GTOPK_OK;
}

/* Collective. Residuals of different steps do not add up to a state. */
static gtopk_status_t check_progress(gtopk_reducer_t *reducer)
{
    gtopk_comm_t *comm = reducer->comm;
    const progress_t mine = {reducer->step, reducer->record.run};
    progress_t *all;
    gtopk_status_t status = memory_alloc(&all, (size_t)comm_size(comm), sizeof *all, "the steps of all ranks");
    if (status == GTOPK_OK)
        status = collective_allgather(&comm->link, &mine, sizeof mine, all);
    status = comm_settle(comm, status, reducer->step);
    if (status == GTOPK_OK)
        status = compare_progress(all, comm_size(comm));
    memory_free(all);
    return status;
}

gtopk_status_t gtopk_reducer_state_consolidate(gtopk_reducer_t *reducer, void *buffer, size_t bytes, int32_t root)
{
    gtopk_status_t status = reducer_enter(reducer);
    if (status != GTOPK_OK)
        return status;
    gtopk_comm_t *comm = reducer->comm;
    status = comm_enter(comm);
    if (status != GTOPK_OK) {
        reducer_leave(reducer);
        return status;
    }
    float *part = NULL;
    uint8_t *state = comm_rank(comm) == root ? buffer : NULL;
    status = reducer_check_between_steps(reducer, "gtopk_reducer_state_consolidate");
    if (status == GTOPK_OK && (root < 0 || root >= comm_size(comm)))
        status = status_set(GTOPK_ERR_INVALID, "root %d is not a rank: there are %d", (int)root, (int)comm_size(comm));
    if (status == GTOPK_OK && comm_rank(comm) == root)
        status = check_buffer(reducer, buffer, bytes);
    if (status == GTOPK_OK)
        status = part_create(reducer, &part);
    status = comm_agree(comm, status, "gtopk_reducer_state_consolidate");
    if (status == GTOPK_OK)
        status = check_progress(reducer);
    if (status == GTOPK_OK) {
        for (int which = DEVICE_RESIDUAL; which <= reducer->record.momentum_correction && status == GTOPK_OK; which++)
            status = consolidate_array(reducer, which, part, state);
        status = comm_settle(comm, status, reducer->step);
    }
    if (status == GTOPK_OK && state) {
        write_header(reducer, state, CONSOLIDATED);
        seal(state, bytes);
    }
    part_destroy(reducer, part);
    comm_leave(comm);
    reducer_leave(reducer);
    return status;
}

/* ---- load ---- */

static gtopk_status_t corrupt(const char *what)
{
    return status_set(GTOPK_ERR_CORRUPT, "this is no usable state: %s; load another checkpoint", what);
}

/* Arrays are found, and their ends, by dim; segments by their lengths. */
static int lengths_add_up(const uint8_t *state, const gtopk_state_info_t *info)
{
    uint64_t sum = 0;
    for (uint64_t s = 0; s < info->segments && sum <= info->dim; s++) {
        uint64_t length;
        memcpy(&length, state + STATE_HEADER + s * sizeof length, sizeof length);
        sum = length <= info->dim ? sum + length : UINT64_MAX;
    }
    return sum == info->dim;
}

gtopk_status_t gtopk_state_inspect(const void *buffer, size_t bytes, gtopk_state_info_t *info)
{
    const uint8_t *state = buffer;
    uint32_t version, flags, crc;
    uint64_t reserved;
    gtopk_state_info_t found = {.reserved = 0};
    if (!buffer || !info || info->struct_size < sizeof(size_t))
        return status_set(GTOPK_ERR_INVALID, "gtopk_state_inspect needs a buffer and an info with its struct_size set");
    if (bytes < STATE_HEADER || memcmp(state, magic, sizeof magic) != 0)
        return corrupt("it does not begin as one");
    memcpy(&version, state + 4, sizeof version);
    memcpy(&found.dim, state + 8, sizeof found.dim);
    memcpy(&found.segments, state + 16, sizeof found.segments);
    memcpy(&found.step, state + 24, sizeof found.step);
    memcpy(&found.run, state + 32, sizeof found.run);
    memcpy(&found.rank, state + 40, sizeof found.rank);
    memcpy(&found.size, state + 44, sizeof found.size);
    memcpy(&flags, state + 48, sizeof flags);
    memcpy(&crc, state + STATE_CRC_AT, sizeof crc);
    memcpy(&reserved, state + 56, sizeof reserved);
    if (version != STATE_VERSION)
        return status_set(GTOPK_ERR_CORRUPT,
                          "the state has format version %u, this library reads %u: load it with the library that "
                          "wrote it",
                          version, STATE_VERSION);
    if (found.dim > UINT32_MAX || found.segments > UINT32_MAX || found.size < 1 || found.rank < CONSOLIDATED ||
        found.rank >= found.size || flags > HAS_VELOCITY || reserved != 0)
        return corrupt("a field of its header is out of range");
    found.has_velocity = (flags & HAS_VELOCITY) != 0;
    if (bytes != state_bytes(found.dim, found.segments, found.has_velocity))
        return corrupt("its length is not what its header says");
    if (crc != state_crc(state, bytes))
        return corrupt("its checksum is wrong");
    if (!lengths_add_up(state, &found))
        return corrupt("its segments do not add up to its entries");
    found.struct_size = info->struct_size;
    memcpy(info, &found, info->struct_size < sizeof found ? info->struct_size : sizeof found);
    return GTOPK_OK;
}

/* The segments and arrays that this reducer has. */
static gtopk_status_t check_fits(const gtopk_reducer_t *reducer, const uint8_t *state, const gtopk_state_info_t *info)
{
    const config_record_t *record = &reducer->record;
    if (info->segments != record->segments)
        return status_set(GTOPK_ERR_MISMATCH,
                          "the state has %llu segments, the reducer has %llu: it is another model's",
                          (unsigned long long)info->segments, (unsigned long long)record->segments);
    for (uint64_t s = 0; s < record->segments; s++) {
        uint64_t length;
        memcpy(&length, state + STATE_HEADER + s * sizeof length, sizeof length);
        if (length != reducer->segments.lengths[s])
            return status_set(GTOPK_ERR_MISMATCH,
                              "segment %llu has %llu entries in the state and %llu in the reducer: it is another "
                              "model's",
                              (unsigned long long)s, (unsigned long long)length,
                              (unsigned long long)reducer->segments.lengths[s]);
    }
    if (info->has_velocity != record->momentum_correction)
        return status_set(GTOPK_ERR_MISMATCH,
                          "the state has %s velocity, the reducer has %s: create it with the same momentum "
                          "correction",
                          info->has_velocity ? "a" : "no", record->momentum_correction ? "one" : "none");
    return GTOPK_OK;
}

/* How much of what a state holds is for one rank: times / by. */
typedef struct fraction {
    int32_t times, by;
} fraction_t;

/* An update is the mean over the ranks. So that what waits moves the weights as far as it would have, each rank that there
 * is now has the mean over the ranks that were added up; in a share lies that of all ranks of the node. */
static fraction_t fraction_of(const gtopk_reducer_t *reducer, const gtopk_state_info_t *info, int adopt)
{
    if (adopt)
        return (fraction_t){0, 1};
    if (info->rank == CONSOLIDATED)
        return (fraction_t){reducer->record.each_node, info->size};
    return (fraction_t){1, 1};
}

/* The product is exact, and so is the whole for 1 / 1. */
static float fraction_take(fraction_t part, float value)
{
    return (float)((double)value * (double)part.times / (double)part.by);
}

/* Every value finite as it is loaded, and so as it is: no part of one that is not finite is. */
static gtopk_status_t check_values(const uint8_t *state, size_t bytes, const gtopk_state_info_t *info, fraction_t part)
{
    for (size_t at = state_bytes(0, info->segments, 0); at < bytes; at += sizeof(float)) {
        float value;
        memcpy(&value, state + at, sizeof value);
        if (!isfinite(fraction_take(part, value)))
            return corrupt("it holds a value that is not finite");
    }
    return GTOPK_OK;
}

/* Whether a state that is divided among ranks has something at `at` for this one. */
static int is_ours(const gtopk_reducer_t *reducer, uint64_t at)
{
    return !reducer->shares || (at >= reducer->shares->begin && at < reducer->shares->end);
}

/* Overwrites one array with so much of the state's. */
static gtopk_status_t load_array(gtopk_reducer_t *reducer, int which, float *part, const uint8_t *state,
                                 fraction_t mine)
{
    gtopk_status_t status = GTOPK_OK;
    for (uint64_t at = 0; at < reducer->record.dim && status == GTOPK_OK; at += REDUCER_PART) {
        const uint64_t length = part_length(reducer, at);
        memcpy(part, state + part_place(reducer, which, at), length * sizeof *part);
        for (uint64_t i = 0; i < length; i++)
            part[i] = mine.times > 0 && is_ours(reducer, at + i) ? fraction_take(mine, part[i]) : 0.0f;
        status = reducer_write(reducer, which, at, length, part);
    }
    return status;
}

/* In shares everything has its place in this rank's one, or none. */
static gtopk_status_t check_share(const gtopk_reducer_t *reducer, const uint8_t *state)
{
    const uint64_t arrays = reducer->record.momentum_correction ? 2 : 1;
    const uint64_t count = reducer->shares ? arrays * reducer->record.dim : 0;
    for (uint64_t i = 0; i < count; i++) {
        float value;
        memcpy(&value, state + array_at(&reducer->record, DEVICE_RESIDUAL) + i * sizeof value, sizeof value);
        if (value != 0.0f && !is_ours(reducer, i % reducer->record.dim))
            return status_set(
                GTOPK_ERR_MISMATCH,
                "the state holds something of another rank's share: it was saved with another hierarchy, or with other "
                "ranks on a node; load a consolidated one (gtopk_reducer_state_consolidate)");
    }
    return GTOPK_OK;
}

static gtopk_status_t load(gtopk_reducer_t *reducer, const void *buffer, size_t bytes, int adopt)
{
    gtopk_status_t status = reducer_enter(reducer);
    if (status != GTOPK_OK)
        return status;
    const int32_t rank = comm_rank(reducer->comm), size = comm_size(reducer->comm);
    gtopk_state_info_t info = {.struct_size = sizeof info};
    status = reducer_check_between_steps(reducer, "loading a state");
    if (status == GTOPK_OK)
        status = gtopk_state_inspect(buffer, bytes, &info);
    if (status == GTOPK_OK)
        status = check_fits(reducer, buffer, &info);
    const fraction_t mine = fraction_of(reducer, &info, adopt);
    if (status == GTOPK_OK)
        status = check_values(buffer, bytes, &info, mine);
    if (status == GTOPK_OK && !adopt && info.rank != CONSOLIDATED && (info.rank != rank || info.size != size))
        status = status_set(GTOPK_ERR_MISMATCH,
                            "the state is that of rank %d of %d, this is rank %d of %d: load each rank's own, or a "
                            "consolidated one (gtopk_reducer_state_consolidate)",
                            (int)info.rank, (int)info.size, (int)rank, (int)size);
    if (status == GTOPK_OK && !adopt && info.rank != CONSOLIDATED)
        status = check_share(reducer, buffer);
    float *part = NULL;
    if (status == GTOPK_OK)
        status = part_create(reducer, &part);
    for (int which = DEVICE_RESIDUAL; which <= reducer->record.momentum_correction && status == GTOPK_OK; which++)
        status = load_array(reducer, which, part, buffer, mine);
    part_destroy(reducer, part);
    if (status == GTOPK_OK) {
        reducer->step = info.step;
        reducer->record.run = info.run;
        reducer->hash = config_hash(&reducer->record);
    }
    reducer_leave(reducer);
    return status;
}

gtopk_status_t gtopk_reducer_state_load(gtopk_reducer_t *reducer, const void *buffer, size_t bytes)
{
    return load(reducer, buffer, bytes, 0);
}

gtopk_status_t gtopk_reducer_state_adopt(gtopk_reducer_t *reducer, const void *buffer, size_t bytes)
{
    return load(reducer, buffer, bytes, 1);
}
