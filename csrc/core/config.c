/* Checks of a reducer's configuration, alone and between ranks. */
#include "core/config.h"

#include <math.h>
#include <string.h>

#include "exchange/collective.h"
#include "util/memory.h"

gtopk_status_t config_check_density(double density)
{
    if (density > 0.0 && density <= 1.0) /* false for NaN */
        return GTOPK_OK;
    return status_set(GTOPK_ERR_INVALID,
                      "density %g is out of range: it is the share of entries to send, above 0 and at most 1 "
                      "(default 0.001)",
                      density);
}

static gtopk_status_t check_choice(const char *name, int32_t value, int32_t count)
{
    if (value >= 0 && value < count)
        return GTOPK_OK;
    return status_set(GTOPK_ERR_INVALID, "%s %d does not exist: use one of the %d constants in gtopk.h", name,
                      (int)value, (int)count);
}

gtopk_status_t config_check(const gtopk_reducer_config_t *config, gtopk_reducer_config_t *full)
{
    const gtopk_reducer_config_t defaults = GTOPK_REDUCER_CONFIG_INIT;
    *full = defaults;
    if (config && (config->struct_size < sizeof(size_t) || config->struct_size > sizeof *full ||
                   config->struct_size % sizeof(void *) != 0))
        return status_set(GTOPK_ERR_INVALID,
                          "gtopk_reducer_config_t has struct_size %zu, this library knows up to %zu: fill it "
                          "with GTOPK_REDUCER_CONFIG_INIT, and do not use a newer header than the library",
                          config->struct_size, sizeof *full);
    if (config)
        memcpy(full, config, config->struct_size);
    gtopk_status_t status = config_check_density(full->density);
    if (status == GTOPK_OK)
        status = full->algorithm == GTOPK_ALGORITHM_AUTO ? GTOPK_OK
                                                         : check_choice("algorithm", full->algorithm, WIRE_ALGORITHMS);
    if (status == GTOPK_OK)
        status = check_choice("value type", full->value_type, GTOPK_VALUE_I8 + 1);
    if (status == GTOPK_OK)
        status = check_choice("residual policy", full->residual_policy, GTOPK_RESIDUAL_PAPER + 1);
    if (status == GTOPK_OK)
        status = check_choice("momentum correction", full->momentum_correction, 2);
    if (status == GTOPK_OK)
        status = check_choice("hierarchy", full->hierarchy, GTOPK_HIERARCHY_AUTO + 1);
    if (status == GTOPK_OK)
        status = check_choice("rollback", full->rollback, 2);
    if (status == GTOPK_OK && full->residual_dtype != GTOPK_F32 && full->residual_dtype != GTOPK_BF16)
        status = status_set(GTOPK_ERR_INVALID, "residual_dtype %d is none: use GTOPK_F32 (default) or GTOPK_BF16",
                            (int)full->residual_dtype);
    if (status == GTOPK_OK && full->allocator &&
        (full->allocator->struct_size != sizeof *full->allocator || !full->allocator->allocate ||
         !full->allocator->release))
        status = status_set(GTOPK_ERR_INVALID,
                            "the allocator lacks a function, or its struct_size is not sizeof(gtopk_allocator_t)");
    if (status == GTOPK_OK && !(full->merge_growth >= 1.0 && isfinite(full->merge_growth)))
        status = status_set(GTOPK_ERR_INVALID,
                            "merge_growth %g is out of range: at least 1 (default; each round keeps k entries)",
                            full->merge_growth);
    return status;
}

gtopk_status_t config_check_lengths(const uint64_t *lengths, size_t count, uint64_t *dim)
{
    *dim = 0;
    if (count > 0 && !lengths)
        return status_set(GTOPK_ERR_INVALID, "gtopk_reducer_create got %zu segments but no lengths", count);
    if (count > UINT32_MAX)
        return status_set(GTOPK_ERR_INVALID, "%zu segments are too many: at most %u", count, UINT32_MAX);
    for (size_t i = 0; i < count; i++) {
        if (lengths[i] > UINT32_MAX || *dim + lengths[i] > UINT32_MAX)
            return status_set(GTOPK_ERR_INVALID,
                              "segments 0 to %zu have more than 2^32 - 1 entries in all: use more reducers, each "
                              "for a part of the segments",
                              i);
        *dim += lengths[i];
    }
    if (*dim == 0)
        return status_set(GTOPK_ERR_INVALID,
                          "a reducer of %zu segments without any entry has nothing to do: give at least one "
                          "non-empty segment",
                          count);
    return GTOPK_OK;
}

uint64_t config_k(uint64_t dim, double density)
{
    const double k = fmax(1.0, rint(density * (double)dim));
    return k < (double)dim ? (uint64_t)k : dim;
}

/* FNV-1a, 64 bit. */
uint64_t config_hash_lengths(const uint64_t *lengths, size_t count)
{
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < count; i++)
        for (int byte = 0; byte < 8; byte++)
            hash = (hash ^ (lengths[i] >> (8 * byte) & 0xff)) * 1099511628211u;
    return hash;
}

uint32_t config_hash(const config_record_t *record)
{
    config_record_t shared = *record;
    shared.status = 0;
    return wire_crc(0, &shared, sizeof shared);
}

static gtopk_status_t compare(int32_t rank, int32_t other, const char *name, double ours, double theirs)
{
    if (ours == theirs)
        return GTOPK_OK;
    return status_set(GTOPK_ERR_MISMATCH, "%s is %.17g on rank %d and %.17g on rank %d: give the same on all ranks",
                      name, ours, (int)rank, theirs, (int)other);
}

static double algorithm_asked(const config_record_t *record)
{
    return record->open ? GTOPK_ALGORITHM_AUTO : record->algorithm;
}

static gtopk_status_t compare_records(int32_t rank, const config_record_t *mine, int32_t other,
                                      const config_record_t *theirs)
{
    const struct {
        const char *name;
        double ours, theirs;
    } fields[] = {
        {"the number of reducers made before", mine->reducer, theirs->reducer},
        {"the number of segments", (double)mine->segments, (double)theirs->segments},
        {"the number of entries (dim)", (double)mine->dim, (double)theirs->dim},
        {"density", mine->density, theirs->density},
        {"algorithm", algorithm_asked(mine), algorithm_asked(theirs)},
        {"the algorithm that was chosen", mine->algorithm, theirs->algorithm},
        {"value type", mine->value_type, theirs->value_type},
        {"residual policy", mine->residual_policy, theirs->residual_policy},
        {"merge_growth", mine->merge_growth, theirs->merge_growth},
        {"momentum correction", mine->momentum_correction, theirs->momentum_correction},
        {"hierarchy", mine->hierarchy, theirs->hierarchy},
        {"rollback", mine->rollback, theirs->rollback},
        {"residual_dtype", mine->residual_dtype, theirs->residual_dtype},
    };
    if (theirs->status != GTOPK_OK)
        return status_set(GTOPK_ERR_MISMATCH, "rank %d could not create its reducer (%s): its own error says why",
                          (int)other, gtopk_status_name(theirs->status));
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        const gtopk_status_t status = compare(rank, other, fields[i].name, fields[i].ours, fields[i].theirs);
        if (status != GTOPK_OK)
            return status;
    }
    if (mine->over_data != theirs->over_data)
        return status_set(
            GTOPK_ERR_MISMATCH,
            "rank %d computes on a device that the data transport is for, and rank %d on another one: give "
            "all reducers the device of the data transport (\"cuda\"), or make the communicator without one",
            (int)(mine->over_data ? rank : other), (int)(mine->over_data ? other : rank));
    if (mine->lengths_hash != theirs->lengths_hash)
        return status_set(GTOPK_ERR_MISMATCH,
                          "the segments have other lengths on rank %d than on rank %d (the same number and the "
                          "same sum): give the same segments in the same order on all ranks",
                          (int)rank, (int)other);
    return GTOPK_OK;
}

gtopk_status_t config_agree(gtopk_comm_t *comm, config_record_t *mine)
{
    const int32_t size = comm_size(comm), rank = comm_rank(comm);
    char text[STATUS_TEXT_SIZE];
    status_keep(text);
    config_record_t *all;
    gtopk_status_t status = memory_alloc(&all, (size_t)size, sizeof *all, "the ranks' configurations");
    if (status == GTOPK_OK)
        status = collective_allgather(&comm->link, mine, sizeof *mine, all);
    if (status != GTOPK_OK) {
        memory_free(all);
        return comm_settle(comm, status, 0);
    }
    if (mine->status != GTOPK_OK)
        status = status_set((gtopk_status_t)mine->status, "%s", text);
    for (int32_t r = 0; r < size && status == GTOPK_OK; r++)
        status = compare_records(rank, mine, r, &all[r]);
    if (status == GTOPK_OK)
        mine->run = all[0].run;
    memory_free(all);
    return status;
}
