/* The kernels for any machine. Knows no instruction set. */
#include "device/cpu/kernels_generic.h"

static int accumulate_f32(const kernel_job_t *job, kernel_found_t *found)
{
    return generic_accumulate(job, 0, found, GTOPK_F32);
}

static int accumulate_f16(const kernel_job_t *job, kernel_found_t *found)
{
    return generic_accumulate(job, 0, found, GTOPK_F16);
}

static int accumulate_bf16(const kernel_job_t *job, kernel_found_t *found)
{
    return generic_accumulate(job, 0, found, GTOPK_BF16);
}

static int momentum_f32(const kernel_job_t *job, kernel_found_t *found)
{
    return generic_momentum(job, 0, found, GTOPK_F32);
}

static int momentum_f16(const kernel_job_t *job, kernel_found_t *found)
{
    return generic_momentum(job, 0, found, GTOPK_F16);
}

static int momentum_bf16(const kernel_job_t *job, kernel_found_t *found)
{
    return generic_momentum(job, 0, found, GTOPK_BF16);
}

static void scan(const kernel_job_t *job, kernel_found_t *found)
{
    generic_scan(job, 0, found);
}

const kernels_t kernels_scalar = {
    .name = "scalar",
    .accumulate = {accumulate_f32, accumulate_f16, accumulate_bf16},
    .momentum = {momentum_f32, momentum_f16, momentum_bf16},
    .scan = scan,
};
