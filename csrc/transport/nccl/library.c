/* Finds NCCL and its functions, looks at its version, and puts its errors into words. */
#include "transport/nccl/library.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/dynlib.h"
#include "util/log.h"

#define LIBRARY "libnccl.so.2"

_Static_assert(sizeof(nccl_config_t) == 48 && offsetof(nccl_config_t, net_name) == 32, "ncclConfig_t of 2.18");

typedef nccl_result_t (*get_version_fn)(int *version);

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static nccl_library_t loaded;
static int is_loaded;

const char *nccl_version_text(int version, char text[16])
{
    (void)snprintf(text, 16, "%d.%d.%d", version / 10000 % 1000, version / 100 % 100, version % 100);
    return text;
}

static gtopk_status_t open_library(const char *file, void **library)
{
    char why[512] = "";
    const char *named = getenv("GTOPK_NCCL_LIBRARY");
    if (named && *named)
        *library = dynlib_open(named, 0, why, sizeof why);
    else
        *library = dynlib_loaded(LIBRARY);
    if (!*library && !(named && *named) && file && *file)
        *library = dynlib_open(file, 0, why, sizeof why);
    if (!*library && !(named && *named))
        *library = dynlib_open(LIBRARY, 0, why, sizeof why);
    if (*library)
        return GTOPK_OK;
    return status_set(
        GTOPK_ERR_NOT_FOUND,
        "no NCCL: %s does not load (%s). It comes with PyTorch for CUDA (pip install torch), or by itself "
        "(pip install nvidia-nccl-cu12); GTOPK_NCCL_LIBRARY=/path/to/" LIBRARY " names it",
        named && *named ? named : LIBRARY, why);
}

/* Versions in which ncclCommAbort is known to hang: NVIDIA/nccl issue 992, pytorch/pytorch issue 149153. */
static void warn_of_version(int version)
{
    char text[16];
    if (version == 21801 || version == 22501)
        LOG(GTOPK_LOG_WARN,
            "NCCL %s is known to hang when a communicator is ended after an error: a rank that fails may not come back "
            "from that. Use another version (%s or newer)",
            nccl_version_text(version, text), version == 21801 ? "2.19" : "2.26.2");
}

static gtopk_status_t check_version(void *library, int *version)
{
    char text[16];
    get_version_fn get_version;
    void *symbol = dynlib_symbol(library, "ncclGetVersion");
    memcpy(&get_version, &symbol, sizeof symbol);
    if (!symbol || get_version(version) != NCCL_SUCCESS)
        return status_set(GTOPK_ERR_UNSUPPORTED, "NCCL does not tell its version: is %s NVIDIA's?", LIBRARY);
    if (*version < NCCL_OLDEST)
        return status_set(GTOPK_ERR_UNSUPPORTED,
                          "NCCL %s is too old: gtopk needs 2.18 or newer (2.17 and older may hang when a communicator "
                          "is ended after an error); update it, with PyTorch or with pip install nvidia-nccl-cu12",
                          *version < 20000 ? "below 2.9" : nccl_version_text(*version, text));
    warn_of_version(*version);
    return GTOPK_OK;
}

static gtopk_status_t find(void *library, int version, const char *name, void *function, size_t size)
{
    char text[16];
    void *symbol = dynlib_symbol(library, name);
    memcpy(function, &symbol, size);
    return symbol ? GTOPK_OK
                  : status_set(GTOPK_ERR_UNSUPPORTED, "NCCL %s has no %s: it is incomplete or not NVIDIA's",
                               nccl_version_text(version, text), name);
}

static gtopk_status_t find_functions(void *library, nccl_library_t *nccl)
{
    gtopk_status_t status = GTOPK_OK;
#define FIND(name, parameters) \
    if (status == GTOPK_OK)    \
        status = find(library, nccl->version, #name, &nccl->name, sizeof nccl->name);
    NCCL_FUNCTIONS(FIND)
    FIND(ncclGetErrorString, )
    FIND(ncclGetLastError, )
#undef FIND
    return status;
}

static gtopk_status_t load(const char *file, nccl_library_t *nccl)
{
    char text[16];
    void *library = NULL;
    gtopk_status_t status = open_library(file, &library);
    if (status != GTOPK_OK)
        return status;
    status = check_version(library, &nccl->version);
    if (status == GTOPK_OK)
        status = find_functions(library, nccl);
    if (status != GTOPK_OK)
        dynlib_close(library);
    else
        LOG(GTOPK_LOG_INFO, "NCCL %s", nccl_version_text(nccl->version, text));
    return status;
}

gtopk_status_t nccl_library_get(const char *file, const nccl_library_t **nccl)
{
    gtopk_status_t status = GTOPK_OK;
    (void)pthread_mutex_lock(&mutex);
    if (!is_loaded) {
        nccl_library_t found = {0};
        status = load(file, &found);
        if (status == GTOPK_OK) {
            loaded = found;
            is_loaded = 1;
        }
    }
    (void)pthread_mutex_unlock(&mutex);
    *nccl = status == GTOPK_OK ? &loaded : NULL;
    return status;
}

gtopk_status_t nccl_error(const nccl_library_t *nccl, nccl_result_t result, const char *what)
{
    const char *text = nccl->ncclGetErrorString(result), *more = nccl->ncclGetLastError(NULL);
    return status_set(GTOPK_ERR_TRANSPORT, "%s: NCCL says %s%s%s (NCCL_DEBUG=WARN tells more)", what,
                      text ? text : "nothing", more && *more ? ": " : "", more ? more : "");
}
