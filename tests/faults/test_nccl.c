/* Transport nccl on its stand-in, with ranks that are threads and the guarded device: whatever fails, on each rank a step
 * happens or it does not, every rank learns of it in time, and nothing that was received in part is committed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "support/check.h"
#include "support/guarded.h"
#include "support/nccl.h"
#include "support/ranks.h"
#include "support/step.h"
#include "transport/nccl/library.h"
#include "util/clock.h"

enum { DIM = 600, STEPS = 3, FAULT_STEP = 1, SIZE = 4 };

#define SHORT 0.15 /* the deadline of a step that is going to miss it */
#define LONG 60.0  /* of one that is not: what ends it comes first, however slow a rank is */
#define LATE 30.0  /* seconds that count as hung: machines may be busy */
#define UNTOUCHED 0x55

typedef enum fault_kind {
    FAULT_NONE,
    FAULT_CODE,      /* a function fails */
    FAULT_STALL,     /* a work that is queued never goes on, and nothing else tells */
    FAULT_TOLD,      /* as before, but others see the abort of the first */
    FAULT_INSIDE,    /* a function does not return before the deadline */
    FAULT_INTERRUPT, /* a stall, and the caller asks to stop */
    FAULT_HANG       /* a stall, and the abort does not come back */
} fault_kind_t;

typedef struct outcome {
    gtopk_status_t status;
    char text[STATUS_TEXT_SIZE];
    float before[DIM], gradient[DIM], accumulated[DIM], after[DIM], update[DIM];
    double seconds;
} outcome_t;

typedef struct scenario {
    int algorithm, size;
    int each; /* ranks of a node; 0: no nodes */
    fault_kind_t kind;
    int rank; /* where the fault is */
    const char *function;
    int at;
    pthread_barrier_t end;
    outcome_t outcomes[SIZE][STEPS];
    int works[SIZE]; /* of the fault's step, when it is a good one */
} scenario_t;

static const nccl_standin_control_t *standin;
static long tally_faults, tally_survived;

/* ---- what a rank does ---- */

static int stop_soon(void *context)
{
    int *asked = context;
    return ++*asked > 1;
}

static void arm(const scenario_t *scenario, gtopk_comm_t *comm, int *asked)
{
    switch (scenario->kind) {
    case FAULT_CODE: standin->inject(scenario->function, scenario->at, 3); break;
    case FAULT_INSIDE: standin->delay(scenario->function, 700); break;
    case FAULT_INTERRUPT:
        comm->link.data->interrupt = stop_soon;
        comm->link.data->interrupt_context = asked;
        standin->stall(scenario->at);
        break;
    case FAULT_HANG:
        standin->hang(1);
        standin->stall(scenario->at);
        break;
    case FAULT_STALL:
    case FAULT_TOLD: standin->stall(scenario->at); break;
    default: break;
    }
}

/* Without a deadline, for all ranks. */
static int ends_by_itself(const scenario_t *scenario)
{
    return scenario->kind == FAULT_CODE || scenario->kind == FAULT_INTERRUPT;
}

static void take_step(gtopk_comm_t *comm, gtopk_reducer_t *reducer, int rank, int number, outcome_t *outcome)
{
    float *gradient = outcome->gradient, *before = outcome->before;
    const gtopk_tensor_t in = {gradient, DIM, GTOPK_F32, 0}, out = {outcome->update, DIM, GTOPK_F32, 0};
    memset(outcome->update, UNTOUCHED, sizeof outcome->update);
    REQUIRE(gtopk_reducer_residual(reducer, 0, before, DIM) == GTOPK_OK);
    for (int i = 0; i < DIM; i++) {
        gradient[i] = (float)((i * 37 + rank * 11 + number * 5) % 61 - 30);
        outcome->accumulated[i] = before[i] + gradient[i];
    }
    const double start = clock_now();
    if (link_check_alive(&comm->link) == GTOPK_OK)
        outcome->status = gtopk_reducer_accumulate(reducer, NULL, &in, 1, 1.0, 0, NULL);
    else
        memcpy(outcome->accumulated, before, sizeof outcome->before);
    if (outcome->status == GTOPK_OK)
        outcome->status = step_reduce(reducer, &out, 1, 0, NULL);
    (void)snprintf(outcome->text, sizeof outcome->text, "%s", gtopk_last_error());
    outcome->seconds = clock_now() - start;
}

/* A stream that an abort left standing must pass before the device can go. */
static void await_stream(void)
{
    const double limit = clock_now() + 10.0;
    while (guarded_run(NULL, 0.0, NULL) == GTOPK_ERR_TIMEOUT && clock_now() < limit)
        (void)usleep(1000);
}

static void run_rank(gtopk_comm_t *comm, int rank, int size, void *context)
{
    scenario_t *scenario = context;
    const uint64_t length = DIM;
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    int works, aborts, destroyed, asked = 0;
    config.algorithm = scenario->algorithm;
    config.density = 0.1;
    config.hierarchy = scenario->each > 0 ? GTOPK_HIERARCHY_NODE : GTOPK_HIERARCHY_OFF;
    REQUIRE(comm->link.data != comm->link.control && comm->link.data->size == size);
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, &length, 1) == GTOPK_OK);
    for (int number = 0; number < STEPS; number++) {
        outcome_t *outcome = &scenario->outcomes[rank][number];
        const int is_fault = number == FAULT_STEP && scenario->kind != FAULT_NONE;
        (void)pthread_barrier_wait(&scenario->end);
        standin->count(&works, &aborts, &destroyed);
        if (is_fault) {
            standin->notice(scenario->kind == FAULT_CODE || scenario->kind == FAULT_TOLD);
            comm->link.timeout = ends_by_itself(scenario) ? LONG : SHORT;
        }
        if (is_fault && rank == scenario->rank)
            arm(scenario, comm, &asked);
        take_step(comm, reducer, rank, number, outcome);
        if (number == FAULT_STEP)
            standin->count(&scenario->works[rank], &aborts, &destroyed);
        if (is_fault && scenario->kind == FAULT_HANG && rank == scenario->rank)
            REQUIRE(comm->link.buffers_lost);
        standin->inject("", 0, 0);
        standin->delay("", 0);
        standin->stall(-1);
        standin->hang(0);
        await_stream();
        REQUIRE(gtopk_reducer_residual(reducer, 0, outcome->after, DIM) == GTOPK_OK);
    }
    (void)pthread_barrier_wait(&scenario->end); /* closing would be noticed */
    standin->notice(1);
    gtopk_reducer_destroy(reducer);
}

static void play(scenario_t *scenario)
{
    REQUIRE(pthread_barrier_init(&scenario->end, NULL, (unsigned)scenario->size) == 0);
    ranks_run_nodes(scenario->size, scenario->each, run_rank, scenario);
    (void)pthread_barrier_destroy(&scenario->end);
}

/* ---- checks ---- */

static void fail_rank(const scenario_t *scenario, int rank, int step, const char *what)
{
    const outcome_t *outcome = &scenario->outcomes[rank][step];
    fail_msg("%s: rank %d, step %d (algorithm %d, P %d, fault %d %s %d of rank %d): %s, %.2f s: %s", what, rank, step,
             scenario->algorithm, scenario->size, (int)scenario->kind, scenario->function ? scenario->function : "",
             scenario->at, scenario->rank, gtopk_status_name(outcome->status), outcome->seconds, outcome->text);
}

static int same(const float *a, const float *b)
{
    return memcmp(a, b, DIM * sizeof *a) == 0;
}

/* On nodes a step that fails later than in the sum leaves that, all of it, in this rank's share. */
static int is_summed(const scenario_t *scenario, int rank, int step)
{
    const int each = scenario->each, share = each > 0 ? (DIM + each - 1) / each : 0;
    const outcome_t *outcome = &scenario->outcomes[rank][step];
    for (int i = 0; i < DIM && each > 0; i++) {
        float expected = 0.0f;
        for (int peer = rank / each * each; peer < (rank / each + 1) * each && i / share == rank % each; peer++)
            expected += scenario->outcomes[peer][step].gradient[i];
        expected += outcome->before[i];
        if (memcmp(&expected, &outcome->after[i], sizeof expected) != 0)
            return 0;
    }
    return each > 0;
}

static int happened(const scenario_t *scenario, const scenario_t *well, int rank, int step)
{
    const outcome_t *outcome = &scenario->outcomes[rank][step], *good = &well->outcomes[rank][step];
    float untouched[DIM];
    memset(untouched, UNTOUCHED, sizeof untouched);
    if (same(outcome->after, good->after) && same(outcome->update, good->update))
        return 1;
    if (!same(outcome->after, outcome->accumulated) && !is_summed(scenario, rank, step))
        fail_rank(scenario, rank, step, "the residual is of no step");
    if (!same(outcome->update, untouched))
        fail_rank(scenario, rank, step, "a step that did not happen wrote outputs");
    return 0;
}

static void check_kind(const scenario_t *scenario)
{
    static const gtopk_status_t own[] = {
        [FAULT_CODE] = GTOPK_ERR_TRANSPORT, [FAULT_STALL] = GTOPK_ERR_TIMEOUT,         [FAULT_TOLD] = GTOPK_ERR_TIMEOUT,
        [FAULT_INSIDE] = GTOPK_ERR_TIMEOUT, [FAULT_INTERRUPT] = GTOPK_ERR_INTERRUPTED, [FAULT_HANG] = GTOPK_ERR_TIMEOUT,
    };
    const outcome_t *outcome = &scenario->outcomes[scenario->rank][FAULT_STEP];
    /* A rank that others have told of their deadline says so, as well as it can. */
    if (outcome->status != own[scenario->kind] &&
        !(own[scenario->kind] == GTOPK_ERR_TIMEOUT &&
          (outcome->status == GTOPK_ERR_ABORTED || outcome->status == GTOPK_ERR_TRANSPORT)))
        fail_rank(scenario, scenario->rank, FAULT_STEP, "another error was awaited");
}

static void check(const scenario_t *scenario, const scenario_t *well)
{
    for (int r = 0; r < scenario->size; r++) {
        int broken = 0;
        for (int step = 0; step < STEPS; step++) {
            const outcome_t *outcome = &scenario->outcomes[r][step];
            if (outcome->status == GTOPK_OK && (broken || !happened(scenario, well, r, step)))
                fail_rank(scenario, r, step, "a step succeeded that could not");
            if (outcome->status != GTOPK_OK && step < FAULT_STEP)
                fail_rank(scenario, r, step, "a step failed before the fault");
            if (outcome->status != GTOPK_OK && broken && !same(outcome->after, outcome->accumulated))
                fail_rank(scenario, r, step, "a later call changed the residual");
            if (outcome->status != GTOPK_OK && !broken)
                tally_survived += happened(scenario, well, r, step);
            if (outcome->seconds > LATE)
                fail_rank(scenario, r, step, "the error came too late");
            broken |= outcome->status != GTOPK_OK;
        }
        if (!broken)
            fail_rank(scenario, r, STEPS - 1, "the fault was not noticed");
    }
    check_kind(scenario);
    tally_faults++;
}

/* ---- the tests ---- */

static const int algorithms[] = {GTOPK_ALGORITHM_GTOPK, GTOPK_ALGORITHM_GTOPK_TREE, GTOPK_ALGORITHM_TOPK,
                                 GTOPK_ALGORITHM_DENSE};
static scenario_t well, scenario;

static void play_well_on(int algorithm, int size, int each)
{
    well = (scenario_t){.algorithm = algorithm, .size = size, .each = each};
    play(&well);
    for (int r = 0; r < size; r++)
        for (int step = 0; step < STEPS; step++) {
            if (well.outcomes[r][step].status != GTOPK_OK)
                fail_rank(&well, r, step, "a step failed though nothing was to");
            if (!same(well.outcomes[r][step].update, well.outcomes[0][step].update))
                fail_rank(&well, r, step, "ranks have other updates");
        }
}

static void play_well(int algorithm, int size)
{
    play_well_on(algorithm, size, 0);
}

static void play_fault(fault_kind_t kind, int rank, const char *function, int at)
{
    scenario = (scenario_t){.algorithm = well.algorithm,
                            .size = well.size,
                            .each = well.each,
                            .kind = kind,
                            .rank = rank,
                            .function = function,
                            .at = at};
    play(&scenario);
    check(&scenario, &well);
}

static void test_codes(void **state)
{
    static const char *const messages[] = {"ncclGroupStart", "ncclSend", "ncclRecv", "ncclGroupEnd"};
    (void)state;
    for (size_t a = 0; a < sizeof algorithms / sizeof *algorithms; a++) {
        const int algorithm = algorithms[a], size = 2 + (int)a % 3;
        play_well(algorithm, size);
        for (size_t f = 0; f < sizeof messages / sizeof *messages && algorithm != GTOPK_ALGORITHM_TOPK; f++)
            play_fault(FAULT_CODE, (int)f % size, messages[f], 0);
        if (algorithm == GTOPK_ALGORITHM_TOPK)
            play_fault(FAULT_CODE, 1, "ncclAllGather", 0);
        if (algorithm == GTOPK_ALGORITHM_DENSE)
            play_fault(FAULT_CODE, 0, "ncclAllReduce", 0);
        play_fault(FAULT_CODE, size - 1, "ncclCommGetAsyncError", 0);
    }
}

/* An abort during each operation that is queued, on the first rank and the last. */
static void test_stalls(void **state)
{
    (void)state;
    for (size_t a = 0; a < sizeof algorithms / sizeof *algorithms; a++)
        for (int size = 2; size <= 3; size++) {
            play_well(algorithms[a], size);
            for (int last = 0; last < 2; last++)
                for (int at = 0; at < well.works[last ? size - 1 : 0]; at++)
                    play_fault((at + last) % 2 ? FAULT_TOLD : FAULT_STALL, last ? size - 1 : 0, NULL, at);
        }
    assert_true(tally_faults > 20);
}

/* Messages inside the node, between nodes, and of the update. */
static void test_nodes(void **state)
{
    (void)state;
    play_well_on(GTOPK_ALGORITHM_GTOPK, 4, 2);
    assert_true(well.works[0] >= 3);
    for (int at = 0; at < well.works[0]; at++) {
        play_fault(at % 2 ? FAULT_TOLD : FAULT_STALL, at % 4, NULL, at);
        play_fault(FAULT_CODE, 3 - at % 4, "ncclSend", at);
    }
}

static void test_stuck_inside(void **state)
{
    (void)state;
    play_well(GTOPK_ALGORITHM_GTOPK, 2);
    play_fault(FAULT_INSIDE, 0, "ncclSend", 0);
    play_well(GTOPK_ALGORITHM_DENSE, 2);
    play_fault(FAULT_INSIDE, 1, "ncclAllReduce", 0);
}

static void test_interrupt(void **state)
{
    (void)state;
    play_well(GTOPK_ALGORITHM_GTOPK, 2);
    play_fault(FAULT_INTERRUPT, 0, NULL, 0);
}

/* In a process of its own, which ends without being asked for the memory that was left behind. */
static void apart(void (*play_it)(void))
{
    int status = -1;
    (void)fflush(stdout);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        play_it();
        _exit(0);
    }
    assert_true(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void play_hang(void)
{
    play_well(GTOPK_ALGORITHM_GTOPK, 2);
    play_fault(FAULT_HANG, 0, NULL, 0);
}

static void test_abort_hangs(void **state)
{
    (void)state;
    apart(play_hang);
}

/* The same, and the stream stands for good: what is queued needs its memory though reducer and communicator are destroyed,
 * which does not wait either. The guarded device ends the process when something goes that is still needed. */
static void run_left_behind(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const uint64_t length = DIM;
    gtopk_reducer_t *reducer;
    float x[DIM] = {1.0f};
    const gtopk_tensor_t tensor = {x, DIM, GTOPK_F32, 0};
    (void)size;
    (void)context;
    REQUIRE(gtopk_reducer_create(&reducer, comm, NULL, &length, 1) == GTOPK_OK);
    comm->link.timeout = SHORT;
    if (rank == 0) {
        standin->hang(1);
        standin->stall(0);
    }
    REQUIRE(gtopk_reducer_accumulate(reducer, NULL, &tensor, 1, 1.0, 0, NULL) == GTOPK_OK);
    REQUIRE(step_reduce(reducer, &tensor, 1, 0, NULL) != GTOPK_OK);
    REQUIRE(comm->link.stream_lost == (rank == 0) && (guarded_queued() > 0) == (rank == 0));
    gtopk_reducer_destroy(reducer);
}

static void play_left_behind(void)
{
    ranks_run(2, run_left_behind, NULL);
}

static void test_left_behind_is_destroyed(void **state)
{
    (void)state;
    apart(play_left_behind);
}

/* ---- creation ---- */

/* Ranks whose messages would go different ways do not wait for each other. */
static void run_apart(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const uint64_t length = DIM;
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    gtopk_reducer_t *reducer;
    (void)size;
    (void)context;
    config.device = rank == 1 ? "cpu" : NULL;
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, &length, 1) == GTOPK_ERR_MISMATCH);
    REQUIRE(strstr(gtopk_last_error(), "rank 1 on another one") && strstr(gtopk_last_error(), "device"));
    config.device = "cpu";
    REQUIRE(gtopk_reducer_create(&reducer, comm, &config, &length, 1) == GTOPK_OK);
    gtopk_reducer_destroy(reducer);
}

static void test_devices_apart(void **state)
{
    (void)state;
    ranks_run(3, run_apart, NULL);
}

typedef struct creation {
    gtopk_thread_group_t *group;
    const char *function, *data;
    int size, rank, after;
    gtopk_status_t status[SIZE];
    char text[SIZE][STATUS_TEXT_SIZE];
    int over_nccl[SIZE];
} creation_t;

typedef struct creator {
    creation_t *creation;
    int rank;
} creator_t;

static void *create(void *argument)
{
    const creator_t *self = argument;
    creation_t *creation = self->creation;
    gtopk_comm_config_t config = GTOPK_COMM_CONFIG_INIT;
    gtopk_comm_t *comm;
    config.transport = "thread";
    config.group = creation->group;
    config.rank = self->rank;
    config.size = creation->size;
    config.timeout = creation->rank < 0 ? LONG : 3.0; /* which some faults wait for */
    config.data = creation->data;
    if (self->rank == creation->rank)
        standin->inject(creation->function, creation->after, 2);
    creation->status[self->rank] = gtopk_comm_create(&comm, &config);
    standin->inject("", 0, 0);
    (void)snprintf(creation->text[self->rank], STATUS_TEXT_SIZE, "%s", gtopk_last_error());
    if (creation->status[self->rank] != GTOPK_OK)
        return NULL;
    creation->over_nccl[self->rank] = strstr(gtopk_comm_describe(comm), "nccl") != NULL;
    const uint64_t length = 2; /* whatever it goes over, a step is a step */
    float x[2] = {(float)self->rank, 1.0f};
    const gtopk_tensor_t tensor = {x, 2, GTOPK_F32, 0};
    gtopk_reducer_t *reducer;
    REQUIRE(gtopk_reducer_create(&reducer, comm, NULL, &length, 1) == GTOPK_OK);
    REQUIRE(gtopk_reducer_accumulate(reducer, NULL, &tensor, 1, 1.0, 0, NULL) == GTOPK_OK);
    REQUIRE(step_reduce(reducer, &tensor, 1, 0, NULL) == GTOPK_OK);
    REQUIRE(x[1] == 1.0f || x[0] > 0.0f);
    gtopk_reducer_destroy(reducer);
    gtopk_comm_destroy(comm);
    return NULL;
}

static void create_all(creation_t *creation)
{
    pthread_t threads[SIZE];
    creator_t creators[SIZE];
    ASSERT_OK(gtopk_thread_group_create(&creation->group, creation->size, 0));
    for (int r = 0; r < creation->size; r++) {
        creators[r] = (creator_t){creation, r};
        assert_int_equal(pthread_create(&threads[r], NULL, create, &creators[r]), 0);
    }
    for (int r = 0; r < creation->size; r++)
        (void)pthread_join(threads[r], NULL);
    gtopk_thread_group_destroy(creation->group);
}

/* What fails on one rank is an error on all, or, with "auto", nobody's. */
static void test_creation_fails(void **state)
{
    static const struct {
        const char *function;
        int rank, after;
    } faults[] = {{"ncclGetUniqueId", 0, 0},       {"ncclCommInitRankConfig", 1, 0}, {"ncclCommGetAsyncError", 0, 0},
                  {"ncclCommGetAsyncError", 2, 1}, {"ncclGroupStart", 1, 0},         {"ncclSend", 2, 0},
                  {"ncclAllReduce", 1, 0}};
    (void)state;
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        for (int is_auto = 0; is_auto < 2; is_auto++) {
            creation_t creation = {.function = faults[i].function,
                                   .rank = faults[i].rank,
                                   .after = faults[i].after,
                                   .data = is_auto ? "auto" : "nccl",
                                   .size = 3};
            create_all(&creation);
            for (int r = 0; r < creation.size; r++) {
                if ((creation.status[r] == GTOPK_OK) != is_auto || creation.over_nccl[r])
                    fail_msg("%s of rank %d fails: rank %d, data %s: %s, %s", creation.function, creation.rank, r,
                             creation.data, gtopk_status_name(creation.status[r]), creation.text[r]);
                if (!is_auto && r == creation.rank && !strstr(creation.text[r], "NCCL says"))
                    fail_msg("the error does not say what NCCL says: %s", creation.text[r]);
            }
        }
    creation_t good = {.function = "", .rank = -1, .data = "auto", .size = 3};
    create_all(&good);
    for (int r = 0; r < good.size; r++)
        assert_true(good.status[r] == GTOPK_OK && good.over_nccl[r]);
    creation_t unknown = {.function = "", .rank = -1, .data = "smoke", .size = 2};
    create_all(&unknown);
    for (int r = 0; r < unknown.size; r++)
        assert_true(unknown.status[r] == GTOPK_ERR_INVALID && strstr(unknown.text[r], "smoke"));
}

/* ---- the library ---- */

static char logged[1024];

static void keep_log(void *context, int level, const char *text)
{
    (void)context;
    if (level <= GTOPK_LOG_WARN)
        (void)snprintf(logged, sizeof logged, "%s", text);
}

/* In a process of its own: a library is loaded once. 0, or the number of the first check that failed. */
static int load(const char *file, const char *version, gtopk_status_t expected, const char *text, const char *warning)
{
    const nccl_library_t *nccl;
    const pid_t child = fork();
    if (child == 0) {
        (void)setenv("GTOPK_NCCL_LIBRARY", file, 1);
        (void)setenv("GTOPK_STANDIN_NCCL", version, 1);
        gtopk_set_log(keep_log, NULL, GTOPK_LOG_WARN);
        const gtopk_status_t status = nccl_library_get(NULL, &nccl);
        const int says = status == GTOPK_OK || strstr(gtopk_last_error(), text);
        _exit(status != expected ? 1 : !says ? 2 : *warning ? !strstr(logged, warning) * 3 : (logged[0] != 0) * 4);
    }
    int status = -1;
    (void)waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void test_library(void **state)
{
    (void)state;
    assert_int_equal(load("/nowhere/libnccl.so.2", "22105", GTOPK_ERR_NOT_FOUND, "GTOPK_NCCL_LIBRARY", ""), 0);
    assert_int_equal(load(NCCL_STANDIN_FILE, "21703", GTOPK_ERR_UNSUPPORTED, "NCCL 2.17.3 is too old", ""), 0);
    assert_int_equal(load(NCCL_STANDIN_FILE, "2804", GTOPK_ERR_UNSUPPORTED, "too old", ""), 0);
    assert_int_equal(load(NCCL_INCOMPLETE_FILE, "22105", GTOPK_ERR_UNSUPPORTED, "has no ncclCommAbort", ""), 0);
    assert_int_equal(load(NCCL_STANDIN_FILE, "21801", GTOPK_OK, "", "NCCL 2.18.1 is known to hang"), 0);
    assert_int_equal(load(NCCL_STANDIN_FILE, "22501", GTOPK_OK, "", "NCCL 2.25.1 is known to hang"), 0);
    assert_int_equal(load(NCCL_STANDIN_FILE, "21803", GTOPK_OK, "", ""), 0);
}

static int prepare(void **state)
{
    (void)state;
    if (setenv("GTOPK_DEVICE", "guarded", 1) != 0 || setenv("GTOPK_TEST_TRANSPORT", "nccl", 1) != 0 ||
        setenv("GTOPK_NCCL_LIBRARY", NCCL_STANDIN_FILE, 1) != 0)
        return -1;
    standin = nccl_standin_open();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_library),       cmocka_unit_test(test_creation_fails),
        cmocka_unit_test(test_codes),         cmocka_unit_test(test_stalls),
        cmocka_unit_test(test_stuck_inside),  cmocka_unit_test(test_interrupt),
        cmocka_unit_test(test_abort_hangs),   cmocka_unit_test(test_left_behind_is_destroyed),
        cmocka_unit_test(test_devices_apart), cmocka_unit_test(test_nodes),
    };
    const int failed = cmocka_run_group_tests_name("nccl", tests, prepare, NULL);
    (void)printf("{\"faults\": %ld, \"survived\": %ld}\n", tally_faults, tally_survived);
    return failed;
}
