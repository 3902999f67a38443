/* Between two steps: what the next one looks for. */
#include "device/cuda/hint.h"

KERNEL(begin, begin_args)
{
    if (!is_first_thread())
        return;
    cuda_pool_state_t *state = args.state;
    for (uint32_t pass = 0; pass < CUDA_PASSES; pass++)
        state->offered[pass] = 0;
    state->floor = hint_floor(&state->hint, args.fits);
    if (!args.words)
        return;
    uint32_t *word = (uint32_t *)args.words;
    for (uint32_t i = 0; i < sizeof(device_words_t) / sizeof *word; i++)
        word[i] = 0;
    args.words->ok = 1;
}

KERNEL(forget, forget_args)
{
    if (is_first_thread())
        hint_reset(&args.state->hint, args.unwanted);
}

KERNEL(nonfinite, flag_args)
{
    if (is_first_thread())
        args.words->nonfinite = 1;
}
