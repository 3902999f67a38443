/* The library allocates by calloc alone (util/memory.c), so this is every allocation it makes. */
#include "support/oom.h"

#include <stdatomic.h>
#include <stddef.h>

void *__real_calloc(size_t count, size_t size);
void __real_free(void *block);
void *__wrap_calloc(size_t count, size_t size);
void __wrap_free(void *block);

static _Thread_local long countdown = -1;
static _Thread_local int fired;
static atomic_long live;

void *__wrap_calloc(size_t count, size_t size)
{
    if (countdown >= 0 && countdown-- == 0) {
        fired = 1;
        return NULL;
    }
    void *block = __real_calloc(count, size);
    if (block)
        atomic_fetch_add(&live, 1);
    return block;
}

void __wrap_free(void *block)
{
    if (block)
        atomic_fetch_sub(&live, 1);
    __real_free(block);
}

__attribute__((visibility("default"))) void gtopk_oom_arm(long after)
{
    countdown = after;
    if (after >= 0)
        fired = 0;
}

__attribute__((visibility("default"))) int gtopk_oom_fired(void)
{
    return fired;
}

__attribute__((visibility("default"))) long gtopk_oom_live(void)
{
    return atomic_load(&live);
}
