/* The mpi transport, compiled by mpicc into libgtopk_mpi.so and opened on demand by transport/mpi.c: how MPI starts and ends,
 * and what the module exports. It is linked with MPI and nothing else: error texts and log lines go back to the library
 * through transport_host_t.
 *
 * Everything is non-blocking and polled, so that each wait has a deadline. One mutex is held around all calls, so that
 * MPI_THREAD_SERIALIZED is enough when communicators are used from several threads. */
#include "transport/mpi/module.h"

#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "transport/mpi/communicator.h"
#include "util/clock.h"

/* How long MPI is given when a process ends after a failure. */
#define FINALIZE_SECONDS 30

pthread_mutex_t mpi_mutex = PTHREAD_MUTEX_INITIALIZER;
mpi_process_t mpi_process;
const transport_host_t *library;

gtopk_status_t module_failed(int code, const char *what)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    (void)MPI_Error_string(code, text, &length);
    return library->status_set(GTOPK_ERR_TRANSPORT, "MPI failed in %s: %s; look at the output of the other ranks", what,
                               text);
}

/* MPI that is initialised, by whomever, and may be called from this thread. */
static gtopk_status_t start_mpi(const gtopk_comm_config_t *config)
{
    int finalized = 0, initialized = 0, level = MPI_THREAD_SINGLE, is_main = 0;
    (void)MPI_Finalized(&finalized);
    if (finalized)
        return library->status_set(GTOPK_ERR_STATE,
                                   "MPI was finalized in this process and cannot be started again: create all "
                                   "communicators before gtopk_finalize or MPI_Finalize");
    (void)MPI_Initialized(&initialized);
    if (!initialized) {
        watch_t *watch = library->watch_begin("MPI_Init: every process that mpirun started must call gtopk.init(). It",
                                              config->warn_after, transport_setup_seconds(config));
        const int code = MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &level);
        library->watch_end(watch);
        if (code != MPI_SUCCESS)
            return module_failed(code, "MPI_Init_thread");
        mpi_process.started_here = 1;
    }
    (void)MPI_Query_thread(&level);
    (void)MPI_Is_thread_main(&is_main);
    if (level < MPI_THREAD_SERIALIZED && !is_main)
        return library->status_set(GTOPK_ERR_UNSUPPORTED,
                                   "MPI was initialised for its main thread alone, and this is another: "
                                   "use MPI_Init_thread with MPI_THREAD_SERIALIZED");
    return GTOPK_OK;
}

static gtopk_status_t module_open(const gtopk_comm_config_t *config, const transport_host_t *host,
                                  transport_t **transport)
{
    const double deadline = clock_now() + transport_setup_seconds(config);
    gtopk_status_t status;
    LOCKED(library = host; status = start_mpi(config); if (status == GTOPK_OK) communicator_free_closed());
    if (status != GTOPK_OK)
        return status;
    const MPI_Comm parent = config->mpi_comm ? *(const MPI_Comm *)config->mpi_comm : MPI_COMM_WORLD;
    return communicator_open(config, parent, deadline, transport);
}

/* Ends a process whose MPI_Finalize waits for a rank that does not come: after a failure, nobody can tell beforehand. */
static void *end_at_last(void *status)
{
    const struct timespec limit = {FINALIZE_SECONDS, 0};
    (void)nanosleep(&limit, NULL);
    (void)fflush(NULL);
    _exit((int)(intptr_t)status);
}

static gtopk_status_t finalize_mpi(void)
{
    const int code = MPI_Finalize();
    return code == MPI_SUCCESS ? GTOPK_OK : module_failed(code, "MPI_Finalize");
}

static void module_end_process(int status)
{
    pthread_t watchdog;
    int finalized = 0;
    (void)pthread_mutex_lock(&mpi_mutex);
    (void)MPI_Finalized(&finalized);
    if (mpi_process.started_here && !finalized && mpi_process.open == 0 && !mpi_process.lost &&
        (!mpi_process.broken || pthread_create(&watchdog, NULL, end_at_last, (void *)(intptr_t)status) == 0))
        (void)finalize_mpi();
    (void)pthread_mutex_unlock(&mpi_mutex);
}

static gtopk_status_t module_finalize(void)
{
    int finalized = 0;
    gtopk_status_t status = GTOPK_OK;
    (void)pthread_mutex_lock(&mpi_mutex);
    (void)MPI_Finalized(&finalized);
    if (mpi_process.started_here && !finalized && mpi_process.open > 0) {
        status = library->status_set(GTOPK_ERR_STATE,
                                     "MPI cannot be finalized: %d communicators are open, destroy them first",
                                     mpi_process.open);
    } else if (mpi_process.started_here && !finalized && mpi_process.broken) {
        library->log_write(GTOPK_LOG_INFO, "MPI is not finalized: after a failure that might wait for ever");
    } else if (mpi_process.started_here && !finalized) {
        status = finalize_mpi();
    }
    (void)pthread_mutex_unlock(&mpi_mutex);
    return status;
}

__attribute__((visibility("default"))) extern const transport_module_t gtopk_mpi_module;
const transport_module_t gtopk_mpi_module = {TRANSPORT_ABI, module_open, module_finalize, module_end_process};
