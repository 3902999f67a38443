/* The speed of the CUDA device, beside a copy from GPU memory to GPU memory in the same run.
 *
 *   build/benchmarks/gpu_bench [--sizes 1M,25M,...] [--repeats R] [--density D] [--json FILE] [--only PART]
 *
 * Parts:
 *   step    whole steps of one rank: accumulate with zeroing (one span), select and encode, verdict, commit. The gradient is
 *           written anew and the L2 cache overwritten before each. `miss`: the store has forgotten its hint.
 *   round   decode, merge, encode, deposit of two sets of k entries
 *   many    200 parameters, aligned as PyTorch's are, and with a first one that skews all others against the residual:
 *           launches and time of the host, and which functions of the driver a step calls (with libcuda_count.so)
 *   nodes   what hierarchy "node" adds: a gradient in float, with zeroing, and the sum of two of them
 *
 * Times are from events of the driver; where it has none (tests/support/libcuda_standin.c) from the host's clock, waiting. Of
 * R repeats the median. GB/s are bytes that must move (accumulate: gradient and residual read and written, so 16 bytes an
 * entry for fp32, 12 for 16-bit types) over time; `of copy`: of what a copy of the same number of bytes reaches.
 *
 * The file is written anew after each row, so that a run that is cut keeps what it had. */
#include <dlfcn.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "device/cuda/driver.h"
#include "device/device.h"
#include "gpu/libcuda_count.h"
#include "wire/convert.h"

enum { MARKS = 8, REPEATS_MAX = 200, SIZES_MAX = 16, SPANS = 200 };

#define TEMPLATE_MAX ((uint64_t)64 << 20) /* entries; longer gradients repeat it */

static struct {
    uint64_t sizes[SIZES_MAX];
    size_t size_count;
    int repeats;
    double density;
    const char *json, *only;
    uint64_t flush_bytes;
} options = {.sizes = {1000000, 4000000, 25000000, 100000000, 1000000000},
             .size_count = 5,
             .repeats = 20,
             .density = 0.001,
             .flush_bytes = (uint64_t)256 << 20};

static const cuda_driver_t *driver;
static device_t *device;
static const device_ops_t *ops;
static cu_context_t context;

static void fail(const char *what, const char *why)
{
    (void)fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static void ok(gtopk_status_t status)
{
    if (status != GTOPK_OK)
        fail(gtopk_status_name(status), gtopk_last_error());
}

static void cu(cu_result_t result, const char *what)
{
    const char *text = "no text";
    if (result != CU_SUCCESS) {
        (void)driver->cuGetErrorString(result, &text);
        fail(what, text);
    }
}

#define CU(call) cu(call, #call)

/* ---- results ---- */

static char *json_rows;
static size_t json_length;

static void json_add(const char *text)
{
    const size_t length = strlen(text);
    json_rows = realloc(json_rows, json_length + length + 8);
    if (!json_rows)
        fail("results", "no memory");
    (void)sprintf(json_rows + json_length, "%s\n  %s", json_length ? "," : "", text);
    json_length += strlen(json_rows + json_length);
    if (!options.json)
        return;
    FILE *file = fopen(options.json, "w");
    if (!file)
        fail(options.json, "cannot be written");
    (void)fprintf(file, "[%s\n]\n", json_rows);
    (void)fclose(file);
}

/* ---- time ---- */

typedef cu_result_t (*elapsed_fn)(float *milliseconds, cu_event_t begin, cu_event_t end);

static cu_event_t events[MARKS];
static elapsed_fn elapsed;
static double host_times[MARKS];

static double now(void)
{
    struct timespec time;
    (void)clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* cuEventElapsedTime, which the library itself does not use. */
static void *driver_symbol(const char *name)
{
    const char *named = getenv("GTOPK_CUDA_DRIVER");
    void *library = dlopen(named && *named ? named : "libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    return library ? dlsym(library, name) : NULL;
}

static void clock_open(void)
{
    typedef cu_result_t (*get_address_fn)(const char *, void **, int, uint64_t, int *);
    get_address_fn get_address;
    void *symbol = driver_symbol("cuGetProcAddress_v2"), *found = NULL;
    memcpy(&get_address, &symbol, sizeof symbol);
    if (symbol && get_address("cuEventElapsedTime", &found, 2000, 0, NULL) == CU_SUCCESS && found)
        memcpy(&elapsed, &found, sizeof found);
    for (int m = 0; m < MARKS; m++)
        CU(driver->cuEventCreate(&events[m], 0));
}

static void mark(int m)
{
    if (elapsed) {
        CU(driver->cuEventRecord(events[m], NULL));
    } else {
        CU(driver->cuStreamSynchronize(NULL));
        host_times[m] = now();
    }
}

/* Microseconds between two marks, of which the stream has passed. */
static double between(int from, int to)
{
    float milliseconds = 0.0f;
    if (!elapsed)
        return 1e6 * (host_times[to] - host_times[from]);
    CU(elapsed(&milliseconds, events[from], events[to]));
    return 1e3 * (double)milliseconds;
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int count)
{
    qsort(values, (size_t)count, sizeof *values, compare_doubles);
    return count % 2 ? values[count / 2] : 0.5 * (values[count / 2 - 1] + values[count / 2]);
}

/* ---- memory ---- */

static void *allocate(uint64_t bytes)
{
    void *block;
    ok(ops->allocate(device, (size_t)bytes, "the benchmark", &block));
    return block;
}

static cu_pointer_t pointer(const void *block)
{
    return (cu_pointer_t)(uintptr_t)block;
}

static void copy(void *to, const void *from, uint64_t bytes)
{
    CU(driver->cuMemcpyAsync(pointer(to), pointer(from), (size_t)bytes, NULL));
}

static void wait_for_all(void)
{
    CU(driver->cuStreamSynchronize(NULL));
}

static void *flush_block;

static void flush_cache(int repeat)
{
    CU(driver->cuMemsetD8Async(pointer(flush_block), (unsigned char)repeat, (size_t)options.flush_bytes, NULL));
}

/* Microseconds of copying so many bytes, of which half are read and half written. */
static double copy_time(uint64_t bytes)
{
    double times[REPEATS_MAX];
    uint8_t *block = allocate(bytes);
    for (int r = 0; r < options.repeats; r++) {
        flush_cache(r);
        mark(0);
        copy(block + bytes / 2, block, bytes / 2);
        mark(1);
        wait_for_all();
        times[r] = between(0, 1);
    }
    ops->release(device, block);
    return median(times, options.repeats);
}

/* ---- a gradient ---- */

static uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Laplace: the tails of gradients are heavier than a normal distribution's. */
static float laplace(uint64_t *state)
{
    const float u = ((float)(random_next(state) >> 41) + 0.5f) * 0x1p-23f;
    return u < 0.5f ? logf(2.0f * u) : -logf(2.0f * (1.0f - u));
}

static uint64_t dtype_bytes(int32_t dtype)
{
    return dtype == GTOPK_F32 ? 4 : 2;
}

/* `entries` of them on the GPU. */
static uint8_t *template_make(uint64_t entries, int32_t dtype)
{
    uint64_t state = 88172645463325252u;
    uint8_t *host = malloc((size_t)(entries * dtype_bytes(dtype))), *block = allocate(entries * dtype_bytes(dtype));
    if (!host)
        fail("a gradient", "no memory");
    for (uint64_t i = 0; i < entries; i++) {
        const float value = laplace(&state);
        if (dtype == GTOPK_F32)
            ((float *)(void *)host)[i] = value;
        else
            ((uint16_t *)(void *)host)[i] = dtype == GTOPK_F16 ? convert_fp16_from_float(value)
                                                               : convert_bf16_from_float(value);
    }
    copy(block, host, entries * dtype_bytes(dtype));
    wait_for_all();
    free(host);
    return block;
}

/* n entries of the template, from another place for each step. */
static void gradient_write(uint8_t *gradient, const uint8_t *template, uint64_t entries, uint64_t n, int32_t dtype,
                           uint64_t step)
{
    const uint64_t size = dtype_bytes(dtype);
    uint64_t from = step * 7919 * 64 % entries;
    for (uint64_t at = 0; at < n;) {
        const uint64_t room = n - at, have = entries - from, count = have < room ? have : room;
        copy(gradient + at * size, template + from * size, count * size);
        at += count;
        from = (from + count + 4096) % entries; /* so that no two of them are alike */
    }
}

/* ---- sets and words ---- */

static device_set_t set_make(uint64_t capacity)
{
    return (device_set_t){allocate(4 * capacity), allocate(4 * capacity), allocate(4), (uint32_t)capacity};
}

static void set_release(device_set_t *set)
{
    ops->release(device, set->index);
    ops->release(device, set->value);
    ops->release(device, set->count);
}

typedef struct bench {
    uint64_t n, k;
    int32_t dtype;
    device_store_t *store;
    device_words_t *words, *told;
    device_set_t selected, first;
    uint8_t *message, *gradient, *template;
    uint64_t entries, step; /* of the template; steps made */
    wire_header_t header;
    device_span_t spans[SPANS];
    size_t span_count;
} bench_t;

static void bench_open(bench_t *bench, uint64_t n, int32_t dtype)
{
    void *block;
    const double k = rint(options.density * (double)n);
    *bench = (bench_t){.n = n, .k = k < 1.0 ? 1 : (uint64_t)k, .dtype = dtype};
    bench->entries = n < TEMPLATE_MAX ? n : TEMPLATE_MAX;
    ok(ops->store_create(device, n, bench->k, 0, NULL, &bench->store));
    bench->words = allocate(sizeof *bench->words);
    ok(ops->allocate_pinned(device, sizeof *bench->told, "words", &block));
    bench->told = block;
    bench->selected = set_make(bench->k);
    bench->first = set_make(bench->k);
    bench->message = allocate(wire_message_capacity(n, bench->k, GTOPK_VALUE_BF16));
    bench->gradient = allocate(n * dtype_bytes(dtype) + 512 * SPANS);
    bench->template = template_make(bench->entries, dtype);
    bench->header = (wire_header_t){.value_type = GTOPK_VALUE_BF16,
                                    .algorithm = GTOPK_ALGORITHM_GTOPK,
                                    .k = (uint32_t)bench->k,
                                    .dim = (uint32_t)n};
    bench->spans[0] = (device_span_t){.length = n, .data = bench->gradient, .dtype = dtype};
    bench->span_count = 1;
}

static void bench_close(bench_t *bench)
{
    ops->release(device, bench->template);
    ops->release(device, bench->gradient);
    ops->release(device, bench->message);
    set_release(&bench->selected);
    set_release(&bench->first);
    ops->release_pinned(device, bench->told);
    ops->release(device, bench->words);
    ops->store_destroy(bench->store);
}

/* What the host does in a step up to the verdict, and after it; seconds of its time. Marks 0 to 4: before accumulate, after
 * it, after encode, after the verdict, after commit. */
static double bench_step(bench_t *bench)
{
    const device_accumulate_t params = {.scale = 1.0f, .zero_input = 1};
    const device_outcome_t outcome = {bench->words, &bench->first, bench->told};
    const device_target_t target = {.spans = bench->spans, .count = bench->span_count, .are_zero = 1};
    const device_journal_t journal = {
        .selected = bench->selected, .first = bench->first, .final = bench->first, .divisor = 1};
    double host = -now();
    ok(ops->step_begin(bench->store, bench->words, NULL));
    host += now();
    mark(0);
    host -= now();
    ok(ops->accumulate(bench->store, bench->spans, bench->span_count, &params, bench->words, NULL));
    host += now();
    mark(1);
    host -= now();
    ok(ops->words_join(device, &bench->words, 1, 0, NULL));
    ok(ops->select(bench->store, bench->k, &bench->selected, bench->words, NULL));
    ok(ops->encode(device, &bench->selected, &bench->header, bench->message, &bench->first, bench->words, NULL));
    host += now();
    mark(2);
    ok(ops->verdict(device, &outcome, 1, NULL));
    mark(3);
    host -= now();
    ok(ops->commit(bench->store, &journal, &target, bench->words, NULL));
    host += now();
    mark(4);
    wait_for_all();
    if (!bench->told->ok || bench->told->nonfinite || bench->told->selected != bench->k) {
        char text[160];
        (void)snprintf(text, sizeof text, "ok %u, error %u, nonfinite %u, selected %u of %llu", bench->told->ok,
                       bench->told->error, bench->told->nonfinite, bench->told->selected, (unsigned long long)bench->k);
        fail("a step", text);
    }
    return host;
}

static void bench_prepare(bench_t *bench)
{
    for (size_t s = 0; s < bench->span_count; s++)
        gradient_write(bench->spans[s].data, bench->template, bench->entries, bench->spans[s].length, bench->dtype,
                       bench->step + s);
    bench->step++;
    flush_cache((int)bench->step);
}

/* As after a checkpoint was loaded: an entry is written as it was, and the hint is forgotten. */
static void forget_hint(bench_t *bench)
{
    float value;
    ok(ops->store_read(bench->store, DEVICE_RESIDUAL, 0, 1, &value, NULL));
    ok(ops->store_write(bench->store, DEVICE_RESIDUAL, 0, 1, &value, NULL));
}

/* ---- parts ---- */

typedef struct times {
    double accumulate[REPEATS_MAX], select[REPEATS_MAX], both[REPEATS_MAX], verdict[REPEATS_MAX], commit[REPEATS_MAX],
        rest[REPEATS_MAX], host[REPEATS_MAX];
    int count, misses;
    double candidates;
} times_t;

static void times_take(times_t *times, bench_t *bench)
{
    bench_prepare(bench);
    const double host = bench_step(bench);
    const int r = times->count++;
    times->accumulate[r] = between(0, 1);
    times->select[r] = between(1, 2);
    times->both[r] = between(0, 2);
    times->verdict[r] = between(2, 3);
    times->commit[r] = between(3, 4);
    times->rest[r] = between(1, 4);
    times->host[r] = 1e6 * host;
    times->misses += (int)bench->told->misses;
    times->candidates += (double)bench->told->candidates;
}

static const char *dtype_name(int32_t dtype)
{
    return dtype == GTOPK_F32 ? "fp32" : dtype == GTOPK_F16 ? "fp16" : "bf16";
}

static void part_step(uint64_t n, int32_t dtype)
{
    static times_t hits, misses;
    static bench_t bench;
    char text[1024];
    memset(&hits, 0, sizeof hits);
    memset(&misses, 0, sizeof misses);
    const uint64_t bytes = n * (8 + 2 * dtype_bytes(dtype));
    const double copy_us = copy_time(bytes);
    bench_open(&bench, n, dtype);
    for (int warm = 0; warm < 5; warm++) {
        bench_prepare(&bench);
        (void)bench_step(&bench);
    }
    for (int r = 0; r < options.repeats; r++)
        times_take(&hits, &bench);
    for (int r = 0; r < (options.repeats + 1) / 2; r++) {
        forget_hint(&bench);
        times_take(&misses, &bench);
    }
    const double us = median(hits.accumulate, hits.count), rest = median(hits.rest, hits.count),
                 both = median(hits.both, hits.count), missed = median(misses.both, misses.count);
    (void)snprintf(
        text, sizeof text,
        "{\"part\": \"step\", \"dtype\": \"%s\", \"n\": %llu, \"k\": %llu, \"bytes\": %llu, \"copy_us\": %.2f, "
        "\"accumulate_us\": %.2f, \"accumulate_gbs\": %.1f, \"copy_gbs\": %.1f, \"of_copy\": %.4f, \"select_encode_us\": "
        "%.2f, \"verdict_us\": %.2f, \"commit_us\": %.2f, \"select_to_commit_us\": %.2f, \"accumulate_select_us\": %.2f, "
        "\"miss_us\": %.2f, \"miss_ratio\": %.3f, \"host_us\": %.2f, \"wrong_hints\": %d, \"repeats\": %d, "
        "\"candidates\": %.0f}",
        dtype_name(dtype), (unsigned long long)n, (unsigned long long)bench.k, (unsigned long long)bytes, copy_us, us,
        1e-3 * (double)bytes / us, 1e-3 * (double)bytes / copy_us, copy_us / us, median(hits.select, hits.count),
        median(hits.verdict, hits.count), median(hits.commit, hits.count), rest, both, missed, missed / both,
        median(hits.host, hits.count), hits.misses, hits.count, hits.candidates / hits.count);
    json_add(text);
    (void)printf(
        "step   %-5s n %11llu k %8llu  accumulate %10.1f us %7.1f GB/s = %5.1f %% of copy; select..commit %7.1f us "
        "(select+encode %.1f, verdict %.1f, commit %.1f); a miss %.2f x; wrong hints %d of %d\n",
        dtype_name(dtype), (unsigned long long)n, (unsigned long long)bench.k, us, 1e-3 * (double)bytes / us,
        100.0 * copy_us / us, rest, median(hits.select, hits.count), median(hits.verdict, hits.count),
        median(hits.commit, hits.count), missed / both, hits.misses, hits.count);
    (void)fflush(stdout);
    bench_close(&bench);
}

/* Strictly increasing indices, about evenly spread, and values. */
static void set_fill(device_set_t *set, uint64_t count, uint64_t n, uint64_t *state)
{
    uint32_t *index = malloc((size_t)(4 * count)), entries = (uint32_t)count;
    float *value = malloc((size_t)(4 * count));
    if (!index || !value)
        fail("a set", "no memory");
    for (uint64_t i = 0; i < count; i++) {
        const uint64_t begin = n * i / count, end = n * (i + 1) / count;
        index[i] = (uint32_t)(begin + random_next(state) % (end > begin ? end - begin : 1));
        value[i] = laplace(state) + 1e-3f;
    }
    copy(set->index, index, 4 * count);
    copy(set->value, value, 4 * count);
    copy(set->count, &entries, 4);
    wait_for_all();
    free(index);
    free(value);
}

static void part_round(uint64_t n)
{
    enum { PARTS = 5 };
    static const char *const names[PARTS] = {"decode", "merge", "encode", "deposit", "round"};
    double times[PARTS][REPEATS_MAX], medians[PARTS];
    char text[512];
    const double drawn = rint(options.density * (double)n);
    const uint64_t k = drawn < 1.0 ? 1 : (uint64_t)drawn;
    const size_t capacity = wire_message_capacity(n, k, GTOPK_VALUE_BF16);
    uint64_t state = 1234567;
    device_set_t own = set_make(k), other = set_make(k), peer = set_make(k), all = set_make(2 * k), kept = set_make(k),
                 sent = set_make(k), back = set_make(2 * k);
    uint8_t *messages[2] = {allocate(capacity), allocate(capacity)};
    device_words_t *words = allocate(sizeof *words), start = {.ok = 1};
    const wire_header_t header = {
        .value_type = GTOPK_VALUE_BF16, .algorithm = GTOPK_ALGORITHM_GTOPK, .k = (uint32_t)k, .dim = (uint32_t)n};
    const wire_expect_t expect = {
        .value_type = GTOPK_VALUE_BF16, .algorithm = GTOPK_ALGORITHM_GTOPK, .k = (uint32_t)k, .dim = (uint32_t)n};
    set_fill(&own, k, n, &state);
    set_fill(&other, k, n, &state);
    copy(words, &start, sizeof start);
    ok(ops->encode(device, &other, &header, messages[0], &sent, words, NULL));
    for (int r = -3; r < options.repeats; r++) {
        flush_cache(r);
        mark(0);
        ok(ops->decode(device, messages[0], capacity, &expect, &peer, words, NULL));
        mark(1);
        ok(ops->merge(device, &own, &peer, k, &kept, &all, words, NULL));
        mark(2);
        ok(ops->encode(device, &kept, &header, messages[1], &sent, words, NULL));
        mark(3);
        ok(ops->deposit(device, &all, &sent, 0.5f, &back, words, NULL));
        mark(4);
        wait_for_all();
        for (int p = 0; p < PARTS && r >= 0; p++)
            times[p][r] = p == 4 ? between(0, 4) : between(p, p + 1);
    }
    copy(&start, words, sizeof start);
    wait_for_all();
    if (!start.ok)
        fail("a round", "its words say that something failed");
    for (int p = 0; p < PARTS; p++)
        medians[p] = median(times[p], options.repeats);
    (void)snprintf(text, sizeof text,
                   "{\"part\": \"round\", \"n\": %llu, \"k\": %llu, \"decode_us\": %.2f, \"merge_us\": %.2f, "
                   "\"encode_us\": %.2f, \"deposit_us\": %.2f, \"round_us\": %.2f}",
                   (unsigned long long)n, (unsigned long long)k, medians[0], medians[1], medians[2], medians[3],
                   medians[4]);
    json_add(text);
    (void)printf("round  n %11llu k %8llu ", (unsigned long long)n, (unsigned long long)k);
    for (int p = 0; p < PARTS; p++)
        (void)printf(" %s %.1f us", names[p], medians[p]);
    (void)printf("\n");
    (void)fflush(stdout);
    ops->release(device, words);
    ops->release(device, messages[0]);
    ops->release(device, messages[1]);
    device_set_t *const sets[] = {&own, &other, &peer, &all, &kept, &sent, &back};
    for (size_t s = 0; s < sizeof sets / sizeof sets[0]; s++)
        set_release(sets[s]);
}

/* "cuLaunchKernel": 7, ... of one step; "" where nobody counts. */
static void count_calls(bench_t *bench, char *text, size_t bytes)
{
    cuda_count_t counts[32];
    cuda_count_take_fn take;
    void *symbol = driver_symbol(CUDA_COUNT_TAKE);
    size_t used = 0;
    text[0] = 0;
    memcpy(&take, &symbol, sizeof symbol);
    if (!symbol)
        return;
    const elapsed_fn kept = elapsed;
    const device_accumulate_t params = {.scale = 1.0f, .zero_input = 1};
    const device_outcome_t outcome = {bench->words, &bench->first, bench->told};
    const device_target_t target = {.spans = bench->spans, .count = bench->span_count, .are_zero = 1};
    const device_journal_t journal = {
        .selected = bench->selected, .first = bench->first, .final = bench->first, .divisor = 1};
    bench_prepare(bench);
    wait_for_all();
    (void)take(counts, 32);
    ok(ops->step_begin(bench->store, bench->words, NULL));
    ok(ops->accumulate(bench->store, bench->spans, bench->span_count, &params, bench->words, NULL));
    const size_t first = take(counts, 32);
    for (size_t c = 0; c < first; c++)
        used += (size_t)snprintf(text + used, bytes - used, ", \"begin_accumulate_%s\": %llu", counts[c].function,
                                 (unsigned long long)counts[c].calls);
    ok(ops->words_join(device, &bench->words, 1, 0, NULL));
    ok(ops->select(bench->store, bench->k, &bench->selected, bench->words, NULL));
    ok(ops->encode(device, &bench->selected, &bench->header, bench->message, &bench->first, bench->words, NULL));
    ok(ops->verdict(device, &outcome, 1, NULL));
    ok(ops->commit(bench->store, &journal, &target, bench->words, NULL));
    const size_t second = take(counts, 32);
    for (size_t c = 0; c < second && used < bytes; c++)
        used += (size_t)snprintf(text + used, bytes - used, ", \"select_commit_%s\": %llu", counts[c].function,
                                 (unsigned long long)counts[c].calls);
    wait_for_all();
    elapsed = kept;
}

/* 200 parameters: every fourth is large. skewed: the first has one entry, so all others begin elsewhere in a vector. */
static void part_many(uint64_t n, int32_t dtype, int skewed)
{
    static bench_t bench;
    static times_t times;
    char text[2048], calls[1024];
    uint64_t offset = 0, at = 0;
    memset(&times, 0, sizeof times);
    bench_open(&bench, n, dtype);
    const uint64_t small = n / 10000 / 4 * 4, large = (n - 150 * small) / 50 / 4 * 4;
    for (int s = 0; s < SPANS; s++) {
        uint64_t length = s % 4 == 1 ? large : small;
        if (s == 0 && skewed)
            length = 1;
        if (s == SPANS - 1)
            length = n - offset;
        bench.spans[s] = (device_span_t){
            .offset = offset, .length = length, .data = bench.gradient + at, .dtype = dtype};
        offset += length;
        at += (length * dtype_bytes(dtype) + 511) / 512 * 512;
    }
    bench.span_count = SPANS;
    for (int warm = 0; warm < 4; warm++) {
        bench_prepare(&bench);
        (void)bench_step(&bench);
    }
    for (int r = 0; r < options.repeats; r++)
        times_take(&times, &bench);
    count_calls(&bench, calls, sizeof calls);
    const uint64_t bytes = n * (8 + 2 * dtype_bytes(dtype));
    const double us = median(times.accumulate, times.count), copy_us = copy_time(bytes);
    (void)snprintf(text, sizeof text,
                   "{\"part\": \"many\", \"dtype\": \"%s\", \"n\": %llu, \"parameters\": %d, \"skewed\": %d, "
                   "\"accumulate_us\": %.2f, \"copy_us\": %.2f, \"of_copy\": %.4f, \"select_to_commit_us\": %.2f, "
                   "\"host_us\": %.2f%s}",
                   dtype_name(dtype), (unsigned long long)n, SPANS, skewed, us, copy_us, copy_us / us,
                   median(times.rest, times.count), median(times.host, times.count), calls);
    json_add(text);
    (void)printf(
        "many   %-5s n %11llu in %d%s: accumulate %.1f us = %.1f %% of copy; select..commit %.1f us; host %.1f us%s\n",
        dtype_name(dtype), (unsigned long long)n, SPANS, skewed ? ", skewed" : "", us, 100.0 * copy_us / us,
        median(times.rest, times.count), median(times.host, times.count), calls);
    (void)fflush(stdout);
    bench_close(&bench);
}

/* What an exchange on nodes adds to a step: a gradient in float, and the sum of two of them, beside copies of as many bytes. */
static void part_nodes(uint64_t n, int32_t dtype)
{
    double stage[REPEATS_MAX], sum[REPEATS_MAX];
    char text[512];
    const size_t stride = (size_t)(n + 3) / 4 * 4;
    float *parts = allocate(2 * stride * sizeof *parts), *out = allocate(stride * sizeof *out);
    void *gradient = allocate((size_t)n * dtype_bytes(dtype));
    const device_span_t span = {.length = n, .data = gradient, .dtype = dtype};
    const device_stage_t params = {.scale = 1.0f, .zero_input = 1};
    for (int r = -3; r < options.repeats; r++) {
        flush_cache(r);
        mark(0);
        ok(ops->stage(device, &span, 1, &params, parts, NULL));
        mark(1);
        flush_cache(r);
        mark(2);
        ok(ops->add_up(device, parts, stride, 2, out, n, NULL));
        mark(3);
        wait_for_all();
        if (r >= 0) {
            stage[r] = between(0, 1);
            sum[r] = between(2, 3);
        }
    }
    const uint64_t staged = n * (4 + 2 * dtype_bytes(dtype)), summed = 12 * n;
    const double stage_us = median(stage, options.repeats), sum_us = median(sum, options.repeats);
    const double of_stage = copy_time(staged) / stage_us, of_sum = copy_time(summed) / sum_us;
    (void)snprintf(text, sizeof text,
                   "{\"part\": \"nodes\", \"dtype\": \"%s\", \"n\": %llu, \"stage_us\": %.2f, \"stage_of_copy\": %.4f, "
                   "\"add_up_us\": %.2f, \"add_up_of_copy\": %.4f}",
                   dtype_name(dtype), (unsigned long long)n, stage_us, of_stage, sum_us, of_sum);
    json_add(text);
    (void)printf("nodes  %-5s n %11llu stage %.1f us = %.1f %% of copy; sum of two %.1f us = %.1f %% of copy\n",
                 dtype_name(dtype), (unsigned long long)n, stage_us, 100.0 * of_stage, sum_us, 100.0 * of_sum);
    (void)fflush(stdout);
    ops->release(device, gradient);
    ops->release(device, out);
    ops->release(device, parts);
}

/* ---- options ---- */

static uint64_t parse_size(const char *text, const char **end)
{
    char *after;
    double value = strtod(text, &after);
    value *= *after == 'G' ? 1e9 : *after == 'M' ? 1e6 : *after == 'k' ? 1e3 : 1.0;
    if (after == text || value < 1.0 || value > 4294967295.0)
        fail("--sizes", text);
    *end = after + (*after == 'G' || *after == 'M' || *after == 'k');
    return (uint64_t)value;
}

static void parse(int argc, char **argv)
{
    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!value)
            fail(argv[i], "a value is missing; options: --sizes, --repeats, --density, --flush, --json, --only");
        if (strcmp(argv[i], "--sizes") == 0) {
            options.size_count = 0;
            for (const char *at = value; *at && options.size_count < SIZES_MAX; at += *at == ',')
                options.sizes[options.size_count++] = parse_size(at, &at);
        } else if (strcmp(argv[i], "--repeats") == 0) {
            options.repeats = atoi(value);
        } else if (strcmp(argv[i], "--density") == 0) {
            options.density = atof(value);
        } else if (strcmp(argv[i], "--flush") == 0) {
            options.flush_bytes = parse_size(value, &value);
        } else if (strcmp(argv[i], "--json") == 0) {
            options.json = value;
        } else if (strcmp(argv[i], "--only") == 0) {
            options.only = value;
        } else {
            fail(argv[i], "is no option; options: --sizes, --repeats, --density, --flush, --json, --only");
        }
    }
    if (options.repeats < 1 || options.repeats > REPEATS_MAX)
        fail("--repeats", "1 to 200");
    if (!(options.density > 0.0 && options.density <= 1.0))
        fail("--density", "above 0, up to 1");
}

static int wanted(const char *part)
{
    return !options.only || strcmp(options.only, part) == 0;
}

int main(int argc, char **argv)
{
    char name[128] = "", text[512];
    cu_device_t gpu;
    parse(argc, argv);
    ok(cuda_driver_get(&driver));
    ok(device_open("cuda", &device));
    ops = device->ops;
    CU(driver->cuDeviceGet(&gpu, 0));
    CU(driver->cuDevicePrimaryCtxRetain(&context, gpu));
    CU(driver->cuCtxPushCurrent(context));
    CU(driver->cuDeviceGetName(name, sizeof name, gpu));
    clock_open();
    flush_block = allocate(options.flush_bytes);
    (void)snprintf(text, sizeof text,
                   "{\"part\": \"gpu\", \"name\": \"%s\", \"cuda_driver\": %d, \"clock\": \"%s\", \"density\": %g, "
                   "\"flushed_bytes\": %llu}",
                   name, driver->version, elapsed ? "events" : "host, waiting", options.density,
                   (unsigned long long)options.flush_bytes);
    json_add(text);
    (void)printf("%s, CUDA %d.%d, clock: %s\n", name, driver->version / 1000, driver->version % 1000 / 10,
                 elapsed ? "events" : "host, waiting");
    const uint64_t largest = options.sizes[options.size_count - 1];
    const uint64_t middle = largest > 25000000 ? 25000000 : largest;
    if (wanted("step")) { /* what matters most comes first */
        part_step(middle, GTOPK_F32);
        part_step(middle, GTOPK_BF16);
    }
    if (wanted("round"))
        part_round(middle);
    if (wanted("many")) {
        part_many(middle, GTOPK_F32, 0);
        part_many(middle, GTOPK_F32, 1);
        part_many(middle, GTOPK_BF16, 1);
    }
    for (int32_t dtype = GTOPK_F32; dtype <= GTOPK_BF16 && wanted("nodes"); dtype++)
        part_nodes(middle, dtype);
    for (size_t s = 0; s < options.size_count && wanted("step"); s++)
        for (int32_t dtype = GTOPK_F32; dtype <= GTOPK_BF16; dtype += GTOPK_BF16)
            if (options.sizes[s] != middle)
                part_step(options.sizes[s], dtype);
    if (wanted("step"))
        part_step(middle, GTOPK_F16);
    ops->release(device, flush_block);
    ops->close(device);
    free(json_rows);
    return 0;
}
