/* A thread that waits until the call returns, or until it has lasted too long. Nothing can make such a call return, so what is
 * left is to end the process: mpirun then ends the others, which wait as well. */
#include "transport/watch.h"

#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#include "transport/condition.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/memory.h"

struct watch {
    const char *what;
    double begun, warn_after, timeout;
    int returned; /* under the mutex */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    pthread_t thread;
};

/* 1 when the call has returned by then. */
static int wait_until(watch_t *watch, double deadline)
{
    (void)pthread_mutex_lock(&watch->mutex);
    while (!watch->returned && clock_now() < deadline)
        (void)condition_wait(&watch->changed, &watch->mutex, deadline);
    const int returned = watch->returned;
    (void)pthread_mutex_unlock(&watch->mutex);
    return returned;
}

static void *watch_main(void *argument)
{
    watch_t *watch = argument;
    if (watch->warn_after > 0.0 && watch->warn_after < watch->timeout) {
        if (wait_until(watch, watch->begun + watch->warn_after))
            return NULL;
        LOG(GTOPK_LOG_WARN, "%s has waited for %.0f s (of at most %.0f) for a process that has not come so far",
            watch->what, watch->warn_after, watch->timeout);
    }
    if (wait_until(watch, watch->begun + watch->timeout))
        return NULL;
    LOG(GTOPK_LOG_ERROR, "%s has waited for %.0f s, the whole timeout: this process ends with status 1", watch->what,
        watch->timeout);
    (void)fflush(NULL);
    _exit(1);
}

watch_t *watch_begin(const char *what, double warn_after, double timeout)
{
    watch_t *watch;
    if (memory_alloc(&watch, 1, sizeof *watch, "a watch") != GTOPK_OK)
        return NULL;
    watch->what = what;
    watch->begun = clock_now();
    watch->warn_after = warn_after;
    watch->timeout = timeout;
    if (!condition_init(&watch->changed)) {
        memory_free(watch);
        return NULL;
    }
    (void)pthread_mutex_init(&watch->mutex, NULL);
    if (pthread_create(&watch->thread, NULL, watch_main, watch) != 0) {
        (void)pthread_cond_destroy(&watch->changed);
        (void)pthread_mutex_destroy(&watch->mutex);
        memory_free(watch);
        return NULL;
    }
    return watch;
}

void watch_end(watch_t *watch)
{
    if (!watch)
        return;
    (void)pthread_mutex_lock(&watch->mutex);
    watch->returned = 1;
    (void)pthread_cond_signal(&watch->changed);
    (void)pthread_mutex_unlock(&watch->mutex);
    (void)pthread_join(watch->thread, NULL);
    (void)pthread_cond_destroy(&watch->changed);
    (void)pthread_mutex_destroy(&watch->mutex);
    memory_free(watch);
}
