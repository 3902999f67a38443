/* Schedules, by carrying them out on counters: every message has its counterpart, nobody waits for ever, and the final
 * set holds each rank's contribution exactly once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "exchange/schedule.h"

#define SIZE_MAX_TESTED 70

typedef void (*build_fn)(schedule_t *schedule, int32_t size, int32_t rank);

/* A rank that walks through its schedule. What it stands for is the number of times each rank is in it. */
typedef struct walker {
    schedule_t schedule;
    uint32_t at;
    int final;
    uint8_t contains[SIZE_MAX_TESTED];
} walker_t;

static walker_t ranks[SIZE_MAX_TESTED];

static int sends(schedule_kind_t kind)
{
    return kind == SCHEDULE_MERGE || kind == SCHEDULE_GIVE || kind == SCHEDULE_PUBLISH;
}

static int receives(schedule_kind_t kind)
{
    return kind == SCHEDULE_MERGE || kind == SCHEDULE_TAKE || kind == SCHEDULE_FINAL;
}

static void add(uint8_t *into, const uint8_t *from)
{
    for (int i = 0; i < SIZE_MAX_TESTED; i++)
        into[i] = (uint8_t)(into[i] + from[i]);
}

static void check_pair(const schedule_round_t *mine, const schedule_round_t *theirs, int32_t rank)
{
    assert_int_equal(theirs->peer, rank);
    assert_int_equal(theirs->number, mine->number);
    assert_int_equal(theirs->level_in, mine->level_in);
    assert_int_equal(sends(mine->kind), receives(theirs->kind));
    assert_int_equal(receives(mine->kind), sends(theirs->kind));
    assert_int_equal(mine->kind == SCHEDULE_FINAL, theirs->kind == SCHEDULE_PUBLISH);
}

/* Does one round of `rank` together with its partner, if the partner has come to it. */
static int advance(int32_t rank)
{
    walker_t *a = &ranks[rank];
    if (a->at == a->schedule.count)
        return 0;
    const schedule_round_t *mine = &a->schedule.rounds[a->at];
    walker_t *b = &ranks[mine->peer];
    if (b->at == b->schedule.count || b->schedule.rounds[b->at].peer != rank)
        return 0;
    const schedule_round_t *theirs = &b->schedule.rounds[b->at];
    check_pair(mine, theirs, rank);
    uint8_t before[SIZE_MAX_TESTED];
    memcpy(before, a->contains, sizeof before);
    if (mine->kind == SCHEDULE_MERGE || mine->kind == SCHEDULE_TAKE)
        add(a->contains, b->contains);
    if (theirs->kind == SCHEDULE_MERGE || theirs->kind == SCHEDULE_TAKE)
        add(b->contains, before);
    if (mine->kind == SCHEDULE_FINAL)
        memcpy(a->contains, b->contains, sizeof a->contains);
    if (theirs->kind == SCHEDULE_FINAL)
        memcpy(b->contains, a->contains, sizeof b->contains);
    a->at++;
    b->at++;
    return 1;
}

static void walk(build_fn build, int32_t size)
{
    for (int32_t r = 0; r < size; r++) {
        memset(&ranks[r], 0, sizeof ranks[r]);
        build(&ranks[r].schedule, size, r);
        ranks[r].contains[r] = 1;
    }
    for (int moved = 1; moved;) {
        moved = 0;
        for (int32_t r = 0; r < size; r++)
            moved |= advance(r);
    }
    for (int32_t r = 0; r < size; r++) {
        if (ranks[r].at != ranks[r].schedule.count)
            fail_msg("rank %d of %d waits for ever in round %u", (int)r, (int)size, ranks[r].at);
        for (int32_t i = 0; i < size; i++)
            if (ranks[r].contains[i] != 1)
                fail_msg("rank %d of %d has the set of rank %d %d times", (int)r, (int)size, (int)i,
                         ranks[r].contains[i]);
    }
}

static void test_butterfly(void **state)
{
    (void)state;
    for (int32_t size = 1; size <= SIZE_MAX_TESTED; size++)
        walk(schedule_butterfly, size);
}

static void test_tree(void **state)
{
    (void)state;
    for (int32_t size = 1; size <= SIZE_MAX_TESTED; size++)
        walk(schedule_tree, size);
}

static uint32_t log2_ceil(int32_t size)
{
    uint32_t bits = 0;
    while ((1 << bits) < size)
        bits++;
    return bits;
}

/* The promise of O(k log P): rounds one after the other on any rank. */
static void test_round_counts(void **state)
{
    (void)state;
    schedule_t schedule;
    for (int32_t size = 1; size <= SIZE_MAX_TESTED; size++)
        for (int32_t rank = 0; rank < size; rank++) {
            const int power = (size & (size - 1)) == 0;
            schedule_butterfly(&schedule, size, rank);
            assert_true(schedule.count <= log2_ceil(size) + (power ? 0u : 1u));
            schedule_tree(&schedule, size, rank);
            assert_true(schedule.count <= 2 * log2_ceil(size));
        }
}

/* What a merge drops is given back to exactly the ranks of the group: group sizes are those of the butterfly. */
static void test_groups(void **state)
{
    (void)state;
    schedule_t schedule;
    schedule_butterfly(&schedule, 6, 1); /* a core of 4, rank 5 folded into rank 1 */
    assert_int_equal(schedule.count, 4);
    assert_int_equal(schedule.rounds[0].kind, SCHEDULE_TAKE);
    assert_int_equal(schedule.rounds[0].group, 1);
    assert_int_equal(schedule.rounds[1].group, 2);
    assert_int_equal(schedule.rounds[2].group, 4);
    assert_true(schedule.rounds[2].quantise); /* handed back, so everybody uses the decoded values */
    assert_int_equal(schedule.rounds[3].kind, SCHEDULE_PUBLISH);
    schedule_butterfly(&schedule, 4, 1);
    assert_true(schedule.rounds[0].quantise);
    assert_false(schedule.rounds[1].quantise);
}

static void test_levels(void **state)
{
    (void)state;
    assert_int_equal(schedule_level_k(1000, 10, 1.0, 9), 10);
    assert_int_equal(schedule_level_k(1000, 10, 1.5, 1), 15);
    assert_int_equal(schedule_level_k(1000, 10, 1.5, 2), 23);
    assert_int_equal(schedule_level_k(1000, 10, 1.5, 40), 40);
    assert_int_equal(schedule_level_k(12, 10, 1.5, 2), 12);
    assert_int_equal(schedule_level_k(UINT32_MAX, UINT32_MAX, 2.0, 3), UINT32_MAX);
    assert_int_equal(schedule_level_k(100, 0, 2.0, 3), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_butterfly), cmocka_unit_test(test_tree),   cmocka_unit_test(test_round_counts),
        cmocka_unit_test(test_groups),    cmocka_unit_test(test_levels),
    };
    return cmocka_run_group_tests_name("schedule", tests, NULL, NULL);
}
