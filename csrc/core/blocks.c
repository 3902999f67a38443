/* select, merge, encode and decode on the caller's arrays: one device call each, with the arguments checked. */
#include "core/blocks.h"

#include <string.h>

#include "util/memory.h"

#define CHECK_ARRAYS(set, room) ((set) && ((room) == 0 || ((set)->indices && (set)->values)))

static uint64_t at_most(uint64_t limit, uint64_t value)
{
    return value < limit ? value : limit;
}

static device_set_t borrow(const gtopk_set_t *set, uint64_t capacity, uint32_t *count)
{
    return (device_set_t){.index = set->indices, .value = set->values, .count = count, .capacity = (uint32_t)capacity};
}

gtopk_status_t blocks_check_room(const char *call, const gtopk_set_t *set, uint64_t needed)
{
    if (CHECK_ARRAYS(set, needed) && set->capacity >= needed)
        return GTOPK_OK;
    return status_set(GTOPK_ERR_INVALID, "%s needs room for %llu entries, the set has %llu", call,
                      (unsigned long long)needed,
                      set && set->indices && set->values ? (unsigned long long)set->capacity : 0ull);
}

/* Finite and not zero. By its bits: to a caller that flushes denormals, they compare equal to zero. */
static int is_entry(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits &= 0x7fffffffu;
    return bits != 0 && bits < 0x7f800000u;
}

gtopk_status_t blocks_check_set(const char *call, const char *name, const gtopk_set_t *set, uint64_t dim)
{
    if (!set || !CHECK_ARRAYS(set, set->count))
        return status_set(GTOPK_ERR_INVALID, "%s: %s has no arrays", call, name);
    if (set->count > UINT32_MAX)
        return status_set(GTOPK_ERR_INVALID, "%s: %s has more than 2^32 - 1 entries", call, name);
    for (uint64_t i = 0; i < set->count; i++) {
        if (set->indices[i] >= dim)
            return status_set(GTOPK_ERR_INVALID, "%s: index %u of %s is not below dim %llu", call, set->indices[i],
                              name, (unsigned long long)dim);
        if (i > 0 && set->indices[i] <= set->indices[i - 1])
            return status_set(GTOPK_ERR_INVALID,
                              "%s: the indices of %s do not increase at entry %llu (%u after %u): sort them, each "
                              "once",
                              call, name, (unsigned long long)i, set->indices[i], set->indices[i - 1]);
        if (!is_entry(set->values[i]))
            return status_set(GTOPK_ERR_INVALID,
                              "%s: entry %llu of %s has value %g: a set holds finite non-zero values", call,
                              (unsigned long long)i, name, (double)set->values[i]);
    }
    return GTOPK_OK;
}

/* The device that GTOPK_DEVICE names where its memory is the host's, as the caller's arrays are; else the CPU. */
static gtopk_status_t open_host_device(device_t **device)
{
    gtopk_status_t status = device_open(NULL, device);
    if (status == GTOPK_OK && !(*device)->ops->host_memory) {
        (*device)->ops->close(*device);
        status = device_open("cpu", device);
    }
    return status;
}

static gtopk_status_t scratch_create(device_set_t *set, uint64_t capacity, uint32_t *count)
{
    *set = (device_set_t){.count = count, .capacity = (uint32_t)capacity};
    gtopk_status_t status = memory_alloc(&set->index, (size_t)capacity + 1, sizeof *set->index, "a scratch set");
    if (status == GTOPK_OK)
        status = memory_alloc(&set->value, (size_t)capacity + 1, sizeof *set->value, "a scratch set");
    return status;
}

static void scratch_destroy(device_set_t *set)
{
    memory_free(set->index);
    memory_free(set->value);
}

/* ---- select ---- */

gtopk_status_t blocks_check_finite(const float *values, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (!is_entry(values[i]))
            return status_set(GTOPK_ERR_INVALID,
                              "gtopk_select: x holds NaN or Inf, which have no place in an order of magnitudes");
    return GTOPK_OK;
}

gtopk_status_t blocks_check_select(const char *call, const float *x, uint64_t n, uint64_t k, gtopk_set_t *set,
                                   uint64_t *kept)
{
    *kept = at_most(n, k);
    if (n > UINT32_MAX || (n > 0 && !x))
        return status_set(GTOPK_ERR_INVALID, "%s takes an array of at most 2^32 - 1 entries, not %llu", call,
                          x ? (unsigned long long)n : 0ull);
    const gtopk_status_t status = blocks_check_room(call, set, *kept);
    if (status == GTOPK_OK)
        set->count = 0;
    return status;
}

gtopk_status_t gtopk_select_parallel(const float *x, uint64_t n, uint64_t k, gtopk_set_t *set,
                                     gtopk_parallel_for_fn parallel_for, void *parallel_context)
{
    const device_parallel_t parallel = {parallel_for, parallel_context};
    uint64_t kept;
    gtopk_status_t status = blocks_check_select("gtopk_select", x, n, k, set, &kept);
    if (status != GTOPK_OK || kept == 0)
        return status;
    device_t *device;
    status = open_host_device(&device);
    if (status != GTOPK_OK)
        return status;
    uint32_t count = 0;
    device_set_t out = borrow(set, kept, &count);
    status = device->ops->array_select(device, x, n, kept, &parallel, &out, NULL);
    if (status == GTOPK_OK)
        status = blocks_check_finite(set->values, count);
    set->count = status == GTOPK_OK ? count : 0;
    device->ops->close(device);
    return status;
}

gtopk_status_t gtopk_select(const float *x, uint64_t n, uint64_t k, gtopk_set_t *set)
{
    return gtopk_select_parallel(x, n, k, set, NULL, NULL);
}

/* ---- merge ---- */

gtopk_status_t gtopk_merge(const gtopk_set_t *a, const gtopk_set_t *b, uint64_t k, gtopk_set_t *out)
{
    gtopk_status_t status = blocks_check_set("gtopk_merge", "a", a, (uint64_t)UINT32_MAX + 1);
    if (status == GTOPK_OK)
        status = blocks_check_set("gtopk_merge", "b", b, (uint64_t)UINT32_MAX + 1);
    if (status != GTOPK_OK)
        return status;
    const uint64_t kept = at_most(a->count + b->count, k);
    if (a->count + b->count > UINT32_MAX)
        return status_set(GTOPK_ERR_INVALID, "gtopk_merge: the sets have more than 2^32 - 1 entries together");
    status = blocks_check_room("gtopk_merge", out, kept);
    if (status != GTOPK_OK)
        return status;
    out->count = 0;
    if (kept == 0)
        return GTOPK_OK;
    device_t *device;
    status = open_host_device(&device);
    if (status != GTOPK_OK)
        return status;
    uint32_t a_count = (uint32_t)a->count, b_count = (uint32_t)b->count, count = 0, all_count = 0;
    device_words_t words = {.ok = 1};
    const device_set_t left = borrow(a, a->count, &a_count), right = borrow(b, b->count, &b_count);
    device_set_t sum = borrow(out, kept, &count), all;
    status = scratch_create(&all, a->count + b->count, &all_count);
    if (status == GTOPK_OK)
        status = device->ops->merge(device, &left, &right, kept, &sum, &all, &words, NULL);
    if (status == GTOPK_OK && words.nonfinite)
        status = status_set(GTOPK_ERR_INVALID, "gtopk_merge: a sum is too large for a float; scale the values down");
    out->count = status == GTOPK_OK ? count : 0;
    scratch_destroy(&all);
    device->ops->close(device);
    return status;
}

/* ---- encode, decode ---- */

static int value_type_exists(int32_t value_type)
{
    return value_type >= GTOPK_VALUE_F32 && value_type <= GTOPK_VALUE_I8;
}

size_t gtopk_encode_bound(uint64_t dim, uint64_t count, int32_t value_type)
{
    return value_type_exists(value_type) && dim <= UINT32_MAX && count <= dim
               ? wire_message_capacity(dim, count, value_type)
               : 0;
}

gtopk_status_t gtopk_encode(const gtopk_set_t *set, uint64_t dim, int32_t value_type, void *buffer, size_t *bytes)
{
    if (dim > UINT32_MAX || !value_type_exists(value_type))
        return status_set(
            GTOPK_ERR_INVALID,
            "gtopk_encode takes a dim of at most 2^32 - 1 and a gtopk_value_type_t, not dim %llu and type %d",
            (unsigned long long)dim, (int)value_type);
    gtopk_status_t status = blocks_check_set("gtopk_encode", "the set", set, dim);
    if (status != GTOPK_OK)
        return status;
    const size_t bound = gtopk_encode_bound(dim, set->count, value_type);
    if (!buffer || !bytes || *bytes < bound)
        return status_set(GTOPK_ERR_INVALID, "gtopk_encode needs a buffer of %zu bytes: see gtopk_encode_bound", bound);
    device_t *device;
    status = open_host_device(&device);
    if (status != GTOPK_OK)
        return status;
    uint32_t count = (uint32_t)set->count, decoded_count = 0;
    device_words_t words = {.ok = 1};
    device_set_t decoded;
    const device_set_t borrowed = borrow(set, set->count, &count);
    const wire_header_t header = {
        .value_type = (uint8_t)value_type,
        .algorithm = WIRE_BLOCK,
        .k = count,
        .dim = (uint32_t)dim,
        .scale = 1.0f,
    };
    status = scratch_create(&decoded, set->count, &decoded_count);
    if (status == GTOPK_OK)
        status = device->ops->encode(device, &borrowed, &header, buffer, &decoded, &words, NULL);
    if (status == GTOPK_OK) {
        *bytes = wire_own_size(buffer);
        wire_seal(buffer, *bytes - WIRE_HEADER_SIZE);
    }
    scratch_destroy(&decoded);
    device->ops->close(device);
    return status;
}

static gtopk_status_t read_header(const void *buffer, size_t bytes, wire_header_t *header)
{
    if (!buffer)
        return status_set(GTOPK_ERR_INVALID, "there is no message: the buffer is NULL");
    const gtopk_status_t status = wire_header_read(buffer, bytes, 0, header);
    if (status == GTOPK_OK && header->value_type == WIRE_VALUE_BYTES)
        return status_set(GTOPK_ERR_CORRUPT, "the message carries bytes, not a set");
    return status;
}

gtopk_status_t gtopk_decode_header(const void *buffer, size_t bytes, uint64_t *dim, uint64_t *count)
{
    wire_header_t header;
    const gtopk_status_t status = read_header(buffer, bytes, &header);
    if (status != GTOPK_OK)
        return status;
    if (dim)
        *dim = header.dim;
    if (count)
        *count = header.count;
    return GTOPK_OK;
}

/* Any message whose header was read is the awaited one. */
static wire_expect_t expect_of(const wire_header_t *header)
{
    return (wire_expect_t){
        .algorithm = header->algorithm,
        .value_type = header->value_type,
        .round = header->round,
        .sender = header->sender,
        .epoch = header->epoch,
        .reducer = header->reducer,
        .config_hash = header->config_hash,
        .dim = header->dim,
        .k = header->k,
        .step = header->step,
    };
}

gtopk_status_t gtopk_decode(const void *buffer, size_t bytes, gtopk_set_t *set, uint64_t *dim)
{
    wire_header_t header;
    gtopk_status_t status = read_header(buffer, bytes, &header);
    if (status == GTOPK_OK)
        status = blocks_check_room("gtopk_decode", set, header.count);
    if (status != GTOPK_OK)
        return status;
    device_t *device;
    status = open_host_device(&device);
    if (status != GTOPK_OK)
        return status;
    uint32_t count = 0;
    device_words_t words = {.ok = 1};
    device_set_t out = borrow(set, header.count, &count);
    const wire_expect_t expect = expect_of(&header);
    status = device->ops->decode(device, buffer, bytes, &expect, &out, &words, NULL);
    if (status == GTOPK_OK && words.error == DEVICE_BAD_HEADER)
        status = status_set(GTOPK_ERR_CORRUPT, "the message is the last word of a rank that gave up, and holds no set");
    else if (status == GTOPK_OK && !words.ok)
        status = status_set(GTOPK_ERR_CORRUPT,
                            "the message has the right header and checksum, but its indices or values are no set: what "
                            "wrote it is not gtopk");
    set->count = status == GTOPK_OK ? count : 0;
    if (dim)
        *dim = header.dim;
    device->ops->close(device);
    return status;
}
