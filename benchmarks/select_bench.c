/* How fast the CPU device is, per operation and in sum, as ratios to a bare `r += g` loop that runs in between. Prints
 * a table and, with --json FILE, the same as JSON (times in milliseconds, medians).
 *
 *   select_bench [--n N,..] [--density D,..] [--threads T,..] [--repeat R] [--trace FILE] [--json FILE]
 *
 * Columns: bare       r += g over n floats: 12 bytes an entry
 *          acc        accumulate with zeroing, predicted threshold right; /bare: as a ratio (16 bytes an entry)
 *          select     exact k of the candidates, sorted
 *          commit     clear what was sent and write k means into zeroed outputs
 *          first      accumulate + select when nothing is known of the threshold
 *          miss       accumulate + select when the prediction was 4 times too high
 *          B/n        bytes an entry that the store holds: 4 for the residual, the rest for the candidates
 *          merge..    two sets of k that share about a quarter of their entries; k are kept; bf16 values, with CRC
 *
 * --trace FILE: gradients recorded from a training run, as many floats a step as --n says, steps one after the other.
 * Prints for each density how often the prediction was right, the candidates, and the time of a step. */
#include <errno.h>
#include <malloc.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "device/cpu/isa.h"
#include "device/cpu/store.h"
#include "select_data.h"
#include "select_team.h"
#include "util/clock.h"
#include "util/memory.h"

#define MAX_LIST 16
#define MAX_REPEAT 1001
#define WARM_STEPS 6

typedef struct options {
    double n[MAX_LIST], density[MAX_LIST], threads[MAX_LIST];
    size_t n_count, density_count, thread_count;
    int repeat;
    const char *json, *trace;
} options_t;

/* ---- the loop to compare with ---- */

typedef struct bare {
    float *r;
    const float *g;
} bare_t;

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
static void bare_loop(float *restrict r, const float *restrict g, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        r[i] += g[i];
}

static void bare_body(int64_t begin, int64_t end, void *arg)
{
    const bare_t *bare = arg;
    bare_loop(bare->r + begin, bare->g + begin, end - begin);
}

/* ---- times ---- */

typedef struct times {
    double of[MAX_REPEAT];
    int count;
} times_t;

static int compare_double(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median_ms(times_t *times)
{
    if (times->count == 0)
        return 0;
    qsort(times->of, (size_t)times->count, sizeof times->of[0], compare_double);
    return 1e3 * times->of[times->count / 2];
}

static void add_time(times_t *times, double begin)
{
    double now = clock_now();
    times->of[times->count++] = now - begin;
}

typedef struct row {
    uint64_t n, k;
    double density;
    int threads;
    double bare, accumulate, select, commit, first, miss, merge, deposit, encode, decode;
    double candidates, miss_rate, store_bytes;
} row_t;

/* ---- one step ---- */

typedef struct bench {
    device_t *device;
    device_store_t *store;
    device_accumulate_t params;
    device_words_t words;
    device_set_t selected, none;
    float *gradient;
    uint64_t n, k, candidates, misses, steps;
} bench_t;

static void accumulate(bench_t *b)
{
    device_span_t span = {.offset = 0, .length = b->n, .data = b->gradient, .dtype = GTOPK_F32};
    bench_check(b->device->ops->step_begin(b->store, &b->words, NULL));
    bench_check(b->device->ops->accumulate(b->store, &span, 1, &b->params, &b->words, NULL));
}

static void select_k(bench_t *b)
{
    bench_check(b->device->ops->select(b->store, b->k, &b->selected, &b->words, NULL));
    b->candidates += b->words.candidates;
    b->misses += b->words.misses;
    b->steps++;
}

static void commit(bench_t *b)
{
    device_span_t span = {.offset = 0, .length = b->n, .data = b->gradient, .dtype = GTOPK_F32};
    device_journal_t journal = {.selected = b->selected, .first = b->selected, .final = b->selected, .divisor = 1};
    device_target_t target = {.spans = &span, .count = 1, .are_zero = 1};
    bench_check(b->device->ops->commit(b->store, &journal, &target, &b->words, NULL));
}

static double heap_bytes(void)
{
    const struct mallinfo2 heap = mallinfo2();
    return (double)heap.uordblks + (double)heap.hblkhd;
}

static void measure_step(row_t *row, team_t *team, const float *base, float *r, float *gradient, int repeat)
{
    bench_t b = {.n = row->n, .k = row->k, .gradient = gradient, .params = {.scale = 1.0f, .zero_input = 1}};
    device_parallel_t parallel = {team->size > 1 ? team_run : NULL, team};
    b.selected = set_new(b.k);
    const double before = heap_bytes();
    bench_check(device_cpu_open(&b.device));
    bench_check(b.device->ops->store_create(b.device, b.n, b.k, 0, &parallel, &b.store));

    static times_t bare, acc, sel, com, first, miss;
    bare.count = acc.count = sel.count = com.count = first.count = miss.count = 0;
    bare_t loop = {r, gradient};
    uint64_t step = 0;
    for (int i = -WARM_STEPS; i < repeat; i++) {
        gradient_fill(gradient, base, row->n, step++);
        double begin = clock_now();
        if (team->size > 1)
            team_run(team, 0, (int64_t)row->n, 1, bare_body, &loop);
        else
            bare_body(0, (int64_t)row->n, &loop);
        add_time(&bare, begin);

        gradient_fill(gradient, base, row->n, step);
        begin = clock_now();
        accumulate(&b);
        add_time(&acc, begin);
        begin = clock_now();
        select_k(&b);
        add_time(&sel, begin);
        begin = clock_now();
        commit(&b);
        add_time(&com, begin);
        if (i < 0) {
            bare.count = acc.count = sel.count = com.count = 0;
            b.candidates = b.misses = b.steps = 0;
        }
    }
    row->candidates = (double)b.candidates / (double)(b.steps * b.k);
    row->miss_rate = (double)b.misses / (double)b.steps;
    row->store_bytes = (heap_bytes() - before) / (double)row->n; /* after steps: they allocate nothing */

    for (int i = 0; i < (repeat + 2) / 3; i++) {
        gradient_fill(gradient, base, row->n, step++);
        hint_reset(&b.store->hint);
        double begin = clock_now();
        accumulate(&b);
        select_k(&b);
        add_time(&first, begin);
        commit(&b);
        gradient_fill(gradient, base, row->n, step++);
        b.store->hint.last *= 4;
        begin = clock_now();
        accumulate(&b);
        select_k(&b);
        add_time(&miss, begin);
        commit(&b);
    }
    row->bare = median_ms(&bare);
    row->accumulate = median_ms(&acc);
    row->select = median_ms(&sel);
    row->commit = median_ms(&com);
    row->first = median_ms(&first);
    row->miss = median_ms(&miss);
    set_free(&b.selected);
    b.device->ops->store_destroy(b.store);
    b.device->ops->close(b.device);
}

static void measure_sets(row_t *row, int repeat)
{
    device_t *device;
    bench_check(device_cpu_open(&device));
    device_set_t a = set_new(row->k), b = set_new(row->k), kept = set_new(row->k), all = set_new(2 * row->k);
    device_set_t decoded = set_new(row->k), rest = set_new(2 * row->k), received = set_new(row->k);
    device_words_t words = {.ok = 1};
    wire_header_t header = {
        .value_type = GTOPK_VALUE_BF16, .algorithm = GTOPK_ALGORITHM_GTOPK, .dim = (uint32_t)row->n};
    header.k = (uint32_t)row->k;
    const wire_expect_t expect = {
        .value_type = header.value_type, .algorithm = header.algorithm, .dim = header.dim, .k = header.k};
    uint8_t *message;
    bench_check(memory_alloc(&message, wire_message_capacity(row->n, row->k, GTOPK_VALUE_BF16), 1, "a message"));
    static times_t merge, deposit, encode, decode;
    merge.count = deposit.count = encode.count = decode.count = 0;
    for (int i = 0; i < repeat; i++) {
        set_fill(&a, row->n, row->k, 77 + (uint64_t)i * 2);
        set_fill(&b, row->n, row->k, 78 + (uint64_t)i * 2);
        double begin = clock_now();
        bench_check(device->ops->merge(device, &a, &b, row->k, &kept, &all, &words, NULL));
        add_time(&merge, begin);
        begin = clock_now();
        bench_check(device->ops->encode(device, &kept, &header, message, &decoded, &words, NULL));
        size_t bytes = wire_message_size(row->n, *decoded.count, GTOPK_VALUE_BF16);
        wire_seal(message, bytes - WIRE_HEADER_SIZE);
        add_time(&encode, begin);
        begin = clock_now();
        bench_check(device->ops->deposit(device, &all, &decoded, 0.5f, &rest, &words, NULL));
        add_time(&deposit, begin);
        wire_header_t read;
        begin = clock_now();
        bench_check(wire_header_read(message, bytes, 0, &read));
        bench_check(device->ops->decode(device, message, bytes, &expect, &received, &words, NULL));
        add_time(&decode, begin);
    }
    row->merge = median_ms(&merge);
    row->deposit = median_ms(&deposit);
    row->encode = median_ms(&encode);
    row->decode = median_ms(&decode);
    memory_free(message);
    set_free(&a), set_free(&b), set_free(&kept), set_free(&all);
    set_free(&decoded), set_free(&rest), set_free(&received);
    device->ops->close(device);
}

/* ---- recorded gradients ---- */

static void run_trace(const options_t *options, double density)
{
    uint64_t n = (uint64_t)options->n[0];
    FILE *file = fopen(options->trace, "rb");
    if (!file)
        bench_fail(options->trace, strerror(errno));
    bench_t b = {.n = n, .params = {.scale = 1.0f, .zero_input = 1}, .gradient = vector_new((size_t)n)};
    double wanted = rint(density * (double)n);
    b.k = wanted < 1 ? 1 : (uint64_t)wanted;
    b.selected = set_new(b.k);
    bench_check(device_cpu_open(&b.device));
    bench_check(b.device->ops->store_create(b.device, n, b.k, 0, NULL, &b.store));
    double begin, spent = 0;
    while (fread(b.gradient, sizeof *b.gradient, (size_t)n, file) == n) {
        begin = clock_now();
        accumulate(&b);
        select_k(&b);
        commit(&b);
        spent += clock_now() - begin;
    }
    (void)fclose(file);
    if (b.steps == 0)
        bench_fail(options->trace, "holds less than one step of n floats; give its n with --n");
    (void)printf("trace: n %llu, k %llu, steps %llu, hint hit %.2f %%, candidates / k %.2f, %.3f ms a step\n",
                 (unsigned long long)n, (unsigned long long)b.k, (unsigned long long)b.steps,
                 100.0 * (1.0 - (double)b.misses / (double)b.steps), (double)b.candidates / (double)(b.steps * b.k),
                 1e3 * spent / (double)b.steps);
    set_free(&b.selected);
    memory_free(b.gradient);
    b.device->ops->store_destroy(b.store);
    b.device->ops->close(b.device);
}

/* ---- output ---- */

static double copy_bandwidth(void)
{
    size_t n = (size_t)32 << 20;
    float *from = vector_new(n), *to = vector_new(n);
    static times_t times;
    for (int i = 0; i < 9; i++) {
        double begin = clock_now();
        memcpy(to, from, n * sizeof *to);
        add_time(&times, begin);
        from[i] = to[i] + 1.0f;
    }
    memory_free(from);
    memory_free(to);
    return 2.0 * (double)n * sizeof *to / (1e6 * median_ms(&times));
}

static void print_head(void)
{
    (void)printf("%10s %8s %7s %3s | %8s %8s %6s %7s %7s %6s | %6s %6s | %5s %5s %5s | %8s %8s %8s %8s\n", "n",
                 "density", "k", "thr", "bare ms", "acc ms", "/bare", "select", "commit", "rest", "first", "miss",
                 "cand", "hit", "B/n", "merge us", "deposit", "encode", "decode");
}

static void print_row(const row_t *r)
{
    (void)printf(
        "%10llu %8g %7llu %3d | %8.4f %8.4f %6.2f %7.4f %7.4f %5.1f%% | %6.2f %6.2f | %5.2f %4.0f%% %5.2f | %8.1f %8.1f %8.1f %8.1f\n",
        (unsigned long long)r->n, r->density, (unsigned long long)r->k, r->threads, r->bare, r->accumulate,
        r->accumulate / r->bare, r->select, r->commit, 100 * (r->select + r->commit) / r->accumulate,
        r->first / r->bare, r->miss / r->bare, r->candidates, 100 * (1 - r->miss_rate), r->store_bytes, 1e3 * r->merge,
        1e3 * r->deposit, 1e3 * r->encode, 1e3 * r->decode);
    (void)fflush(stdout);
}

static void cpu_name(char *name, size_t size)
{
    (void)snprintf(name, size, "unknown");
    FILE *file = fopen("/proc/cpuinfo", "r");
    char line[256];
    while (file && fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon)
            continue;
        line[strcspn(line, "\n")] = 0;
        (void)snprintf(name, size, "%s", colon + 2);
        break;
    }
    if (file)
        (void)fclose(file);
}

static void write_json(const char *path, const row_t *rows, size_t count, double bandwidth, int argc, char **argv)
{
    FILE *file = fopen(path, "w");
    if (!file)
        bench_fail(path, strerror(errno));
    char cpu[256];
    cpu_name(cpu, sizeof cpu);
    (void)fprintf(
        file,
        "{\n \"machine\": {\"cpu\": \"%s\", \"cores\": %ld, \"isa\": \"%s\", \"copy_gb_s\": %.2f},\n \"command\": \"select_bench",
        cpu, sysconf(_SC_NPROCESSORS_ONLN), device_cpu_isa(), bandwidth);
    for (int i = 1; i < argc; i++)
        (void)fprintf(file, " %s", argv[i]);
    (void)fprintf(file, "\",\n \"rows\": [");
    for (size_t i = 0; i < count; i++) {
        const row_t *r = &rows[i];
        (void)fprintf(
            file,
            "%s\n  {\"n\": %llu, \"density\": %g, \"k\": %llu, \"threads\": %d, \"bare_ms\": %.5f, \"accumulate_ms\": %.5f, "
            "\"select_ms\": %.5f, \"commit_ms\": %.5f, \"first_ms\": %.5f, \"miss_ms\": %.5f, \"merge_ms\": %.5f, "
            "\"deposit_ms\": %.5f, \"encode_ms\": %.5f, \"decode_ms\": %.5f, \"candidates_per_k\": %.3f, \"miss_rate\": %.3f, "
            "\"store_bytes_per_entry\": %.4f, \"accumulate_to_bare\": %.3f, \"rest_to_accumulate\": %.3f}",
            i ? "," : "", (unsigned long long)r->n, r->density, (unsigned long long)r->k, r->threads, r->bare,
            r->accumulate, r->select, r->commit, r->first, r->miss, r->merge, r->deposit, r->encode, r->decode,
            r->candidates, r->miss_rate, r->store_bytes, r->accumulate / r->bare,
            (r->select + r->commit) / r->accumulate);
    }
    (void)fprintf(file, "\n ]\n}\n");
    if (fclose(file) != 0)
        bench_fail(path, strerror(errno));
}

/* ---- main ---- */

static size_t parse_list(const char *text, double *list)
{
    size_t count = 0;
    while (*text && count < MAX_LIST) {
        char *end;
        list[count] = strtod(text, &end);
        if (end == text || list[count] <= 0 || (*end && *end != ','))
            bench_fail(text, "is no list of positive numbers");
        count++;
        text = *end ? end + 1 : end;
    }
    return count;
}

static options_t parse(int argc, char **argv)
{
    options_t o = {.n = {1e4, 1e5, 1e6, 1e7, 25e6, 1e8},
                   .n_count = 6,
                   .density = {1e-4, 1e-3, 1e-2, 5e-2},
                   .density_count = 4,
                   .threads = {1, 2},
                   .thread_count = 2,
                   .repeat = 15};
    for (int i = 1; i < argc; i++) {
        if (i + 1 == argc)
            bench_fail(argv[i], "unknown, or its value is missing; see the head of select_bench.c");
        const char *value = argv[i + 1];
        if (strcmp(argv[i], "--n") == 0)
            o.n_count = parse_list(value, o.n);
        else if (strcmp(argv[i], "--density") == 0)
            o.density_count = parse_list(value, o.density);
        else if (strcmp(argv[i], "--threads") == 0)
            o.thread_count = parse_list(value, o.threads);
        else if (strcmp(argv[i], "--repeat") == 0)
            o.repeat = (int)strtol(value, NULL, 10);
        else if (strcmp(argv[i], "--json") == 0)
            o.json = value;
        else if (strcmp(argv[i], "--trace") == 0)
            o.trace = value;
        else
            bench_fail(argv[i], "unknown option; see the head of select_bench.c");
        i++;
    }
    if (o.repeat < 1 || o.repeat > MAX_REPEAT - WARM_STEPS)
        bench_fail("--repeat", "is out of range");
    return o;
}

int main(int argc, char **argv)
{
    options_t options = parse(argc, argv);
    if (options.trace) {
        for (size_t d = 0; d < options.density_count; d++)
            run_trace(&options, options.density[d]);
        return 0;
    }
    double bandwidth = copy_bandwidth();
    (void)printf("isa %s (of %s), copy %.1f GB/s\n", device_cpu_isa(), device_cpu_isa_supported(), bandwidth);
    print_head();
    static row_t rows[MAX_LIST * MAX_LIST * MAX_LIST];
    size_t count = 0;
    for (size_t i = 0; i < options.n_count; i++) {
        size_t n = (size_t)options.n[i];
        float *base = vector_new(n), *r = vector_new(n), *gradient = vector_new(n);
        uint64_t state = 88172645463325252u;
        for (size_t j = 0; j < n; j++)
            base[j] = random_laplace(&state);
        for (size_t d = 0; d < options.density_count; d++)
            for (size_t t = 0; t < options.thread_count; t++) {
                row_t *row = &rows[count++];
                double k = rint(options.density[d] * (double)n);
                *row = (row_t){.n = n,
                               .k = k < 1 ? 1 : (uint64_t)k,
                               .density = options.density[d],
                               .threads = (int)options.threads[t]};
                team_t team;
                team_open(&team, row->threads);
                measure_step(row, &team, base, r, gradient, options.repeat);
                team_close(&team);
                measure_sets(row, options.repeat);
                print_row(row);
            }
        memory_free(base);
        memory_free(r);
        memory_free(gradient);
    }
    if (options.json)
        write_json(options.json, rows, count, bandwidth, argc, argv);
    return 0;
}
