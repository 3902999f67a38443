/* The kernels for any machine. Knows no instruction set. */
#include "device/cpu/kernels_generic.h"
#include "device/cpu/kernels_portable.h"
#include "device/cpu/kernels_bf16.h"
#include "device/cpu/kernels_values.h"

GENERIC_INLINE int accumulate(const kernel_job_t *job, kernel_found_t *found, int dtype, int streams)
{
    (void)streams;
    return generic_accumulate(job, 0, found, dtype);
}

GENERIC_INLINE int momentum(const kernel_job_t *job, kernel_found_t *found, int dtype, int streams)
{
    (void)streams;
    return generic_momentum(job, 0, found, dtype);
}

GENERIC_INLINE void scan_block(const kernel_job_t *job, kernel_found_t *found)
{
    generic_scan(job, 0, found);
}

#include "device/cpu/kernels_entries.h"

const kernels_t kernels_scalar = {
    .name = "scalar",
    .accumulate = {accumulate_f32, accumulate_f16, accumulate_bf16},
    .momentum = {momentum_f32, momentum_f16, momentum_bf16},
    .scan = scan,
    .widen = widen,
    .narrow = narrow,
    .join = join,
    .within = within,
    .keep = keep,
    .encode_values = encode_values,
    .decode_values = decode_values,
};
