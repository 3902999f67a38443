/* What a link says of messages that are not the awaited ones: which calls the two ranks are in, also when of a message
 * only its head is at hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "exchange/check.h"
#include "support/check.h"
#include "support/ranks.h"
#include "support/step.h"

#define EPOCH 77u
#define PAYLOAD 100
#define MESSAGE (WIRE_HEADER_SIZE + PAYLOAD)

/* ---- headers made by hand ---- */

static const transport_ops_t EXACT = {.name = "exact"}, PADDED = {.name = "padded", .padded = 1};

static const struct {
    uint8_t algorithm;
    const char *name;
} CALLS[] = {
    {GTOPK_ALGORITHM_DENSE, "a gradient exchange (dense)"},
    {GTOPK_ALGORITHM_TOPK, "a gradient exchange (topk)"},
    {GTOPK_ALGORITHM_GTOPK, "a gradient exchange (gtopk)"},
    {GTOPK_ALGORITHM_GTOPK_TREE, "a gradient exchange (gtopk-tree)"},
    {GTOPK_ALGORITHM_GTOPK_SPLIT, "a gradient exchange (gtopk-split)"},
    {WIRE_BROADCAST, "a broadcast"},
    {WIRE_ALLGATHER, "an all-gather (new reducers and collectives begin with one)"},
    {WIRE_REDUCE_SCATTER, "an all-reduce"},
    {WIRE_BARRIER, "a barrier"},
};
enum { CALL_COUNT = sizeof CALLS / sizeof CALLS[0] };

/* Of rank 1, for rank 0: a set without entries or PAYLOAD bytes. Returns its length. */
static size_t build(uint8_t *message, uint8_t algorithm, uint32_t epoch, uint8_t flags)
{
    const int is_set = algorithm < WIRE_ALGORITHMS;
    const size_t payload = is_set ? 0 : PAYLOAD;
    const wire_header_t header = {.value_type = is_set ? GTOPK_VALUE_F32 : WIRE_VALUE_BYTES,
                                  .algorithm = algorithm,
                                  .flags = flags,
                                  .sender = 1,
                                  .epoch = epoch,
                                  .dim = 5,
                                  .count = (uint32_t)payload,
                                  .scale = 1.0f};
    memset(message, 0, MESSAGE);
    wire_header_write(&header, message);
    wire_seal(message, payload);
    return WIRE_HEADER_SIZE + payload;
}

static wire_expect_t awaited(uint8_t algorithm)
{
    const int is_set = algorithm < WIRE_ALGORITHMS;
    return (wire_expect_t){.algorithm = algorithm, .value_type = is_set ? GTOPK_VALUE_F32 : WIRE_VALUE_BYTES, .dim = 5};
}

static void both_calls_are_named(void **state)
{
    (void)state;
    transport_t transport = {.ops = &EXACT, .size = 2};
    link_t link = {.control = &transport, .data = &transport, .epoch = EPOCH};
    uint8_t message[MESSAGE];
    for (int theirs = 0; theirs < CALL_COUNT; theirs++)
        for (int ours = 0; ours < CALL_COUNT; ours++) {
            char text[256];
            const wire_expect_t expect = awaited(CALLS[ours].algorithm);
            const size_t bytes = build(message, CALLS[theirs].algorithm, EPOCH, 0);
            const gtopk_status_t status = check_message(&link, message, bytes, CHECK_WHOLE, 1, &expect, NULL);
            (void)snprintf(text, sizeof text, "rank 1 sent a message of %s, this rank is in %s: all ranks must make",
                           CALLS[theirs].name, CALLS[ours].name);
            if (theirs == ours)
                ASSERT_OK(status);
            else
                assert_says(status, GTOPK_ERR_DESYNC, text);
        }
    const wire_expect_t expect = awaited(WIRE_BARRIER);
    assert_says(check_message(&link, message, build(message, WIRE_ALLGATHER, EPOCH, 0), CHECK_WHOLE, 1, &expect, NULL),
                GTOPK_ERR_DESYNC, "add, freeze and load parameters on every rank or on none");
}

static void a_greeting_is_named(void **state)
{
    (void)state;
    transport_t transport = {.ops = &EXACT, .size = 2};
    link_t link = {.control = &transport, .data = &transport, .epoch = EPOCH};
    wire_expect_t expect = awaited(WIRE_BARRIER);
    uint8_t message[MESSAGE];
    size_t bytes = build(message, WIRE_ALLGATHER, 0, 0);
    assert_says(check_message(&link, message, bytes, CHECK_WHOLE, 1, &expect, NULL), GTOPK_ERR_DESYNC,
                "sent a message of the greeting of a new communicator, this rank is in a barrier:");
    /* The same kind of message on both sides does not make them the same call. */
    expect = awaited(WIRE_ALLGATHER);
    assert_says(check_message(&link, message, bytes, CHECK_WHOLE, 1, &expect, NULL), GTOPK_ERR_DESYNC,
                "the greeting of a new communicator, this rank is in an all-gather");
    link.epoch = 0;
    ASSERT_OK(check_message(&link, message, bytes, CHECK_WHOLE, 1, &expect, NULL));
    bytes = build(message, WIRE_BROADCAST, EPOCH, 0);
    assert_says(check_message(&link, message, bytes, CHECK_WHOLE, 1, &expect, NULL), GTOPK_ERR_DESYNC,
                "a broadcast, this rank is in the greeting of a new communicator:");
    bytes = build(message, WIRE_BROADCAST, 0, 0);
    assert_int_equal(check_message(&link, message, bytes, CHECK_WHOLE, 1, &expect, NULL), GTOPK_ERR_DESYNC);
    /* Two communicators that have greeted are told apart by their epochs; a last word is one in every call. */
    link.epoch = EPOCH;
    bytes = build(message, WIRE_ALLGATHER, EPOCH + 1, 0);
    assert_says(check_message(&link, message, bytes, CHECK_WHOLE, 1, &expect, NULL), GTOPK_ERR_DESYNC,
                "communicator epoch 78");
    bytes = build(message, WIRE_BARRIER, 0, WIRE_ABORT);
    assert_says(check_message(&link, message, bytes, CHECK_WHOLE, 1, &expect, NULL), GTOPK_ERR_ABORTED, "gave up");
}

/* A padded transport delivers as much as was awaited of a longer message. */
static void a_head_names_the_call(void **state)
{
    (void)state;
    enum { HELD = WIRE_HEADER_SIZE + 10 };
    transport_t transport = {.ops = &PADDED, .size = 2};
    link_t link = {.control = &transport, .data = &transport, .epoch = EPOCH};
    uint8_t message[MESSAGE];
    (void)build(message, WIRE_ALLGATHER, EPOCH, 0);
    wire_expect_t expect = awaited(WIRE_BARRIER);
    assert_says(check_message(&link, message, HELD, CHECK_PADDED, 1, &expect, NULL), GTOPK_ERR_DESYNC,
                "an all-gather (new reducers and collectives begin with one), this rank is in a barrier");
    /* The awaited call: then it is the message that is wrong. */
    expect = awaited(WIRE_ALLGATHER);
    assert_says(check_message(&link, message, HELD, CHECK_PADDED, 1, &expect, NULL), GTOPK_ERR_CORRUPT,
                "74 bytes arrived");
    /* A header that is not one, a message that does fit and is damaged, no whole header: nothing is read out of them. */
    expect = awaited(WIRE_BARRIER);
    message[0] ^= 1;
    assert_int_equal(check_message(&link, message, HELD, CHECK_PADDED, 1, &expect, NULL), GTOPK_ERR_CORRUPT);
    message[0] ^= 1;
    message[MESSAGE - 1] ^= 1;
    assert_says(check_message(&link, message, MESSAGE, CHECK_PADDED, 1, &expect, NULL), GTOPK_ERR_CORRUPT, "checksum");
    assert_int_equal(check_message(&link, message, WIRE_HEADER_SIZE - 1, CHECK_PADDED, 1, &expect, NULL),
                     GTOPK_ERR_CORRUPT);
    /* A last word is as long as a header, so a longer one is none. */
    (void)build(message, WIRE_ALLGATHER, EPOCH, WIRE_ABORT);
    assert_int_equal(check_message(&link, message, HELD, CHECK_PADDED, 1, &expect, NULL), GTOPK_ERR_CORRUPT);
}

/* ---- two ranks in different calls ---- */

enum { SMALL = 20, LARGE = 2000 };

static void make_reducer(gtopk_comm_t *comm, gtopk_reducer_t **reducer, uint64_t length)
{
    gtopk_reducer_config_t config = GTOPK_REDUCER_CONFIG_INIT;
    config.density = 0.5;
    REQUIRE(gtopk_reducer_create(reducer, comm, &config, &length, 1) == GTOPK_OK);
}

static gtopk_status_t take_step(gtopk_reducer_t *reducer, uint64_t length)
{
    static _Thread_local float values[LARGE];
    const gtopk_tensor_t tensor = {values, length, GTOPK_F32, 0};
    for (int i = 0; i < LARGE; i++)
        values[i] = (float)(i + 1);
    REQUIRE(gtopk_reducer_accumulate(reducer, NULL, &tensor, 1, 1.0, 0, NULL) == GTOPK_OK);
    return step_reduce(reducer, &tensor, 1, 0, NULL);
}

static void require_says(gtopk_status_t status, const char *text)
{
    REQUIRE(status == GTOPK_ERR_DESYNC);
    REQUIRE(strstr(gtopk_last_error(), text));
}

/* Each rank's message is the head of one too long, or short, for the other. */
static void step_in_another_order(gtopk_comm_t *comm, int rank, int size, void *context)
{
    gtopk_reducer_t *small, *large;
    (void)size;
    (void)context;
    make_reducer(comm, &small, SMALL);
    make_reducer(comm, &large, LARGE);
    if (rank == 0)
        require_says(take_step(small, SMALL), "rank 1 sent a message of reducer 1, this rank is at 0");
    else
        require_says(take_step(large, LARGE), "rank 0 sent a message of reducer 0, this rank is at 1");
    gtopk_reducer_destroy(small);
    gtopk_reducer_destroy(large);
}

static void make_a_reducer_alone(gtopk_comm_t *comm, int rank, int size, void *context)
{
    const uint64_t length = SMALL;
    gtopk_reducer_t *reducer, *other;
    (void)size;
    (void)context;
    make_reducer(comm, &reducer, LARGE);
    if (rank == 0)
        require_says(take_step(reducer, LARGE),
                     "sent a message of an all-gather (new reducers and collectives begin with one), "
                     "this rank is in a gradient exchange (gtopk)");
    else
        require_says(gtopk_reducer_create(&other, comm, NULL, &length, 1),
                     "sent a message of a gradient exchange (gtopk), this rank is in an all-gather");
    gtopk_reducer_destroy(reducer);
}

static void ranks_in_different_calls(void **state)
{
    (void)state;
    ranks_run(2, step_in_another_order, NULL);
    ranks_run(2, make_a_reducer_alone, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_calls_are_named),
        cmocka_unit_test(a_greeting_is_named),
        cmocka_unit_test(a_head_names_the_call),
        cmocka_unit_test(ranks_in_different_calls),
    };
    return cmocka_run_group_tests_name("link", tests, NULL, NULL);
}
