/* A step of gtopk's reducers between real ranks, side by side with the dense all-reduce, every answer checked.
 *
 *   mpirun -n 4 build/benchmarks/allreduce_bench [options]       --help lists them
 *
 * One step is accumulate and reduce on one thread a rank, as after a backward pass: gradients in, the mean update out,
 * in place. The algorithms take turns step by step, so a change in the machine's load meets all of them. A step's time
 * is that of its slowest rank. Columns:
 *
 *   size, entries   bytes of the gradient on each rank, and its floats
 *   k               entries a rank sends (dense: all)
 *   min median max  time of a step in milliseconds; exchange: of it, from when the last rank came to the
 *                   exchange until the last one had the update (median). Ranks of one machine have one clock;
 *                   between machines it counts from when a rank has left the barrier before the step
 *   CPU             of a rank in a step, all threads, in milliseconds (mean)
 *   wire            bytes that a rank sends in a step, headers included; of the rank that sends most
 *   bare            log2 P bare MPI_Sendrecv of the bytes of gtopk's messages, nothing else (median)
 *   all-gather      MPI_Allgather of k entries of 8 bytes, as Top-k does without a codec, nothing else
 *   speed-up        median of the best dense / median. The best of: our dense, and (transport mpi, when baseline_mpi.so lies beside
 *                   this program) MPI_Allreduce of the whole gradient and a ring of MPI_Sendrecv, measured in the same turns; not "ring bf16", which
 *                   rounds each sum to bf16
 *   wrong           indices that are wrong in a last step: the mass is off by more than 1e-5 of its size (the sum over
 *                   ranks of residual before + gradient - residual after is not P times the mean update; its size
 *                   is the sum of |residual before + gradient|), or a rank's update has other bits than rank 0's
 *
 * --json writes {machine, command, rows: [{algorithm, ranks, n, k, bytes, min_ms, median_ms, max_ms, exchange_ms, speedup,
 * best_dense, cpu_ms, wrong}]}; the rows of baselines count no bytes.
 * Ends with 1 when anything is wrong. Uses the public interface alone, but for memory on a GPU. */
#include <dlfcn.h>
#include <libgen.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "gpu_memory.h"
#include "gtopk.h"

#define MAX_SIZES 16
#define ALGORITHMS 5
#define BASELINES 5
#define DENSE_BASELINES 2 /* the first of them add up in fp32 */
#define NOT_DENSE (-1)
#define ROWS (ALGORITHMS + BASELINES)
#define SEGMENT_LENGTH ((uint64_t)1 << 18) /* the check goes segment by segment */
#define TOLERANCE 1e-5

typedef struct name {
    const char *text;
    int32_t value;
} name_t;

static const name_t ALGORITHM_NAMES[ALGORITHMS + 1] = {{"dense", GTOPK_ALGORITHM_DENSE},
                                                       {"topk", GTOPK_ALGORITHM_TOPK},
                                                       {"gtopk", GTOPK_ALGORITHM_GTOPK},
                                                       {"gtopk-tree", GTOPK_ALGORITHM_GTOPK_TREE},
                                                       {"gtopk-split", GTOPK_ALGORITHM_GTOPK_SPLIT},
                                                       {NULL, 0}};
static const name_t VALUE_NAMES[] = {{"f32", GTOPK_VALUE_F32},
                                     {"f16", GTOPK_VALUE_F16},
                                     {"bf16", GTOPK_VALUE_BF16},
                                     {"int8", GTOPK_VALUE_I8},
                                     {NULL, 0}};

static const name_t HIERARCHY_NAMES[] = {
    {"off", GTOPK_HIERARCHY_OFF}, {"node", GTOPK_HIERARCHY_NODE}, {"auto", GTOPK_HIERARCHY_AUTO}, {NULL, 0}};

/* What MPI does without gtopk: baseline_mpi.c. BARE and GATHER add nothing up. */
enum { BARE = 3, GATHER = 4 };
typedef int (*sum_fn)(float *values, float *scratch, uint64_t count);
typedef int (*exchange_fn)(const void *out, void *in, uint64_t bytes, int distance);
typedef int (*gather_fn)(const void *out, void *in, uint64_t bytes);

typedef struct baselines {
    int count; /* 0: none are there */
    sum_fn sums[BARE];
    exchange_fn exchange;
    gather_fn gather;
} baselines_t;

static const char *const BASELINE_NAMES[BASELINES] = {"MPI_Allreduce", "MPI ring", "ring bf16", "bare", "all-gather"};

typedef struct options {
    uint64_t sizes[MAX_SIZES];
    size_t size_count;
    name_t algorithms[ALGORITHMS];
    size_t algorithm_count;
    name_t value_type, hierarchy;
    double density;
    int iterations, warmup;
    size_t checked; /* segments */
    const char *device, *transport, *json, *interface;
} options_t;

/* Of one step on this rank: seconds in all, and those at which the exchange began and ended. */
typedef struct taken {
    double step, begin, end, cpu;
} taken_t;

/* What is known of one algorithm at one size. Times are of this rank while measuring, then of the slowest. */
typedef struct row {
    name_t algorithm;
    uint64_t n, k, bytes, wrong;
    double counted; /* bytes that the interface sent, in all measured steps, barriers included; then in one */
    double *step, *begin, *end; /* [iterations], seconds */
    double min_ms, median_ms, max_ms, exchange_ms, cpu_ms, speedup;
    const char *best_dense;
} row_t;

/* The memory of one size, shared by its algorithms. */
typedef struct arena {
    uint64_t n;
    size_t segments, checked; /* the first of them are checked */
    uint64_t *lengths;
    float *gradient; /* what each step starts from */
    float *work;     /* the gradient that is given away and becomes the update */
    float *given;    /* where it is when it is given away: work, or on the GPU */
    float *before;   /* the residual before the step that is checked; scratch of baselines */
    gtopk_tensor_t *tensors;
} arena_t;

/* Not NULL: gradients and updates lie on a GPU. */
static const cuda_driver_t *driver;

/* All ranks are on one machine, and so have one clock. */
static int one_clock;

/* ---- errors and options ---- */

static const char USAGE[] = "mpirun -n RANKS allreduce_bench [options]\n"
                            "  --sizes N,..        entries of the gradient (100000,1000000,10000000)\n"
                            "  --density D         share of the entries that a rank sends (0.001)\n"
                            "  --value-type T      f32, f16, bf16 or int8 (bf16)\n"
                            "  --algorithms A,..   dense, topk, gtopk, gtopk-tree, gtopk-split (all)\n"
                            "  --hierarchy H       off, node or auto (off)\n"
                            "  --iterations I      steps that are measured (10)\n"
                            "  --warmup W          steps before them (2)\n"
                            "  --device D          cpu, cuda or reference (GTOPK_DEVICE, else cpu)\n"
                            "  --transport T       mpi or self, or nccl, beside mpi (mpi)\n"
                            "  --check C           segments of 2^18 entries that are checked in the end (all)\n"
                            "  --interface I       a network interface whose counter of sent bytes to read (none)\n"
                            "  --json FILE         also write the table as JSON\n";

static void fail(const char *what, const char *why)
{
    (void)fprintf(stderr, "allreduce_bench: %s: %s\n", what, why);
    exit(1);
}

static void check(gtopk_status_t status, const char *what)
{
    if (status != GTOPK_OK)
        fail(what, gtopk_last_error());
}

static void *allocate(size_t count, size_t size)
{
    void *block = calloc(count ? count : 1, size);
    if (!block)
        fail("out of memory", "give smaller --sizes");
    return block;
}

static name_t find_name(const name_t *names, const char *text, size_t length, const char *option)
{
    for (; names->text; names++)
        if (strlen(names->text) == length && strncmp(names->text, text, length) == 0)
            return *names;
    fail(option, "no such name; --help lists them");
    return *names;
}

static double parse_number(const char *text, const char *option, double low, double high)
{
    char *end;
    const double number = strtod(text, &end);
    if (end == text || (*end && *end != ',') || !(number >= low) || !(number <= high))
        fail(option, "not a number, or out of range");
    return number;
}

static size_t parse_sizes(const char *text, uint64_t *sizes)
{
    size_t count = 0;
    for (; text; text = strchr(text, ',') ? strchr(text, ',') + 1 : NULL) {
        if (count == MAX_SIZES)
            fail("--sizes", "too many");
        sizes[count++] = (uint64_t)parse_number(text, "--sizes", 1, UINT32_MAX);
    }
    return count;
}

static size_t parse_algorithms(const char *text, name_t *algorithms)
{
    size_t count = 0;
    for (;; text++) {
        const size_t length = strcspn(text, ",");
        if (count == ALGORITHMS)
            fail("--algorithms", "too many");
        algorithms[count++] = find_name(ALGORITHM_NAMES, text, length, "--algorithms");
        text += length;
        if (!*text)
            return count;
    }
}

static options_t parse_options(int argc, char **argv)
{
    options_t o = {.sizes = {100000, 1000000, 10000000},
                   .size_count = 3,
                   .algorithm_count = ALGORITHMS,
                   .value_type = {"bf16", GTOPK_VALUE_BF16},
                   .hierarchy = {"off", GTOPK_HIERARCHY_OFF},
                   .density = 0.001,
                   .iterations = 10,
                   .warmup = 2,
                   .checked = SIZE_MAX,
                   .transport = "mpi"};
    memcpy(o.algorithms, ALGORITHM_NAMES, sizeof o.algorithms);
    for (int i = 1; i < argc; i += 2) {
        const char *option = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(option, "--help") == 0) {
            (void)fputs(USAGE, stdout);
            exit(0);
        }
        if (!value)
            fail(option, "no such option, or it needs a value; --help lists them");
        if (strcmp(option, "--sizes") == 0)
            o.size_count = parse_sizes(value, o.sizes);
        else if (strcmp(option, "--algorithms") == 0)
            o.algorithm_count = parse_algorithms(value, o.algorithms);
        else if (strcmp(option, "--value-type") == 0)
            o.value_type = find_name(VALUE_NAMES, value, strlen(value), option);
        else if (strcmp(option, "--hierarchy") == 0)
            o.hierarchy = find_name(HIERARCHY_NAMES, value, strlen(value), option);
        else if (strcmp(option, "--density") == 0)
            o.density = parse_number(value, option, 1e-9, 1);
        else if (strcmp(option, "--iterations") == 0)
            o.iterations = (int)parse_number(value, option, 1, 100000);
        else if (strcmp(option, "--warmup") == 0)
            o.warmup = (int)parse_number(value, option, 0, 100000);
        else if (strcmp(option, "--device") == 0)
            o.device = value;
        else if (strcmp(option, "--transport") == 0)
            o.transport = value;
        else if (strcmp(option, "--check") == 0)
            o.checked = (size_t)parse_number(value, option, 0, UINT32_MAX);
        else if (strcmp(option, "--interface") == 0)
            o.interface = value;
        else if (strcmp(option, "--json") == 0)
            o.json = value;
        else
            fail(option, "no such option; --help lists them");
    }
    return o;
}

/* ---- data ---- */

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* In (-1, 1), the same everywhere for the same seed: splitmix64. */
static double random_of(uint64_t seed)
{
    uint64_t x = seed * 0x9e3779b97f4a7c15u + 0x632be59bd9b4e019u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    x ^= x >> 31;
    return ldexp((double)(x >> 11), -52) - 1.0;
}

/* Few large entries and many small ones; half of each value is common to all ranks, as gradients of one model are. */
static void fill_gradient(float *gradient, uint64_t n, int32_t rank)
{
    for (uint64_t i = 0; i < n; i++) {
        const double common = random_of(i), own = random_of(i ^ (uint64_t)(rank + 1) << 40);
        gradient[i] = (float)(0.5 * pow(common, 5.0) + 0.5 * pow(own, 5.0));
    }
}

static arena_t arena_create(uint64_t n, int32_t rank)
{
    arena_t a = {.n = n, .segments = (size_t)((n + SEGMENT_LENGTH - 1) / SEGMENT_LENGTH)};
    a.lengths = allocate(a.segments, sizeof *a.lengths);
    a.tensors = allocate(a.segments, sizeof *a.tensors);
    a.gradient = allocate(n, sizeof *a.gradient);
    a.work = allocate(n, sizeof *a.work);
    a.before = allocate(n, sizeof *a.before);
    a.given = driver ? gpu_allocate(driver, n * sizeof *a.given) : a.work;
    if (!a.given)
        fail("out of memory on the GPU", "give smaller --sizes");
    for (size_t s = 0; s < a.segments; s++) {
        const uint64_t begin = s * SEGMENT_LENGTH;
        a.lengths[s] = n - begin < SEGMENT_LENGTH ? n - begin : SEGMENT_LENGTH;
        a.tensors[s] = (gtopk_tensor_t){a.given + begin, a.lengths[s], GTOPK_F32, 0};
    }
    fill_gradient(a.gradient, n, rank);
    return a;
}

static void arena_destroy(arena_t *a)
{
    if (driver)
        gpu_free(driver, a->given);
    free(a->lengths);
    free(a->tensors);
    free(a->gradient);
    free(a->work);
    free(a->before);
}

/* ---- measuring ---- */

static double now(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Of all threads so far. */
static double cpu_seconds(void)
{
    struct rusage used;
    (void)getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           1e-6 * (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

/* Whether all ranks were booted with one kernel. */
static int on_one_machine(gtopk_comm_t *comm)
{
    char boot[64] = "", *all = allocate((size_t)gtopk_comm_size(comm), sizeof boot);
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "r");
    int same = file && fgets(boot, sizeof boot, file);
    if (file)
        (void)fclose(file);
    check(gtopk_allgather(comm, boot, sizeof boot, all), "allgather");
    for (int32_t r = 0; r < gtopk_comm_size(comm); r++)
        same = same && memcmp(all + (size_t)r * sizeof boot, boot, sizeof boot) == 0;
    free(all);
    return same;
}

/* The time from which a step counts: all ranks are ready. */
static double start_step(gtopk_comm_t *comm, double *zero)
{
    check(gtopk_barrier(comm), "barrier");
    const double start = now();
    *zero = one_clock ? 0.0 : start;
    return start;
}

/* One step from a fresh gradient. */
static taken_t run_step(gtopk_comm_t *comm, gtopk_reducer_t *reducer, arena_t *a, gtopk_stats_t *stats)
{
    double zero;
    if (!driver)
        memcpy(a->work, a->gradient, a->n * sizeof *a->work);
    else if (!gpu_copy(driver, a->given, a->gradient, a->n * sizeof *a->work))
        fail("the GPU", "a copy failed");
    stats->struct_size = sizeof *stats;
    const double start = start_step(comm, &zero), cpu = cpu_seconds();
    check(gtopk_reducer_accumulate(reducer, NULL, a->tensors, a->segments, 1.0, GTOPK_ZERO_INPUT | GTOPK_INPUT_STAYS,
                                   NULL),
          "accumulate");
    const double accumulated = now();
    check(gtopk_reducer_reduce(reducer, a->tensors, a->segments, GTOPK_OUTPUT_IS_ZERO, NULL, stats), "reduce");
    check(gtopk_reducer_wait(reducer, NULL), "wait");
    const double begin = accumulated - zero + stats->select_s;
    return (taken_t){now() - start, begin, begin + stats->exchange_s, cpu_seconds() - cpu};
}

/* Indices of one segment that are wrong; the same number on every rank. `sums` holds three numbers an entry: the mass
 * that left, its size, and on how many ranks the update is another. */
static uint64_t check_segment(gtopk_comm_t *comm, gtopk_reducer_t *reducer, const arena_t *a, size_t segment,
                              float *after, float *first, double *sums)
{
    const uint64_t length = a->lengths[segment], begin = segment * SEGMENT_LENGTH;
    const float *gradient = a->gradient + begin, *before = a->before + begin, *update = a->work + begin;
    const double ranks = gtopk_comm_size(comm);
    uint64_t wrong = 0;
    check(gtopk_reducer_residual(reducer, (uint32_t)segment, after, length), "residual");
    memcpy(first, update, length * sizeof *first);
    check(gtopk_broadcast(comm, first, length * sizeof *first, 0), "broadcast");
    for (uint64_t i = 0; i < length; i++) {
        const double mass = (double)before[i] + (double)gradient[i];
        sums[3 * i] = mass - (double)after[i];
        sums[3 * i + 1] = fabs(mass);
        sums[3 * i + 2] = bits_of(first[i]) != bits_of(update[i]);
    }
    check(gtopk_allreduce(comm, sums, 3 * length, GTOPK_F64), "allreduce");
    for (uint64_t i = 0; i < length; i++) {
        const double off = fabs(sums[3 * i] - ranks * (double)first[i]);
        wrong += !(off <= TOLERANCE * sums[3 * i + 1]) || sums[3 * i + 2] > 0.0;
    }
    return wrong;
}

static uint64_t check_step(gtopk_comm_t *comm, gtopk_reducer_t *reducer, arena_t *a)
{
    gtopk_stats_t stats = {0};
    uint64_t wrong = 0;
    float *after = allocate(SEGMENT_LENGTH, sizeof *after), *first = allocate(SEGMENT_LENGTH, sizeof *first);
    double *sums = allocate(SEGMENT_LENGTH, 3 * sizeof *sums);
    for (size_t s = 0; s < a->segments; s++)
        check(gtopk_reducer_residual(reducer, (uint32_t)s, a->before + s * SEGMENT_LENGTH, a->lengths[s]), "residual");
    (void)run_step(comm, reducer, a, &stats);
    if (driver && !gpu_copy(driver, a->work, a->given, a->n * sizeof *a->work))
        fail("the GPU", "a copy failed");
    for (size_t s = 0; s < a->checked; s++)
        wrong += check_segment(comm, reducer, a, s, after, first, sums);
    free(after);
    free(first);
    free(sums);
    return wrong;
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Each iteration's value on the rank where it is highest. */
static void take_highest(gtopk_comm_t *comm, double *values, int count)
{
    const int32_t size = gtopk_comm_size(comm);
    double *all = allocate((size_t)size * (size_t)count, sizeof *all);
    check(gtopk_allgather(comm, values, (size_t)count * sizeof *values, all), "allgather");
    for (int i = 0; i < count; i++)
        for (int32_t r = 0; r < size; r++)
            values[i] = fmax(values[i], all[(size_t)r * (size_t)count + (size_t)i]);
    free(all);
}

/* Sorts them. */
static double median(double *values, int count)
{
    qsort(values, (size_t)count, sizeof *values, compare_doubles);
    return 0.5 * (values[(count - 1) / 2] + values[count / 2]);
}

static void summarise(gtopk_comm_t *comm, row_t *row, int iterations)
{
    double bytes = (double)row->bytes;
    take_highest(comm, row->step, iterations);
    take_highest(comm, row->begin, iterations);
    take_highest(comm, row->end, iterations);
    take_highest(comm, &bytes, 1);
    row->counted /= iterations;
    take_highest(comm, &row->counted, 1);
    check(gtopk_allreduce(comm, &row->cpu_ms, 1, GTOPK_F64), "allreduce");
    row->cpu_ms *= 1e3 / iterations / gtopk_comm_size(comm);
    row->bytes = (uint64_t)bytes;
    for (int i = 0; i < iterations; i++)
        row->end[i] -= row->begin[i];
    row->exchange_ms = 1e3 * median(row->end, iterations);
    row->median_ms = 1e3 * median(row->step, iterations);
    row->min_ms = 1e3 * row->step[0];
    row->max_ms = 1e3 * row->step[iterations - 1];
    free(row->step);
    free(row->begin);
    free(row->end);
}

/* ---- baselines ---- */

/* Those of baseline_mpi.so in this program's folder, for a communicator that uses MPI. */
static baselines_t open_baselines(const gtopk_comm_t *comm)
{
    char program[PATH_MAX] = "", file[PATH_MAX + 32];
    baselines_t b = {0};
    if (strncmp(gtopk_comm_describe(comm), "mpi", 3) != 0 ||
        readlink("/proc/self/exe", program, sizeof program - 1) < 0)
        return b;
    (void)snprintf(file, sizeof file, "%s/baseline_mpi.so", dirname(program));
    void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return b;
    *(void **)&b.sums[0] = dlsym(library, "baseline_allreduce");
    *(void **)&b.sums[1] = dlsym(library, "baseline_ring");
    *(void **)&b.exchange = dlsym(library, "baseline_exchange");
    *(void **)&b.sums[2] = dlsym(library, "baseline_ring_bf16");
    *(void **)&b.gather = dlsym(library, "baseline_allgather");
    if (b.sums[0] && b.sums[1] && b.sums[2] && b.exchange && b.gather)
        b.count = BASELINES;
    return b;
}

/* One turn of a baseline. BARE does what gtopk's rounds send, `bytes` in all; GATHER sends what Top-k does without
 * a codec, k entries of 8 bytes. */
static taken_t run_baseline(gtopk_comm_t *comm, const baselines_t *b, int which, arena_t *a, uint64_t bytes, uint64_t k)
{
    int code = 0, rounds = 0;
    double zero;
    while ((1 << rounds) < gtopk_comm_size(comm))
        rounds++;
    const size_t ranks = (size_t)gtopk_comm_size(comm);
    char *gathered = which == GATHER ? allocate((ranks + 1) * k, 8) : NULL;
    memcpy(a->work, a->gradient, a->n * sizeof *a->work);
    const double start = start_step(comm, &zero), cpu = cpu_seconds();
    if (which < BARE)
        code = b->sums[which](a->work, a->before, a->n);
    else if (which == GATHER)
        code = b->gather(gathered + ranks * k * 8, gathered, 8 * k);
    for (int round = 0; which == BARE && round < rounds && code == 0; round++)
        code = b->exchange(a->work, a->before, bytes / (uint64_t)rounds, 1 << round);
    const double end = now();
    free(gathered);
    if (code != 0)
        fail(BASELINE_NAMES[which], "MPI reported an error");
    return (taken_t){end - start, start - zero, end - zero, cpu_seconds() - cpu};
}

/* Sums of the last turn that are wrong. */
static uint64_t check_baseline(gtopk_comm_t *comm, const baselines_t *b, int which, arena_t *a)
{
    double *sums = allocate(SEGMENT_LENGTH, 2 * sizeof *sums);
    uint64_t wrong = 0;
    (void)run_baseline(comm, b, which, a, 0, 0);
    for (size_t s = 0; s < a->checked; s++) {
        const uint64_t begin = s * SEGMENT_LENGTH;
        for (uint64_t i = 0; i < a->lengths[s]; i++) {
            sums[2 * i] = a->gradient[begin + i];
            sums[2 * i + 1] = fabs((double)a->gradient[begin + i]);
        }
        check(gtopk_allreduce(comm, sums, 2 * a->lengths[s], GTOPK_F64), "allreduce");
        for (uint64_t i = 0; i < a->lengths[s]; i++)
            wrong += !(fabs(sums[2 * i] - (double)a->work[begin + i]) <= TOLERANCE * sums[2 * i + 1]);
    }
    free(sums);
    return wrong;
}

/* ---- all of one size ---- */

static void start_row(row_t *row, const options_t *o, name_t algorithm, uint64_t n)
{
    *row = (row_t){.algorithm = algorithm, .n = n};
    row->step = allocate((size_t)o->iterations, sizeof *row->step);
    row->begin = allocate((size_t)o->iterations, sizeof *row->begin);
    row->end = allocate((size_t)o->iterations, sizeof *row->end);
}

static int is_dense(const row_t *row)
{
    return row->algorithm.value == GTOPK_ALGORITHM_DENSE;
}

/* Bytes that the interface has sent so far; 0: none is named. */
static double sent_so_far(gtopk_comm_t *comm, const options_t *o)
{
    char path[256];
    double bytes = 0.0;
    if (!o->interface)
        return bytes;
    check(gtopk_barrier(comm), "barrier"); /* all ranks are through, so all of it has left */
    (void)snprintf(path, sizeof path, "/sys/class/net/%s/statistics/tx_bytes", o->interface);
    FILE *file = fopen(path, "r");
    if (!file || fscanf(file, "%lf", &bytes) != 1)
        fail(path, "cannot be read: is that an interface's name?");
    (void)fclose(file);
    return bytes;
}

static void compare_with_best(row_t *rows, size_t count)
{
    const row_t *best = NULL;
    for (size_t r = 0; r < count; r++)
        if (is_dense(&rows[r]) && (!best || rows[r].median_ms < best->median_ms))
            best = &rows[r];
    for (size_t r = 0; r < count && best; r++) {
        rows[r].speedup = best->median_ms / rows[r].median_ms;
        rows[r].best_dense = best->algorithm.text;
    }
}

/* All algorithms and baselines take turns: row by row in rows[]. Returns how many rows there are. */
static size_t measure_size(gtopk_comm_t *comm, const options_t *o, const baselines_t *b, uint64_t n, row_t *rows)
{
    gtopk_reducer_t *reducers[ALGORITHMS];
    arena_t a = arena_create(n, gtopk_comm_rank(comm));
    a.checked = o->checked < a.segments ? o->checked : a.segments;
    const size_t algorithms = o->algorithm_count, count = algorithms + (n <= INT_MAX ? (size_t)b->count : 0);
    uint64_t sparse_bytes = 0, sparse_k = 0; /* what gtopk, else the last algorithm, sends */
    for (size_t r = 0; r < algorithms; r++) {
        gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
        config.device = o->device;
        config.density = o->density;
        config.algorithm = o->algorithms[r].value;
        config.value_type = o->value_type.value;
        config.hierarchy = o->hierarchy.value;
        check(gtopk_reducer_create(&reducers[r], comm, &config, a.lengths, a.segments), "creating a reducer");
        start_row(&rows[r], o, o->algorithms[r], n);
    }
    for (size_t r = algorithms; r < count; r++)
        start_row(&rows[r], o,
                  (name_t){BASELINE_NAMES[r - algorithms],
                           r < algorithms + DENSE_BASELINES ? GTOPK_ALGORITHM_DENSE : NOT_DENSE},
                  n);
    for (int i = -o->warmup; i < o->iterations; i++)
        for (size_t r = 0; r < count; r++) {
            gtopk_stats_t stats = {0};
            const double before = sent_so_far(comm, o);
            const taken_t taken = r < algorithms
                                      ? run_step(comm, reducers[r], &a, &stats)
                                      : run_baseline(comm, b, (int)(r - algorithms), &a, sparse_bytes, sparse_k);
            if (r < algorithms && !is_dense(&rows[r]) &&
                (rows[r].algorithm.value == GTOPK_ALGORITHM_GTOPK || sparse_bytes == 0)) {
                sparse_bytes = stats.bytes_sent;
                sparse_k = stats.k;
            }
            if (i < 0)
                continue;
            rows[r].counted += sent_so_far(comm, o) - before;
            rows[r].step[i] = taken.step;
            rows[r].begin[i] = taken.begin;
            rows[r].end[i] = taken.end;
            rows[r].cpu_ms += taken.cpu;
            rows[r].bytes = stats.bytes_sent;
            rows[r].k = is_dense(&rows[r]) ? n : stats.k;
        }
    for (size_t r = 0; r < count; r++) {
        if (r < algorithms)
            rows[r].wrong = check_step(comm, reducers[r], &a);
        else if (is_dense(&rows[r]))
            rows[r].wrong = check_baseline(comm, b, (int)(r - algorithms), &a);
        summarise(comm, &rows[r], o->iterations);
        if (r < algorithms)
            gtopk_reducer_destroy(reducers[r]);
    }
    compare_with_best(rows, count);
    arena_destroy(&a);
    return count;
}

/* ---- results ---- */

static void print_head(gtopk_comm_t *comm, const options_t *o)
{
    (void)printf(
        "# gtopk %d.%d.%d allreduce_bench: %d ranks, %s, values %s, density %g, %d steps after %d to warm up\n",
        GTOPK_VERSION_MAJOR, GTOPK_VERSION_MINOR, GTOPK_VERSION_PATCH, (int)gtopk_comm_size(comm),
        gtopk_comm_describe(comm), o->value_type.text, o->density, o->iterations, o->warmup);
    (void)printf("#\n# %11s %11s %10s  %-13s %10s %10s %10s %10s %10s %12s %9s %7s\n", "size", "entries", "k",
                 "algorithm", "min", "median", "max", "exchange", "CPU", "wire", "speed-up", "wrong");
    (void)printf("# %11s %11s %10s  %-13s %10s %10s %10s %10s %10s %12s %9s %7s\n", "(B)", "", "", "", "(ms)", "(ms)",
                 "(ms)", "(ms)", "(ms)", "(B)", "", "");
}

static void print_row(const row_t *row)
{
    char speedup[32] = "-";
    if (row->speedup > 0.0)
        (void)snprintf(speedup, sizeof speedup, "%.2f", row->speedup);
    (void)printf("  %11llu %11llu %10llu  %-13s %10.3f %10.3f %10.3f %10.3f %10.3f %12llu %9s %7llu\n",
                 (unsigned long long)row->n * sizeof(float), (unsigned long long)row->n, (unsigned long long)row->k,
                 row->algorithm.text, row->min_ms, row->median_ms, row->max_ms, row->exchange_ms, row->cpu_ms,
                 (unsigned long long)row->bytes, speedup, (unsigned long long)row->wrong);
    (void)fflush(stdout);
}

static void write_string(FILE *file, const char *text)
{
    for (; *text; text++)
        if (*text == '"' || *text == '\\')
            (void)fprintf(file, "\\%c", *text);
        else
            (void)fputc((unsigned char)*text < 0x20 ? ' ' : *text, file);
}

/* "AMD EPYC 7763, 2 cores": enough to compare, and not the machine's name. */
static void write_machine(FILE *file)
{
    char line[256], model[256] = "unknown CPU";
    int cores = 0;
    FILE *info = fopen("/proc/cpuinfo", "r");
    while (info && fgets(line, sizeof line, info)) {
        cores += strncmp(line, "processor", 9) == 0;
        const char *colon = strncmp(line, "model name", 10) == 0 ? strchr(line, ':') : NULL;
        if (colon)
            (void)snprintf(model, sizeof model, "%.*s", (int)strcspn(colon + 1, "\n"), colon + 1);
    }
    if (info)
        (void)fclose(info);
    write_string(file, model + strspn(model, " "));
    (void)fprintf(file, ", %d cores", cores);
}

static void write_json(const char *path, int argc, char **argv, const row_t *rows, size_t count, int32_t ranks)
{
    FILE *file = fopen(path, "w");
    if (!file)
        fail(path, "cannot be written");
    (void)fprintf(file, "{\"machine\": \"");
    write_machine(file);
    (void)fprintf(file, "\",\n \"command\": \"mpirun -n %d", (int)ranks);
    for (int i = 0; i < argc; i++) {
        const char *slash = i == 0 ? strrchr(argv[0], '/') : NULL;
        (void)fputc(' ', file);
        write_string(file, slash ? slash + 1 : argv[i]);
    }
    (void)fprintf(file, "\",\n \"rows\": [");
    for (size_t r = 0; r < count; r++) {
        const row_t *row = &rows[r];
        (void)fprintf(
            file,
            "%s\n  {\"algorithm\": \"%s\", \"ranks\": %d, \"n\": %llu, \"k\": %llu, \"bytes\": %llu, \"min_ms\": %.4f, ",
            r ? "," : "", row->algorithm.text, (int)ranks, (unsigned long long)row->n, (unsigned long long)row->k,
            (unsigned long long)row->bytes, row->min_ms);
        (void)fprintf(file, "\"median_ms\": %.4f, \"max_ms\": %.4f, \"exchange_ms\": %.4f, \"cpu_ms\": %.4f, ",
                      row->median_ms, row->max_ms, row->exchange_ms, row->cpu_ms);
        if (row->speedup > 0.0)
            (void)fprintf(file, "\"speedup\": %.4f, \"best_dense\": \"%s\", ", row->speedup, row->best_dense);
        else
            (void)fprintf(file, "\"speedup\": null, ");
        if (row->counted > 0.0)
            (void)fprintf(file, "\"counted_bytes\": %.0f, ", row->counted);
        (void)fprintf(file, "\"wrong\": %llu}", (unsigned long long)row->wrong);
    }
    (void)fprintf(file, "\n ]}\n");
    if (fclose(file) != 0)
        fail(path, "cannot be written");
}

int main(int argc, char **argv)
{
    const options_t o = parse_options(argc, argv);
    gtopk_comm_config_t config = GTOPK_COMM_CONFIG_INIT;
    gtopk_comm_t *comm;
    row_t rows[MAX_SIZES * ROWS];
    size_t count = 0;
    uint64_t wrong = 0;
    const int over_nccl = strcmp(o.transport, "nccl") == 0;
    const char *device = o.device ? o.device : getenv("GTOPK_DEVICE");
    if (device && strcmp(device, "cuda") == 0 && !gpu_start(&driver))
        fail("--device cuda", gtopk_last_error());
    config.transport = over_nccl ? "mpi" : o.transport;
    config.data = over_nccl ? "nccl" : NULL;
    check(gtopk_comm_create(&comm, &config), "creating the communicator");
    one_clock = on_one_machine(comm);
    const baselines_t baselines = open_baselines(comm);
    const int32_t rank = gtopk_comm_rank(comm), ranks = gtopk_comm_size(comm);
    if (rank == 0)
        print_head(comm, &o);
    for (size_t s = 0; s < o.size_count; s++) {
        const size_t end = count + measure_size(comm, &o, &baselines, o.sizes[s], rows + count);
        for (; count < end; count++) {
            wrong += rows[count].wrong;
            if (rank == 0)
                print_row(&rows[count]);
        }
        if (rank == 0 && rows[end - 1].best_dense)
            (void)printf("# best dense: %s\n", rows[end - 1].best_dense);
    }
    if (rank == 0 && o.json)
        write_json(o.json, argc, argv, rows, count, ranks);
    gtopk_comm_destroy(comm);
    check(gtopk_finalize(), "finalize");
    return wrong > 0;
}
