/* Looks up the stable C ABI. The table is the one piece of state: the functions of a library that stays loaded. */
#include "torch/libtorch.h"

#include <dlfcn.h>
#include <string.h>

#include "util/status.h"

static libtorch_t libtorch;
static int found;

gtopk_status_t libtorch_find(void)
{
    static const char *const names[] = {
#define LIBTORCH_NAME(result, name, arguments) #name,
        STABLE_ABI_LIST(LIBTORCH_NAME)
#undef LIBTORCH_NAME
    };
    _Static_assert(sizeof libtorch == sizeof names / sizeof *names * sizeof(void *), "one pointer for each name");
    if (found)
        return GTOPK_OK;
    /* The handle is kept: the functions must not go away. */
    void *library = dlopen("libtorch_cpu.so", RTLD_NOW | RTLD_NOLOAD);
    if (!library)
        return status_set(GTOPK_ERR_NOT_FOUND, "this process has not loaded libtorch_cpu.so: import torch first");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        void *address = dlsym(library, names[i]);
        if (!address) {
            (void)dlclose(library);
            return status_set(GTOPK_ERR_NOT_FOUND,
                              "libtorch has no function %s: gtopk's operators need PyTorch 2.10 or newer", names[i]);
        }
        memcpy((char *)&libtorch + i * sizeof address, &address, sizeof address);
    }
    found = 1;
    return GTOPK_OK;
}

const libtorch_t *libtorch_get(void)
{
    return &libtorch;
}

static void parallel_for(void *context, int64_t begin, int64_t end, int64_t grain, gtopk_parallel_body_fn body,
                         void *arg)
{
    (void)context;
    (void)libtorch.torch_parallel_for(begin, end, grain, body, arg);
}

gtopk_parallel_for_fn gtopk_torch_parallel_for(void)
{
    return libtorch_find() == GTOPK_OK ? parallel_for : NULL;
}
