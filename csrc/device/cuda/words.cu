/* The words of reducers that take a step together. One block. */
#include "device/cuda/kernel.h"

/* Scratch words between the launches of one call: `largest` gathers nonfinite, `faults` what is not ok. */

KERNEL(join, join_args)
{
    cuda_scratch_t *scratch = args.scratch;
    const uint32_t i = threadIdx.x;
    if (i < args.count && args.phases & CUDA_GATHER && args.words[i]->nonfinite)
        (void)atomicOr(&scratch->largest, 1u);
    __syncthreads();
    if (i < args.count && args.phases & CUDA_APPLY) {
        args.words[i]->nonfinite = scratch->largest;
        args.words[i]->joined = args.joined;
    }
    __syncthreads();
    if (i == 0 && args.phases & CUDA_LAST)
        scratch->largest = 0;
}

KERNEL(verdict, verdict_args)
{
    cuda_scratch_t *scratch = args.scratch;
    const uint32_t i = threadIdx.x;
    if (i < args.count && args.phases & CUDA_GATHER) {
        const uint32_t halted = is_halted(scratch), nonfinite = args.words[i]->nonfinite, ok = args.words[i]->ok;
        if (nonfinite)
            (void)atomicOr(&scratch->largest, 1u);
        if (halted) /* the last look before commit */
            words_fail(args.words[i], DEVICE_HALTED);
        if (halted || !ok)
            (void)atomicOr(&scratch->faults, 1u);
    }
    __syncthreads();
    if (i < args.count && args.phases & CUDA_APPLY) {
        device_words_t *words = args.words[i];
        const uint32_t *final_count = args.final_count[i];
        words->ok = !scratch->faults;
        words->nonfinite = scratch->largest;
        if (final_count)
            words->count = *final_count;
        if (words->nonfinite || words->joined)
            words->count = 0;
    }
    __syncthreads();
    if (args.phases & CUDA_APPLY) { /* all threads: one would wait for each word before it writes it */
        enum { WORDS = sizeof(device_words_t) / 4 };
        ROLLED
        for (uint32_t w = i; w < args.count * WORDS; w += CUDA_THREADS)
            ((uint32_t *)args.host[w / WORDS])[w % WORDS] = ((const uint32_t *)args.words[w / WORDS])[w % WORDS];
    }
    __syncthreads();
    if (i == 0 && args.phases & CUDA_LAST)
        scratch->largest = scratch->faults = 0;
}
