/* Stands between the tests' calls of a step and the library (ld --wrap), so that tests whose gradients are ordinary memory
 * of the host run on a GPU, which cannot read that: tensors are copied to the GPU, with the same alignment, and back when
 * what was queued is done. Nothing changes on other devices. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/cuda/driver.h"
#include "gtopk.h"

gtopk_status_t __real_gtopk_reducer_accumulate(gtopk_reducer_t *reducer, const uint32_t *segments,
                                               const gtopk_tensor_t *tensors, size_t count, double scale,
                                               uint32_t flags, void *stream);
gtopk_status_t __real_gtopk_reducer_reduce(gtopk_reducer_t *reducer, const gtopk_tensor_t *outputs, size_t count,
                                           uint32_t flags, void *stream, gtopk_stats_t *stats);
gtopk_status_t __real_gtopk_reducer_reduce_sparse(gtopk_reducer_t *reducer, gtopk_set_t *set, uint32_t flags,
                                                  void *stream, gtopk_stats_t *stats);
gtopk_status_t __real_gtopk_reducers_reduce(gtopk_reducer_t *const *reducers, const gtopk_tensor_t *const *outputs,
                                            const size_t *counts, size_t count, uint32_t flags, void *stream,
                                            gtopk_stats_t *const *stats);

/* The same with __wrap_ is what the tests' calls become. */
gtopk_status_t __wrap_gtopk_reducer_accumulate(gtopk_reducer_t *reducer, const uint32_t *segments,
                                               const gtopk_tensor_t *tensors, size_t count, double scale,
                                               uint32_t flags, void *stream);
gtopk_status_t __wrap_gtopk_reducer_reduce(gtopk_reducer_t *reducer, const gtopk_tensor_t *outputs, size_t count,
                                           uint32_t flags, void *stream, gtopk_stats_t *stats);
gtopk_status_t __wrap_gtopk_reducer_reduce_sparse(gtopk_reducer_t *reducer, gtopk_set_t *set, uint32_t flags,
                                                  void *stream, gtopk_stats_t *stats);
gtopk_status_t __wrap_gtopk_reducers_reduce(gtopk_reducer_t *const *reducers, const gtopk_tensor_t *const *outputs,
                                            const size_t *counts, size_t count, uint32_t flags, void *stream,
                                            gtopk_stats_t *const *stats);

#define ALIGNMENT 256u

/* ---- memory of the GPU, kept for the next call ---- */

typedef struct buffer {
    cu_pointer_t block;
    size_t bytes;
    gtopk_tensor_t *tensors; /* on the GPU; never freed, since test_memory.c counts that */
    struct buffer *next;
} buffer_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static buffer_t *unused;
static const cuda_driver_t *driver;
static cu_context_t context;

static void check(cu_result_t result, const char *what)
{
    if (result == CU_SUCCESS)
        return;
    (void)fprintf(stderr, "on_device.c: %s gives %d\n", what, (int)result);
    abort();
}

#define CHECK(call) check(call, #call)

static int is_wanted(void)
{
    const char *device = getenv("GTOPK_DEVICE");
    return device && strncmp(device, "cuda", 4) == 0;
}

static void enter(void)
{
    (void)pthread_mutex_lock(&lock);
    if (!context) {
        if (cuda_driver_get(&driver) != GTOPK_OK) {
            (void)fprintf(stderr, "on_device.c: %s\n", gtopk_last_error());
            abort();
        }
        CHECK(driver->cuDevicePrimaryCtxRetain(&context, 0));
    }
    (void)pthread_mutex_unlock(&lock);
    CHECK(driver->cuCtxPushCurrent(context));
}

static void leave(void)
{
    cu_context_t left;
    CHECK(driver->cuCtxPopCurrent(&left));
}

static buffer_t *buffer_take(size_t bytes)
{
    buffer_t *taken = NULL;
    (void)pthread_mutex_lock(&lock);
    for (buffer_t **at = &unused; *at && !taken; at = &(*at)->next)
        if ((*at)->bytes >= bytes) {
            taken = *at;
            *at = taken->next;
            break;
        }
    (void)pthread_mutex_unlock(&lock);
    if (taken)
        return taken;
    taken = malloc(sizeof *taken);
    if (!taken)
        abort();
    taken->tensors = NULL;
    taken->bytes = bytes < (1u << 16) ? 1u << 16 : bytes;
    CHECK(driver->cuMemAlloc(&taken->block, taken->bytes));
    return taken;
}

static void buffer_give(buffer_t *buffer)
{
    (void)pthread_mutex_lock(&lock);
    buffer->next = unused;
    unused = buffer;
    (void)pthread_mutex_unlock(&lock);
}

static void copy(void *to, const void *from, size_t bytes)
{
    if (bytes > 0)
        CHECK(driver->cuMemcpyAsync((cu_pointer_t)(uintptr_t)to, (cu_pointer_t)(uintptr_t)from, bytes, NULL));
}

/* ---- tensors ---- */

typedef struct moved {
    const gtopk_tensor_t *from;
    gtopk_tensor_t *tensors; /* on the GPU */
    size_t count;
    buffer_t *buffer;
} moved_t;

static size_t bytes_of(const gtopk_tensor_t *tensor)
{
    const size_t size = tensor->dtype == GTOPK_F32 ? 4 : tensor->dtype == GTOPK_F64 ? 8 : 2;
    const int is_there = tensor->data && tensor->length <= UINT32_MAX;
    return is_there ? (size_t)tensor->length * size : 0;
}

static moved_t move_in(const gtopk_tensor_t *tensors, size_t count)
{
    moved_t moved = {.from = tensors, .count = count};
    size_t used = 0;
    if (!tensors || count == 0)
        return moved;
    enter();
    for (size_t i = 0; i < count; i++)
        used += bytes_of(&tensors[i]) + 2u * ALIGNMENT;
    moved.buffer = buffer_take(used);
    moved.tensors = realloc(moved.buffer->tensors, count * sizeof *tensors);
    if (!moved.tensors)
        abort();
    moved.buffer->tensors = moved.tensors;
    used = 0;
    for (size_t i = 0; i < count; i++) {
        const size_t bytes = bytes_of(&tensors[i]);
        moved.tensors[i] = tensors[i];
        if (bytes == 0)
            continue;
        used = (used + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT + (uintptr_t)tensors[i].data % ALIGNMENT;
        moved.tensors[i].data = (char *)(uintptr_t)moved.buffer->block + used;
        copy(moved.tensors[i].data, tensors[i].data, bytes);
        used += bytes;
    }
    leave();
    return moved;
}

/* Copies to memory that is not pinned wait for what was queued before. */
static void move_out(moved_t *moved, int changed)
{
    if (!moved->buffer)
        return;
    enter();
    for (size_t i = 0; i < moved->count && changed; i++)
        copy(moved->from[i].data, moved->tensors[i].data, bytes_of(&moved->from[i]));
    CHECK(driver->cuStreamSynchronize(NULL));
    leave();
    buffer_give(moved->buffer);
}

static const gtopk_tensor_t *tensors_of(const moved_t *moved)
{
    return moved->tensors ? moved->tensors : moved->from;
}

/* ---- the calls ---- */

gtopk_status_t __wrap_gtopk_reducer_accumulate(gtopk_reducer_t *reducer, const uint32_t *segments,
                                               const gtopk_tensor_t *tensors, size_t count, double scale,
                                               uint32_t flags, void *stream)
{
    if (!is_wanted())
        return __real_gtopk_reducer_accumulate(reducer, segments, tensors, count, scale, flags, stream);
    moved_t moved = move_in(tensors, count);
    flags &= ~(uint32_t)GTOPK_INPUT_STAYS; /* a copy goes when this returns */
    const gtopk_status_t status = __real_gtopk_reducer_accumulate(reducer, segments, tensors_of(&moved), count, scale,
                                                                  flags, stream);
    move_out(&moved, status == GTOPK_OK);
    return status;
}

gtopk_status_t __wrap_gtopk_reducers_reduce(gtopk_reducer_t *const *reducers, const gtopk_tensor_t *const *outputs,
                                            const size_t *counts, size_t count, uint32_t flags, void *stream,
                                            gtopk_stats_t *const *stats)
{
    moved_t moved[GTOPK_REDUCERS_MAX];
    const gtopk_tensor_t *tensors[GTOPK_REDUCERS_MAX];
    if (!is_wanted() || count > GTOPK_REDUCERS_MAX || !outputs || !counts)
        return __real_gtopk_reducers_reduce(reducers, outputs, counts, count, flags, stream, stats);
    for (size_t r = 0; r < count; r++) {
        moved[r] = move_in(outputs[r], counts[r]);
        tensors[r] = tensors_of(&moved[r]);
    }
    const gtopk_status_t status = __real_gtopk_reducers_reduce(reducers, tensors, counts, count, flags, stream, stats);
    for (size_t r = 0; r < count; r++)
        move_out(&moved[r], status == GTOPK_OK);
    return status;
}

gtopk_status_t __wrap_gtopk_reducer_reduce(gtopk_reducer_t *reducer, const gtopk_tensor_t *outputs, size_t count,
                                           uint32_t flags, void *stream, gtopk_stats_t *stats)
{
    if (!is_wanted())
        return __real_gtopk_reducer_reduce(reducer, outputs, count, flags, stream, stats);
    moved_t moved = move_in(outputs, count);
    const gtopk_status_t status = __real_gtopk_reducer_reduce(reducer, tensors_of(&moved), count, flags, stream, stats);
    move_out(&moved, status == GTOPK_OK);
    return status;
}

gtopk_status_t __wrap_gtopk_reducer_reduce_sparse(gtopk_reducer_t *reducer, gtopk_set_t *set, uint32_t flags,
                                                  void *stream, gtopk_stats_t *stats)
{
    if (!is_wanted() || !set || !set->indices || !set->values)
        return __real_gtopk_reducer_reduce_sparse(reducer, set, flags, stream, stats);
    const gtopk_tensor_t arrays[2] = {{set->indices, set->capacity, GTOPK_F32, 0},
                                      {set->values, set->capacity, GTOPK_F32, 0}};
    moved_t moved = move_in(arrays, 2);
    gtopk_set_t on_gpu = *set;
    on_gpu.indices = moved.tensors[0].data;
    on_gpu.values = moved.tensors[1].data;
    const gtopk_status_t status = __real_gtopk_reducer_reduce_sparse(reducer, &on_gpu, flags, stream, stats);
    set->count = on_gpu.count;
    move_out(&moved, status == GTOPK_OK);
    return status;
}
