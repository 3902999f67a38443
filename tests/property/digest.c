/* Prints what a fixed job computes, as one hash a scenario: residuals, updates, traffic, selected sets and messages. What
 * is promised to be the same to the bit can be compared across builds, which a test within one program cannot do:
 * compilers, instruction sets, devices, thread counts, architectures (scripts/compare_digests.sh).
 *
 *   digest [--parts | --threads] [--flags]
 *                --parts, --threads: parallel-fors with parts in random order, on one thread or two
 *                --flags: called with denormals flushed and rounding upwards, where the CPU has that
 *
 * Ends with status 77 where GTOPK_ISA names what this machine does not run. Input is made of integers and of exact or
 * correctly rounded operations only, never of libm. */
#include <string.h>

#include "device_parallel.h"
#include "device_random.h"
#include "support/ranks.h"
#include "support/step.h"
#include "util/fpenv.h"

enum { DIM = 21000, SEGMENTS = 5, STEPS = 3, SIZE_MAX_RANKS = 5, MESSAGE = 12 * DIM + 1024, SKIPPED = 77 };

static const uint64_t lengths[SEGMENTS] = {1, 16000, 0, 37, DIM - 16038};

static int threads, parts, flags;

#define REQUIRE(call)                                                             \
    do {                                                                          \
        if ((call) != GTOPK_OK) {                                                 \
            (void)fprintf(stderr, "digest: %s: %s\n", #call, gtopk_last_error()); \
            exit(1);                                                              \
        }                                                                         \
    } while (0)

/* ---- hashing: FNV-1a, which shares nothing with the library; every word little-endian whatever the machine is ---- */

static uint64_t hash_bytes(uint64_t hash, const void *data, size_t bytes)
{
    const uint8_t *byte = data;
    for (size_t i = 0; i < bytes; i++)
        hash = (hash ^ byte[i]) * 0x100000001b3u;
    return hash;
}

static uint64_t hash_number(uint64_t hash, uint64_t number)
{
    for (int i = 0; i < 8; i++)
        hash = (hash ^ (uint8_t)(number >> 8 * i)) * 0x100000001b3u;
    return hash;
}

static uint64_t hash_set(uint64_t hash, const gtopk_set_t *set)
{
    hash = hash_number(hash, set->count);
    hash = hash_bytes(hash, set->indices, set->count * sizeof *set->indices);
    return hash_bytes(hash, set->values, set->count * sizeof *set->values);
}

/* ---- the caller's floating-point environment ---- */

/* To be undone with fpenv_leave. */
static fpenv_t enter_flags(void)
{
    const fpenv_t saved = fpenv_enter();
#if defined(__x86_64__)
    if (flags)
        fpenv_leave(saved | 0xc040u); /* FTZ, DAZ, upwards */
#elif defined(__aarch64__)
    if (flags)
        fpenv_leave(saved | 0x1400000u); /* FZ, upwards */
#endif
    return saved;
}

/* ---- a job of several ranks ---- */

typedef struct scenario {
    gtopk_reducer_config_t config;
    int32_t dtype;
    style_t style;
    double scale;
    int size;
    uint64_t hash[SIZE_MAX_RANKS];
} scenario_t;

/* Gradients in the scenario's type. What all ranks have in common makes their indices meet in merges. */
static void fill_gradient(const scenario_t *scenario, int rank, int step, uint8_t *gradient)
{
    const size_t size = dtype_size(scenario->dtype);
    random_state_t common = {(uint64_t)step * 977u + scenario->style},
                   own = {(uint64_t)(step * 64 + rank) * 7919u + 1u};
    for (uint64_t i = 0; i < DIM; i++) {
        const float shared = random_finite(&common, scenario->style, i),
                    alone = random_finite(&own, scenario->style, i);
        dtype_store(gradient + i * size, scenario->dtype, random_chance(&own, 3) ? alone : shared);
    }
}

static uint64_t hash_residual(gtopk_reducer_t *reducer, int velocity, uint64_t hash)
{
    static _Thread_local float values[DIM];
    for (uint32_t s = 0; s < SEGMENTS; s++) {
        if (velocity)
            REQUIRE(gtopk_reducer_velocity(reducer, s, values, lengths[s]));
        else
            REQUIRE(gtopk_reducer_residual(reducer, s, values, lengths[s]));
        hash = hash_bytes(hash, values, lengths[s] * sizeof *values);
    }
    return hash;
}

/* Odd ranks take the update as a set. */
static uint64_t run_step(const scenario_t *scenario, gtopk_reducer_t *reducer, gtopk_set_t *update, int rank, int step,
                         uint64_t hash)
{
    const size_t size = dtype_size(scenario->dtype);
    uint8_t *gradient = malloc(DIM * size);
    gtopk_stats_t stats = {.struct_size = sizeof stats};
    gtopk_tensor_t tensors[SEGMENTS];
    if (!gradient)
        abort();
    for (size_t s = 0, at = 0; s < SEGMENTS; at += lengths[s] * size, s++)
        tensors[s] = (gtopk_tensor_t){gradient + at, lengths[s], scenario->dtype, 0};
    fill_gradient(scenario, rank, step, gradient);
    const fpenv_t saved = enter_flags();
    REQUIRE(gtopk_reducer_accumulate(reducer, NULL, tensors, SEGMENTS, scenario->scale, GTOPK_ZERO_INPUT, NULL));
    if (rank % 2) {
        REQUIRE(step_reduce_sparse(reducer, update, 0, &stats));
        hash = hash_set(hash, update);
    } else {
        REQUIRE(step_reduce(reducer, tensors, SEGMENTS, GTOPK_OUTPUT_IS_ZERO, &stats));
    }
    fpenv_leave(saved);
    hash = hash_bytes(hash, gradient, DIM * size);
    hash = hash_residual(reducer, 0, hash);
    if (scenario->config.momentum_correction)
        hash = hash_residual(reducer, 1, hash);
    const uint64_t counts[] = {stats.selected, stats.count, stats.bytes_sent, stats.rounds, (uint64_t)stats.nonfinite};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++)
        hash = hash_number(hash, counts[i]);
    free(gradient);
    return hash;
}

/* A checkpoint of all ranks, loaded again: sums over the ranks, and shares of them. */
static uint64_t run_checkpoint(gtopk_comm_t *comm, gtopk_reducer_t *reducer, uint64_t hash)
{
    const size_t bytes = gtopk_reducer_state_size(reducer);
    uint8_t *state = malloc(bytes);
    if (!state)
        abort();
    const fpenv_t saved = enter_flags();
    REQUIRE(gtopk_reducer_state_consolidate(reducer, state, bytes, 0));
    REQUIRE(gtopk_broadcast(comm, state, bytes, 0));
    REQUIRE(gtopk_reducer_state_load(reducer, state, bytes));
    fpenv_leave(saved);
    free(state);
    return hash_residual(reducer, 0, hash);
}

static uint64_t run_allreduce(gtopk_comm_t *comm, int rank, uint64_t hash)
{
    float values[64];
    random_state_t random = {(uint64_t)rank};
    for (size_t i = 0; i < 64; i++)
        values[i] = random_finite(&random, i % 2 ? STYLE_DENORMAL : STYLE_NORMAL, i);
    const fpenv_t saved = enter_flags();
    REQUIRE(gtopk_allreduce(comm, values, 64, GTOPK_F32));
    fpenv_leave(saved);
    return hash_bytes(hash, values, sizeof values);
}

static void run_rank(gtopk_comm_t *comm, int rank, int size, void *context)
{
    scenario_t *scenario = context;
    random_state_t random = {(uint64_t)rank};
    gtopk_reducer_config_t config = scenario->config;
    gtopk_reducer_t *reducer;
    (void)size;
    config.parallel_for = threads ? parallel_two_threads : parts ? parallel_shuffled : NULL;
    config.parallel_context = &random;
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, lengths, SEGMENTS));
    if (config.momentum_correction)
        REQUIRE(gtopk_reducer_set_momentum(reducer, 0.9, 1));
    const uint64_t room = gtopk_reducer_max_count(reducer);
    gtopk_set_t update = {malloc(room * sizeof(uint32_t)), malloc(room * sizeof(float)), room, 0};
    if (!update.indices || !update.values)
        abort();
    scenario->hash[rank] = 0xcbf29ce484222325u;
    for (int step = 0; step < STEPS; step++)
        scenario->hash[rank] = run_step(scenario, reducer, &update, rank, step, scenario->hash[rank]);
    if (scenario->style != STYLE_HUGE) /* whose sums over the ranks no state can hold */
        scenario->hash[rank] = run_checkpoint(comm, reducer, scenario->hash[rank]);
    scenario->hash[rank] = run_allreduce(comm, rank, scenario->hash[rank]);
    free(update.indices);
    free(update.values);
    gtopk_reducer_destroy(reducer);
}

static uint64_t run_scenario(int number)
{
    static const style_t styles[] = {STYLE_NORMAL, STYLE_DENORMAL, STYLE_TIES, STYLE_HEAVY, STYLE_SPARSE, STYLE_HUGE};
    static const double scales[] = {1.0, 1.0 / 3.0, 0.25};
    static const double densities[] = {0.001, 0.01, 0.05};
    scenario_t scenario = {.config = GTOPK_REDUCER_CONFIG_INIT,
                           .dtype = number % 3,
                           .style = styles[number % 6],
                           .scale = scales[number / 2 % 3],
                           .size = 1 + number % SIZE_MAX_RANKS};
    scenario.config.algorithm = number % 7 == 6 ? GTOPK_ALGORITHM_DENSE : 1 + number % 4;
    scenario.config.value_type = number / 3 % 4;
    scenario.config.density = densities[number / 4 % 3];
    scenario.config.momentum_correction = number % 4 == 3;
    scenario.config.merge_growth = number % 5 == 4 ? 1.41 : 1.0;
    ranks_run(scenario.size, run_rank, &scenario);
    uint64_t hash = 0;
    for (int rank = 0; rank < scenario.size; rank++)
        hash = hash_number(hash, scenario.hash[rank]);
    return hash;
}

/* ---- the parts by themselves: sets and the messages that they become ---- */

static uint64_t run_blocks(int value_type)
{
    static float x[2][DIM];
    static uint32_t indices[3][DIM];
    static float values[3][DIM];
    static uint8_t message[MESSAGE];
    gtopk_set_t sets[3];
    uint64_t hash = 0xcbf29ce484222325u;
    for (int s = 0; s < 3; s++)
        sets[s] = (gtopk_set_t){indices[s], values[s], DIM, 0};
    for (style_t style = 0; style < STYLE_BITS; style++) {
        random_state_t random = {style + 1u};
        for (uint64_t i = 0; i < 2 * DIM; i++)
            x[i / DIM][i % DIM] = random_finite(&random, style, i);
        const fpenv_t saved = enter_flags();
        for (int s = 0; s < 2; s++)
            REQUIRE(gtopk_select(x[s], DIM, 500 + 1500 * (uint64_t)s, &sets[s]));
        const gtopk_status_t merged = gtopk_merge(&sets[0], &sets[1], 700, &sets[2]); /* HUGE sums overflow */
        fpenv_leave(saved);
        hash = hash_number(hash, (uint64_t)merged);
        for (int s = 0; s < (merged == GTOPK_OK ? 3 : 2); s++) {
            size_t bytes = MESSAGE;
            gtopk_set_t decoded = {indices[s], values[s], DIM, 0};
            uint64_t dim;
            hash = hash_set(hash, &sets[s]);
            const fpenv_t kept = enter_flags();
            REQUIRE(gtopk_encode(&sets[s], DIM, value_type, message, &bytes));
            REQUIRE(gtopk_decode(message, bytes, &decoded, &dim));
            fpenv_leave(kept);
            hash = hash_bytes(hash, message, bytes);
            hash = hash_set(hash, &decoded);
        }
    }
    return hash;
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        parts |= strcmp(argv[i], "--parts") == 0;
        threads |= strcmp(argv[i], "--threads") == 0;
        flags |= strcmp(argv[i], "--flags") == 0;
    }
    if (strstr(gtopk_build_info(), "isa=none")) {
        (void)fprintf(stderr, "digest: this machine does not run GTOPK_ISA=%s\n", getenv("GTOPK_ISA"));
        return SKIPPED;
    }
    for (int value_type = 0; value_type < 4; value_type++)
        (void)printf("blocks, value type %d: %016llx\n", value_type, (unsigned long long)run_blocks(value_type));
    for (int number = 0; number < 60; number++)
        (void)printf("scenario %d: %016llx\n", number, (unsigned long long)run_scenario(number));
    return 0;
}
