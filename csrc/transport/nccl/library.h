/* NCCL, libnccl.so.2: opened when the first communicator asks for it, never linked. Only what is called is declared here,
 * with the names and numbers of NVIDIA's documentation; no header of NCCL is needed. */
#ifndef GTOPK_TRANSPORT_NCCL_LIBRARY_H
#define GTOPK_TRANSPORT_NCCL_LIBRARY_H

#include <stddef.h>
#include <stdint.h>

#include "util/status.h"

typedef struct ncclComm *nccl_comm_t;
typedef int nccl_result_t;

enum {
    NCCL_SUCCESS = 0,
    NCCL_REMOTE_ERROR = 6,
    NCCL_IN_PROGRESS = 7,
};
enum { NCCL_UINT8 = 1, NCCL_FLOAT32 = 7, NCCL_SUM = 0 };

typedef struct nccl_id {
    char internal[128];
} nccl_id_t;

/* ncclConfig_t as of 2.18, which every later version takes: it goes by `size` and `version`, and fills in the rest. */
typedef struct nccl_config {
    size_t size;
    unsigned magic, version;
    int blocking;
    int cga_cluster_size, min_ctas, max_ctas;
    const char *net_name;
    int split_share;
} nccl_config_t;

#define NCCL_UNDEFINED INT32_MIN
#define NCCL_CONFIG_MAGIC 0xcafebeefu
#define NCCL_OLDEST 21800

#define NCCL_FUNCTIONS(X)                                                                                    \
    X(ncclGetUniqueId, (nccl_id_t * id))                                                                     \
    X(ncclCommInitRankConfig, (nccl_comm_t * comm, int size, nccl_id_t id, int rank, nccl_config_t *config)) \
    X(ncclCommGetAsyncError, (nccl_comm_t comm, nccl_result_t * result))                                     \
    X(ncclCommDestroy, (nccl_comm_t comm))                                                                   \
    X(ncclCommAbort, (nccl_comm_t comm))                                                                     \
    X(ncclGroupStart, (void))                                                                                \
    X(ncclGroupEnd, (void))                                                                                  \
    X(ncclSend, (const void *buffer, size_t count, int type, int peer, nccl_comm_t comm, void *stream))      \
    X(ncclRecv, (void *buffer, size_t count, int type, int peer, nccl_comm_t comm, void *stream))            \
    X(ncclAllGather, (const void *in, void *out, size_t count, int type, nccl_comm_t comm, void *stream))    \
    X(ncclAllReduce, (const void *in, void *out, size_t count, int type, int operation, nccl_comm_t comm, void *stream))

typedef struct nccl_library {
/* NOLINTNEXTLINE(bugprone-macro-parentheses): a type takes none */
#define NCCL_MEMBER(name, parameters) nccl_result_t(*name) parameters;
    NCCL_FUNCTIONS(NCCL_MEMBER)
#undef NCCL_MEMBER
    const char *(*ncclGetErrorString)(nccl_result_t result);
    const char *(*ncclGetLastError)(nccl_comm_t comm);
    int version; /* 21805: NCCL 2.18.5 */
} nccl_library_t;

/* The library, ready for use; the same one each time. Taken from the file that the environment variable
 * GTOPK_NCCL_LIBRARY names; else the one that this process has loaded, which is PyTorch's; else `file` (may be NULL),
 * where the caller thinks that it is; else the system's. NOT_FOUND: there is none; UNSUPPORTED: it is too old, or
 * incomplete. */
gtopk_status_t nccl_library_get(const char *file, const nccl_library_t **nccl);

/* The status and text for a call that failed. `what` is what was tried. */
gtopk_status_t nccl_error(const nccl_library_t *nccl, nccl_result_t result, const char *what);

/* "2.18.5" */
const char *nccl_version_text(int version, char text[16]);

#endif
