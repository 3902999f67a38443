/* Fuzzing without libFuzzer: inputs from a seed, the same in every run.
 *
 *   fuzz_TARGET [--count N | --seconds S] [--seed X] [--corpus DIR]     runs mutated inputs; prints one line of JSON
 *   fuzz_TARGET --write DIR                                              writes valid inputs to start a corpus with
 *   fuzz_TARGET FILE...                                                  runs these inputs
 *
 * Every input lies in a block of its own length, so that the sanitizer sees a read beyond it. An input that breaks a
 * promise, or that a sanitizer stops at, is written to crash-TARGET. */
#include <dirent.h>
#include <signal.h>
#include <string.h>

#include "fuzz.h"
#include "util/clock.h"

#define CORPUS_MAX 256u
#define NEW_CORPUS 12u
#define COUNT_DEFAULT 100000u

typedef struct input {
    uint8_t *data;
    size_t bytes;
} input_t;

typedef struct options {
    uint64_t count, seed;
    double seconds;
    const char *corpus, *write;
} options_t;

static input_t current; /* for the report of a crash */

/* ---- files ---- */

static int file_read(const char *path, input_t *input)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        return 0;
    input->data = malloc(FUZZ_INPUT_MAX);
    input->bytes = input->data ? fread(input->data, 1, FUZZ_INPUT_MAX, file) : 0;
    (void)fclose(file);
    return input->data != NULL;
}

static void file_write(const char *path, const uint8_t *data, size_t bytes)
{
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, bytes, file) != bytes)
        (void)fprintf(stderr, "cannot write %s\n", path);
    if (file)
        (void)fclose(file);
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

/* In the order of their names, so that a seed means the same everywhere. */
static size_t corpus_read(const char *folder, input_t *inputs)
{
    struct dirent **entries = NULL;
    size_t count = 0;
    const int found = folder ? scandir(folder, &entries, NULL, by_name) : 0;
    if (found < 0) {
        (void)fprintf(stderr, "cannot read the corpus %s\n", folder);
        exit(2);
    }
    for (int i = 0; i < found; i++) {
        char path[4096];
        (void)snprintf(path, sizeof path, "%s/%s", folder, entries[i]->d_name);
        if (entries[i]->d_name[0] != '.' && count < CORPUS_MAX && file_read(path, &inputs[count]))
            count++;
        free(entries[i]);
    }
    free(entries);
    return count;
}

static void corpus_write(const char *folder)
{
    static uint8_t data[FUZZ_INPUT_MAX];
    random_state_t random = {1};
    for (unsigned i = 0; i < NEW_CORPUS; i++) {
        char path[4096];
        const size_t bytes = fuzz_target.valid(&random, data);
        (void)snprintf(path, sizeof path, "%s/valid-%02u", folder, i);
        file_write(path, data, bytes);
    }
}

/* ---- running ---- */

static void keep_crash(void)
{
    char path[256];
    (void)snprintf(path, sizeof path, "crash-%s", fuzz_target.name);
    (void)fprintf(stderr, "the input is in %s\n", path);
    file_write(path, current.data, current.bytes);
}

static void on_abort(int signal_number)
{
    keep_crash();
    (void)signal(signal_number, SIG_DFL);
    (void)raise(signal_number);
}

/* The sanitizers' own hook, where there is one. */
void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

static int run_input(const uint8_t *data, size_t bytes)
{
    uint8_t *exact = malloc(bytes ? bytes : 1);
    if (!exact)
        exit(2);
    memcpy(exact, data, bytes);
    current = (input_t){exact, bytes};
    const int accepted = fuzz_target.run(exact, bytes);
    free(exact);
    return accepted;
}

static int run_files(char **paths, int count)
{
    for (int i = 0; i < count; i++) {
        input_t input;
        if (!file_read(paths[i], &input)) {
            (void)fprintf(stderr, "cannot read %s\n", paths[i]);
            return 2;
        }
        (void)printf("%s: %s\n", paths[i], run_input(input.data, input.bytes) ? "accepted" : "refused");
        free(input.data);
    }
    return 0;
}

static size_t next_input(random_state_t *random, const input_t *corpus, size_t corpus_count, uint8_t *data)
{
    size_t bytes;
    if (corpus_count > 0 && random_below(random, 4) == 0) {
        const input_t *from = &corpus[random_below(random, corpus_count)];
        bytes = from->bytes;
        memcpy(data, from->data, bytes);
    } else {
        bytes = fuzz_target.valid(random, data);
        if (random_below(random, 16) == 0)
            return bytes;
    }
    return fuzz_mutate(random, data, bytes);
}

static int run_random(const options_t *options)
{
    static uint8_t data[FUZZ_INPUT_MAX];
    static input_t corpus[CORPUS_MAX];
    const size_t corpus_count = corpus_read(options->corpus, corpus);
    const double start = clock_now();
    random_state_t random = {options->seed};
    uint64_t inputs = 0, accepted = 0;

    for (size_t i = 0; i < corpus_count; i++, inputs++)
        accepted += (uint64_t)run_input(corpus[i].data, corpus[i].bytes);
    while (options->seconds > 0 ? inputs % 256 != 0 || clock_now() - start < options->seconds
                                : inputs < options->count) {
        const size_t bytes = next_input(&random, corpus, corpus_count, data);
        accepted += (uint64_t)run_input(data, bytes);
        inputs++;
    }
    for (size_t i = 0; i < corpus_count; i++)
        free(corpus[i].data);
    (void)printf(
        "{\"target\": \"%s\", \"seed\": %llu, \"inputs\": %llu, \"accepted\": %llu, \"refused\": %llu, \"seconds\": %.1f}\n",
        fuzz_target.name, (unsigned long long)options->seed, (unsigned long long)inputs, (unsigned long long)accepted,
        (unsigned long long)(inputs - accepted), clock_now() - start);
    return 0;
}

/* ---- command line ---- */

static int usage(const char *program)
{
    (void)fprintf(stderr, "usage: %s [--count N | --seconds S] [--seed X] [--corpus DIR] | --write DIR | FILE...\n",
                  program);
    return 2;
}

int main(int argc, char **argv)
{
    options_t options = {.count = COUNT_DEFAULT, .seed = 1};
    int at = 1;
    for (; at + 1 < argc && strncmp(argv[at], "--", 2) == 0; at += 2) {
        const char *name = argv[at] + 2, *value = argv[at + 1];
        if (strcmp(name, "count") == 0)
            options.count = strtoull(value, NULL, 10);
        else if (strcmp(name, "seconds") == 0)
            options.seconds = strtod(value, NULL);
        else if (strcmp(name, "seed") == 0)
            options.seed = strtoull(value, NULL, 10);
        else if (strcmp(name, "corpus") == 0)
            options.corpus = value;
        else if (strcmp(name, "write") == 0)
            options.write = value;
        else
            return usage(argv[0]);
    }
    if (at < argc && strncmp(argv[at], "--", 2) == 0)
        return usage(argv[0]);
    (void)signal(SIGABRT, on_abort);
    if (__sanitizer_set_death_callback)
        __sanitizer_set_death_callback(keep_crash);
    if (options.write) {
        corpus_write(options.write);
        return 0;
    }
    return at < argc ? run_files(argv + at, argc - at) : run_random(&options);
}
