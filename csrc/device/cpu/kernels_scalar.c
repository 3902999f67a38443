/* The kernels for any machine. Knows no instruction set. */
#include "device/cpu/kernels_generic.h"
#include "device/cpu/kernels_values.h"

static int accumulate_f32(const kernel_job_t *job, kernel_found_t *found)
{
    const kernel_job_t copy = *job;
    return generic_accumulate(&copy, 0, found, GTOPK_F32);
}

static int accumulate_f16(const kernel_job_t *job, kernel_found_t *found)
{
    const kernel_job_t copy = *job;
    return generic_accumulate(&copy, 0, found, GTOPK_F16);
}

static int accumulate_bf16(const kernel_job_t *job, kernel_found_t *found)
{
    const kernel_job_t copy = *job;
    return generic_accumulate(&copy, 0, found, GTOPK_BF16);
}

static int momentum_f32(const kernel_job_t *job, kernel_found_t *found)
{
    const kernel_job_t copy = *job;
    return generic_momentum(&copy, 0, found, GTOPK_F32);
}

static int momentum_f16(const kernel_job_t *job, kernel_found_t *found)
{
    const kernel_job_t copy = *job;
    return generic_momentum(&copy, 0, found, GTOPK_F16);
}

static int momentum_bf16(const kernel_job_t *job, kernel_found_t *found)
{
    const kernel_job_t copy = *job;
    return generic_momentum(&copy, 0, found, GTOPK_BF16);
}

static void scan(const kernel_job_t *job, kernel_found_t *found)
{
    const kernel_job_t copy = *job;
    generic_scan(&copy, 0, found);
}

static size_t join(uint32_t *index, float *value, size_t count, int *nonfinite)
{
    return generic_join(index, value, count, 0, 0, 0, nonfinite);
}

static void keep(const uint32_t *index, const float *value, size_t count, uint32_t least, size_t ties,
                 kernel_entries_t out)
{
    generic_keep(index, value, count, 0, least, ties, 0, out);
}

static size_t within(const float *value, size_t count, uint32_t low, uint32_t high, float *out, size_t capacity,
                     size_t *above)
{
    *above = 0;
    return generic_within(value, count, 0, low, high, out, capacity, 0, above);
}

const kernels_t kernels_scalar = {
    .name = "scalar",
    .accumulate = {accumulate_f32, accumulate_f16, accumulate_bf16},
    .momentum = {momentum_f32, momentum_f16, momentum_bf16},
    .scan = scan,
    .join = join,
    .within = within,
    .keep = keep,
    .encode_values = encode_values,
    .decode_values = decode_values,
};
