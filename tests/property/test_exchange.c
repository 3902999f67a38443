/* Promises 2 and 3 through the public API: replicas agree bit for bit and mass is kept, for every algorithm, value type,
 * policy and size, over the thread transport. GTOPK_TEST_SEED and GTOPK_TEST_SIZES (largest P) change what is run. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "core/reducer.h"
#include "support/costs.h"
#include "support/gpu.h"
#include "support/ranks.h"
#include "support/step.h"

#define DIM 700
#define STEPS 3
#define SEGMENTS 4

static const uint64_t lengths[SEGMENTS] = {300, 0, 1, 399};

/* One job: what all ranks do, and what each of them saw. */
typedef struct job {
    gtopk_reducer_config_t config;
    int integers; /* gradients are whole numbers up to 52, or with 2 up to 7: mass is compared exactly, index by index */
    int switches;    /* another algorithm for every step: 1 by set_algorithm, 2 by what auto measures */
    int sparse_rank; /* ranks with rank % 3 == this take their update as a set */
    uint64_t seed;
    int size;
    float gradients[RANKS_MAX][STEPS][DIM];
    float residuals[RANKS_MAX][STEPS][DIM]; /* after the step */
    float updates[RANKS_MAX][STEPS][DIM];
    gtopk_stats_t stats[RANKS_MAX][STEPS];
    int32_t algorithms[RANKS_MAX][STEPS]; /* that each step was taken with */
} job_t;

static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static double uniform(uint64_t *state)
{
    return (double)(next_random(state) >> 11) * 0x1p-53 * 2.0 - 1.0;
}

/* Gradients that share a direction, so that indices meet in merges; heavy tails; some exact zeros. */
static void fill_gradients(job_t *job)
{
    uint64_t state = job->seed;
    for (int step = 0; step < STEPS; step++)
        for (int i = 0; i < DIM; i++) {
            const double shared = pow(uniform(&state), 5.0) * 40.0;
            for (int r = 0; r < job->size; r++) {
                const double own = pow(uniform(&state), 3.0) * 12.0;
                const int zero = next_random(&state) % 8 == 0;
                const double value = zero ? 0.0 : shared + own;
                const double whole = rint(job->integers == 2 ? value / 8.0 : value);
                job->gradients[r][step][i] = (float)(job->integers ? whole : value);
            }
        }
}

static void check(gtopk_status_t status, int rank)
{
    if (status == GTOPK_OK)
        return;
    (void)fprintf(stderr, "rank %d: %s: %s\n", rank, gtopk_status_name(status), gtopk_last_error());
    abort();
}

static void scatter_set(const gtopk_set_t *set, float *out)
{
    memset(out, 0, DIM * sizeof *out);
    for (uint64_t i = 0; i < set->count; i++)
        out[set->indices[i]] = set->values[i];
}

/* Before a step. For auto, times are looked at after each one. */
static void change_algorithm(const job_t *job, gtopk_reducer_t *reducer, int rank, int step)
{
    if (job->switches == 1)
        check(gtopk_reducer_set_algorithm(reducer, (int32_t)((job->seed >> (3 * step)) % WIRE_ALGORITHMS)), rank);
    reducer->choice.warm = 1;
    reducer->choice.window = 1;
}

static void run_step(job_t *job, gtopk_reducer_t *reducer, int rank, int step)
{
    gtopk_choice_info_t choice = {.struct_size = sizeof choice};
    change_algorithm(job, reducer, rank, step);
    check(gtopk_reducer_choice(reducer, &choice), rank);
    job->algorithms[rank][step] = choice.algorithm;
    gtopk_tensor_t tensors[SEGMENTS];
    float gradient[DIM];
    memcpy(gradient, job->gradients[rank][step], sizeof gradient);
    for (size_t s = 0, at = 0; s < SEGMENTS; at += lengths[s], s++)
        tensors[s] = (gtopk_tensor_t){gradient + at, lengths[s], GTOPK_F32, 0};
    gtopk_stats_t *stats = &job->stats[rank][step];
    stats->struct_size = sizeof *stats;
    check(gtopk_reducer_accumulate(reducer, NULL, tensors, SEGMENTS, 1.0, GTOPK_ZERO_INPUT, NULL), rank);
    if (rank % 3 == job->sparse_rank) {
        uint32_t indices[DIM];
        float values[DIM];
        gtopk_set_t set = {indices, values, DIM, 0};
        check(step_reduce_sparse(reducer, &set, 0, stats), rank);
        scatter_set(&set, job->updates[rank][step]);
    } else {
        check(step_reduce(reducer, tensors, SEGMENTS, GTOPK_OUTPUT_IS_ZERO, stats), rank);
        memcpy(job->updates[rank][step], gradient, sizeof gradient);
    }
    for (size_t s = 0, at = 0; s < SEGMENTS; at += lengths[s], s++)
        check(gtopk_reducer_residual(reducer, (uint32_t)s, job->residuals[rank][step] + at, lengths[s]), rank);
}

static void run_rank(gtopk_comm_t *comm, int rank, int size, void *context)
{
    job_t *job = context;
    gtopk_reducer_t *reducer;
    (void)size;
    comm->costs = next_to_nothing;
    check(gtopk_reducer_create(&reducer, comm, &job->config, lengths, SEGMENTS), rank);
    for (int step = 0; step < STEPS; step++)
        run_step(job, reducer, rank, step);
    gtopk_reducer_destroy(reducer);
}

static void check_replicas(const job_t *job)
{
    for (int r = 1; r < job->size; r++)
        for (int step = 0; step < STEPS; step++)
            if (memcmp(job->updates[r][step], job->updates[0][step], sizeof job->updates[0][step]) != 0)
                fail_msg("rank %d has another update than rank 0 in step %d (algorithm %d, type %d, P %d, seed %llu)",
                         r, step, job->config.algorithm, job->config.value_type, job->size,
                         (unsigned long long)job->seed);
}

/* residuals before + gradients == residuals after + P * mean, summed over ranks, for each index. */
static void check_mass(const job_t *job)
{
    for (int step = 0; step < STEPS; step++) {
        double scale = 0.0, worst = 0.0;
        for (int i = 0; i < DIM; i++) {
            double before = 0.0, after = 0.0, size = 0.0;
            for (int r = 0; r < job->size; r++) {
                const double old = step ? (double)job->residuals[r][step - 1][i] : 0.0;
                before += old + (double)job->gradients[r][step][i];
                after += (double)job->residuals[r][step][i];
                size += fabs(old) + fabs((double)job->gradients[r][step][i]);
            }
            double sum = (double)job->updates[0][step][i] * job->size;
            if (job->integers) /* undo the rounding of the division by P: sums are multiples of 2^-12 */
                sum = rint(sum * 4096.0) / 4096.0;
            const double error = fabs(before - after - sum);
            if (job->integers && error != 0.0)
                fail_msg(
                    "index %d: %.10g before, %.10g after, sum %.10g (step %d, algorithm %d, type %d, P %d, seed %llu)",
                    i, before, after, sum, step, job->config.algorithm, job->config.value_type, job->size,
                    (unsigned long long)job->seed);
            scale = fmax(scale, size);
            worst = fmax(worst, error);
        }
        if (worst > 4e-7 * scale)
            fail_msg("mass off by %g of %g (step %d, algorithm %d, type %d, P %d, seed %llu)", worst, scale, step,
                     job->config.algorithm, job->config.value_type, job->size, (unsigned long long)job->seed);
    }
}

static void check_counts(const job_t *job)
{
    for (int step = 0; step < STEPS; step++) {
        uint64_t nonzero = 0;
        for (int i = 0; i < DIM; i++)
            nonzero += job->updates[0][step][i] != 0.0f;
        const gtopk_stats_t *stats = &job->stats[0][step];
        assert_int_equal(stats->step, step);
        assert_int_equal(stats->nonfinite, 0);
        if (job->algorithms[0][step] != GTOPK_ALGORITHM_DENSE)
            assert_int_equal(stats->count, nonzero);
        if (job->size > 1 && nonzero == 0)
            fail_msg("nothing was sent");
    }
}

static uint64_t base_seed(void)
{
    const char *seed = getenv("GTOPK_TEST_SEED");
    return seed ? strtoull(seed, NULL, 10) : 1;
}

static void run_switching(const gtopk_reducer_config_t *config, int size, int integers, int switches)
{
    static job_t job;
    job.config = *config;
    job.integers = integers;
    job.size = size;
    job.switches = switches;
    job.sparse_rank = size % 3;
    job.seed = base_seed() * 1000003u +
               (uint64_t)(config->algorithm * 97 + config->value_type * 31 + size * 7 + integers);
    fill_gradients(&job);
    ranks_run(size, run_rank, &job);
    check_replicas(&job);
    check_counts(&job);
    if (config->residual_policy == GTOPK_RESIDUAL_SHARE)
        check_mass(&job);
    for (int step = 1; step < STEPS && switches == 2 && size > 1; step++)
        assert_int_not_equal(job.algorithms[0][step], job.algorithms[0][step - 1]);
}

static void run_job(const gtopk_reducer_config_t *config, int size, int integers)
{
    run_switching(config, size, integers, 0);
}

static int largest_size(void)
{
    const char *sizes = getenv("GTOPK_TEST_SIZES");
    return sizes ? atoi(sizes) : 17;
}

static void run_all_sizes(int algorithm)
{
    for (int size = 1; size <= largest_size(); size++)
        for (int type = 0; type < 4; type++)
            for (int integers = 0; integers < 2; integers++) {
                gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
                config.algorithm = algorithm;
                config.value_type = type;
                config.density = 0.03;
                config.merge_growth = (size + type) % 3 == 0 ? 1.41 : 1.0;
                run_job(&config, size, integers);
            }
}

static void test_dense(void **state)
{
    (void)state;
    run_all_sizes(GTOPK_ALGORITHM_DENSE);
}

static void test_topk(void **state)
{
    (void)state;
    run_all_sizes(GTOPK_ALGORITHM_TOPK);
}

static void test_gtopk(void **state)
{
    (void)state;
    run_all_sizes(GTOPK_ALGORITHM_GTOPK);
}

static void test_gtopk_tree(void **state)
{
    (void)state;
    run_all_sizes(GTOPK_ALGORITHM_GTOPK_TREE);
}

static void test_gtopk_split(void **state)
{
    (void)state;
    run_all_sizes(GTOPK_ALGORITHM_GTOPK_SPLIT);
}

/* What one algorithm leaves in the residuals is for the next one. */
static void test_algorithms_change(void **state)
{
    (void)state;
    for (int size = 1; size <= largest_size(); size++)
        for (int type = 0; type < 4; type++)
            for (int way = 1; way <= 2; way++) {
                gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
                config.algorithm = way == 1 ? (size + type) % 5 : GTOPK_ALGORITHM_AUTO;
                config.value_type = type;
                config.density = 0.03;
                config.rollback = size % 2;
                run_switching(&config, size, (size + type) % 3 > 0, way);
            }
}

/* Whole numbers up to 256 are exact in bf16, where no merge shares out fractions of them: sums of 3 steps of 12 ranks. Elsewhere mass is kept to a rounding of
 * at most 2^-7 for each change of an entry: in accumulate, when it is cleared, and for a deposit in each round. Over all entries
 * these roundings cancel out. */
static double bf16_bound(const job_t *job, double mass)
{
    return (4.0 + 2.0 * log2(job->size)) * 0x1p-7 * mass;
}

static void check_mass_in_bf16(const job_t *job, int step)
{
    double all = 0.0, variance = 0.0;
    for (int i = 0; i < DIM; i++) {
        double error = -(double)job->updates[0][step][i] * job->size, mass = 0.0;
        for (int r = 0; r < job->size; r++) {
            const double old = step ? (double)job->residuals[r][step - 1][i] : 0.0;
            error += old + (double)job->gradients[r][step][i] - (double)job->residuals[r][step][i];
            mass += fabs(old) + fabs((double)job->gradients[r][step][i]);
        }
        if (fabs(error) > bf16_bound(job, mass))
            fail_msg("bf16: index %d is off by %g of %g (step %d, algorithm %d, type %d, P %d, seed %llu)", i, error,
                     mass, step, job->config.algorithm, job->config.value_type, job->size,
                     (unsigned long long)job->seed);
        all += error;
        variance += pow(bf16_bound(job, mass) / 2, 2.0);
    }
    if (fabs(all) > 5.0 * sqrt(variance))
        fail_msg("bf16: mass is off by %g in all (step %d, algorithm %d, type %d, P %d, seed %llu)", all, step,
                 job->config.algorithm, job->config.value_type, job->size, (unsigned long long)job->seed);
}

static void test_residual_in_bf16(void **state)
{
    (void)state;
    static job_t job;
    for (int size = 1; size <= largest_size(); size++)
        for (int algorithm = 0; algorithm < 5; algorithm++) {
            if (on_gpu() && algorithm != size) /* which takes longer */
                continue;
            gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
            config.algorithm = algorithm;
            config.value_type = (size + algorithm) % 4;
            config.density = 0.03;
            config.residual_dtype = GTOPK_BF16;
            config.rollback = size % 2;
            if (size <= 12 && (size == 1 || algorithm != GTOPK_ALGORITHM_GTOPK))
                run_job(&config, size, 2);
            job = (job_t){
                .config = config, .size = size, .sparse_rank = size % 3, .seed = base_seed() * 31u + (uint64_t)size};
            fill_gradients(&job);
            ranks_run(size, run_rank, &job);
            check_replicas(&job);
            check_counts(&job);
            for (int step = 0; step < STEPS; step++)
                check_mass_in_bf16(&job, step);
        }
}

/* The published policy agrees between replicas, and is seen to lose mass: the reason for `share`. */
static void test_paper_policy(void **state)
{
    (void)state;
    for (int size = 2; size <= 9; size++) {
        gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
        config.residual_policy = GTOPK_RESIDUAL_PAPER;
        config.algorithm = size % 2 ? GTOPK_ALGORITHM_GTOPK_TREE : GTOPK_ALGORITHM_GTOPK;
        config.density = 0.03;
        run_job(&config, size, 0);
        config.algorithm = GTOPK_ALGORITHM_GTOPK_SPLIT;
        run_job(&config, size, 0);
    }
}

/* Everything is sent: more entries than non-zeros, and k = n. */
static void test_full_density(void **state)
{
    (void)state;
    for (int size = 1; size <= 6; size++)
        for (int algorithm = 0; algorithm < 5; algorithm++) {
            gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
            config.algorithm = algorithm;
            config.density = 1.0;
            config.value_type = GTOPK_VALUE_F32;
            run_job(&config, size, 1);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dense),
        cmocka_unit_test(test_topk),
        cmocka_unit_test(test_gtopk),
        cmocka_unit_test(test_gtopk_tree),
        cmocka_unit_test(test_gtopk_split),
        cmocka_unit_test(test_paper_policy),
        cmocka_unit_test(test_full_density),
        cmocka_unit_test(test_algorithms_change),
        cmocka_unit_test(test_residual_in_bf16),
    };
    return cmocka_run_group_tests_name("exchange", tests, NULL, NULL);
}
