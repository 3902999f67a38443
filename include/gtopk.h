/* gtopk: sparse gradient exchange for data-parallel training over slow networks.
 *
 * Copyright 2026 the gtopk authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
 *
 * THIS HEADER IS THE MANUAL. Its chapters:
 *
 *    1  Words                  7  Reducer: one training step
 *    2  A complete program     8  Reducer: state and checkpoints
 *    3  Status codes           9  Blocks: select, merge, encode, decode
 *    4  Library                10 Transports that are set up by the caller
 *    5  Communicator           11 PyTorch
 *    6  Collectives
 *
 * ---- 1  Words --------------------------------------------------------------------------------------------------
 *
 *   rank, size (P)   as in MPI: 0 <= rank < size
 *   segment          one contiguous tensor, usually the gradient of one parameter. A reducer owns an ordered list of
 *                    segments; the index of an entry is its place in their concatenation. Nothing is ever flattened
 *                    by copying
 *   dim (n)          entries in all segments, at most 2^32 - 1
 *   density, k       k = min(n, max(1, rint(density * n))): how many entries a rank sends
 *   residual         error-feedback buffer, float, one value an entry, in units of the unscaled gradient
 *   set              sparse vector: strictly increasing uint32 indices with finite non-zero float values
 *   step             accumulate all segments, then one reduce
 *
 * A step of gTop-k: every rank adds its gradient to its residual and selects the k entries of largest magnitude (on
 * ties the lower index). log2 P rounds of pairwise exchange add these sets up and keep the k largest of each sum. All
 * ranks end with the same set, bit for bit. What was not sent, what a merge dropped and what quantisation rounded off
 * goes back to the residuals: nothing is lost.
 *
 * ---- 2  A complete program ---------------------------------------------------------------------------------------
 *
 *   gtopk_comm_config_t net = GTOPK_COMM_CONFIG_INIT;
 *   net.transport = "mpi";
 *   gtopk_comm_t *comm;
 *   if (gtopk_comm_create(&comm, &net) != GTOPK_OK)
 *       fail(gtopk_last_error());
 *
 *   uint64_t lengths[2] = {weights, biases};
 *   gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;     // density .001, gtopk, bf16 values
 *   gtopk_reducer_t *reducer;
 *   gtopk_reducer_create(&reducer, comm, &config, lengths, 2);
 *
 *   for (...) {                                                    // a training step
 *       gtopk_tensor_t grads[2] = {{gw, weights, GTOPK_F32, 0}, {gb, biases, GTOPK_F32, 0}};
 *       gtopk_reducer_accumulate(reducer, NULL, grads, 2, 1.0, GTOPK_ZERO_INPUT, NULL);
 *       gtopk_reducer_reduce(reducer, grads, 2, GTOPK_OUTPUT_IS_ZERO, NULL, NULL);   // grads: the mean update
 *       ...
 *   }
 *   gtopk_reducer_destroy(reducer);
 *   gtopk_comm_destroy(comm);
 *   gtopk_finalize();
 *
 * Conventions. Every function returns a status code unless it says otherwise, and results go through pointers. A
 * config struct starts with its own size, so that a program built against an older header goes on working: fill it
 * with its _INIT macro and set what differs. Handles are opaque and are freed by their _destroy, which accepts NULL.
 * A function that is "collective" must be called by all ranks of the communicator, in the same order. Unless stated
 * otherwise a pointer argument is only read or written during the call and stays the caller's. Memory is the host's
 * unless the reducer's device says otherwise: tensors and sets are then the device's; residuals, states and messages stay
 * the host's. `stream` is a device's stream (CUstream) and NULL on the CPU. On a device with
 * streams accumulate and reduce queue their work there: gradients must be written by earlier work of that stream, and outputs
 * are read by later work of it, or after gtopk_reducer_wait.
 *
 * Threads. Different communicators with their reducers may be used from different threads at once. One communicator,
 * or one reducer, is used by one thread at a time; a second caller gets GTOPK_ERR_STATE. A handle cannot be used in a
 * child after fork() (GTOPK_ERR_STATE).
 */
#ifndef GTOPK_H
#define GTOPK_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#ifdef __GNUC__
#pragma GCC visibility push(default) /* the library is compiled with -fvisibility=hidden */
#endif

#define GTOPK_VERSION_MAJOR 0
#define GTOPK_VERSION_MINOR 1
#define GTOPK_VERSION_PATCH 0

/* ---- 3  Status codes ---------------------------------------------------------------------------------------------
 *
 * X(name, code, text). Codes are part of the ABI and never change. */
#define GTOPK_STATUS_LIST(X)                                                   \
    X(GTOPK_OK, 0, "success")                                                  \
    X(GTOPK_ERR_INVALID, -1, "invalid argument")                               \
    X(GTOPK_ERR_NOMEM, -2, "out of memory")                                    \
    X(GTOPK_ERR_STATE, -3, "call not allowed in this state")                   \
    X(GTOPK_ERR_UNSUPPORTED, -4, "not supported")                              \
    X(GTOPK_ERR_MISMATCH, -5, "ranks disagree on the configuration")           \
    X(GTOPK_ERR_CORRUPT, -6, "malformed message or state")                     \
    X(GTOPK_ERR_DESYNC, -7, "message of another step, epoch or configuration") \
    X(GTOPK_ERR_TIMEOUT, -8, "deadline passed")                                \
    X(GTOPK_ERR_ABORTED, -9, "another rank gave up")                           \
    X(GTOPK_ERR_TRANSPORT, -10, "the transport failed")                        \
    X(GTOPK_ERR_DEVICE, -11, "the device failed")                              \
    X(GTOPK_ERR_NOT_FOUND, -12, "a library or file was not found")             \
    X(GTOPK_ERR_INTERNAL, -13, "internal error: please report it")             \
    X(GTOPK_ERR_INTERRUPTED, -14, "the caller asked to stop waiting")

typedef enum gtopk_status {
#define GTOPK_STATUS_ENUM(name, code, text) name = (code),
    GTOPK_STATUS_LIST(GTOPK_STATUS_ENUM)
#undef GTOPK_STATUS_ENUM
} gtopk_status_t;

/* "GTOPK_ERR_TIMEOUT", or "GTOPK_ERR_UNKNOWN" for a number that is no status. Never NULL; never freed. */
const char *gtopk_status_name(int status);

/* The one-line meaning of a status code. Never NULL; never freed. */
const char *gtopk_status_text(int status);

/* What the last failed call of this thread met: what happened, to which object, and what to do. Valid until this
 * thread's next call that fails or waits for a peer; "" before the first. */
const char *gtopk_last_error(void);

/* ---- 4  Library ----------------------------------------------------------------------------------------------- */

/* Version of the loaded library as major * 10000 + minor * 100 + patch. */
int gtopk_version(void);

/* What was found on this machine, as "name=value" lines: version, isa (instruction set chosen), isa_supported,
 * wire_format, cuda (what GPUs this build has kernels for, or "none"). Owned by the library. */
const char *gtopk_build_info(void);

/* Whether a device can be used here, and what it is: one line in `text`. Names are those of gtopk_reducer_config_t.device.
 * Errors, whose text says what to do: NOT_FOUND (no NVIDIA driver), UNSUPPORTED (no GPU; driver or GPU too old; no kernels
 * in this build; no such name), DEVICE (the driver refuses to work), NOMEM. */
gtopk_status_t gtopk_device_describe(const char *device, char *text, size_t bytes);

typedef enum gtopk_log_level {
    GTOPK_LOG_ERROR = 0,
    GTOPK_LOG_WARN = 1,
    GTOPK_LOG_INFO = 2,
    GTOPK_LOG_TRACE = 3
} gtopk_log_level_t;

typedef void (*gtopk_log_fn)(void *context, int level, const char *text);

/* Sends log lines up to `level` to `fn` (called on the thread that logs; must not call gtopk). fn NULL: to stderr, at
 * the level of GTOPK_DEBUG (info, trace; default: warn). Set it before other threads use the library. */
void gtopk_set_log(gtopk_log_fn fn, void *context, int level);

/* Ends what the library started for the whole process: MPI, when it was gtopk that initialised it and no communicator
 * is open or broken. Call it last, on every rank; it waits for the others as MPI_Finalize does. */
gtopk_status_t gtopk_finalize(void);

/* Has MPI ended by exit(), after all communicators were destroyed, in place of gtopk_finalize: when the process ends with
 * status 0. With another status, or by a signal, it is not: mpirun then ends the other ranks at once, which gtopk_finalize
 * would make wait. After a failed exchange it waits for some seconds at most. */
gtopk_status_t gtopk_finalize_at_exit(void);

/* ---- 5  Communicator --------------------------------------------------------------------------------------------
 *
 * A communicator is a group of ranks and the way they talk. Transports:
 *
 *   "self"      one rank, no network
 *   "mpi"       libgtopk_mpi.so beside this library, or the file named by mpi_module or GTOPK_MPI_MODULE; it
 *               initialises MPI when nobody did (MPI_THREAD_SERIALIZED or better) and works on a communicator of its own
 *   "thread"    ranks are threads of this process: chapter 10
 *   "callback"  send and receive are functions of the caller: chapter 10
 *
 * Between GPUs. With data = "nccl" the messages of reducers whose device is "cuda" travel by NCCL, from one GPU's memory to
 * the other's on the caller's stream; the transport above goes on carrying all else. Each rank needs a GPU of its own, the
 * one whose context is current in the thread that makes the communicator. libnccl.so.2 (2.18 or newer) is the file that
 * GTOPK_NCCL_LIBRARY names, else the one that the process has loaded (PyTorch's), else data_library, else the system's.
 * "auto" takes NCCL where all ranks have a GPU and it works, and says in the log (info) why not otherwise. A step is queued
 * on one stream. When a step fails, the communicator of NCCL is aborted and the device
 * commits nothing any more; where NCCL hangs in that, it is left behind, and the log says so.
 *
 * Broken communicators. When an exchange fails on a rank (deadline, lost rank, interrupt, corrupt message), that rank
 * keeps the residual that it had after accumulate, bit for bit, tells the partners that it gave up, and returns the
 * error. From then on the communicator is broken: every call on it fails at once with the first error's text. The way
 * on is a new process group and a checkpoint. */

typedef struct gtopk_comm gtopk_comm_t;
typedef struct gtopk_thread_group gtopk_thread_group_t;
typedef struct gtopk_callbacks gtopk_callbacks_t;

typedef struct gtopk_comm_config {
    size_t struct_size;                 /* sizeof(gtopk_comm_config_t) */
    const char *transport;              /* NULL: "self" */
    int32_t size, rank;                 /* thread, callback; for self and mpi: -1, or checked against what is found */
    double timeout;                     /* seconds a whole exchange may wait; 0: GTOPK_TIMEOUT, else 1800 */
    double warn_after;                  /* seconds of waiting for a peer until a warning names it; 0: 60 */
    const char *mpi_module;             /* mpi: file of the module; NULL: found */
    void *mpi_comm;                     /* mpi: address of an MPI_Comm to duplicate; NULL: MPI_COMM_WORLD */
    gtopk_thread_group_t *group;        /* thread */
    const gtopk_callbacks_t *callbacks; /* callback; copied */
    /* Asked several times a second, on the thread that waits for a peer: 0 goes on, any other number ends the exchange
     * with INTERRUPTED. For programs that must see a signal (Ctrl-C) while they wait; NULL: never asked. It must not call
     * gtopk. */
    int (*interrupt)(void *context);
    void *interrupt_context;
    const char
        *node; /* a name for the machine that this rank is on, the same for all ranks there; NULL: GTOPK_NODE, else
                         found by host name and boot id */
    const char
        *data; /* how messages of exchanges travel: NULL: as `transport`; "nccl"; "auto". The same on all ranks */
    const char *data_library; /* nccl: a file to try before the system's libnccl.so.2; NULL: none */
    /* Another communicator, whose ranks hold the other parts of one model and exchange each of them on a communicator of
     * their own, all with this setting: a step happens on all of them or on none, and is non-finite on all when it is so on
     * one. They tell each other before anything is committed. Stays the caller's, and is kept alive; not used by
     * another thread meanwhile. NULL: none. */
    gtopk_comm_t *peers;
    /* mpi: a communicator that has lost ranks: the new one has those that are left, in their order. Collective among these;
     * what any of them waits for on the old one ends with an error, and it can only be destroyed, or given here again when
     * this call fails with TRANSPORT or ABORTED, which it does on all of them. See gtopk_comm_survives. NULL: none. */
    gtopk_comm_t *survivors_of;
    double setup_timeout; /* seconds that gtopk_comm_create may wait for other ranks, once or twice; 0: `timeout` */
} gtopk_comm_config_t;

#define GTOPK_COMM_CONFIG_INIT    \
    {sizeof(gtopk_comm_config_t), \
     NULL,                        \
     -1,                          \
     -1,                          \
     0.0,                         \
     0.0,                         \
     NULL,                        \
     NULL,                        \
     NULL,                        \
     NULL,                        \
     NULL,                        \
     NULL,                        \
     NULL,                        \
     NULL,                        \
     NULL,                        \
     NULL,                        \
     NULL,                        \
     0.0}

/* Collective. Opens the transport and compares library and wire format versions of all ranks.
 * Errors: INVALID, NOT_FOUND (module or MPI; the text says what to install), MISMATCH, TIMEOUT, TRANSPORT, NOMEM,
 * INTERRUPTED. */
gtopk_status_t gtopk_comm_create(gtopk_comm_t **comm, const gtopk_comm_config_t *config);

/* Frees a communicator whose reducers are destroyed. Not collective and does not wait. NULL is accepted. A reducer
 * still open keeps the communicator's memory alive until it is destroyed too. With mpi, ranks that go on waiting for this
 * one get GTOPK_ERR_ABORTED. */
void gtopk_comm_destroy(gtopk_comm_t *comm);

int32_t gtopk_comm_rank(const gtopk_comm_t *comm);
int32_t gtopk_comm_size(const gtopk_comm_t *comm);

/* Rank among the ranks on the same node. */
int32_t gtopk_comm_local_rank(const gtopk_comm_t *comm);

/* 1 where `survivors_of` can be given this communicator: MPI with ULFM, that is Open MPI 5 started with mpirun --with-ft ulfm. Else
 * 0: when a rank is lost the way on is a checkpoint, or a communicator that is made by other means. */
int32_t gtopk_comm_survives(const gtopk_comm_t *comm);

/* The transport's name, with its library's version where it has one: "mpi (Open MPI 5.0.11)". Lives as long as comm. */
const char *gtopk_comm_describe(const gtopk_comm_t *comm);

/* For a rank that cannot go on, for reasons outside of gtopk: ends the communicator as an error in an exchange does. Ranks that
 * wait for this one, or will, get ABORTED or TRANSPORT at once, peers as well, and every later call here ABORTED, with `why`
 * (NULL: nothing is said). Not collective. Returns OK; on a communicator that is broken already its first error. */
gtopk_status_t gtopk_comm_abort(gtopk_comm_t *comm, const char *why);

/* ---- 6  Collectives ---------------------------------------------------------------------------------------------
 *
 * For set-up and small dense data. Lengths must be the same on all ranks (DESYNC otherwise). */

/* Copies `bytes` bytes from root's buffer to everybody's. */
gtopk_status_t gtopk_broadcast(gtopk_comm_t *comm, void *buffer, size_t bytes, int32_t root);

/* out holds size * bytes: rank r's `bytes` bytes at r * bytes. */
gtopk_status_t gtopk_allgather(gtopk_comm_t *comm, const void *in, size_t bytes, void *out);

/* Sums `count` float or double values (GTOPK_F32, GTOPK_F64) over the ranks, in place. All ranks get the same bits. */
gtopk_status_t gtopk_allreduce(gtopk_comm_t *comm, void *buffer, size_t count, int32_t dtype);

/* Returns when all ranks have called it. */
gtopk_status_t gtopk_barrier(gtopk_comm_t *comm);

/* ---- 7  Reducer: one training step ------------------------------------------------------------------------------ */

typedef struct gtopk_reducer gtopk_reducer_t;

typedef enum gtopk_dtype {
    GTOPK_F32 = 0,
    GTOPK_F16 = 1,
    GTOPK_BF16 = 2,
    GTOPK_F64 = 3 /* gtopk_allreduce only */
} gtopk_dtype_t;

/* `length` entries of type `dtype` at `data`, contiguous and aligned to their size. */
typedef struct gtopk_tensor {
    void *data;
    uint64_t length;
    int32_t dtype;    /* gtopk_dtype_t */
    int32_t reserved; /* 0 */
} gtopk_tensor_t;

/* How values travel. bf16 3.5 bytes an entry at density .001 (indices take 12 bits), int8 2.5, fp32 5.5. fp16 and
 * int8 carry one power-of-two scale a message. */
typedef enum gtopk_value_type {
    GTOPK_VALUE_F32 = 0,
    GTOPK_VALUE_F16 = 1,
    GTOPK_VALUE_BF16 = 2,
    GTOPK_VALUE_I8 = 3
} gtopk_value_type_t;

typedef enum gtopk_algorithm {
    GTOPK_ALGORITHM_DENSE = 0, /* all-reduce of the whole residual: the baseline. O(n) */
    GTOPK_ALGORITHM_TOPK = 1,  /* all-gather of k entries from each rank; union of up to kP entries. O(kP) */
    GTOPK_ALGORITHM_GTOPK = 2, /* butterfly: log2 P rounds (one more and a hand-back unless P is 2^m). O(k log P) */
    GTOPK_ALGORITHM_GTOPK_TREE = 3,  /* the paper's: binomial tree to rank 0, then broadcast: 2 log2 P rounds */
    GTOPK_ALGORITHM_GTOPK_SPLIT = 4, /* every rank merges one range of the indices and keeps the largest k / P of it: 2
                                       log2 P rounds with 2k entries in all. O(k): many ranks, slow links */
    GTOPK_ALGORITHM_AUTO = 100       /* the fastest of these, by what was measured between these ranks: see
                                  gtopk_reducer_choice. Not for gtopk_predict */
} gtopk_algorithm_t;

typedef enum gtopk_residual_policy {
    GTOPK_RESIDUAL_SHARE = 0, /* what a merge drops or rounds off goes back to the merged ranks in equal shares */
    GTOPK_RESIDUAL_PAPER = 1  /* published gTop-k: own entries in the final set are cleared, the rest stays. LOSES the
                                 value of an entry that is pruned in one branch and survives in another */
} gtopk_residual_policy_t;

/* Where several ranks share a node (a machine, see gtopk_comm_config_t.node): what goes over the network.
 *
 * NODE: the L ranks of a node add up their gradients first, each of them a share of 1/L of the entries, dense and in float.
 * The algorithm then runs among the ranks of all nodes that have the same share, all shares at once, and its update goes
 * to the other ranks of the node. A node sends what one rank would send alone; a residual takes 4 bytes * n / L, and as
 * much again for the sum. Every node must have equally many ranks (UNSUPPORTED otherwise, on every rank). It changes
 * nothing for the algorithm dense, nor where each node has one rank.
 *
 * What is accumulated comes to the residuals in reduce, then: until that it is added up in 4 bytes an entry more, unless
 * GTOPK_INPUT_STAYS says that it can be read later. After an error of reduce the residual is as after accumulate or, if
 * the node's sum had come, has that in place of what this rank gave. A residual (and velocity) is zero outside of the
 * rank's share, where setting it changes nothing. With rollback, gtopk_reducer_cancel drops what was accumulated. */
typedef enum gtopk_hierarchy {
    GTOPK_HIERARCHY_OFF = 0,  /* every rank takes part by itself */
    GTOPK_HIERARCHY_NODE = 1, /* as above */
    GTOPK_HIERARCHY_AUTO = 2  /* both are tried when the reducer is created, and the faster one is kept: see
                                 gtopk_reducer_hierarchy. Takes a gradient's memory meanwhile */
} gtopk_hierarchy_t;

/* Runs body(begin, end, arg) over parts of [begin, end), each of about `grain` items, on threads of the caller, and
 * returns when all are done. */
typedef void (*gtopk_parallel_body_fn)(int64_t begin, int64_t end, void *arg);
typedef void (*gtopk_parallel_for_fn)(void *context, int64_t begin, int64_t end, int64_t grain,
                                      gtopk_parallel_body_fn body, void *arg);

/* Where a reducer on a GPU has its memory from, if not from the driver: the caller's own pool. Both functions may be called in
 * any call that has the reducer, or destroys it, on that thread; they must not call gtopk. */
typedef struct gtopk_allocator {
    size_t struct_size; /* sizeof(gtopk_allocator_t) */
    void *context;
    /* `bytes` bytes on the reducer's GPU, aligned to 256, first used by work of `stream`; NULL: there are none left. */
    void *(*allocate)(void *context, size_t bytes, void *stream);
    /* Gives back what no work that was queued uses any more. */
    void (*release)(void *context, void *block);
} gtopk_allocator_t;

typedef struct gtopk_reducer_config {
    size_t struct_size;          /* sizeof(gtopk_reducer_config_t) */
    const char *device;          /* "cpu"; "cuda" (the GPU that is current in this thread), "cuda:1" (the second one);
                                    "reference" (obvious and slow); NULL: GTOPK_DEVICE, else "cpu". One for all
                                    reducers that take steps together. Ranks may differ in it, but for whether it is
                                    the one that the communicator's `data` is for */
    double density;              /* (0, 1] */
    int32_t algorithm;           /* gtopk_algorithm_t */
    int32_t value_type;          /* gtopk_value_type_t */
    int32_t residual_policy;     /* gtopk_residual_policy_t */
    int32_t momentum_correction; /* 1: keep a velocity of 4 more bytes an entry; see gtopk_reducer_set_momentum */
    double merge_growth;         /* w >= 1: round r keeps min(n, 4k, ceil(k_(r-1) * w)) entries; 1: the paper */
    gtopk_parallel_for_fn parallel_for; /* NULL: one thread */
    void *parallel_context;
    int32_t
        rollback; /* 1: a non-finite step leaves the residual (and velocity) as it was before accumulate, bit for bit.
                         Takes as many bytes an entry more as the residual (and velocity); see gtopk_reducer_reduce */
    int32_t hierarchy;                  /* gtopk_hierarchy_t */
    const gtopk_allocator_t *allocator; /* for memory of a GPU; copied. NULL: the driver's. One for all reducers that
                                           take steps together */
    void *stream;                       /* whose earlier work is waited for before memory is taken into use */
    /* GTOPK_F32, or GTOPK_BF16: a residual of 2 bytes an entry. Wherever it changes it is rounded to one of the two next values,
     * by a number drawn for this rank, step and entry, so that the mean of what is stored is right: mass is kept to one
     * rounding (2^-7 of the entry at most) a change, in the mean exactly. The velocity stays float */
    int32_t residual_dtype;
    int32_t reserved;      /* 0 */
    uint64_t steps_before; /* of the same training, by other reducers; numbers are drawn as if this one had done them */
} gtopk_reducer_config_t;

#define GTOPK_REDUCER_CONFIG_INIT    \
    {sizeof(gtopk_reducer_config_t), \
     NULL,                           \
     0.001,                          \
     GTOPK_ALGORITHM_GTOPK,          \
     GTOPK_VALUE_BF16,               \
     GTOPK_RESIDUAL_SHARE,           \
     0,                              \
     1.0,                            \
     NULL,                           \
     NULL,                           \
     0,                              \
     GTOPK_HIERARCHY_OFF,            \
     NULL,                           \
     NULL,                           \
     GTOPK_F32,                      \
     0,                              \
     0}

/* Collective. A reducer for `count` segments of lengths[i] entries each (0 is allowed). The residual starts at zero.
 * Memory: 4 bytes an entry (more with momentum_correction or rollback, 2 less with residual_dtype) and O(k log P). All ranks must
 * give the same lengths and the same config but for device, parallel_for, allocator, stream and steps_before; otherwise every
 * rank gets MISMATCH with both sides named. `comm` must outlive the reducer.
 * Errors: INVALID, MISMATCH, UNSUPPORTED (device), NOMEM, and those of an exchange. */
gtopk_status_t gtopk_reducer_create(gtopk_reducer_t **reducer, gtopk_comm_t *comm, const gtopk_reducer_config_t *config,
                                    const uint64_t *lengths, size_t count);

/* Not collective. NULL is accepted. */
void gtopk_reducer_destroy(gtopk_reducer_t *reducer);

enum {
    GTOPK_ZERO_INPUT = 1,     /* accumulate: set the gradient to zero while reading it */
    GTOPK_FOUND_INF = 2,      /* accumulate: touch neither residual nor gradient, make this a non-finite step */
    GTOPK_OUTPUT_IS_ZERO = 4, /* reduce: outputs hold zeros already, so writing the update costs O(k) */
    GTOPK_INPUT_STAYS = 16,   /* accumulate: until the step's reduce has returned, the tensors stay where they are and
                                 nobody writes to them. For a hierarchy of nodes, which then reads them there, and with
                                 GTOPK_ZERO_INPUT clears them, in reduce; otherwise it adds them up in a copy, of 4 bytes an
                                 entry. Nothing else changes */
    GTOPK_JOINED = 8          /* reduce: this rank has no more data. When all ranks say so, nobody takes an update:
                                 outputs are zero and the residual stays; see gtopk_stats_t.all_joined */
};

/* residual[entry] = fma(scale, gradient, residual) in float, for `count` segments: tensors[i] belongs to segment
 * segments[i] (NULL: segment i). Any order, several calls a step, each segment at most once a step; a segment left out
 * counts as zero (with momentum correction: its velocity stays as it is and adds nothing). scale is finite: 1 / loss scale, 1 / accumulation steps, or 1.
 * An entry whose sum is not finite is left as it was and makes the step non-finite: see gtopk_reducer_reduce.
 * Errors: INVALID (nothing was changed), STATE (segment twice in this step: nothing was changed), DEVICE. */
gtopk_status_t gtopk_reducer_accumulate(gtopk_reducer_t *reducer, const uint32_t *segments,
                                        const gtopk_tensor_t *tensors, size_t count, double scale, uint32_t flags,
                                        void *stream);

typedef struct gtopk_stats {
    size_t struct_size;  /* set by the caller: sizeof(gtopk_stats_t) */
    uint64_t step;       /* steps done before this one */
    uint64_t k;          /* entries a rank selects */
    uint64_t selected;   /* entries selected on this rank (fewer than k when it has fewer non-zeros) */
    uint64_t count;      /* entries in the update */
    uint64_t bytes_sent; /* by this rank, headers included; a dense all-reduce by the transport: 2 (P-1)/P n 4 */
    uint64_t bytes_received;
    uint64_t candidates;  /* entries that passed the selection hint */
    uint64_t hint_misses; /* 1: selection needed another read pass */
    uint32_t rounds;      /* messages this rank exchanged one after the other */
    int32_t nonfinite;    /* 1: some rank met Inf or NaN; nothing was selected, outputs are NaN */
    int32_t all_joined;   /* 1: every rank had GTOPK_JOINED */
    int32_t slowest_peer; /* the rank waited for longest, -1: none */
    double accumulate_s, select_s, exchange_s, commit_s; /* exchange_s includes wait_s */
    double wait_s;                                       /* time spent waiting for peers */
    uint64_t network_bytes_sent;                         /* of bytes_sent, those to ranks on other nodes */
} gtopk_stats_t;

/* Collective. Selects, exchanges and commits: outputs[i] (i < count = number of segments, in order; float, fp16 or
 * bf16) is overwritten with the mean update over the ranks, zero where nothing was sent. `stats` may be NULL.
 *
 * A non-finite step (any rank's found_inf, an entry that overflowed, a merged sum that overflowed) completes with
 * status OK on every rank: stats.nonfinite is 1, outputs are NaN, the residual is as after accumulate: what was finite of
 * the gradients is in it, and is sent later. With `rollback` in the reducer's configuration the residual (and velocity) is as
 * before accumulate: the step might as well not have been taken.
 *
 * Errors: INVALID or STATE found before anything was sent: nothing changed, call again. Anything else: the step did
 * not happen on this rank, the residual is as after accumulate, outputs are untouched, the communicator is broken. */
gtopk_status_t gtopk_reducer_reduce(gtopk_reducer_t *reducer, const gtopk_tensor_t *outputs, size_t count,
                                    uint32_t flags, void *stream, gtopk_stats_t *stats);

/* Collective. One step of several reducers of one communicator, as one: it happens on this rank in all of them or, after
 * an error, in none, and is non-finite in all when it is in one. As gtopk_reducer_reduce for each of them: outputs[i] has
 * counts[i] tensors for reducers[i]; stats (NULL, or one pointer for each, which may be NULL) gets what each did. With
 * GTOPK_JOINED a reducer may have no outputs (NULL and 0): this rank has no use for the update. All ranks give the same
 * reducers in the same order. Errors: as gtopk_reducer_reduce; INVALID for more than GTOPK_REDUCERS_MAX reducers, for one
 * given twice, and for those of different communicators or devices. */
enum { GTOPK_REDUCERS_MAX = 16 };
gtopk_status_t gtopk_reducers_reduce(gtopk_reducer_t *const *reducers, const gtopk_tensor_t *const *outputs,
                                     const size_t *counts, size_t count, uint32_t flags, void *stream,
                                     gtopk_stats_t *const *stats);

/* Ends the step that accumulate opened, on this rank, without an exchange: for a caller that was interrupted in between.
 * What was accumulated stays in the residual, and segments may be accumulated anew. Nothing outside of a step. */
gtopk_status_t gtopk_reducer_cancel(gtopk_reducer_t *reducer);

/* Arrays of the caller. */
typedef struct gtopk_set {
    uint32_t *indices;
    float *values;
    uint64_t capacity;
    uint64_t count; /* out */
} gtopk_set_t;

/* Collective. As gtopk_reducer_reduce, the mean update given as a set. set->capacity must be at least
 * gtopk_reducer_max_count(). A non-finite step gives an empty set. May be mixed with _reduce from rank to rank. */
gtopk_status_t gtopk_reducer_reduce_sparse(gtopk_reducer_t *reducer, gtopk_set_t *set, uint32_t flags, void *stream,
                                           gtopk_stats_t *stats);

/* Waits until everything that was queued for this reducer has been done: outputs can be read by the host then. On the CPU
 * there is nothing to wait for. `stats` (may be NULL) are those of the latest step. Errors: DEVICE, when something that was
 * queued failed. */
gtopk_status_t gtopk_reducer_wait(gtopk_reducer_t *reducer, gtopk_stats_t *stats);

/* Entries that an update can have at most: k of the last round; k * P for topk; n for dense. With GTOPK_ALGORITHM_AUTO it may be
 * another number after every step. */
uint64_t gtopk_reducer_max_count(const gtopk_reducer_t *reducer);

uint64_t gtopk_reducer_dim(const gtopk_reducer_t *reducer);

/* Which hierarchy a reducer has, and what this rank's share is. */
typedef struct gtopk_hierarchy_info {
    size_t struct_size;   /* set by the caller */
    int32_t hierarchy;    /* GTOPK_HIERARCHY_OFF or _NODE */
    int32_t nodes;        /* that the ranks are on */
    uint64_t begin, end;  /* entries of which this rank has a residual */
    double off_s, node_s; /* what GTOPK_HIERARCHY_AUTO found: seconds of a step, the same on all ranks; 0: not tried */
} gtopk_hierarchy_info_t;

gtopk_status_t gtopk_reducer_hierarchy(const gtopk_reducer_t *reducer, gtopk_hierarchy_info_t *info);
/* The device in full: "cpu", "cuda:0". Lives as long as the reducer. Tensors, and the arrays of sets, must be memory that it
 * reaches. */
const char *gtopk_reducer_device(const gtopk_reducer_t *reducer);

/* Collective, between steps. All ranks give the same density (0, 1]; otherwise MISMATCH on every rank and no change. With
 * GTOPK_ALGORITHM_AUTO the algorithm is chosen anew. */
gtopk_status_t gtopk_reducer_set_density(gtopk_reducer_t *reducer, double density);

/* Collective, between steps. Another algorithm from the next step on; the residual (and velocity) stays as it is. It ends
 * GTOPK_ALGORITHM_AUTO, which cannot be given here. gtopk_reducer_max_count changes with it. Errors, with no change: INVALID;
 * UNSUPPORTED (dense, with hierarchy node); NOMEM; MISMATCH. */
gtopk_status_t gtopk_reducer_set_algorithm(gtopk_reducer_t *reducer, int32_t algorithm);

/* ---- what a step costs, and which algorithm GTOPK_ALGORITHM_AUTO takes ----
 *
 * Seconds that the parts of a step take. A message of b bytes takes message_s + b * byte_s while all ranks exchange one with
 * a partner; near: between ranks of one node. An all-reduce is 2 (P - 1) messages of sum_message_s with 1/P of the bytes each. */
typedef struct gtopk_costs {
    size_t struct_size; /* sizeof(gtopk_costs_t) */
    double message_s, byte_s;
    double near_message_s, near_byte_s;
    double sum_message_s, sum_byte_s;
    double accumulate_s; /* adding an entry of n to the residual */
    double select_s;     /* selecting and committing an entry of k */
    double merge_s;      /* encoding, decoding and merging an entry of a message */
    double dense_s;      /* all that a dense step does with an entry of n, but for the network */
    int32_t each_node;   /* ranks with numbers that follow each other are on one node; 1: every message is a far one */
    int32_t gathers;     /* 1: the transport has an all-gather of its own, of log2 P latencies */
} gtopk_costs_t;

#define GTOPK_COSTS_INIT {sizeof(gtopk_costs_t), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1, 0}

/* Collective. Measures all of this by some messages and sums of two sizes, up to 1 MiB, and by some steps of 1M entries of each
 * rank alone. Every rank gets the slowest one's numbers. `config` says on which device and with what threads; NULL: the
 * default's. Errors: those of an exchange, NOMEM, and those of the device. */
gtopk_status_t gtopk_comm_measure(gtopk_comm_t *comm, const gtopk_reducer_config_t *config, gtopk_costs_t *costs);

/* Seconds of a step of `dim` entries between `size` ranks, by the config's algorithm, density, value type, merge_growth and
 * hierarchy (AUTO counts as OFF): accumulate, select, exchange and commit. docs/architecture.md has the formulas. Errors:
 * INVALID. */
gtopk_status_t gtopk_predict(const gtopk_costs_t *costs, const gtopk_reducer_config_t *config, uint64_t dim,
                             int32_t size, double *seconds);

/* GTOPK_ALGORITHM_AUTO: the costs are measured once a communicator, when the first such reducer is created, and the algorithm of
 * the least predicted time is taken. All ranks then compare their steps' times after 4 steps, 8 more, 16 more, and at last
 * every 1024: one small all-gather in gtopk_reducer_reduce, after the commit, whose failure breaks the communicator for the
 * next step. Where another algorithm was found to take at least 5 % less than what was measured, or may do so (predictions are trusted
 * to half as much again), it is taken from the next step on. Another density begins with predictions again. What has to be allocated for it on some rank and
 * cannot is not taken. With hierarchy node dense is not among the choices; with hierarchy AUTO that is settled first, by
 * steps of gtopk. One rank by itself has nothing to choose: it stays with gtopk. */
enum { GTOPK_CHOICES = 8 };

typedef struct gtopk_choice_info {
    size_t struct_size;                /* set by the caller */
    int32_t algorithm;                 /* gtopk_algorithm_t: of the next step */
    int32_t is_auto;                   /* 1: it was chosen */
    double predicted_s[GTOPK_CHOICES]; /* by gtopk_algorithm_t: seconds of a step; 0: not among the choices */
    double measured_s[GTOPK_CHOICES];  /* median of the steps that were looked at last; 0: none yet */
} gtopk_choice_info_t;

gtopk_status_t gtopk_reducer_choice(const gtopk_reducer_t *reducer, gtopk_choice_info_t *info);

/* Momentum correction (Lin et al., Deep Gradient Compression, ICLR 2018), for reducers made with it: accumulate does
 *     velocity = fma(momentum, velocity, scale * gradient)
 *     residual += nesterov ? fma(momentum, velocity, scale * gradient) : velocity
 * and commit sets the velocity of those entries to zero that this rank selected and that are in the update. Local; to
 * be set to the same on all ranks; default 0. Between steps, else STATE. 0 <= momentum < 1. */
gtopk_status_t gtopk_reducer_set_momentum(gtopk_reducer_t *reducer, double momentum, int nesterov);

/* ---- 8  Reducer: state and checkpoints --------------------------------------------------------------------------
 *
 * The state is the residual (and velocity), with rank, size, step, a random id of the run, the segments' lengths and a
 * checksum: little-endian, the same on every machine. Between steps only (STATE otherwise). */

/* Bytes that _state_save writes. */
size_t gtopk_reducer_state_size(const gtopk_reducer_t *reducer);

/* This rank's state. Loading it on the same rank of the same number of ranks resumes bit for bit. */
gtopk_status_t gtopk_reducer_state_save(gtopk_reducer_t *reducer, void *buffer, size_t bytes);

/* Collective. The sum of all P ranks' residuals (and velocities), on root; other ranks may give buffer NULL. It loads
 * into any number of ranks: each takes a P-th of it, so that what waits is the same mean update. The sum stays as it is
 * with P ranks, and is Q / P times as large with Q. Errors: DESYNC (ranks are at different steps, or of different runs). */
gtopk_status_t gtopk_reducer_state_consolidate(gtopk_reducer_t *reducer, void *buffer, size_t bytes, int32_t root);

/* What a saved state holds, read without a reducer. Errors: CORRUPT. */
typedef struct gtopk_state_info {
    size_t struct_size; /* set by the caller */
    uint64_t dim, segments, step, run;
    int32_t rank, size; /* rank -1: consolidated */
    int32_t has_velocity;
    int32_t reserved;
} gtopk_state_info_t;

gtopk_status_t gtopk_state_inspect(const void *buffer, size_t bytes, gtopk_state_info_t *info);

/* Not collective, but to be done on every rank before the next step: ranks at different steps or of different runs get
 * DESYNC in the next exchange. Errors, with the reducer unchanged: CORRUPT; MISMATCH (other segments: the text names
 * the first that differs; or another rank's state, or another size, or another arrangement of ranks on nodes: load a
 * consolidated one). */
gtopk_status_t gtopk_reducer_state_load(gtopk_reducer_t *reducer, const void *buffer, size_t bytes);

/* For a state that is another rank's, or of another number of ranks (people save on rank 0 only): takes its step and run,
 * so that all ranks go on together, and sets the residual (and velocity) to zero: what was in it is lost. Errors as
 * _state_load, but for rank and size. */
gtopk_status_t gtopk_reducer_state_adopt(gtopk_reducer_t *reducer, const void *buffer, size_t bytes);

/* Copies the residual of one segment, as float, to `out` (lengths[segment] entries). Allowed at any time. */
gtopk_status_t gtopk_reducer_residual(gtopk_reducer_t *reducer, uint32_t segment, float *out, uint64_t length);

/* Sets the residual of one segment (finite values). Between steps. For redistribution by hand. */
gtopk_status_t gtopk_reducer_set_residual(gtopk_reducer_t *reducer, uint32_t segment, const float *in, uint64_t length);

/* The same for the velocity of a reducer with momentum correction; STATE without. */
gtopk_status_t gtopk_reducer_velocity(gtopk_reducer_t *reducer, uint32_t segment, float *out, uint64_t length);
gtopk_status_t gtopk_reducer_set_velocity(gtopk_reducer_t *reducer, uint32_t segment, const float *in, uint64_t length);

/* Euclidean norm of the whole residual, in double: one pass. With `rollback` between steps only, else STATE. */
gtopk_status_t gtopk_reducer_residual_norm(gtopk_reducer_t *reducer, double *norm);

/* ---- 9  Blocks -------------------------------------------------------------------------------------------------
 *
 * The parts of a step for one's own algorithms and for tests, on host memory but for those that end in _on. They use the
 * device that GTOPK_DEVICE names where its memory is the host's, else the CPU. No communicator is involved; thread-safe. */

/* The k entries of largest magnitude of x[0..n), n <= 2^32 - 1, sorted by index; on equal magnitude the lower index
 * wins; zeros are never selected; x is only read. set->capacity >= min(k, n). Errors: INVALID (also: an entry is not
 * finite), NOMEM. */
gtopk_status_t gtopk_select(const float *x, uint64_t n, uint64_t k, gtopk_set_t *set);

/* The same set on threads of the caller's, see gtopk_parallel_for_fn. parallel_for NULL: on this thread. */
gtopk_status_t gtopk_select_parallel(const float *x, uint64_t n, uint64_t k, gtopk_set_t *set,
                                     gtopk_parallel_for_fn parallel_for, void *parallel_context);

/* The k largest entries of a + b. Entries that sum to zero are left out. out must not overlap a or b;
 * out->capacity >= min(k, a->count + b->count). Errors: INVALID (a or b is no set, a sum overflows), NOMEM. */
gtopk_status_t gtopk_merge(const gtopk_set_t *a, const gtopk_set_t *b, uint64_t k, gtopk_set_t *out);

/* The same two on arrays that a device reaches (chapter 7 has the names): memory of a GPU, with `stream`, on which they were
 * written and may be read when the call returns; it waits. The count of a set is the host's. A GPU stays open for the calls
 * that follow. Errors: also those of gtopk_device_describe. */
gtopk_status_t gtopk_select_on(const char *device, const float *x, uint64_t n, uint64_t k, gtopk_set_t *set,
                               void *stream);
gtopk_status_t gtopk_merge_on(const char *device, const gtopk_set_t *a, const gtopk_set_t *b, uint64_t k,
                              gtopk_set_t *out, void *stream);

/* Upper bound of the bytes that encoding `count` entries of `dim` takes. */
size_t gtopk_encode_bound(uint64_t dim, uint64_t count, int32_t value_type);

/* Writes the message described in docs/wire-format.md. *bytes: in capacity, out length. Errors: INVALID, NOMEM. */
gtopk_status_t gtopk_encode(const gtopk_set_t *set, uint64_t dim, int32_t value_type, void *buffer, size_t *bytes);

/* Reads and checks the header of a message: entries and dim, to size the arrays for gtopk_decode. Errors: CORRUPT. */
gtopk_status_t gtopk_decode_header(const void *buffer, size_t bytes, uint64_t *dim, uint64_t *count);

/* The set that a message holds. Any byte string is refused (CORRUPT) or decoded to a valid set. */
gtopk_status_t gtopk_decode(const void *buffer, size_t bytes, gtopk_set_t *set, uint64_t *dim);

/* ---- 10  Transports that are set up by the caller ---------------------------------------------------------------- */

enum { GTOPK_THREAD_VIRTUAL_CLOCK = 1 /* deadlines pass as soon as every rank waits; for tests and simulation */ };

/* A group of `size` ranks that are threads of this process. Each opens a communicator with transport "thread", this
 * group and its rank. The group must outlive them. */
gtopk_status_t gtopk_thread_group_create(gtopk_thread_group_t **group, int32_t size, uint32_t flags);
void gtopk_thread_group_destroy(gtopk_thread_group_t *group);

/* Send and receive by the caller, for a network that gtopk does not know (the Python package passes
 * torch.distributed). exchange and allreduce are called on a thread of the library's own, one call at a time; they return
 * 0, or another number for failure, which breaks the communicator. A message has the same length on both sides. `error`
 * (room for 256 characters) may be filled with a text. */
struct gtopk_callbacks {
    size_t struct_size;
    void *context;
    /* Sends send_bytes to rank `to` and receives receive_bytes from rank `from`, both at once; -1: no such side. */
    int (*exchange)(void *context, int32_t to, const void *send, size_t send_bytes, int32_t from, void *receive,
                    size_t receive_bytes, double timeout, char *error);
    /* Sums count floats in place over all ranks. NULL: a ring over exchange. */
    int (*allreduce)(void *context, float *buffer, size_t count, double timeout, char *error);
    /* The communicator broke: end the group, so that the other ranks notice. Called on the thread whose call failed,
     * perhaps while exchange is still running. May be NULL. */
    void (*abort)(void *context);
};

/* ---- 11  PyTorch ------------------------------------------------------------------------------------------------------
 *
 * For processes that have loaded PyTorch 2.10 or newer; NOT_FOUND in others. */

/* Registers the operators torch.ops.gtopk.select(x, k) and torch.ops.gtopk.merge(a_indices, a_values, b_indices,
 * b_values, k) for CPU tensors: chapter 9 with int64 indices. (The Python package adds those for CUDA tensors.) Once a process; further calls do nothing. Call it under
 * Python's lock. */
gtopk_status_t gtopk_torch_register(void);

/* A parallel_for for gtopk_reducer_config_t that runs on PyTorch's own threads; NULL where there is no PyTorch. */
gtopk_parallel_for_fn gtopk_torch_parallel_for(void);

#ifdef __GNUC__
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif
#endif
