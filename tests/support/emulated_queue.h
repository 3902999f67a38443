/* A queue that runs each kernel, compiled as C and emulated, at once; and what tests of single kernels start from. */
#ifndef TESTS_SUPPORT_EMULATED_QUEUE_H
#define TESTS_SUPPORT_EMULATED_QUEUE_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "device/cuda/launch.h"
#include "support/cuda_emulator.h"
#include "support/cuda_kernels.h"
#include "support/random.h"

static random_state_t random_state = {1};
static cuda_queue_t queue;
static device_t *reference;

static gtopk_status_t emulate(void *context, cuda_kernel_t kernel, uint32_t grid, const void *args, size_t bytes,
                              void *stream)
{
    (void)context;
    (void)stream;
    assert_int_equal(bytes, cuda_emulated[kernel].bytes);
    if (emulator_run(cuda_emulated[kernel].run, args, grid, CUDA_THREADS, cuda_emulated[kernel].meets,
                     (emulator_order_t)random_below(&random_state, EMULATOR_ORDERS), random_u64(&random_state)) != 0)
        fail_msg("%s: %s", cuda_emulated[kernel].name, emulator_error());
    return GTOPK_OK;
}

static void *zeros(size_t bytes)
{
    void *block = calloc(1, bytes ? bytes : 1);
    assert_non_null(block);
    return block;
}

static int set_up(void **state)
{
    (void)state;
    queue = (cuda_queue_t){.launch = emulate, .scratch = zeros(sizeof(cuda_scratch_t)), .processors = 2};
    for (int k = 0; k < CUDA_KERNEL_COUNT; k++)
        queue.resident[k] = 4;
    return device_reference_open(&reference) == GTOPK_OK ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    reference->ops->close(reference);
    free(queue.scratch);
    return 0;
}

/* ---- sets ---- */

static device_set_t set_make(uint64_t capacity)
{
    return (device_set_t){zeros(capacity * 4), zeros(capacity * 4), zeros(4), (uint32_t)capacity};
}

static void set_free(device_set_t *set)
{
    free(set->index);
    free(set->value);
    free(set->count);
}

static void assert_same_set(const device_set_t *got, const device_set_t *expected)
{
    assert_int_equal(*got->count, *expected->count);
    assert_memory_equal(got->index, expected->index, *expected->count * sizeof(uint32_t));
    assert_memory_equal(got->value, expected->value, *expected->count * sizeof(float));
}

/* ---- values ---- */

typedef enum kind {
    KIND_TIE,      /* one magnitude, both signs */
    KIND_EXPONENT, /* one exponent */
    KIND_TWO,      /* a few large ones, ties below */
    KIND_DENORMAL,
    KIND_ZEROS,
    KIND_WIDE,
    KIND_SPECIAL, /* Inf and NaN as well */
    KINDS
} kind_t;

static float draw(kind_t kind)
{
    const float unit = (float)(random_u64(&random_state) >> 40) * 0x1p-24f;
    const float sign = random_u64(&random_state) & 1 ? 1.0f : -1.0f;
    switch (kind) {
    case KIND_TIE: return sign * 0.5f;
    case KIND_EXPONENT: return sign * (1.0f + unit);
    case KIND_TWO: return random_below(&random_state, 50) == 0 ? sign * 3.0f : sign;
    case KIND_DENORMAL: return sign * unit * 0x1p-126f;
    case KIND_ZEROS: return random_below(&random_state, 300) == 0 ? sign * unit : sign * 0.0f;
    case KIND_WIDE: return sign * ldexpf(unit, (int)random_below(&random_state, 200) - 100);
    default: return random_float_bits(&random_state);
    }
}

#endif
