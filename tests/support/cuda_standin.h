/* A stand-in for the CUDA driver, as a shared library (build/libcuda_standin.so): what a test asks of it beside what the
 * library calls. Device memory is memory of the host that nobody can touch between the driver's own doings; work is done
 * as late as may be, in the order of each stream, by emulated kernels. For tests only. */
#ifndef TESTS_SUPPORT_CUDA_STANDIN_H
#define TESTS_SUPPORT_CUDA_STANDIN_H

#include <stddef.h>
#include <stdint.h>

typedef struct standin_control {
    /* The call number `after` (0: the next) of a function fails with `result`; "": none does. */
    void (*inject)(const char *function, int after, int result);
    /* 1 when the failure that was asked for has taken place. */
    int (*failed)(void);
    /* Every call from now on fails with `result`, as after a kernel that crashed; 0: no more. */
    void (*lose)(int result);
    /* A GPU with this compute capability and so many multiprocessors, each running so many blocks. */
    void (*gpu)(int capability, int processors, int blocks);
    /* No GPU: 0; a driver of another version; one that lacks a function. They count when the driver is opened. */
    void (*driver)(int gpus, int version, const char *lacks);
    /* How kernels are scheduled from here on. */
    void (*seed)(uint64_t seed);
    /* Since the last call of this: launches, and waits of the host. */
    void (*count)(uint64_t *launches, uint64_t *waits);
    /* What is live: allocations of the device, pinned ones, events, contexts that are held, or current in this thread. */
    long (*live)(void);
    /* Opens device memory to the test, or closes it again. Work that is queued is not done by that. */
    void (*peek)(int open);
    /* Memory of a GPU for others than gtopk: no call fails, and no context is needed. All that is queued is done before it
     * is released. */
    void *(*allocate)(int gpu, size_t bytes);
    void (*release)(void *memory);
    /* Does what is queued on a stream of a GPU. */
    void (*pass)(int gpu, void *stream);
} standin_control_t;

/* The symbol of a standin_control_t in the library. */
#define STANDIN_SYMBOL "cuda_standin"

#endif
