/* Promise 4: every failure at every message of every algorithm, in turn, for P = 2..9. After each, on every rank: the call
 * returned; either the step happened (the same update as on every other rank where it did) or the residual is what it was
 * after accumulate, bit for bit; no rank is two steps ahead; every later call fails at once with the first error.
 *
 * Ranks are threads on a virtual clock, so that deadlines cost nothing. The last line of output is JSON. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/comm.h"
#include "support/faulty.h"
#include "support/random.h"
#include "transport/thread.h"

#define DIM 60
#define STEPS 5 /* 0: well, 1: the fault, 2 to 4: what comes after it */
#define FAULT_STEP 1
#define SIZE_MAX_TESTED 9
#define TEXT 1024

typedef struct outcome {
    gtopk_status_t status;
    char text[TEXT];
    float before[DIM], after[DIM]; /* residual after accumulate, and after reduce */
    float update[DIM];
} outcome_t;

typedef struct scenario {
    int algorithm, size;
    fault_kind_t kind;
    int rank, message; /* message < 0: nothing is spoilt */
    pthread_barrier_t end;
    int sent[SIZE_MAX_TESTED]; /* messages of the fault's step, when nothing is spoilt */
    outcome_t outcomes[SIZE_MAX_TESTED][STEPS];
} scenario_t;

typedef struct actor {
    scenario_t *scenario;
    gtopk_thread_group_t *group;
    int rank;
} actor_t;

static struct {
    long faults, survived, failed_steps;
    long by_kind[FAULT_KINDS], by_status[64];
} tally;

static atomic_long warnings;

static void count_warning(void *context, int level, const char *text)
{
    (void)context;
    if (level == GTOPK_LOG_WARN && strstr(text, "has waited"))
        atomic_fetch_add(&warnings, 1);
}

#define REQUIRE(condition)                                                                                 \
    do {                                                                                                   \
        if (!(condition)) {                                                                                \
            (void)fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, gtopk_last_error()); \
            abort();                                                                                       \
        }                                                                                                  \
    } while (0)

static void take_step(gtopk_reducer_t *reducer, int rank, int number, outcome_t *outcome)
{
    random_state_t random = {(uint64_t)(number * 64 + rank + 1)};
    float gradient[DIM];
    for (int i = 0; i < DIM; i++)
        gradient[i] = (float)random_below(&random, 2000) - 1000.0f;
    const gtopk_tensor_t tensor = {gradient, DIM, GTOPK_F32, 0};
    /* A rank that is broken already keeps its residual through accumulate, too. */
    (void)gtopk_reducer_accumulate(reducer, NULL, &tensor, 1, 1.0, 0, NULL);
    REQUIRE(gtopk_reducer_residual(reducer, 0, outcome->before, DIM) == GTOPK_OK);
    memset(outcome->update, 0x55, sizeof outcome->update);
    const gtopk_tensor_t output = {outcome->update, DIM, GTOPK_F32, 0};
    outcome->status = gtopk_reducer_reduce(reducer, &output, 1, 0, NULL, NULL);
    (void)snprintf(outcome->text, sizeof outcome->text, "%s", gtopk_last_error());
    REQUIRE(gtopk_reducer_residual(reducer, 0, outcome->after, DIM) == GTOPK_OK);
}

static void *act(void *argument)
{
    actor_t *self = argument;
    scenario_t *scenario = self->scenario;
    gtopk_comm_config_t net = GTOPK_COMM_CONFIG_INIT;
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    const uint64_t length = DIM;
    transport_t *inner, *faulty;
    gtopk_comm_t *comm;
    gtopk_reducer_t *reducer;
    net.group = self->group;
    net.rank = self->rank;
    net.size = scenario->size;
    REQUIRE(transport_thread_open(&net, &inner) == GTOPK_OK);
    faulty = faulty_create(inner);
    REQUIRE(faulty);
    REQUIRE(comm_open(&comm, faulty, &net) == GTOPK_OK);
    config.algorithm = scenario->algorithm;
    config.density = 0.15;
    config.value_type = (scenario->size + scenario->rank) % 4;
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, &length, 1) == GTOPK_OK);

    faulty_record(faulty);
    for (int number = 0; number < STEPS; number++) {
        if (number == FAULT_STEP)
            faulty_arm(faulty, scenario->kind, self->rank == scenario->rank ? scenario->message : -1,
                       (uint64_t)(scenario->message * 977 + scenario->size));
        take_step(reducer, self->rank, number, &scenario->outcomes[self->rank][number]);
        if (number == FAULT_STEP)
            scenario->sent[self->rank] = faulty_sent(faulty);
    }
    transport_thread_idle(faulty_inner(faulty), 1);
    (void)pthread_barrier_wait(&scenario->end); /* closing would tell the others before the deadline does */
    gtopk_reducer_destroy(reducer);
    gtopk_comm_destroy(comm);
    return NULL;
}

static void play(scenario_t *scenario)
{
    pthread_t threads[SIZE_MAX_TESTED];
    actor_t actors[SIZE_MAX_TESTED];
    gtopk_thread_group_t *group;
    REQUIRE(gtopk_thread_group_create(&group, scenario->size, GTOPK_THREAD_VIRTUAL_CLOCK) == GTOPK_OK);
    REQUIRE(pthread_barrier_init(&scenario->end, NULL, (unsigned)scenario->size) == 0);
    for (int r = 0; r < scenario->size; r++) {
        actors[r] = (actor_t){scenario, group, r};
        REQUIRE(pthread_create(&threads[r], NULL, act, &actors[r]) == 0);
    }
    for (int r = 0; r < scenario->size; r++)
        (void)pthread_join(threads[r], NULL);
    (void)pthread_barrier_destroy(&scenario->end);
    gtopk_thread_group_destroy(group);
}

static void fail_rank(const scenario_t *scenario, int rank, int step, const char *what)
{
    fail_msg("%s: rank %d, step %d (algorithm %d, P %d, %s at message %d of rank %d): %s", what, rank, step,
             scenario->algorithm, scenario->size, fault_name(scenario->kind), scenario->message, scenario->rank,
             scenario->outcomes[rank][step].text);
}

static int steps_done(const scenario_t *scenario, int rank)
{
    int done = 0;
    for (int number = 0; number < STEPS; number++)
        done += scenario->outcomes[rank][number].status == GTOPK_OK;
    return done;
}

static void check_replicas(const scenario_t *scenario, int number)
{
    const outcome_t *first = NULL;
    for (int r = 0; r < scenario->size; r++) {
        const outcome_t *outcome = &scenario->outcomes[r][number];
        if (outcome->status != GTOPK_OK)
            continue;
        if (first && memcmp(first->update, outcome->update, sizeof first->update) != 0)
            fail_rank(scenario, r, number, "another update than other ranks");
        first = outcome;
    }
}

static void check_rank(const scenario_t *scenario, int r)
{
    float untouched[DIM];
    memset(untouched, 0x55, sizeof untouched);
    int broken_at = STEPS;
    for (int number = 0; number < STEPS; number++) {
        const outcome_t *outcome = &scenario->outcomes[r][number];
        if (outcome->status == GTOPK_OK) {
            if (broken_at < number) /* a broken communicator stays broken */
                fail_rank(scenario, r, number, "a step succeeded after one had failed");
            continue;
        }
        if (memcmp(outcome->before, outcome->after, sizeof outcome->before) != 0)
            fail_rank(scenario, r, number, "a failed step changed the residual");
        if (memcmp(outcome->update, untouched, sizeof untouched) != 0)
            fail_rank(scenario, r, number, "a failed step wrote outputs");
        if (broken_at == STEPS) {
            broken_at = number;
            tally.by_status[-outcome->status]++;
            tally.failed_steps++;
            continue;
        }
        const outcome_t *first = &scenario->outcomes[r][broken_at];
        if (outcome->status != first->status || !strstr(outcome->text, first->text))
            fail_rank(scenario, r, number, "a later call does not repeat the first error");
    }
    /* A duplicate is read in the step after it, and told of in the one after that. */
    if (scenario->message >= 0 && broken_at > FAULT_STEP + 2)
        fail_rank(scenario, r, STEPS - 1, "the fault was not noticed");
    if (scenario->message >= 0 && scenario->kind == FAULT_ERROR && r != scenario->rank &&
        scenario->outcomes[r][broken_at].status != GTOPK_ERR_ABORTED)
        fail_rank(scenario, r, broken_at, "the rank that gave up did not say so");
    if (scenario->message < 0 && broken_at < STEPS)
        fail_rank(scenario, r, broken_at, "a step failed though nothing was spoilt");
}

static void check(const scenario_t *scenario)
{
    int least = STEPS, most = 0;
    for (int r = 0; r < scenario->size; r++) {
        check_rank(scenario, r);
        const int done = steps_done(scenario, r);
        least = done < least ? done : least;
        most = done > most ? done : most;
    }
    if (most - least > 1)
        fail_rank(scenario, 0, 0, "one rank is two steps ahead of another");
    for (int number = 0; number < STEPS; number++)
        check_replicas(scenario, number);
}

static void try_all_faults(int algorithm)
{
    static scenario_t scenario;
    const char *limit = getenv("GTOPK_TEST_SIZES");
    const int largest = limit ? atoi(limit) : SIZE_MAX_TESTED;
    for (int size = 2; size <= largest && size <= SIZE_MAX_TESTED; size++) {
        int sent[SIZE_MAX_TESTED];
        scenario = (scenario_t){.algorithm = algorithm, .size = size, .message = -1};
        play(&scenario);
        check(&scenario);
        memcpy(sent, scenario.sent, sizeof sent);
        for (int rank = 0; rank < size; rank++)
            for (int message = 0; message < sent[rank]; message++)
                for (int kind = 0; kind < FAULT_KINDS; kind++) {
                    scenario = (scenario_t){.algorithm = algorithm,
                                            .size = size,
                                            .kind = (fault_kind_t)kind,
                                            .rank = rank,
                                            .message = message};
                    play(&scenario);
                    check(&scenario);
                    tally.faults++;
                    tally.by_kind[kind]++;
                }
    }
}

static void test_dense(void **state)
{
    (void)state;
    try_all_faults(GTOPK_ALGORITHM_DENSE);
}

static void test_topk(void **state)
{
    (void)state;
    try_all_faults(GTOPK_ALGORITHM_TOPK);
}

static void test_gtopk(void **state)
{
    (void)state;
    try_all_faults(GTOPK_ALGORITHM_GTOPK);
}

static void test_gtopk_tree(void **state)
{
    (void)state;
    try_all_faults(GTOPK_ALGORITHM_GTOPK_TREE);
}

/* Ranks that wait past the warning time say for whom. */
static void test_waiting_is_warned_of(void **state)
{
    (void)state;
    assert_true(atomic_load(&warnings) > 0);
}

static void print_tally(void)
{
    (void)printf("{\"faults\": %ld, \"failed_steps\": %ld, \"warnings\": %ld, \"by_kind\": {", tally.faults,
                 tally.failed_steps, atomic_load(&warnings));
    for (int kind = 0; kind < FAULT_KINDS; kind++)
        (void)printf("%s\"%s\": %ld", kind ? ", " : "", fault_name((fault_kind_t)kind), tally.by_kind[kind]);
    (void)printf("}, \"by_first_error\": {");
    for (int status = 1, some = 0; status < 64; status++)
        if (tally.by_status[status]) {
            (void)printf("%s\"%s\": %ld", some ? ", " : "", gtopk_status_name(-status), tally.by_status[status]);
            some = 1;
        }
    (void)printf("}}\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gtopk), cmocka_unit_test(test_gtopk_tree),           cmocka_unit_test(test_topk),
        cmocka_unit_test(test_dense), cmocka_unit_test(test_waiting_is_warned_of),
    };
    gtopk_set_log(count_warning, NULL, GTOPK_LOG_WARN);
    const int failed = cmocka_run_group_tests_name("faults", tests, NULL, NULL);
    print_tally();
    return failed;
}
