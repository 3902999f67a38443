/* A stand-in for NCCL, as a shared library (build/libnccl_standin.so): what a test asks of it beside what the library
 * calls. Ranks are processes of one machine or threads; bytes go through rings in a shared file, in pieces, as work of the
 * host in the streams of a device that is a stand-in as well. Calls are non-blocking, and mean it: what a call asks for is
 * queued only once it was polled to its end. For tests only.
 *
 * It ends the process when a communicator is aborted while a thread is inside of one of its calls. */
#ifndef TESTS_SUPPORT_NCCL_STANDIN_H
#define TESTS_SUPPORT_NCCL_STANDIN_H

typedef struct nccl_standin_control {
    /* Where work is queued, and how its memory is reached. Default: the stand-in for the CUDA driver that GTOPK_CUDA_DRIVER
     * names, in place. */
    void (*attach)(void (*enqueue)(void *stream, int (*host)(void *arg), void *arg),
                   void *(*reach)(const void *address));

    /* All of these are about the communicators that this thread makes. */

    /* Call number `after` (0: the next) of a function fails with `result`; "": none does. The end of ncclGroupEnd, or of
     * a collective, shows in ncclCommGetAsyncError: that can fail too. */
    void (*inject)(const char *function, int after, int result);
    /* A function takes so many milliseconds. "": none. */
    void (*delay)(const char *function, int milliseconds);
    /* Work number `at` from now (0: the next) of this rank never goes on; -1: none stalls. */
    void (*stall)(int at);
    /* ncclCommAbort does not return until this is called with 0. */
    void (*hang)(int hangs);
    /* Whether the end of another rank shows as an error (1, the default), or nothing shows. */
    void (*notice)(int does);
    /* Since the last call of this: works queued, aborts, communicators destroyed in order. */
    void (*count)(int *works, int *aborts, int *destroyed);
} nccl_standin_control_t;

#define NCCL_STANDIN_SYMBOL "nccl_standin"

#endif
