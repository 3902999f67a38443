/* The stand-in for libnccl.so.2. See nccl_standin.h. */
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "support/cuda_standin.h"
#include "support/nccl_standin.h"
#include "transport/nccl/library.h"

#define EXPORTED __attribute__((visibility("default")))
#define RANKS 16
#define RING 4096u
#define GARBAGE 0xa5
#define POLLS 3 /* questions until a call has done what it was asked for, at most */

enum { INVALID_ARGUMENT = 4, INVALID_USAGE = 5 };
enum { CHANNEL_MESSAGE, CHANNEL_COLLECTIVE, CHANNELS };

/* ---- what ranks share ---- */

typedef struct ring {
    _Atomic uint64_t written, read;
    uint8_t bytes[RING];
} ring_t;

typedef struct shared {
    _Atomic int joined, size;
    _Atomic int aborted[RANKS], left[RANKS];
    ring_t rings[CHANNELS][RANKS][RANKS]; /* [to][from] */
} shared_t;

typedef struct settings {
    pthread_mutex_t lock;
    char fails[40], delayed[40];
    int fails_after, fails_with, milliseconds, stall_at;
    _Atomic int hangs, is_blind, works, aborts, destroyed;
    unsigned random;
    struct settings *next; /* kept for good: a communicator that hangs needs it after its thread */
} settings_t;

struct ncclComm {
    shared_t *shared;
    settings_t *settings;
    int fd, rank, size;
    _Atomic int inside, is_aborted, references; /* the handle, and works */
    nccl_result_t error;
    int polls;            /* until what waits is queued */
    struct work *waiting; /* asked for, not yet queued */
    int has_joined;
};

/* One piece of work in a stream: all its parts go on side by side, those that add up one after the other. */
typedef struct part {
    int peer, sends, adds;
    uint8_t *at;
    size_t bytes, done;
} part_t;

typedef struct work {
    struct ncclComm *comm;
    void *stream;
    int channel, stalls, has_begun;
    const void *in; /* of a collective */
    void *out;
    size_t bytes; /* of one rank's part */
    int sums;
    uint8_t *copy; /* of what is added up */
    size_t count;
    part_t parts[2 * RANKS];
} work_t;

static void (*queue_enqueue)(void *stream, int (*host)(void *arg), void *arg);
static void *(*queue_reach)(const void *address);
static _Thread_local settings_t *mine;
static _Thread_local work_t *group;
static _Thread_local int group_depth;

static settings_t *settings_of_thread(void)
{
    if (mine)
        return mine;
    mine = calloc(1, sizeof *mine);
    if (!mine || pthread_mutex_init(&mine->lock, NULL) != 0)
        abort();
    static _Atomic(settings_t *) all;
    mine->stall_at = -1;
    mine->next = atomic_load(&all);
    while (!atomic_compare_exchange_weak(&all, &mine->next, mine)) {
    }
    mine->random = (unsigned)getpid();
    return mine;
}

/* ---- the queue ---- */

static void enqueue(void *stream, int (*host)(void *arg), void *arg)
{
    if (queue_enqueue) {
        queue_enqueue(stream, host, arg);
        return;
    }
    static const standin_control_t *cuda;
    if (!cuda) {
        const char *counted = getenv("GTOPK_COUNTED_DRIVER"); /* behind tests/gpu/libcuda_count.c */
        const char *file = counted ? counted : getenv("GTOPK_CUDA_DRIVER");
        void *library = file ? dlopen(file, RTLD_NOW) : NULL;
        cuda = library ? dlsym(library, STANDIN_SYMBOL) : NULL;
        if (!cuda) {
            (void)fprintf(stderr, "nccl stand-in: there is no stand-in for the CUDA driver\n");
            abort();
        }
    }
    cuda->enqueue(stream, host, arg);
}

static void *reach(const void *address)
{
    return queue_reach ? queue_reach(address) : (void *)(uintptr_t)address;
}

/* ---- works ---- */

static void comm_release(struct ncclComm *comm)
{
    if (atomic_fetch_sub(&comm->references, 1) > 1)
        return;
    (void)munmap(comm->shared, sizeof *comm->shared);
    (void)close(comm->fd);
    free(comm);
}

static void work_free(work_t *work)
{
    struct ncclComm *comm = work->comm;
    free(work->copy);
    free(work);
    comm_release(comm);
}

static void add_part(work_t *work, int peer, int sends, int adds, void *at, size_t bytes)
{
    work->parts[work->count++] = (part_t){peer, sends, adds, at, bytes, 0};
}

/* Of a collective: who sends what to whom is known only when the stream is there. */
static void begin(work_t *work)
{
    struct ncclComm *comm = work->comm;
    work->has_begun = 1;
    if (work->channel == CHANNEL_MESSAGE) {
        for (size_t i = 0; i < work->count; i++)
            work->parts[i].at = reach(work->parts[i].at);
        return;
    }
    uint8_t *out = reach(work->out);
    work->copy = malloc(work->bytes + 1);
    if (!work->copy)
        abort();
    memcpy(work->copy, reach(work->in), work->bytes);
    for (int r = 0; r < comm->size; r++) {
        uint8_t *at = work->sums ? out : out + (size_t)r * work->bytes;
        if (r != comm->rank)
            add_part(work, r, 1, 0, work->copy, work->bytes);
        add_part(work, r, 0, work->sums ? 1 + r : 0, at, work->bytes);
    }
}

static void take(const part_t *part, const uint8_t *from, size_t bytes)
{
    uint8_t *to = part->at + part->done;
    if (part->adds <= 1) { /* the first one of a sum is the sum */
        memcpy(to, from, bytes);
        return;
    }
    for (size_t i = 0; i < bytes; i += sizeof(float)) {
        float sum, value;
        memcpy(&sum, to + i, sizeof sum);
        memcpy(&value, from + i, sizeof value);
        sum += value;
        memcpy(to + i, &sum, sizeof sum);
    }
}

static void go_on(const work_t *work, part_t *part)
{
    const struct ncclComm *comm = work->comm;
    if (!part->sends && part->peer == comm->rank) {
        if (part->done < part->bytes)
            take(part, work->copy, part->bytes);
        part->done = part->bytes;
        return;
    }
    ring_t *ring = part->sends ? &comm->shared->rings[work->channel][part->peer][comm->rank]
                               : &comm->shared->rings[work->channel][comm->rank][part->peer];
    while (part->done < part->bytes) {
        const uint64_t written = atomic_load(&ring->written), read = atomic_load(&ring->read);
        const uint64_t at = part->sends ? written % RING : read % RING;
        uint64_t room = part->sends ? RING - (written - read) : written - read;
        room = room < RING - at ? room : RING - at;
        room = room < part->bytes - part->done ? room : part->bytes - part->done;
        if (room == 0)
            return;
        if (part->sends)
            memcpy(ring->bytes + at, part->at + part->done, room);
        else
            take(part, ring->bytes + at, room);
        part->done += room;
        atomic_fetch_add(part->sends ? &ring->written : &ring->read, room);
    }
}

/* What was received of an aborted work stays as it is, in part; half of the rest is anything. */
static void spoil(work_t *work)
{
    for (size_t i = 0; i < work->count; i++) {
        part_t *part = &work->parts[i];
        const size_t rest = part->bytes - part->done;
        if (!part->sends && rest > 0)
            memset(part->at + part->bytes - (rest + 1) / 2, GARBAGE, (rest + 1) / 2);
    }
}

/* Runs in the stream, on the thread that asks for it. */
static int work_run(void *arg)
{
    work_t *work = arg;
    if (!work->has_begun)
        begin(work);
    if (atomic_load(&work->comm->is_aborted)) {
        spoil(work);
        work_free(work);
        return 1;
    }
    int sum_waits = 0; /* sums have an order */
    size_t done = 0;
    for (size_t i = 0; i < work->count && !work->stalls; i++) {
        part_t *part = &work->parts[i];
        if (!part->adds || !sum_waits)
            go_on(work, part);
        sum_waits |= part->adds && part->done < part->bytes;
        done += part->done == part->bytes;
    }
    if (work->stalls || done < work->count)
        return 0;
    work_free(work);
    return 1;
}

static work_t *work_make(struct ncclComm *comm, int channel, void *stream)
{
    work_t *work = calloc(1, sizeof *work);
    if (!work)
        abort();
    work->comm = comm;
    work->channel = channel;
    work->stream = stream;
    atomic_fetch_add(&comm->references, 1);
    return work;
}

/* ---- every call ---- */

static int is_called(char *wanted, const char *name)
{
    return wanted[0] && strcmp(wanted, name) == 0;
}

/* What a test wants of this call; the call is inside of the communicator until leave. */
static nccl_result_t enter(struct ncclComm *comm, settings_t *settings, const char *name)
{
    nccl_result_t result = NCCL_SUCCESS;
    int pause = 0;
    if (comm)
        atomic_fetch_add(&comm->inside, 1);
    (void)pthread_mutex_lock(&settings->lock);
    if (is_called(settings->fails, name) && settings->fails_after-- == 0) {
        settings->fails[0] = 0;
        result = settings->fails_with;
    }
    if (is_called(settings->delayed, name))
        pause = settings->milliseconds;
    (void)pthread_mutex_unlock(&settings->lock);
    if (pause > 0)
        (void)usleep((useconds_t)pause * 1000);
    return result;
}

static nccl_result_t leave(struct ncclComm *comm, nccl_result_t result)
{
    if (comm)
        atomic_fetch_sub(&comm->inside, 1);
    return result;
}

static void ask_for(struct ncclComm *comm, work_t *work)
{
    comm->waiting = work;
    comm->polls = (int)((unsigned)rand_r(&comm->settings->random) % POLLS);
}

/* ---- the functions ---- */

#define FUNCTION(name, parameters)          \
    EXPORTED nccl_result_t name parameters; \
    nccl_result_t name parameters

EXPORTED const char *ncclGetErrorString(nccl_result_t result);
EXPORTED const char *ncclGetLastError(nccl_comm_t comm);

const char *ncclGetErrorString(nccl_result_t result)
{
    return result == NCCL_REMOTE_ERROR ? "remote process exited or there was a network error" : "what a test asked for";
}

const char *ncclGetLastError(nccl_comm_t comm)
{
    (void)comm;
    return "stand-in";
}

FUNCTION(ncclGetVersion, (int *version))
{
    const char *text = getenv("GTOPK_STANDIN_NCCL");
    *version = text ? atoi(text) : 22105;
    return NCCL_SUCCESS;
}

FUNCTION(ncclGetUniqueId, (nccl_id_t * id))
{
    const nccl_result_t result = enter(NULL, settings_of_thread(), "ncclGetUniqueId");
    if (result != NCCL_SUCCESS)
        return result;
    const char *folder = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    memset(id, 0, sizeof *id);
    (void)snprintf(id->internal, sizeof id->internal, "%s/gtopk-nccl-XXXXXX", folder);
    const int fd = mkstemp(id->internal);
    if (fd < 0 || ftruncate(fd, sizeof(shared_t)) != 0)
        return 2;
    (void)close(fd);
    return NCCL_SUCCESS;
}

static int lock_rank(int fd, int rank, int command, short type)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = rank, .l_len = 1};
    if (fcntl(fd, command, &lock) != 0)
        return -1;
    return lock.l_type;
}

FUNCTION(ncclCommInitRankConfig, (nccl_comm_t * out, int size, nccl_id_t id, int rank, nccl_config_t *config))
{
    settings_t *settings = settings_of_thread();
    const nccl_result_t result = enter(NULL, settings, "ncclCommInitRankConfig");
    *out = NULL;
    if (result != NCCL_SUCCESS)
        return result;
    if (config->size != sizeof *config || config->magic != NCCL_CONFIG_MAGIC || config->version != NCCL_OLDEST ||
        config->blocking != 0 || config->net_name || config->split_share != NCCL_UNDEFINED)
        return INVALID_ARGUMENT;
    if (size > RANKS || rank >= size)
        return INVALID_ARGUMENT;
    struct ncclComm *comm = calloc(1, sizeof *comm);
    if (!comm)
        abort();
    comm->fd = open(id.internal, O_RDWR | O_CLOEXEC);
    if (comm->fd < 0) {
        free(comm);
        return INVALID_ARGUMENT;
    }
    comm->shared = mmap(NULL, sizeof *comm->shared, PROT_READ | PROT_WRITE, MAP_SHARED, comm->fd, 0);
    if (comm->shared == MAP_FAILED || lock_rank(comm->fd, rank, F_OFD_SETLK, F_WRLCK) < 0)
        abort();
    comm->settings = settings;
    comm->rank = rank;
    comm->size = size;
    comm->references = 1;
    if (atomic_fetch_add(&comm->shared->joined, 1) + 1 == size)
        (void)unlink(id.internal);
    *out = comm;
    return NCCL_IN_PROGRESS;
}

/* Another rank has ended, or has given up. */
static int somebody_is_gone(const struct ncclComm *comm)
{
    for (int r = 0; r < comm->size; r++)
        if (r != comm->rank &&
            (atomic_load(&comm->shared->aborted[r]) || lock_rank(comm->fd, r, F_OFD_GETLK, F_WRLCK) == F_UNLCK) &&
            !atomic_load(&comm->shared->left[r]))
            return 1;
    return 0;
}

FUNCTION(ncclCommGetAsyncError, (nccl_comm_t comm, nccl_result_t *state))
{
    nccl_result_t result = enter(comm, comm->settings, "ncclCommGetAsyncError");
    *state = NCCL_SUCCESS;
    if (result != NCCL_SUCCESS) {
        *state = comm->error = result;
        return leave(comm, NCCL_SUCCESS);
    }
    comm->has_joined |= atomic_load(&comm->shared->joined) >= comm->size;
    if (comm->error == NCCL_SUCCESS && comm->has_joined && !atomic_load(&comm->settings->is_blind) &&
        somebody_is_gone(comm))
        comm->error = NCCL_REMOTE_ERROR;
    if (comm->error != NCCL_SUCCESS)
        *state = comm->error;
    else if (!comm->has_joined || (comm->waiting && comm->polls-- > 0))
        *state = NCCL_IN_PROGRESS;
    if (*state == NCCL_SUCCESS && comm->waiting) {
        work_t *work = comm->waiting;
        comm->waiting = NULL;
        atomic_fetch_add(&comm->settings->works, 1);
        work->stalls = comm->settings->stall_at == 0;
        if (comm->settings->stall_at >= 0)
            comm->settings->stall_at--;
        enqueue(work->stream, work_run, work);
    }
    return leave(comm, NCCL_SUCCESS);
}

FUNCTION(ncclGroupStart, (void))
{
    const nccl_result_t result = enter(NULL, settings_of_thread(), "ncclGroupStart");
    if (result == NCCL_SUCCESS)
        group_depth++;
    return result;
}

FUNCTION(ncclGroupEnd, (void))
{
    if (group_depth-- != 1) {
        group_depth = 0;
        return INVALID_USAGE;
    }
    work_t *work = group;
    group = NULL;
    const nccl_result_t result = enter(NULL, settings_of_thread(), "ncclGroupEnd");
    if (!work)
        return result;
    if (result != NCCL_SUCCESS) {
        work_free(work);
        return result;
    }
    ask_for(work->comm, work);
    return NCCL_IN_PROGRESS;
}

static nccl_result_t add_message(nccl_comm_t comm, int sends, void *buffer, size_t count, int type, int peer,
                                 void *stream, const char *name)
{
    const nccl_result_t result = enter(comm, comm->settings, name);
    if (result != NCCL_SUCCESS)
        return leave(comm, result);
    if (group_depth != 1 || type != NCCL_UINT8 || peer < 0 || peer >= comm->size || peer == comm->rank || comm->waiting)
        return leave(comm, INVALID_ARGUMENT);
    if (!group)
        group = work_make(comm, CHANNEL_MESSAGE, stream);
    add_part(group, peer, sends, 0, buffer, count);
    return leave(comm, NCCL_IN_PROGRESS);
}

FUNCTION(ncclSend, (const void *buffer, size_t count, int type, int peer, nccl_comm_t comm, void *stream))
{
    return add_message(comm, 1, (void *)(uintptr_t)buffer, count, type, peer, stream, "ncclSend");
}

FUNCTION(ncclRecv, (void *buffer, size_t count, int type, int peer, nccl_comm_t comm, void *stream))
{
    return add_message(comm, 0, buffer, count, type, peer, stream, "ncclRecv");
}

static nccl_result_t collective(nccl_comm_t comm, const void *in, void *out, size_t bytes, int sums, void *stream,
                                const char *name)
{
    const nccl_result_t result = enter(comm, comm->settings, name);
    if (result != NCCL_SUCCESS)
        return leave(comm, result);
    if (group_depth != 0 || comm->waiting)
        return leave(comm, INVALID_USAGE);
    work_t *work = work_make(comm, CHANNEL_COLLECTIVE, stream);
    work->in = in;
    work->out = out;
    work->bytes = bytes;
    work->sums = sums;
    ask_for(comm, work);
    return leave(comm, NCCL_IN_PROGRESS);
}

FUNCTION(ncclAllGather, (const void *in, void *out, size_t count, int type, nccl_comm_t comm, void *stream))
{
    return type == NCCL_UINT8 ? collective(comm, in, out, count, 0, stream, "ncclAllGather") : INVALID_ARGUMENT;
}

FUNCTION(ncclAllReduce,
         (const void *in, void *out, size_t count, int type, int operation, nccl_comm_t comm, void *stream))
{
    if (type != NCCL_FLOAT32 || operation != NCCL_SUM)
        return INVALID_ARGUMENT;
    return collective(comm, in, out, count * sizeof(float), 1, stream, "ncclAllReduce");
}

static nccl_result_t end(nccl_comm_t comm, const char *name)
{
    settings_t *settings = comm->settings;
    const nccl_result_t result = enter(NULL, settings, name);
    if (atomic_load(&comm->inside) > 0) {
        (void)fprintf(stderr, "nccl stand-in: %s while a thread is inside\n", name);
        abort();
    }
    if (comm->waiting)
        work_free(comm->waiting);
    (void)lock_rank(comm->fd, comm->rank, F_OFD_SETLK, F_UNLCK);
    comm_release(comm);
    return result;
}

#ifndef STANDIN_LACKS_ABORT
FUNCTION(ncclCommAbort, (nccl_comm_t comm))
{
    settings_t *settings = comm->settings;
    atomic_store(&comm->shared->aborted[comm->rank], 1);
    atomic_fetch_add(&settings->aborts, 1);
    while (atomic_load(&settings->hangs))
        (void)usleep(2000);
    atomic_store(&comm->is_aborted, 1);
    return end(comm, "ncclCommAbort");
}
#endif

FUNCTION(ncclCommDestroy, (nccl_comm_t comm))
{
    atomic_store(&comm->shared->left[comm->rank], 1);
    atomic_fetch_add(&comm->settings->destroyed, 1);
    return end(comm, "ncclCommDestroy");
}

/* ---- for tests ---- */

static void control_attach(void (*own_enqueue)(void *stream, int (*host)(void *arg), void *arg),
                           void *(*own_reach)(const void *address))
{
    queue_enqueue = own_enqueue;
    queue_reach = own_reach;
}

static void control_inject(const char *function, int after, int result)
{
    settings_t *settings = settings_of_thread();
    (void)pthread_mutex_lock(&settings->lock);
    (void)snprintf(settings->fails, sizeof settings->fails, "%s", function);
    settings->fails_after = after;
    settings->fails_with = result;
    (void)pthread_mutex_unlock(&settings->lock);
}

static void control_delay(const char *function, int milliseconds)
{
    settings_t *settings = settings_of_thread();
    (void)pthread_mutex_lock(&settings->lock);
    (void)snprintf(settings->delayed, sizeof settings->delayed, "%s", function);
    settings->milliseconds = milliseconds;
    (void)pthread_mutex_unlock(&settings->lock);
}

static void control_stall(int at)
{
    settings_of_thread()->stall_at = at;
}

static void control_hang(int hangs)
{
    atomic_store(&settings_of_thread()->hangs, hangs);
}

static void control_notice(int does)
{
    atomic_store(&settings_of_thread()->is_blind, !does);
}

static void control_count(int *works, int *aborts, int *destroyed)
{
    settings_t *settings = settings_of_thread();
    *works = atomic_exchange(&settings->works, 0);
    *aborts = atomic_exchange(&settings->aborts, 0);
    *destroyed = atomic_exchange(&settings->destroyed, 0);
}

extern const nccl_standin_control_t nccl_standin EXPORTED;
const nccl_standin_control_t nccl_standin = {
    .attach = control_attach,
    .inject = control_inject,
    .delay = control_delay,
    .stall = control_stall,
    .hang = control_hang,
    .notice = control_notice,
    .count = control_count,
};
