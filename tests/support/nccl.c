#include "support/nccl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/guarded.h"
#include "util/dynlib.h"

int nccl_wanted(void)
{
    const char *name = getenv("GTOPK_TEST_TRANSPORT");
    return name && strcmp(name, "nccl") == 0;
}

typedef struct hosted {
    int (*host)(void *arg);
    void *arg;
} hosted_t;

static gtopk_status_t run(void *argument, double deadline)
{
    hosted_t *hosted = argument;
    (void)deadline;
    if (!hosted->host(hosted->arg))
        return status_set(GTOPK_ERR_TIMEOUT, "a message is not there yet");
    free(hosted);
    return GTOPK_OK;
}

/* The device has failed, and nothing of it is asked for any more. */
static void drop(void *argument)
{
    free(argument);
}

static void enqueue(void *stream, int (*host)(void *arg), void *arg)
{
    hosted_t *hosted = malloc(sizeof *hosted);
    if (!hosted)
        abort();
    *hosted = (hosted_t){host, arg};
    if (guarded_enqueue(stream, run, drop, hosted) != GTOPK_OK)
        free(hosted);
}

const nccl_standin_control_t *nccl_standin_open(void)
{
    char why[256] = "it is not set";
    const char *file = getenv("GTOPK_NCCL_LIBRARY"), *device = getenv("GTOPK_DEVICE");
    void *library = file ? dynlib_open(file, 0, why, sizeof why) : NULL;
    const nccl_standin_control_t *standin = library ? dynlib_symbol(library, NCCL_STANDIN_SYMBOL) : NULL;
    if (!standin) {
        (void)fprintf(stderr, "GTOPK_NCCL_LIBRARY: %s\n", why);
        abort();
    }
    if (device && strcmp(device, "guarded") == 0)
        standin->attach(enqueue, guarded_reach);
    return standin;
}
