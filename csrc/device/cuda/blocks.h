/* What the files with launches share. */
#ifndef GTOPK_DEVICE_CUDA_BLOCKS_H
#define GTOPK_DEVICE_CUDA_BLOCKS_H

#include "device/cuda/launch.h"

/* Blocks of a kernel for `items`, if a block takes `each`; at least one, and no more than can run at the same time. */
uint32_t blocks_for(const cuda_queue_t *queue, cuda_kernel_t kernel, uint64_t items, uint64_t each);

#define LAUNCH(queue, kernel, grid, args, stream) \
    (queue)->launch((queue)->context, CUDA_KERNEL_##kernel, grid, &(args), sizeof(args), stream)

#endif
