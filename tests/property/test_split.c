/* gtopk-split against a model that has a dense vector a rank: the update is exactly what the halvings leave of it, and the
 * bytes are those of the entries. Through the public API, over the thread transport. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/random.h"
#include "support/ranks.h"
#include "support/step.h"

enum { DIM = 2500, SIZES = 17, STEPS = 3 };

typedef struct job {
    int size;
    double density, growth;
    float gradients[SIZES][STEPS][DIM], before[SIZES][STEPS][DIM], updates[SIZES][STEPS][DIM];
    gtopk_stats_t stats[SIZES][STEPS];
} job_t;

static job_t job;

/* ---- the model ---- */

static int compare_magnitude(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* The k largest of x stay, the lower index first where magnitudes are equal. */
static void prune(float *x, uint64_t k)
{
    float sorted[DIM];
    for (int i = 0; i < DIM; i++)
        sorted[i] = fabsf(x[i]);
    qsort(sorted, DIM, sizeof *sorted, compare_magnitude);
    const float least = k > 0 && k <= DIM ? sorted[k - 1] : INFINITY;
    uint64_t above = 0;
    for (int i = 0; i < DIM; i++)
        above += fabsf(x[i]) > least;
    for (int i = 0; i < DIM; i++)
        if (fabsf(x[i]) < least)
            x[i] = 0.0f;
        else if (fabsf(x[i]) == least && above++ >= k)
            x[i] = 0.0f;
}

/* The owner's bit b is the parity of the bits b, b + 5, ... of the index. */
static int is_in(int index, int level, int place)
{
    for (int b = 0; b < level; b++) {
        int bit = 0;
        for (int from = b; from < 31; from += 5)
            bit ^= index >> from & 1;
        if (bit != (place >> b & 1))
            return 0;
    }
    return 1;
}

static uint64_t budget(int level, int place, uint64_t k)
{
    uint64_t entries = 0;
    for (int i = 0; i < DIM; i++)
        entries += is_in(i, level, place) != 0;
    return (k * entries + DIM - 1) / DIM;
}

static uint64_t grown(uint64_t k, int level)
{
    double entries = (double)k;
    for (int i = 0; i < level; i++)
        entries = fmin(fmin(DIM, 4.0 * (double)k), ceil(entries * job.growth));
    return (uint64_t)entries;
}

/* What `from` sends of its sum to `to` when both come to `level`. */
static void send_half(const float *sum, int level, int to, uint64_t k, float *out)
{
    for (int i = 0; i < DIM; i++)
        out[i] = is_in(i, level, to) ? sum[i] : 0.0f;
    prune(out, budget(level, to, k));
}

/* The update, times P. */
static void model(int step, uint64_t k, float *update)
{
    static float sums[SIZES][DIM], next[SIZES][DIM];
    int levels = 0;
    while (2 << levels <= job.size)
        levels++;
    const int owners = 1 << levels;
    for (int r = 0; r < job.size; r++) {
        for (int i = 0; i < DIM; i++)
            sums[r][i] = job.before[r][step][i] + job.gradients[r][step][i];
        prune(sums[r], k);
    }
    for (int r = owners; r < job.size; r++) {
        for (int i = 0; i < DIM; i++)
            sums[r - owners][i] += sums[r][i];
        prune(sums[r - owners], k);
    }
    for (int level = 1; level <= levels; level++) {
        const uint64_t all = grown(k, level);
        for (int r = 0; r < owners; r++) {
            float came[DIM];
            send_half(sums[r ^ (1 << (level - 1))], level, r, all, came);
            for (int i = 0; i < DIM; i++)
                next[r][i] = is_in(i, level, r) ? sums[r][i] + came[i] : 0.0f;
            prune(next[r], budget(level, r, all));
        }
        memcpy(sums, next, sizeof sums);
    }
    memset(update, 0, DIM * sizeof *update);
    for (int r = 0; r < owners; r++)
        for (int i = 0; i < DIM; i++)
            update[i] += is_in(i, levels, r) ? sums[r][i] : 0.0f;
}

/* ---- the library ---- */

static void check(gtopk_status_t status)
{
    if (status == GTOPK_OK)
        return;
    (void)fprintf(stderr, "%s: %s\n", gtopk_status_name(status), gtopk_last_error());
    abort();
}

static void run_rank(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const uint64_t length = DIM;
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    (void)size;
    (void)context;
    config.algorithm = GTOPK_ALGORITHM_GTOPK_SPLIT;
    config.value_type = GTOPK_VALUE_F32;
    config.density = job.density;
    config.merge_growth = job.growth;
    check(gtopk_reducer_create(&reducer, comm, &config, &length, 1));
    for (int step = 0; step < STEPS; step++) {
        float gradient[DIM];
        const gtopk_tensor_t tensor = {gradient, DIM, GTOPK_F32, 0};
        memcpy(gradient, job.gradients[rank][step], sizeof gradient);
        job.stats[rank][step].struct_size = sizeof job.stats[rank][step];
        check(gtopk_reducer_residual(reducer, 0, job.before[rank][step], DIM));
        check(gtopk_reducer_accumulate(reducer, NULL, &tensor, 1, 1.0, GTOPK_ZERO_INPUT, NULL));
        check(step_reduce(reducer, &tensor, 1, GTOPK_OUTPUT_IS_ZERO, &job.stats[rank][step]));
        memcpy(job.updates[rank][step], gradient, sizeof gradient);
    }
    gtopk_reducer_destroy(reducer);
}

static void run(int size, double density, double growth)
{
    random_state_t random = {(uint64_t)size};
    job.size = size;
    job.density = density;
    job.growth = growth;
    for (int r = 0; r < size; r++)
        for (int step = 0; step < STEPS; step++)
            for (int i = 0; i < DIM; i++) /* many ties, and some layers with larger gradients than others */
                job.gradients[r][step][i] = (float)((int)random_below(&random, 41) - 20) * (i % 700 < 90 ? 3.0f : 0.5f);
    ranks_run(size, run_rank, NULL);
    for (int step = 0; step < STEPS; step++) {
        float expected[DIM];
        model(step, (uint64_t)fmax(1.0, rint(density * DIM)), expected);
        for (int r = 0; r < size; r++)
            for (int i = 0; i < DIM; i++)
                if (job.updates[r][step][i] != expected[i] / (float)size)
                    fail_msg("P %d, density %g, growth %g, step %d, rank %d, index %d: %g, not %g", size, density,
                             growth, step, r, i, (double)job.updates[r][step][i], (double)expected[i] / size);
    }
}

static void test_update(void **state)
{
    (void)state;
    for (int size = 1; size <= SIZES; size++) {
        run(size, 0.02, 1.0);
        run(size, 0.1, 1.5);
        run(size, 0.0004, 1.0); /* k = 1: each owner keeps one */
    }
}

/* A header a message, and 4 bytes and some 1.5 an entry for 2 k (P - 1) / P entries. */
static void test_bytes(void **state)
{
    (void)state;
    for (int size = 2; size <= 16; size *= 2) {
        run(size, 0.1, 1.0);
        int rounds = 0;
        while (1 << rounds < size)
            rounds++;
        for (int r = 0; r < size; r++) {
            const gtopk_stats_t *stats = &job.stats[r][STEPS - 1];
            const double entries = 2.0 * 0.1 * DIM * (size - 1) / size, bytes = (double)stats->bytes_sent;
            assert_int_equal(stats->rounds, 2 * rounds);
            assert_true(bytes < 2 * rounds * (64.0 + 2 * 8 + 8 * 5.0) + entries * 4.75);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_update),
        cmocka_unit_test(test_bytes),
    };
    return cmocka_run_group_tests_name("split", tests, NULL, NULL);
}
