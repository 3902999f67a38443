/* Promise 4: every failure at every message of every algorithm, in turn, for P = 2..9. After each, on every rank: the call
 * returned; either the step happened (the same update as on every other rank where it did) or the residual is what it was
 * after accumulate, bit for bit, or on nodes what the node's sum made of it; no rank is two steps ahead; every later call
 * fails at once with the first error.
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

#include "core/reducer.h"
#include "support/bf16.h"
#include "support/check.h"
#include "support/costs.h"
#include "support/faulty.h"
#include "support/gpu.h"
#include "support/parts.h"
#include "support/random.h"
#include "support/ranks.h"
#include "support/sizes.h"
#include "support/step.h"

#define DIM 60
#define ALGORITHM_CHANGES (PARTS_TOGETHER + 1) /* auto, which takes another algorithm at the end of the fault's step */
#define STEPS 5                                /* 0: well, 1: the fault, 2 to 4: what comes after it */
#define FAULT_STEP 1
#define SIZE_MAX_TESTED 9
#define TIMEOUT 5.0 /* virtual seconds */
#define WARN_AFTER 1.0
#define TEXT 1024

typedef struct outcome {
    gtopk_status_t status;
    char text[TEXT];
    float before[DIM], after[DIM]; /* residual after accumulate, and after reduce */
    float start[DIM];              /* residual before accumulate */
    float gradient[DIM], update[DIM];
} outcome_t;

typedef struct scenario {
    int algorithm, size;
    int each; /* ranks of a node; 0: no nodes */
    fault_kind_t kind;
    int rank, message;          /* message < 0: nothing is spoilt */
    int sent[SIZE_MAX_TESTED];  /* messages of the fault's step, when nothing is spoilt */
    int calls[SIZE_MAX_TESTED]; /* of the transport that may fail, in that step */
    outcome_t outcomes[SIZE_MAX_TESTED][STEPS];
} scenario_t;

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

static int in_bf16(const scenario_t *scenario)
{
    return scenario->size % 3 == 0;
}

static void create(parts_t *parts, gtopk_comm_t *comm, const scenario_t *scenario)
{
    const int changes = scenario->algorithm == ALGORITHM_CHANGES;
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    config.algorithm = changes ? GTOPK_ALGORITHM_AUTO : scenario->algorithm;
    config.density = 0.15;
    config.rollback = scenario->size % 2;
    config.residual_dtype = in_bf16(scenario) ? GTOPK_BF16 : GTOPK_F32;
    config.value_type = (scenario->size + scenario->rank) % 4;
    config.hierarchy = scenario->each > 0 ? GTOPK_HIERARCHY_NODE : GTOPK_HIERARCHY_OFF;
    parts_create(parts, comm, config, DIM);
    for (size_t i = 0; i < parts->count; i++)
        parts->reducers[i]->choice.window = FAULT_STEP + 1;
}

static void take_step(const parts_t *parts, int rank, int number, outcome_t *outcome)
{
    random_state_t random = {(uint64_t)(number * 64 + rank + 1)};
    float *gradient = outcome->gradient;
    for (int i = 0; i < DIM; i++)
        gradient[i] = (float)random_below(&random, 2000) - 1000.0f;
    gtopk_tensor_t tensors[2];
    parts_tensors(parts, gradient, tensors);
    parts_residual(parts, outcome->start);
    /* A rank that is broken already keeps its residual through accumulate, too. */
    for (size_t i = 0; i < parts->count; i++)
        (void)gtopk_reducer_accumulate(parts->reducers[i], NULL, &tensors[i], 1, 1.0,
                                       (rank + number) % 2 ? GTOPK_INPUT_STAYS : 0, NULL);
    parts_residual(parts, outcome->before);
    memset(outcome->update, 0x55, sizeof outcome->update);
    parts_tensors(parts, outcome->update, tensors);
    const gtopk_tensor_t *const outputs[2] = {&tensors[0], &tensors[1]};
    const size_t counts[2] = {1, 1};
    outcome->status = step_reduce_all(parts->reducers, outputs, counts, parts->count, 0, NULL);
    (void)snprintf(outcome->text, sizeof outcome->text, "%s", gtopk_last_error());
    parts_residual(parts, outcome->after);
}

static void *act(void *argument)
{
    const ranks_thread_t *self = argument;
    scenario_t *scenario = self->context;
    gtopk_comm_config_t net = GTOPK_COMM_CONFIG_INIT;
    transport_t *thread, *ordered, *faulty;
    gtopk_comm_t *comm;
    char node[16];
    parts_t parts;
    net.group = self->group;
    net.rank = self->rank;
    net.size = self->size;
    net.timeout = TIMEOUT;
    net.warn_after = WARN_AFTER;
    net.node = ranks_node(self->rank, self->each, node);
    REQUIRE(ranks_transports(&net, self->ordered, &thread, &ordered) == GTOPK_OK);
    faulty = faulty_create(ordered ? ordered : thread);
    REQUIRE(faulty);
    REQUIRE(comm_open(&comm, ordered ? thread : faulty, ordered ? faulty : NULL, &net) == GTOPK_OK);
    comm->costs = next_to_nothing;
    create(&parts, comm, scenario);

    faulty_record(faulty);
    for (int number = 0; number < STEPS; number++) {
        if (number == FAULT_STEP)
            faulty_arm(faulty, scenario->kind, self->rank == scenario->rank ? scenario->message : -1,
                       (uint64_t)(scenario->message * 977 + scenario->size));
        take_step(&parts, self->rank, number, &scenario->outcomes[self->rank][number]);
        if (number == FAULT_STEP) {
            scenario->sent[self->rank] = faulty_sent(faulty);
            scenario->calls[self->rank] = faulty_calls(faulty);
        }
    }
    ranks_stay(self, thread);
    parts_destroy(&parts);
    gtopk_comm_destroy(comm);
    return NULL;
}

static void play(scenario_t *scenario)
{
    ranks_play((ranks_thread_t){.context = scenario, .size = scenario->size, .each = scenario->each}, act,
               GTOPK_THREAD_VIRTUAL_CLOCK);
}

static void fail_rank(const scenario_t *scenario, int rank, int step, const char *what)
{
    fail_msg("%s: rank %d, step %d (algorithm %d, P %d, %d a node, %s at message %d of rank %d): %s", what, rank, step,
             scenario->algorithm, scenario->size, scenario->each, fault_name(scenario->kind), scenario->message,
             scenario->rank, scenario->outcomes[rank][step].text);
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

/* On nodes a step that fails later than in the sum leaves that in the share of this rank; nothing of it is halfway there. */
static int is_summed(const scenario_t *scenario, int r, int number)
{
    const outcome_t *outcome = &scenario->outcomes[r][number];
    const int first = scenario->algorithm == PARTS_TOGETHER ? DIM / 3 : 0; /* a dense part has no shares */
    const int each = scenario->each, share = each > 0 ? (DIM - first + each - 1) / each : 0;
    for (int i = 0; i < DIM && each > 1; i++) {
        float sum = 0.0f, expected = i < first ? outcome->before[i] : 0.0f;
        for (int peer = r / each * each; peer < (r / each + 1) * each; peer++)
            sum += scenario->outcomes[peer][number].gradient[i];
        if (i >= first && (i - first) / share == r % each) {
            expected = outcome->start[i] + sum;
            if (in_bf16(scenario))
                expected = bf16_accumulated(expected, r, number, (uint32_t)((i - first) % share));
        }
        if (memcmp(&expected, &outcome->after[i], sizeof expected) != 0)
            return 0;
    }
    return each > 1;
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
        if (memcmp(outcome->before, outcome->after, sizeof outcome->before) != 0 && !is_summed(scenario, r, number))
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
    /* A duplicate is read in the step after it, and told of in the one after that; or never, where the next algorithm has
     * no message from that rank to that one; nor was there one in the step before, for the comparison of times. */
    const int is_unread = scenario->algorithm == ALGORITHM_CHANGES &&
                          (scenario->kind == FAULT_DUPLICATE || scenario->kind == FAULT_LATE);
    if (scenario->message >= 0 && broken_at > FAULT_STEP + 2 && !is_unread)
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

static void try_fault(int algorithm, int size, int each, fault_kind_t kind, int rank, int message)
{
    static scenario_t scenario;
    scenario = (scenario_t){
        .algorithm = algorithm, .size = size, .each = each, .kind = kind, .rank = rank, .message = message};
    play(&scenario);
    check(&scenario);
    tally.faults++;
    tally.by_kind[kind]++;
}

/* What carries no checksum does not notice other bits that are as good as the right ones. */
static int is_noticed(int kind)
{
    return !ordered_wanted() || (kind != FAULT_FLIP && kind != FAULT_TRUNCATE);
}

static void try_faults_of(int algorithm, int size, int each)
{
    static scenario_t scenario;
    scenario = (scenario_t){.algorithm = algorithm, .size = size, .each = each, .message = -1};
    play(&scenario);
    check(&scenario);
    for (int rank = 0; rank < size; rank++) {
        for (int message = 0; message < scenario.sent[rank]; message++)
            for (int kind = FAULT_ERROR + 1; kind < FAULT_KINDS; kind++)
                if (is_noticed(kind))
                    try_fault(algorithm, size, each, (fault_kind_t)kind, rank, message);
        for (int call = 0; call < scenario.calls[rank]; call++)
            try_fault(algorithm, size, each, FAULT_ERROR, rank, call);
    }
}

static void try_all_faults(int algorithm)
{
    for (int size = 2; size <= sizes_up_to(SIZE_MAX_TESTED); size++)
        try_faults_of(algorithm, size, 0);
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

static void test_gtopk_split(void **state)
{
    (void)state;
    try_all_faults(GTOPK_ALGORITHM_GTOPK_SPLIT);
}

/* Both commit or neither does. */
static void test_two_reducers_in_one_step(void **state)
{
    (void)state;
    try_all_faults(PARTS_TOGETHER);
}

/* What fails after the step, while ranks compare times and make another exchange, is told of by the next step. */
static void test_algorithm_changes(void **state)
{
    (void)state;
    for (int size = 2; size <= sizes_up_to(5); size++)
        try_faults_of(ALGORITHM_CHANGES, size, 0);
}

/* Two exchanges in one: what fails inside a node is everybody's, as well as what fails between nodes. */
static void test_nodes(void **state)
{
    const struct {
        int size, each;
    } layouts[] = {{4, 2}, {6, 3}, {6, 2}, {8, 2}, {3, 3}};
    const int most = sizes_up_to(SIZE_MAX_TESTED);
    (void)state;
    for (size_t l = 0; l < sizeof layouts / sizeof *layouts; l++)
        for (int algorithm = GTOPK_ALGORITHM_TOPK; algorithm < WIRE_ALGORITHMS; algorithm++)
            if (layouts[l].size <= most && (layouts[l].size == 4 || algorithm == GTOPK_ALGORITHM_GTOPK))
                try_faults_of(algorithm, layouts[l].size, layouts[l].each);
    if (most >= 4)
        try_faults_of(PARTS_TOGETHER, 4, 2);
}

/* Ranks that wait past the warning time say for whom. */
static void test_waiting_is_warned_of(void **state)
{
    const char *device = getenv("GTOPK_DEVICE");
    (void)state;
    if (ordered_wanted() && !(device && strcmp(device, "guarded") == 0))
        skip(); /* exchanges block in the transport, which warns of nothing */
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
        cmocka_unit_test(test_gtopk),
        cmocka_unit_test(test_gtopk_tree),
        cmocka_unit_test(test_topk),
        cmocka_unit_test(test_dense),
        cmocka_unit_test(test_gtopk_split),
        cmocka_unit_test(test_two_reducers_in_one_step),
        cmocka_unit_test(test_algorithm_changes),
        cmocka_unit_test(test_nodes),
        cmocka_unit_test(test_waiting_is_warned_of),
    };
    gtopk_set_log(count_warning, NULL, GTOPK_LOG_WARN);
    const int failed = cmocka_run_group_tests_name("faults", tests, NULL, NULL);
    print_tally();
    return failed;
}
