/* What the host does in a step over NCCL, as the driver of the GPU sees it: launches, who waits for the GPU and when.
 *
 *   trace_step FILE ENTRIES REPEATS off|node      under mpirun; GTOPK_CUDA_DRIVER names libcuda_count.so (tests/gpu)
 *
 * A reducer for each algorithm, density .001, values in bf16, gradients on the GPU. FILE gets, of rank 0, in JSON: for each
 * algorithm the calls of a step and the kernels that were launched, with how many of each; how often the host waited for the
 * GPU but in a verdict (`waits_before_verdict`, which must be 0: the verdict itself waits; on nodes there is one for the sum of
 * the node, too); `step_us`, a whole step from accumulate until reduce returns, and `host_us`, of it what was spent on anything but
 * asking whether the stream has passed and the verdict's wait: medians over REPEATS steps. Of gtopk also the trace itself:
 * microseconds since the begin, and what was called. Ends with 1 when a wait was seen that is no verdict's. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../../benchmarks/gpu_memory.h"
#include "gpu/libcuda_count.h"
#include "gtopk.h"

enum { NAMES_MAX = 64, REPEATS_MAX = 100, WARMUP = 3 };

static cuda_trace_begin_fn trace_begin;
static cuda_trace_end_fn trace_end;
static const cuda_driver_t *driver;

static void fail(const char *what, const char *why)
{
    (void)fprintf(stderr, "trace_step: %s: %s\n", what, why);
    exit(2);
}

static void check(gtopk_status_t status, const char *what)
{
    if (status != GTOPK_OK)
        fail(what, gtopk_last_error());
}

static double now_us(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e6 * (double)t.tv_sec + 1e-3 * (double)t.tv_nsec;
}

static void open_counter(void)
{
    const char *file = getenv("GTOPK_CUDA_DRIVER");
    void *library = file ? dlopen(file, RTLD_NOW | RTLD_LOCAL) : NULL;
    void *begin = library ? dlsym(library, CUDA_TRACE_BEGIN) : NULL;
    void *end = library ? dlsym(library, CUDA_TRACE_END) : NULL;
    if (!begin || !end)
        fail("GTOPK_CUDA_DRIVER", "is to name libcuda_count.so");
    memcpy(&trace_begin, &begin, sizeof begin);
    memcpy(&trace_end, &end, sizeof end);
}

/* ---- what was seen ---- */

typedef struct tally {
    const char *names[NAMES_MAX];
    int counts[NAMES_MAX], used;
} tally_t;

static void count(tally_t *tally, const char *name)
{
    int i = 0;
    while (i < tally->used && strcmp(tally->names[i], name) != 0)
        i++;
    if (i == NAMES_MAX)
        return;
    tally->names[i] = name;
    tally->counts[i]++;
    tally->used += i == tally->used;
}

typedef struct seen {
    tally_t calls, kernels;
    int launches, verdicts, waits, waits_before_verdict;
    double host_us;
} seen_t;

static int is_verdict(const cuda_call_t *call)
{
    return call->kernel && strcmp(call->kernel, "gtopk_cuda_verdict") == 0;
}

static int is_wait(const cuda_call_t *call)
{
    return strcmp(call->function, "cuStreamSynchronize") == 0 || strcmp(call->function, "cuCtxSynchronize") == 0;
}

/* A wait right after a verdict is that verdict's. */
static seen_t look_at(const cuda_call_t *calls, size_t made, double step_us)
{
    seen_t seen = {.launches = 0};
    double waited = 0.0;
    const cuda_call_t *first_question = NULL;
    for (const cuda_call_t *call = calls; call < calls + made; call++) {
        const int asks = strcmp(call->function, "cuStreamQuery") == 0;
        count(&seen.calls, call->function);
        if (asks && !first_question)
            first_question = call;
        if (!asks && first_question) {
            waited += call->begin_us - first_question->begin_us;
            first_question = NULL;
        }
        if (call->kernel) {
            seen.launches++;
            count(&seen.kernels, call->kernel);
        }
        seen.verdicts += is_verdict(call);
        if (is_wait(call)) {
            const int is_verdicts = call > calls && is_verdict(call - 1);
            seen.waits++;
            seen.waits_before_verdict += !is_verdicts;
            if (is_verdicts)
                waited += call->end_us - call->begin_us;
        }
    }
    seen.host_us = step_us - waited;
    return seen;
}

static void write_tally(FILE *file, const char *name, const tally_t *tally)
{
    (void)fprintf(file, "\"%s\": {", name);
    for (int i = 0; i < tally->used; i++)
        (void)fprintf(file, "%s\"%s\": %d", i ? ", " : "", tally->names[i], tally->counts[i]);
    (void)fprintf(file, "}");
}

static void write_trace(FILE *file, const cuda_call_t *calls, size_t made, double begin)
{
    (void)fprintf(file, ",\n   \"trace\": [");
    for (size_t i = 0; i < made; i++)
        (void)fprintf(file, "%s[%.1f, \"%s\"]", i ? ", " : "", calls[i].begin_us - begin,
                      calls[i].kernel ? calls[i].kernel : calls[i].function);
    (void)fprintf(file, "]");
}

/* ---- steps ---- */

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void step(gtopk_reducer_t *reducer, const gtopk_tensor_t *tensor, const float *fresh, gtopk_stats_t *stats,
                 double *begin, double *end)
{
    if (!gpu_copy(driver, tensor->data, fresh, tensor->length * sizeof *fresh))
        fail("the GPU", "a copy failed");
    stats->struct_size = sizeof *stats;
    *begin = now_us();
    check(gtopk_reducer_accumulate(reducer, NULL, tensor, 1, 1.0, GTOPK_ZERO_INPUT | GTOPK_INPUT_STAYS, NULL),
          "accumulate");
    check(gtopk_reducer_reduce(reducer, tensor, 1, GTOPK_OUTPUT_IS_ZERO, NULL, stats), "reduce");
    *end = now_us();
    check(gtopk_reducer_wait(reducer, NULL), "wait");
}

/* Returns the waits that are no verdict's. */
static int run(FILE *file, gtopk_comm_t *comm, int algorithm, const char *name, int hierarchy,
               const gtopk_tensor_t *tensor, const float *fresh, int repeats)
{
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    gtopk_stats_t stats;
    seen_t seen = {.launches = 0};
    double begin, end, host[REPEATS_MAX], whole[REPEATS_MAX];
    const cuda_call_t *calls = NULL;
    size_t made = 0;
    int bad = 0;
    config.device = "cuda";
    config.density = 0.001;
    config.algorithm = algorithm;
    config.hierarchy = hierarchy;
    check(gtopk_reducer_create(&reducer, comm, &config, &tensor->length, 1), "creating a reducer");
    for (int i = -WARMUP; i < repeats; i++) {
        check(gtopk_barrier(comm), "barrier");
        trace_begin();
        step(reducer, tensor, fresh, &stats, &begin, &end);
        made = trace_end(&calls);
        while (made > 0 && calls->begin_us < begin) /* the copy of the gradient */
            calls++, made--;
        while (made > 0 && calls[made - 1].begin_us > end)
            made--;
        seen = look_at(calls, made, end - begin);
        if (i >= 0) {
            host[i] = seen.host_us;
            whole[i] = end - begin;
            bad += seen.waits_before_verdict;
        }
    }
    qsort(host, (size_t)repeats, sizeof *host, compare_doubles);
    qsort(whole, (size_t)repeats, sizeof *whole, compare_doubles);
    if (file) {
        (void)fprintf(
            file,
            "  {\"algorithm\": \"%s\", \"n\": %llu, \"k\": %llu, \"rounds\": %u, \"launches\": %d, \"verdicts\": "
            "%d, \"waits\": %d, \"waits_before_verdict\": %d, \"host_us\": %.1f, \"step_us\": %.1f,\n   ",
            name, (unsigned long long)tensor->length, (unsigned long long)stats.k, (unsigned)stats.rounds,
            seen.launches, seen.verdicts, seen.waits, seen.waits_before_verdict, host[repeats / 2], whole[repeats / 2]);
        write_tally(file, "kernels", &seen.kernels);
        (void)fprintf(file, ",\n   ");
        write_tally(file, "calls", &seen.calls);
        if (algorithm == GTOPK_ALGORITHM_GTOPK)
            write_trace(file, calls, made, begin);
        (void)fprintf(file, "}");
    }
    gtopk_reducer_destroy(reducer);
    return bad;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int value;
    } algorithms[] = {{"gtopk", GTOPK_ALGORITHM_GTOPK},
                      {"gtopk-split", GTOPK_ALGORITHM_GTOPK_SPLIT},
                      {"gtopk-tree", GTOPK_ALGORITHM_GTOPK_TREE},
                      {"topk", GTOPK_ALGORITHM_TOPK},
                      {"dense", GTOPK_ALGORITHM_DENSE}};
    gtopk_comm_config_t net = GTOPK_COMM_CONFIG_INIT;
    gtopk_comm_t *comm;
    int bad = 0;
    if (argc != 5 || atoi(argv[3]) < 1 || atoi(argv[3]) > REPEATS_MAX)
        fail("arguments", "FILE ENTRIES REPEATS off|node");
    const uint64_t n = strtoull(argv[2], NULL, 10);
    const int node = strcmp(argv[4], "node") == 0;
    open_counter();
    float *fresh = malloc((size_t)n * sizeof *fresh);
    if (!fresh || !gpu_start(&driver))
        fail("the GPU", gtopk_last_error());
    const gtopk_tensor_t tensor = {gpu_allocate(driver, (size_t)n * sizeof *fresh), n, GTOPK_F32, 0};
    if (!tensor.data)
        fail("the GPU", "has no memory");
    net.transport = "mpi";
    net.data = "nccl";
    check(gtopk_comm_create(&comm, &net), "creating the communicator");
    const int rank = gtopk_comm_rank(comm);
    uint32_t state = 1 + (uint32_t)rank;
    for (uint64_t i = 0; i < n; i++) { /* cubes of uniform numbers: few are large */
        state = state * 1664525u + 1013904223u;
        const float x = (float)(int32_t)state * 0x1p-31f;
        fresh[i] = x * x * x;
    }
    FILE *file = rank == 0 ? fopen(argv[1], "w") : NULL;
    if (rank == 0 && !file)
        fail(argv[1], "cannot be written");
    if (file)
        (void)fprintf(file, "{\"ranks\": %d, \"hierarchy\": \"%s\", \"rows\": [\n", gtopk_comm_size(comm), argv[4]);
    for (size_t a = 0; a < sizeof algorithms / sizeof *algorithms - (size_t)node; a++) { /* dense has no nodes */
        if (file && a > 0)
            (void)fprintf(file, ",\n");
        bad += run(file, comm, algorithms[a].value, algorithms[a].name,
                   node ? GTOPK_HIERARCHY_NODE : GTOPK_HIERARCHY_OFF, &tensor, fresh, atoi(argv[3]));
    }
    if (file) {
        (void)fprintf(file, "\n]}\n");
        (void)fclose(file);
    }
    free(fresh);
    gtopk_comm_destroy(comm);
    check(gtopk_finalize(), "finalize");
    if (bad > 0)
        (void)fprintf(stderr, "trace_step: rank %d: error: the host waited for the GPU before a verdict\n", rank);
    return bad > 0;
}
