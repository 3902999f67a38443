/* What a queue adds to promise 4. A device operation fails, when it is queued or when the stream gets to it, at each place
 * of a step in turn; a rank gives up, or its deadline passes, while operations are queued whose messages have not come.
 * After each, on every rank: the call returned; either the step happened or the residual is what it was after accumulate
 * (or before it, where that is what failed); reducers that take a step together agree; nothing is queued any more; no rank
 * is two steps ahead; every later call fails with the first error. The same of steps that are timed while a reducer is created:
 * every rank returns, and memory stays while something that is queued needs it.
 *
 * On the guarded device, with ranks that are threads on a virtual clock. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/comm.h"
#include "exchange/probe.h"
#include "support/bf16.h"
#include "support/check.h"
#include "support/guarded.h"
#include "support/parts.h"
#include "support/random.h"
#include "support/ranks.h"
#include "support/sizes.h"

#define DIM 48
#define STEPS 4 /* 0: well, 1: the fault, 2 and 3: what comes after it */
#define FAULT_STEP 1
#define SIZE_MAX_TESTED 4
#define TEXT 1024
#define UNTOUCHED 0x55

typedef struct outcome {
    gtopk_status_t status;
    char text[TEXT];
    float before[DIM], accumulated[DIM], after[DIM]; /* residuals; accumulated: what it is to be after accumulate */
    float gradient[DIM], update[DIM];                /* both may still be in the queue when a step has failed */
    long queued;                                     /* when reduce had returned an error */
} outcome_t;

typedef struct scenario {
    int algorithm, size;
    guarded_fault_t fault;
    int rank;
    long operation;
    int no_wait;                      /* an error of the commit comes out in the next step */
    long operations[SIZE_MAX_TESTED]; /* of the fault's step, when nothing fails */
    outcome_t outcomes[SIZE_MAX_TESTED][STEPS];
} scenario_t;

static struct {
    long faults, survived;
} tally;

static int in_bf16(const scenario_t *scenario)
{
    return scenario->size % 3 == 0;
}

/* ---- steps ---- */

static void note(outcome_t *outcome, gtopk_status_t status)
{
    if (outcome->status != GTOPK_OK || status == GTOPK_OK)
        return;
    outcome->status = status;
    (void)snprintf(outcome->text, sizeof outcome->text, "%s", gtopk_last_error());
}

/* What accumulate makes of a residual. */
static void add_gradient(const parts_t *parts, const scenario_t *scenario, int rank, int number, outcome_t *outcome)
{
    for (uint64_t part = 0, at = 0; part < parts->count; part++)
        for (uint32_t i = 0; i < parts->length[part]; i++, at++) {
            const float sum = outcome->before[at] + outcome->gradient[at];
            outcome->accumulated[at] = in_bf16(scenario) ? bf16_accumulated(sum, rank, number, i) : sum;
        }
}

static void take_step(const parts_t *parts, const scenario_t *scenario, int rank, int number, outcome_t *outcome)
{
    const int is_fault = number == FAULT_STEP && rank == scenario->rank;
    random_state_t random = {(uint64_t)(number * 64 + rank + 1)};
    for (int i = 0; i < DIM; i++)
        outcome->gradient[i] = (float)random_below(&random, 2000) - 1000.0f;
    add_gradient(parts, scenario, rank, number, outcome);
    memset(outcome->update, UNTOUCHED, sizeof outcome->update);
    gtopk_tensor_t in[2], out[2];
    parts_tensors(parts, outcome->gradient, in);
    parts_tensors(parts, outcome->update, out);
    const gtopk_tensor_t *const outputs[2] = {&out[0], &out[1]};
    const size_t counts[2] = {1, 1};

    if (is_fault)
        guarded_arm(scenario->fault, scenario->operation);
    for (size_t i = 0; i < parts->count; i++)
        note(outcome, gtopk_reducer_accumulate(parts->reducers[i], NULL, &in[i], 1, 1.0, 0, NULL));
    const int accumulated = outcome->status == GTOPK_OK;
    /* A caller who is told of an error takes no step; the others are to learn of it all the same. */
    note(outcome, gtopk_reducers_reduce(parts->reducers, outputs, counts, parts->count, 0, NULL, NULL));
    if (accumulated && outcome->status != GTOPK_OK)
        outcome->queued = guarded_queued();
    if (!is_fault || !scenario->no_wait)
        for (size_t i = 0; i < parts->count && outcome->status == GTOPK_OK; i++)
            note(outcome, gtopk_reducer_wait(parts->reducers[i], NULL));
}

static gtopk_comm_config_t net_of(const ranks_thread_t *self)
{
    gtopk_comm_config_t net = GTOPK_COMM_CONFIG_INIT;
    net.group = self->group;
    net.rank = self->rank;
    net.size = self->size;
    net.timeout = 5.0;
    return net;
}

static void create(parts_t *parts, gtopk_comm_t *comm, const scenario_t *scenario)
{
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    config.algorithm = scenario->algorithm;
    config.density = 0.15;
    config.device = "guarded";
    config.value_type = scenario->size % 4;
    config.rollback = scenario->size % 2;
    config.residual_dtype = in_bf16(scenario) ? GTOPK_BF16 : GTOPK_F32;
    parts_create(parts, comm, config, DIM);
}

static void *act(void *argument)
{
    const ranks_thread_t *self = argument;
    scenario_t *scenario = self->context;
    const gtopk_comm_config_t net = net_of(self);
    transport_t *thread, *ordered;
    gtopk_comm_t *comm;
    parts_t parts;
    REQUIRE(ranks_transports(&net, self->ordered, &thread, &ordered) == GTOPK_OK);
    REQUIRE(comm_open(&comm, thread, ordered, &net) == GTOPK_OK);
    create(&parts, comm, scenario);
    for (int number = 0; number < STEPS; number++) {
        outcome_t *outcome = &scenario->outcomes[self->rank][number];
        const int is_lost = scenario->no_wait && number >= FAULT_STEP && self->rank == scenario->rank;
        if (!is_lost) /* a device that has failed is not asked */
            parts_residual(&parts, outcome->before);
        if (number == FAULT_STEP)
            guarded_arm(GUARDED_NO_FAULT, 0);
        take_step(&parts, scenario, self->rank, number, outcome);
        if (number == FAULT_STEP)
            scenario->operations[self->rank] = guarded_counted();
        if (is_lost)
            continue;
        guarded_arm(GUARDED_NO_FAULT, 0);
        parts_residual(&parts, outcome->after);
    }
    ranks_stay(self, thread);
    parts_destroy(&parts);
    gtopk_comm_destroy(comm);
    return NULL;
}

static void play(scenario_t *scenario)
{
    ranks_play((ranks_thread_t){.context = scenario, .size = scenario->size}, act, GTOPK_THREAD_VIRTUAL_CLOCK);
}

/* ---- checks ---- */

static void fail_rank(const scenario_t *scenario, int rank, int step, const char *what)
{
    fail_msg("%s: rank %d, step %d (algorithm %d, P %d, operation %ld of rank %d fails when it is %s%s): %s", what,
             rank, step, scenario->algorithm, scenario->size, scenario->operation, scenario->rank,
             scenario->fault == GUARDED_AT_QUEUE ? "queued" : "run", scenario->no_wait ? ", nobody waits" : "",
             scenario->outcomes[rank][step].text);
}

static int same(const float *a, const float *b, uint64_t length)
{
    return memcmp(a, b, length * sizeof *a) == 0;
}

/* Of two commits the first is in the queue, or done, when the device fails in the second: it cannot be called back. */
static int second_commit_fails(const scenario_t *scenario, const scenario_t *well, int r, int number)
{
    const long waits = 2, commit = well->operations[r] - waits - 1;
    return number == FAULT_STEP && r == scenario->rank && scenario->operation == commit;
}

/* Whether a step happened on a rank, by what the well run left there; reducers must agree. */
static int happened(const scenario_t *scenario, const scenario_t *well, int r, int number)
{
    const outcome_t *outcome = &scenario->outcomes[r][number], *good = &well->outcomes[r][number];
    float untouched[DIM];
    uint64_t length[2], at = 0;
    const size_t parts = parts_of(scenario->algorithm, DIM, length);
    int done = -1;
    memset(untouched, UNTOUCHED, sizeof untouched);
    for (size_t i = 0; i < parts; at += length[i++]) {
        const int yes = same(outcome->after + at, good->after + at, length[i]) &&
                        same(outcome->update + at, good->update + at, length[i]);
        if (!yes && !same(outcome->after + at, outcome->accumulated + at, length[i]) &&
            !(r == scenario->rank && same(outcome->after + at, outcome->before + at, length[i])))
            fail_rank(scenario, r, number, "the residual is of no step, or not that of the update");
        if (!yes && !same(outcome->update + at, untouched, length[i]))
            fail_rank(scenario, r, number, "a step that did not happen wrote outputs");
        if (done >= 0 && done != yes && !second_commit_fails(scenario, well, r, number))
            fail_rank(scenario, r, number, "one reducer took the step, the other did not");
        done = yes;
    }
    return done;
}

/* What follows the first error. */
static void check_broken(const scenario_t *scenario, int r, int broken_at)
{
    const outcome_t *first = &scenario->outcomes[r][broken_at];
    for (int number = broken_at + 1; number < STEPS; number++) {
        const outcome_t *outcome = &scenario->outcomes[r][number];
        if (outcome->status == GTOPK_OK)
            fail_rank(scenario, r, number, "a step succeeded after one had failed");
        if (outcome->status != first->status || !strstr(outcome->text, first->text))
            fail_rank(scenario, r, number, "a later call does not repeat the first error");
        if (!same(outcome->after, outcome->before, DIM))
            fail_rank(scenario, r, number, "a later call changed the residual");
    }
}

/* Returns the steps that happened on a rank. */
static int check_rank(const scenario_t *scenario, const scenario_t *well, int r)
{
    const int own = r == scenario->rank, is_lost = own && scenario->no_wait;
    int number = 0;
    while (number < STEPS && scenario->outcomes[r][number].status == GTOPK_OK) {
        if (!(is_lost && number == FAULT_STEP) && !happened(scenario, well, r, number))
            fail_rank(scenario, r, number, "a step succeeded and did not happen");
        number++;
    }
    /* A rank that is told of the end need not look whether the messages of its own step have come. */
    if (number > FAULT_STEP + 1 || number < (own ? FAULT_STEP : FAULT_STEP - 1))
        fail_rank(scenario, r, FAULT_STEP, "the fault was not noticed, or too early");
    const outcome_t *first = &scenario->outcomes[r][number];
    if (first->status != (own ? GTOPK_ERR_DEVICE : GTOPK_ERR_ABORTED))
        fail_rank(scenario, r, number, own ? "no error of the device" : "the rank that gave up did not say so");
    if (first->queued > 0)
        fail_rank(scenario, r, number, "operations of a failed step are queued");
    check_broken(scenario, r, number);
    if (is_lost)
        return FAULT_STEP;
    const int survived = number <= FAULT_STEP && happened(scenario, well, r, number);
    tally.survived += survived;
    return number + survived;
}

static void check(const scenario_t *scenario, const scenario_t *well)
{
    int least = STEPS, most = 0;
    for (int r = 0; r < scenario->size; r++) {
        const int done = check_rank(scenario, well, r);
        least = done < least ? done : least;
        most = done > most ? done : most;
    }
    if (most - least > 1)
        fail_rank(scenario, scenario->rank, FAULT_STEP, "ranks are two steps apart");
}

static void check_well(const scenario_t *scenario)
{
    for (int r = 0; r < scenario->size; r++)
        for (int number = 0; number < STEPS; number++) {
            if (scenario->outcomes[r][number].status != GTOPK_OK)
                fail_rank(scenario, r, number, "a step failed though nothing was to");
            if (!same(scenario->outcomes[r][number].update, scenario->outcomes[0][number].update, DIM))
                fail_rank(scenario, r, number, "ranks have other updates");
        }
}

static void try_all_operations(int algorithm)
{
    static scenario_t well, scenario;
    for (int size = 1; size <= sizes_up_to(SIZE_MAX_TESTED); size++) {
        well = (scenario_t){.algorithm = algorithm, .size = size, .rank = -1};
        play(&well);
        check_well(&well);
        for (int last = 0; last < (size > 1 ? 2 : 1); last++) /* the first rank, and the last */
            for (long n = 0; n < well.operations[last ? size - 1 : 0]; n++)
                for (int kind = 0; kind < 3; kind++) {
                    scenario = (scenario_t){.algorithm = algorithm,
                                            .size = size,
                                            .fault = kind ? GUARDED_AT_RUN : GUARDED_AT_QUEUE,
                                            .rank = last ? size - 1 : 0,
                                            .operation = n,
                                            .no_wait = kind == 2};
                    play(&scenario);
                    check(&scenario, &well);
                    tally.faults++;
                }
    }
}

static void test_gtopk(void **state)
{
    (void)state;
    try_all_operations(GTOPK_ALGORITHM_GTOPK);
}

static void test_gtopk_tree(void **state)
{
    (void)state;
    try_all_operations(GTOPK_ALGORITHM_GTOPK_TREE);
}

static void test_topk(void **state)
{
    (void)state;
    try_all_operations(GTOPK_ALGORITHM_TOPK);
}

static void test_dense(void **state)
{
    (void)state;
    try_all_operations(GTOPK_ALGORITHM_DENSE);
}

static void test_gtopk_split(void **state)
{
    (void)state;
    try_all_operations(GTOPK_ALGORITHM_GTOPK_SPLIT);
}

static void test_two_reducers_in_one_step(void **state)
{
    (void)state;
    try_all_operations(PARTS_TOGETHER);
}

/* ---- the end comes while a step is queued ---- */

/* What ends the step of rank 0, of which rank 1 never sends anything. */
typedef enum end_kind { END_DEADLINE, END_INTERRUPT, END_LAST_WORD, END_LEAVES, END_KINDS } end_kind_t;

typedef struct ending {
    scenario_t scenario; /* algorithm and size */
    end_kind_t kind;
    outcome_t outcome;
} ending_t;

static int interrupt_soon(void *context)
{
    int *asked = context;
    return ++*asked > 3;
}

static void *end_a_step(void *argument)
{
    const ranks_thread_t *self = argument;
    ending_t *ending = self->context;
    const gtopk_comm_config_t net = net_of(self);
    const int leaves = self->rank == 1 && ending->kind == END_LEAVES;
    transport_t *thread, *ordered;
    gtopk_comm_t *comm;
    parts_t parts;
    int asked = 0;
    REQUIRE(ranks_transports(&net, self->ordered, &thread, &ordered) == GTOPK_OK);
    if (ending->kind == END_INTERRUPT && self->rank == 0) {
        transport_t *both[] = {thread, ordered};
        for (int t = 0; t < 2 && both[t]; t++) {
            both[t]->interrupt = interrupt_soon;
            both[t]->interrupt_context = &asked;
        }
    }
    REQUIRE(comm_open(&comm, thread, ordered, &net) == GTOPK_OK);
    asked = -1000;
    create(&parts, comm, &ending->scenario);
    asked = 0;
    if (self->rank == 0) {
        parts_residual(&parts, ending->outcome.before);
        take_step(&parts, &ending->scenario, 0, 0, &ending->outcome);
        parts_residual(&parts, ending->outcome.after);
    } else if (ending->kind == END_LAST_WORD) {
        (void)comm_settle(comm, status_set(GTOPK_ERR_NOMEM, "enough"), 0);
    }
    if (!leaves)
        ranks_stay(self, thread);
    parts_destroy(&parts);
    gtopk_comm_destroy(comm);
    if (leaves)
        (void)pthread_barrier_wait(self->end);
    return NULL;
}

static void check_ending(ending_t *ending)
{
    static const gtopk_status_t expected[END_KINDS] = {GTOPK_ERR_TIMEOUT, GTOPK_ERR_INTERRUPTED, GTOPK_ERR_ABORTED,
                                                       GTOPK_ERR_TRANSPORT};
    const outcome_t *outcome = &ending->outcome;
    float untouched[DIM];
    memset(untouched, UNTOUCHED, sizeof untouched);
    if (outcome->status != expected[ending->kind])
        fail_msg("algorithm %d, end %d: %s: %s", ending->scenario.algorithm, (int)ending->kind,
                 gtopk_status_name(outcome->status), outcome->text);
    if (outcome->queued > 0)
        fail_msg("algorithm %d, end %d: operations are queued", ending->scenario.algorithm, (int)ending->kind);
    if (!same(outcome->after, outcome->accumulated, DIM) || !same(outcome->update, untouched, DIM))
        fail_msg("algorithm %d, end %d: something was committed", ending->scenario.algorithm, (int)ending->kind);
}

static void test_the_end_while_queued(void **state)
{
    static const int algorithms[] = {GTOPK_ALGORITHM_GTOPK, GTOPK_ALGORITHM_GTOPK_TREE, GTOPK_ALGORITHM_GTOPK_SPLIT,
                                     GTOPK_ALGORITHM_TOPK,  GTOPK_ALGORITHM_DENSE,      PARTS_TOGETHER};
    static ending_t ending;
    (void)state;
    for (size_t a = 0; a < sizeof algorithms / sizeof algorithms[0]; a++)
        for (int kind = 0; kind < END_KINDS; kind++) {
            ending = (ending_t){.scenario = {.algorithm = algorithms[a], .size = 2, .rank = -1},
                                .kind = (end_kind_t)kind};
            ranks_play((ranks_thread_t){.context = &ending, .size = 2}, end_a_step, GTOPK_THREAD_VIRTUAL_CLOCK);
            check_ending(&ending);
        }
}

/* ---- outside of steps ---- */

/* The guarded device stops the process where memory is released that something queued uses. */
static void test_timing_of_a_merge(void **state)
{
    (void)state;
    device_t *device;
    double seconds;
    ASSERT_OK(device_open("guarded", &device));
    guarded_arm(GUARDED_NO_FAULT, 0);
    ASSERT_OK(probe_merge(device, &seconds));
    const long operations = guarded_counted();
    assert_true(seconds > 0.0 && operations > 9);
    for (int fault = GUARDED_AT_QUEUE; fault <= GUARDED_AT_RUN; fault++)
        for (long n = 0; n < operations; n++) {
            guarded_arm((guarded_fault_t)fault, n);
            const gtopk_status_t status = probe_merge(device, &seconds);
            /* The last one waits before memory is released, when all is done. */
            assert_int_equal(status, n + 1 < operations ? GTOPK_ERR_DEVICE : GTOPK_OK);
            assert_int_equal(guarded_queued(), 0);
        }
    guarded_arm(GUARDED_NO_FAULT, 0);
    device->ops->close(device);
}

/* ---- while steps are timed ---- */

enum { TRIAL_RANKS = 4 };

/* A reducer whose creation tries hierarchies, or measures what steps cost. */
typedef struct trial {
    int algorithm, hierarchy, size;
    guarded_fault_t fault;
    long operation; /* of rank 1 */
    int fired;
    gtopk_status_t status[TRIAL_RANKS];
} trial_t;

static void run_trial(gtopk_comm_t *comm, int rank, int size, void *context)
{
    trial_t *trial = context;
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    const uint64_t length = DIM;
    (void)size;
    config.device = "guarded";
    config.algorithm = trial->algorithm;
    config.hierarchy = trial->hierarchy;
    guarded_arm(rank == 1 ? trial->fault : GUARDED_NO_FAULT, trial->operation);
    trial->status[rank] = gtopk_reducer_create(&reducer, comm, &config, &length, 1);
    if (rank == 1)
        trial->fired = guarded_counted() > trial->operation;
    gtopk_reducer_destroy(reducer);
}

static void check_trial(const trial_t *trial)
{
    tally.faults += trial->fired;
    for (int r = 0; r < trial->size; r++) {
        const gtopk_status_t status = trial->status[r];
        if (status == GTOPK_ERR_TIMEOUT || status == GTOPK_ERR_TRANSPORT || !status != !trial->status[1] ||
            (r == 1 && status != GTOPK_OK && status != GTOPK_ERR_DEVICE))
            fail_msg("operation %ld of rank 1 fails when it is %s: rank %d has %s", trial->operation,
                     trial->fault == GUARDED_AT_QUEUE ? "queued" : "run", r, gtopk_status_name(status));
    }
}

/* Nobody waits, and memory stays while something that is queued needs it: the device ends the process otherwise. */
static void test_trials(void **state)
{
    const struct {
        int algorithm, hierarchy, size, stride;
    } trials[] = {{GTOPK_ALGORITHM_GTOPK, GTOPK_HIERARCHY_AUTO, TRIAL_RANKS, 1},
                  {GTOPK_ALGORITHM_AUTO, GTOPK_HIERARCHY_OFF, 2, 11}};
    (void)state;
    for (size_t t = 0; t < sizeof trials / sizeof *trials; t++)
        for (int fault = GUARDED_AT_QUEUE; fault <= GUARDED_AT_RUN; fault++) {
            trial_t trial = {.algorithm = trials[t].algorithm,
                             .hierarchy = trials[t].hierarchy,
                             .size = trials[t].size,
                             .fault = (guarded_fault_t)fault,
                             .fired = 1};
            for (; trial.fired; trial.operation += trials[t].stride) {
                ranks_run_on(trial.size, 2, run_trial, &trial, 30.0, GTOPK_THREAD_VIRTUAL_CLOCK);
                check_trial(&trial);
            }
            assert_true(trial.operation > 50);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gtopk),
        cmocka_unit_test(test_gtopk_tree),
        cmocka_unit_test(test_topk),
        cmocka_unit_test(test_dense),
        cmocka_unit_test(test_gtopk_split),
        cmocka_unit_test(test_two_reducers_in_one_step),
        cmocka_unit_test(test_the_end_while_queued),
        cmocka_unit_test(test_timing_of_a_merge),
        cmocka_unit_test(test_trials),
    };
    const int failed = cmocka_run_group_tests_name("queue", tests, NULL, NULL);
    (void)printf("{\"faults\": %ld, \"survived\": %ld}\n", tally.faults, tally.survived);
    return failed;
}
