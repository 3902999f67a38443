/* The entries of a kernel table that are the same for every instruction set. To be included once in a kernels_*.c, behind
 * its accumulate(), momentum() and scan_block(), which are inlined into one function a type here,
 * twice: with `streams` and without. */
#ifndef GTOPK_DEVICE_CPU_KERNELS_ENTRIES_H
#define GTOPK_DEVICE_CPU_KERNELS_ENTRIES_H

#include "device/cpu/kernels_generic.h"

static int accumulate_f32(const kernel_job_t *job, kernel_found_t *found)
{
    const kernel_job_t copy = *job;
    return copy.streams ? accumulate(&copy, found, GTOPK_F32, 1) : accumulate(&copy, found, GTOPK_F32, 0);
}

static int accumulate_f16(const kernel_job_t *job, kernel_found_t *found)
{
    const kernel_job_t copy = *job;
    return copy.streams ? accumulate(&copy, found, GTOPK_F16, 1) : accumulate(&copy, found, GTOPK_F16, 0);
}

static int accumulate_bf16(const kernel_job_t *job, kernel_found_t *found)
{
    const kernel_job_t copy = *job;
    return copy.streams ? accumulate(&copy, found, GTOPK_BF16, 1) : accumulate(&copy, found, GTOPK_BF16, 0);
}

static int momentum_f32(const kernel_job_t *job, kernel_found_t *found)
{
    const kernel_job_t copy = *job;
    return copy.streams ? momentum(&copy, found, GTOPK_F32, 1) : momentum(&copy, found, GTOPK_F32, 0);
}

static int momentum_f16(const kernel_job_t *job, kernel_found_t *found)
{
    const kernel_job_t copy = *job;
    return copy.streams ? momentum(&copy, found, GTOPK_F16, 1) : momentum(&copy, found, GTOPK_F16, 0);
}

static int momentum_bf16(const kernel_job_t *job, kernel_found_t *found)
{
    const kernel_job_t copy = *job;
    return copy.streams ? momentum(&copy, found, GTOPK_BF16, 1) : momentum(&copy, found, GTOPK_BF16, 0);
}

static void scan(const kernel_job_t *job, kernel_found_t *found)
{
    const kernel_job_t copy = *job;
    scan_block(&copy, found);
}

#endif
