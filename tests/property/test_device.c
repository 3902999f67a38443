/* Every device gives the reference device's bits: random sequences of steps run on all of them at once, and everything
 * that can be seen is compared after each call. GTOPK_TEST_SEED: another sequence; GTOPK_TEST_RUNS: how many. */
#include "device_accumulate.h"
#include "device_message.h"
#include "device_nodes.h"
#include "device_parallel.h"

enum { RUNS_DEFAULT = 300, ROUNDS_MAX = 3 };

static world_t world;

/* ---- a world: sizes, segments, environment ---- */

static uint64_t draw_dim(random_state_t *random)
{
    static const uint64_t edges[] = {1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 255, 1000, 4095, 4096, 4097};
    if (random_chance(random, 20))
        return 30000 + random_below(random, SIDE_DIM_MAX - 30000);
    if (random_chance(random, 2))
        return edges[random_below(random, sizeof edges / sizeof edges[0])];
    return 1 + random_below(random, 9000);
}

static uint64_t draw_k(random_state_t *random, uint64_t dim)
{
    switch (random_below(random, 6)) {
    case 0: return 1;
    case 1: return dim;
    case 2: return 1 + random_below(random, dim);
    case 3: return 1 + dim / 10;
    default: return 1 + dim / 500;
    }
}

static int compare_u64(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Random cuts; where two are equal a segment is empty. */
static void draw_segments(world_t *w)
{
    w->segments = 1 + (size_t)random_below(&w->random, WORLD_SEGMENTS);
    w->offset[0] = 0;
    w->offset[w->segments] = w->dim;
    for (size_t s = 1; s < w->segments; s++)
        w->offset[s] = random_below(&w->random, w->dim + 1);
    qsort(w->offset, w->segments + 1, sizeof w->offset[0], compare_u64);
}

static int store_has(const world_t *w)
{
    return (w->with_velocity ? DEVICE_WITH_VELOCITY : 0) | (w->with_second ? DEVICE_WITH_SECOND : 0) |
           (w->with_bf16 ? DEVICE_WITH_BF16 : 0);
}

static void world_begin(world_t *w, uint64_t seed)
{
    static const gtopk_parallel_for_fn ways[] = {NULL, parallel_shuffled, parallel_two_threads};
    w->seed = seed;
    w->random.state = seed;
    w->step = 0;
    w->one_tie = random_chance(&w->random, 20);
    w->dim = w->one_tie ? SIDE_DIM_MAX : draw_dim(&w->random);
    w->k = w->one_tie ? 1 + random_below(&w->random, 2000) : draw_k(&w->random, w->dim);
    w->with_velocity = random_chance(&w->random, 3);
    w->with_second = random_chance(&w->random, 2);
    w->with_bf16 = w->takes_bf16 && seed % 3 == 0;
    w->flags = random_u64(&w->random) & random_u64(&w->random) & SIDE_FLAGS;
    draw_segments(w);
    const gtopk_parallel_for_fn way = ways[random_below(&w->random, 3)];
    WORLD_CALL_OK(w, (side->parallel_random.state = seed,
                      ops->store_create(side->device, w->dim, w->k, store_has(w),
                                        &(device_parallel_t){way, &side->parallel_random}, &side->store)));
}

static void world_end(world_t *w)
{
    for (side_t *side = w->sides; side < w->sides + w->side_count; side++) {
        side->device->ops->store_destroy(side->store);
        side->store = NULL;
    }
}

/* ---- a round: merge with a random peer, deposit ---- */

static host_set_t current, peer;

/* Some of the indices of the current set, at times with the opposite value, and some others. */
static void draw_peer(world_t *w)
{
    random_state_t *random = &w->random;
    const style_t style = random_style(random);
    const uint64_t extra = random_chance(random, 6) ? 0 : 1 + random_below(random, w->k);
    const uint64_t overlap = 1 + random_below(random, 4), gap = 1 + w->dim / (extra + 1);
    peer.count = 0;
    if (random_chance(random, 10))
        return;
    for (uint64_t index = 0, c = 0, next = random_below(random, gap + 1); index < w->dim; index++) {
        while (c < current.count && current.index[c] < index)
            c++;
        const int shared = c < current.count && current.index[c] == index && random_chance(random, overlap);
        if (!shared && index != next)
            continue;
        if (index >= next)
            next = index + 1 + random_below(random, 2 * gap);
        peer.index[peer.count] = (uint32_t)index;
        peer.value[peer.count++] = shared && random_chance(random, 3) ? -current.value[c]
                                                                      : random_nonzero(random, style, index);
    }
}

/* Whatever a set has no room for is told, and nothing is written behind it. */
static void expect_no_room(world_t *w, int which, const char *call)
{
    const device_words_t words = world_words(w);
    if (words.ok || words.error != DEVICE_NO_ROOM)
        WORLD_FAIL(w, w->sides, "%s without room leaves ok %u, error %u", call, words.ok, words.error);
    world_compare_set(w, which, "set without room");
    assert_int_equal(world_set_expected.count, 0);
    world_set_words(w, (device_words_t){.ok = 1});
}

/* The merge that was just done, again, with too little room for one of its results; deposit and copy too. */
static void merge_without_room(world_t *w, uint64_t k, uint64_t room)
{
    const device_words_t kept = world_words(w);
    const uint32_t all = world_count(w, SET_ALL), largest = world_count(w, SET_KEPT);
    const int which = random_chance(&w->random, 2) ? SET_ALL : SET_KEPT;
    if (all == 0 || kept.nonfinite) /* a device need not have got so far as to find it */
        return;
    world_set_words(w, (device_words_t){.ok = 1});
    world_prepare(w, SET_DEPOSIT, all - 1);
    WORLD_CALL_OK(w, ops->deposit(side->device, &side->sets[SET_ALL], &side->sets[SET_KEPT], 1.0f,
                                  &side->sets[SET_DEPOSIT], side->words, NULL));
    expect_no_room(w, SET_DEPOSIT, "deposit");
    WORLD_CALL_OK(w, ops->copy_set(side->device, &side->sets[SET_ALL], &side->sets[SET_DEPOSIT], side->words, NULL));
    expect_no_room(w, SET_DEPOSIT, "copy_set");

    world_prepare(w, which, which == SET_ALL ? all - 1 : largest - 1);
    WORLD_CALL_OK(w, ops->merge(side->device, &side->sets[SET_CURRENT], &side->sets[SET_PEER], k, &side->sets[SET_KEPT],
                                &side->sets[SET_ALL], side->words, NULL));
    expect_no_room(w, which, "merge");
    world_compare_set(w, which == SET_ALL ? SET_KEPT : SET_ALL, "the other set without room");
    assert_int_equal(world_set_expected.count, 0);
    world_prepare(w, SET_KEPT, k < room ? k : room);
    world_prepare(w, SET_ALL, room);
    WORLD_CALL_OK(w, ops->merge(side->device, &side->sets[SET_CURRENT], &side->sets[SET_PEER], k, &side->sets[SET_KEPT],
                                &side->sets[SET_ALL], side->words, NULL));
    world_set_words(w, kept);
}

/* A part of the merged entries, under their places in a range, and under their indices again. */
static void cut_range(world_t *w)
{
    random_state_t *random = &w->random;
    const uint32_t bits = (uint32_t)random_below(random, 12);
    const device_range_t range = {bits, (uint32_t)random_below(random, 1u << bits)};
    world_prepare(w, SET_PEER, world_count(w, SET_ALL));
    WORLD_CALL_OK(w, ops->cut(side->device, &side->sets[SET_ALL], range, &side->sets[SET_PEER], side->words, NULL));
    world_compare_set(w, SET_PEER, "cut entries");
    const uint32_t found = world_set_expected.count;
    world_prepare(w, SET_PEER, found);
    WORLD_CALL_OK(w, ops->cut(side->device, &side->sets[SET_ALL], range, &side->sets[SET_PEER], side->words, NULL));
    WORLD_CALL_OK(w, ops->widen(side->device, &side->sets[SET_PEER], range, NULL));
    world_compare_set(w, SET_PEER, "widened entries");
    if (found == 0)
        return;
    const device_words_t kept = world_words(w);
    world_set_words(w, (device_words_t){.ok = 1});
    world_prepare(w, SET_PEER, found - 1);
    WORLD_CALL_OK(w, ops->cut(side->device, &side->sets[SET_ALL], range, &side->sets[SET_PEER], side->words, NULL));
    expect_no_room(w, SET_PEER, "cut");
    world_set_words(w, kept);
}

static void merge_round(world_t *w, int round, int last)
{
    random_state_t *random = &w->random;
    assert_true(side_download_set(w->sides, SET_CURRENT, &current));
    draw_peer(w);
    for (side_t *side = w->sides; side < w->sides + w->side_count; side++)
        side_upload_set(side, SET_PEER, &peer);

    const uint64_t room = (uint64_t)current.count + peer.count;
    uint64_t k = random_chance(random, 4) ? w->dim : 1 + random_below(random, 2 * w->k);
    k = k < w->dim ? k : w->dim;
    world_prepare(w, SET_KEPT, k < room ? k : room);
    world_prepare(w, SET_ALL, room);
    WORLD_CALL_OK(w, ops->merge(side->device, &side->sets[SET_CURRENT], &side->sets[SET_PEER], k, &side->sets[SET_KEPT],
                                &side->sets[SET_ALL], side->words, NULL));
    if (random_chance(random, 6))
        merge_without_room(w, k, room);
    world_compare_set(w, SET_ALL, "merged entries");
    world_compare_set(w, SET_KEPT, "kept entries");
    if (world_words(w).nonfinite && !random_chance(random, 3))
        world_set_words(w, (device_words_t){.ok = 1});

    int sent = SET_KEPT;
    if (!last) {
        encode_everywhere(w, SET_KEPT);
        sent = SET_DECODED;
    }
    const float share = ldexpf(1.0f, -(int)random_below(random, 4));
    world_prepare(w, SET_DEPOSIT + round, world_count(w, SET_ALL));
    WORLD_CALL_OK(w, ops->deposit(side->device, &side->sets[SET_ALL], &side->sets[sent], share,
                                  &side->sets[SET_DEPOSIT + round], side->words, NULL));
    world_compare_set(w, SET_DEPOSIT + round, "deposits");
    if (random_chance(random, 2))
        cut_range(w);
    world_prepare(w, SET_CURRENT, world_count(w, sent));
    WORLD_CALL_OK(w, ops->copy_set(side->device, &side->sets[sent], &side->sets[SET_CURRENT], side->words, NULL));
    world_compare_set(w, SET_CURRENT, "copied set");
}

/* ---- commit ---- */

/* Outputs of all segments, full of what must be overwritten; returns the bytes used. */
static size_t draw_outputs(world_t *w, device_span_t *spans, size_t *at, int zero)
{
    const size_t used = lay_out(w, spans, at);
    memset(arena, zero ? 0 : 0xa5, used);
    world_upload(w, arena_of, arena, used);
    return used;
}

static device_span_t *outputs_on(const side_t *side, const device_span_t *spans, const size_t *at)
{
    static device_span_t outputs[WORLD_SEGMENTS];
    for (size_t s = 0; s < world.segments; s++) {
        outputs[s] = spans[s];
        outputs[s].data = spans[s].length ? side->arena + at[s] : NULL;
    }
    return outputs;
}

static uint32_t draw_size(random_state_t *random)
{
    static const uint32_t sizes[] = {1, 2, 3, 5, 8, 17, 1024};
    return sizes[random_below(random, sizeof sizes / sizeof sizes[0])];
}

static device_words_t *other_words_of(side_t *side)
{
    return side->other_words;
}

static device_words_t *told_of(side_t *side)
{
    return side->told;
}

static device_words_t *told_of_other(side_t *side)
{
    return side->told + 1;
}

/* Another reducer may take the step as well: one verdict for both. Returns the words after it. */
static device_words_t verdict(world_t *w, int dense)
{
    random_state_t *random = &w->random;
    const device_words_t other = {.ok = !random_chance(random, 8),
                                  .nonfinite = (uint32_t)random_chance(random, 8),
                                  .joined = world_words(w).joined};
    const size_t count = 1 + (size_t)random_below(random, 2);
    for (side_t *side = w->sides; side < w->sides + w->side_count; side++) {
        side_copy(side, side->other_words, &other, sizeof other);
        memset(side->told, 0x77, 2 * sizeof *side->told);
    }
    WORLD_CALL_OK(
        w, ops->verdict(side->device,
                        (device_outcome_t[]){
                            {.words = side->words, .final = dense ? NULL : &side->sets[SET_FINAL], .host = side->told},
                            {.words = side->other_words, .host = side->told + 1}},
                        count, NULL));
    const device_words_t words = world_words(w), told = world_compare_words(w, told_of, "words of a verdict");
    assert_memory_equal(&words, &told, sizeof words);
    (void)world_compare_words(w, other_words_of, "words of the other reducer");
    (void)world_compare_words(w, told_of_other, "words of a verdict on the other reducer");
    if (count == 2 && (words.ok > other.ok || words.nonfinite < other.nonfinite))
        WORLD_FAIL(w, w->sides, "ok %u, nonfinite %u after a verdict with one of ok %u, nonfinite %u", words.ok,
                   words.nonfinite, other.ok, other.nonfinite);
    return words;
}

/* Where an update goes: the segments' outputs, arrays, or nowhere. */
typedef struct place {
    size_t spans, entries;
    int arrays, zero;
} place_t;

static place_t draw_place(world_t *w, uint64_t entries)
{
    place_t place = {.zero = random_chance(&w->random, 2), .entries = (size_t)entries};
    const uint64_t kind = random_below(&w->random, 5);
    place.arrays = kind == 1;
    place.spans = kind > 1 ? w->segments : 0;
    world_prepare(w, SET_UPDATE, entries);
    for (side_t *side = w->sides; side < w->sides + w->side_count; side++) {
        static uint8_t nothing[SIDE_DIM_MAX * sizeof(float)];
        side_copy(side, side->sets[SET_UPDATE].index, nothing, (size_t)entries * sizeof(uint32_t));
        side_copy(side, side->sets[SET_UPDATE].value, nothing, (size_t)entries * sizeof(float));
    }
    return place;
}

static const device_target_t *place_on(const side_t *side, const place_t *place, const device_span_t *outputs)
{
    static device_target_t target;
    target = (device_target_t){.count = place->spans, .are_zero = place->zero};
    if (place->spans > 0)
        target.spans = outputs;
    if (place->arrays) {
        target.indices = side->sets[SET_UPDATE].index;
        target.values = side->sets[SET_UPDATE].value;
    }
    return &target;
}

/* The arrays as a set of `count` entries, and nothing behind them. */
static void compare_arrays(world_t *w, const place_t *place, uint64_t count)
{
    const uint32_t entries = place->arrays ? (uint32_t)count : 0;
    for (side_t *side = w->sides; side < w->sides + w->side_count; side++)
        side_copy(side, side->sets[SET_UPDATE].count, &entries, sizeof entries);
    world_compare_set(w, SET_UPDATE, "arrays");
    WORLD_COMPARE(w, sets[SET_UPDATE].index, place->entries * sizeof(uint32_t));
    WORLD_COMPARE(w, sets[SET_UPDATE].value, place->entries * sizeof(float));
}

static void write_first(world_t *w, const place_t *place, const device_span_t *spans, const size_t *at, size_t used,
                        uint32_t divisor)
{
    WORLD_CALL_OK(w, ops->write(side->device, &side->sets[SET_FINAL], divisor,
                                place_on(side, place, outputs_on(side, spans, at)), side->words, NULL));
    WORLD_COMPARE(w, arena, used);
    const device_words_t words = world_words(w);
    compare_arrays(w, place, words.ok ? words.count : 0);
    world_compare_store(w);
    world_upload(w, arena_of, arena, used); /* as they were */
}

static void commit(world_t *w, uint32_t rounds)
{
    random_state_t *random = &w->random;
    device_span_t spans[WORLD_SEGMENTS];
    size_t at[WORLD_SEGMENTS];
    const int final_only = random_chance(random, 3);
    const uint32_t divisor = draw_size(random), others = (uint32_t)random_below(random, 4);
    device_words_t words = world_words(w);
    words.ok = !random_chance(random, 12);
    world_set_words(w, words);
    words = verdict(w, 0);
    const place_t place = draw_place(w, world_count(w, SET_FINAL));
    const size_t used = draw_outputs(w, spans, at, place.zero);
    if (words.count != (words.nonfinite || words.joined ? 0 : place.entries))
        WORLD_FAIL(w, w->sides, "a verdict counts %llu entries of %zu", (unsigned long long)words.count, place.entries);
    if (random_chance(random, 3)) /* as commit, of the outputs alone */
        write_first(w, &place, spans, at, used, divisor);
    WORLD_CALL_OK(w, ops->commit(side->store,
                                 &(device_journal_t){.selected = side->sets[SET_SELECTED],
                                                     .first = side->sets[SET_FIRST],
                                                     .deposits = &side->sets[SET_DEPOSIT],
                                                     .deposit_count = rounds,
                                                     .final = side->sets[SET_FINAL],
                                                     .clear_final_only = final_only,
                                                     .divisor = divisor,
                                                     .others = others},
                                 place_on(side, &place, outputs_on(side, spans, at)), side->words, NULL));
    WORLD_COMPARE(w, arena, used);
    compare_arrays(w, &place, words.ok ? words.count : 0);
    world_compare_store(w);
    (void)world_words(w);
}

/* ---- steps ---- */

static void select_everywhere(world_t *w)
{
    const uint64_t k = random_chance(&w->random, 4) ? 1 + random_below(&w->random, w->k) : w->k;
    world_prepare(w, SET_SELECTED, k);
    WORLD_CALL_OK(w, ops->select(side->store, k, &side->sets[SET_SELECTED], side->words, NULL));
    world_compare_set(w, SET_SELECTED, "selected entries");
    const device_words_t words = world_words(w);
    if (words.selected != world_set_expected.count || (words.nonfinite && words.selected != 0))
        WORLD_FAIL(w, w->sides, "select notes %u entries of %u (nonfinite %u)", words.selected,
                   world_set_expected.count, words.nonfinite);
    for (side_t *side = w->sides; side < w->sides + w->side_count; side++) {
        device_words_t own;
        side_copy(side, &own, side->words, sizeof own);
        side->selections++;
        side->misses += own.misses;
    }
}

static void sparse_step(world_t *w)
{
    select_everywhere(w);
    world_compare_store(w);
    encode_everywhere(w, SET_SELECTED);
    world_prepare(w, SET_FIRST, world_count(w, SET_DECODED));
    world_prepare(w, SET_CURRENT, world_count(w, SET_DECODED));
    WORLD_CALL_OK(w, ops->copy_set(side->device, &side->sets[SET_DECODED], &side->sets[SET_FIRST], side->words, NULL));
    WORLD_CALL_OK(w,
                  ops->copy_set(side->device, &side->sets[SET_DECODED], &side->sets[SET_CURRENT], side->words, NULL));
    const int rounds = (int)random_below(&w->random, ROUNDS_MAX + 1);
    for (int round = 0; round < rounds; round++)
        merge_round(w, round, round == rounds - 1 && random_chance(&w->random, 2));
    if (random_chance(&w->random, 3)) {
        assert_true(side_download_set(w->sides, SET_CURRENT, &current));
        append_part(w, &current);
    }
    world_prepare(w, SET_FINAL, world_count(w, SET_CURRENT));
    WORLD_CALL_OK(w, ops->copy_set(side->device, &side->sets[SET_CURRENT], &side->sets[SET_FINAL], side->words, NULL));
    commit(w, (uint32_t)rounds);
}

static uint8_t *dense_of(side_t *side)
{
    return (uint8_t *)side->dense;
}

static void dense_step(world_t *w)
{
    static float sum[SIDE_DIM_MAX];
    random_state_t *random = &w->random;
    device_span_t spans[WORLD_SEGMENTS];
    size_t at[WORLD_SEGMENTS];
    const style_t style = random_style(random);
    const uint32_t divisor = draw_size(random);
    WORLD_CALL_OK(w, ops->dense_gather(side->store, side->dense, NULL));
    WORLD_COMPARE(w, dense, w->dim * sizeof(float));
    for (uint64_t i = 0; i < w->dim; i++)
        sum[i] = world_expected.floats[i] + (style == STYLE_BITS ? random_value : random_finite)(random, style, i);
    world_upload(w, dense_of, sum, w->dim * sizeof(float));

    const place_t place = draw_place(w, w->dim);
    const size_t used = draw_outputs(w, spans, at, place.zero);
    WORLD_CALL_OK(w, ops->dense_check(side->store, side->dense, side->words, NULL));
    const device_words_t words = verdict(w, 1);
    if (words.count != (words.nonfinite || words.joined ? 0 : w->dim))
        WORLD_FAIL(w, w->sides, "a verdict counts %llu entries", (unsigned long long)words.count);
    WORLD_CALL_OK(w, ops->dense_commit(side->store, side->dense, divisor,
                                       place_on(side, &place, outputs_on(side, spans, at)), side->words, NULL));
    WORLD_COMPARE(w, dense, w->dim * sizeof(float));
    WORLD_COMPARE(w, arena, used);
    compare_arrays(w, &place, words.ok ? world_words(w).count : 0);
    world_compare_store(w);
}

/* The order of the sum is the device's own: of n roundings each has half a unit. */
static void compare_squares(world_t *w)
{
    double expected = 0.0;
    for (side_t *side = w->sides; side < w->sides + w->side_count; side++) {
        double sum = -1.0;
        SIDE_OK(side->device->ops->store_square(side->store, &sum, NULL));
        if (side == w->sides)
            expected = sum;
        else if (!(fabs(sum - expected) <= 1e-15 * (double)w->dim * expected))
            WORLD_FAIL(w, side, "sum of squares %.17g, the reference's %.17g", sum, expected);
    }
}

/* What may happen between steps: another density, a checkpoint. */
static void between_steps(world_t *w)
{
    random_state_t *random = &w->random;
    if (random_chance(random, 4)) {
        w->k = draw_k(random, w->dim);
        WORLD_CALL_OK(w, ops->store_resize(side->store, w->k));
    }
    if (random_chance(random, 4)) {
        static float values[SIDE_DIM_MAX];
        const int which = w->with_velocity && random_chance(random, 2);
        const uint64_t offset = random_below(random, w->dim), length = 1 + random_below(random, w->dim - offset);
        const style_t style = random_style(random);
        for (uint64_t i = 0; i < length; i++)
            values[i] = random_finite(random, style, i);
        WORLD_CALL_OK(w, ops->store_write(side->store, which, offset, length, values, NULL));
    }
    if (random_chance(random, 4))
        compare_squares(w);
    if (random_chance(random, 3))
        stage_all(w);
    if (random_chance(random, 3))
        add_up_parts(w);
}

/* Another reducer takes the step as well, or not. */
static void join(world_t *w)
{
    const device_words_t before = world_words(w),
                         other = {.ok = 1, .nonfinite = (uint32_t)random_chance(&w->random, 20), .joined = 1};
    const size_t count = 1 + (size_t)random_below(&w->random, 2);
    const int joined = random_chance(&w->random, 2);
    for (side_t *side = w->sides; side < w->sides + w->side_count; side++)
        side_copy(side, side->other_words, &other, sizeof other);
    WORLD_CALL_OK(
        w, ops->words_join(side->device, (device_words_t *[]){side->words, side->other_words}, count, joined, NULL));
    const device_words_t words = world_words(w),
                         others = world_compare_words(w, other_words_of, "words of the other reducer");
    const uint32_t nonfinite = before.nonfinite || (count == 2 && other.nonfinite);
    if (words.ok != 1 || words.joined != (uint32_t)joined || words.nonfinite != nonfinite ||
        (count == 2 && (others.nonfinite != nonfinite || others.joined != (uint32_t)joined)))
        WORLD_FAIL(w, w->sides, "words joined to ok %u, joined %u, nonfinite %u", words.ok, words.joined,
                   words.nonfinite);
}

/* Whatever a step did, a store with second arrays has what it had before. */
static float arrays_before[2][SIDE_DIM_MAX];

static void keep_arrays(world_t *w)
{
    const side_t *first = w->sides;
    for (int which = 0; which <= w->with_velocity; which++)
        SIDE_OK(first->device->ops->store_read(first->store, which, 0, w->dim, arrays_before[which], NULL));
}

static void undo(world_t *w)
{
    WORLD_CALL_OK(w, ops->swap(side->store, NULL));
    for (int which = 0; which <= w->with_velocity; which++)
        for (side_t *side = w->sides; side < w->sides + w->side_count; side++) {
            SIDE_OK(side->device->ops->store_read(side->store, which, 0, w->dim, world_got.floats, NULL));
            world_compare(w, side, which ? "velocities after an undone step" : "residuals after an undone step",
                          arrays_before[which], world_got.floats, w->dim * sizeof(float));
        }
}

static void step(world_t *w)
{
    between_steps(w);
    keep_arrays(w);
    device_words_t words;
    memset(&words, 0xee, sizeof words);
    world_set_words(w, words);
    if (w->with_bf16)
        WORLD_CALL_OK(w, ops->store_seed(side->store, w->seed + (uint64_t)w->step, NULL));
    WORLD_CALL_OK(w, ops->step_begin(side->store, side->words, NULL));
    const int found_inf = accumulate_all(w);
    join(w);
    /* Most go on as if nothing had happened: the residual is finite all the same. */
    if (world_words(w).nonfinite && !found_inf && !random_chance(&w->random, 4))
        world_set_words(w, (device_words_t){.ok = 1});
    if (random_chance(&w->random, 8))
        dense_step(w);
    else
        sparse_step(w);
    if (w->with_second && (found_inf || random_chance(&w->random, 3)))
        undo(w);
}

/* ---- the tests ---- */

static unsigned long long environment(const char *name, unsigned long long otherwise)
{
    const char *text = getenv(name);
    return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

static void add_side(world_t *w, const char *name, const char *device_name)
{
    device_t *device;
    const gtopk_status_t status = device_open(device_name, &device);
    if (status == GTOPK_ERR_UNSUPPORTED)
        print_message("skipped: %s: %s\n", name, gtopk_last_error());
    else if (status != GTOPK_OK)
        fail_msg("%s: %s", name, gtopk_last_error());
    else
        side_open(&w->sides[w->side_count++], name, device);
}

static void add_sides(world_t *w)
{
    static const char *const sets[][2] = {
        {"scalar", "cpu scalar"}, {"avx2", "cpu avx2"}, {"avx512", "cpu avx512"}, {"neon", "cpu neon"}};
    w->side_count = 0;
    add_side(w, "reference", "reference");
    add_side(w, "reference, caller's flags", "reference");
    for (size_t i = 0; i < sizeof sets / sizeof sets[0]; i++) {
        assert_int_equal(setenv("GTOPK_ISA", sets[i][0], 1), 0);
        add_side(w, sets[i][1], "cpu");
    }
    (void)unsetenv("GTOPK_ISA");
    add_side(w, "guarded", "guarded");
    w->takes_bf16 = 1;
    assert_true(w->side_count >= 4); /* the scalar CPU device runs everywhere */
}

/* A side whose hint never misses, or always does, was not put to the test. */
static void check_misses(const world_t *w)
{
    for (const side_t *side = w->sides; side < w->sides + w->side_count; side++) {
        print_message("%s: %llu selections, %llu with a wrong hint\n", side->name, (unsigned long long)side->selections,
                      (unsigned long long)side->misses);
        if (strncmp(side->name, "reference", 9) != 0 && side->selections > 500)
            assert_true(side->misses > side->selections / 100 && side->misses < side->selections);
    }
}

static void must_be_halted(world_t *w, const char *what)
{
    const device_words_t words = world_words(w);
    if (words.ok || words.error != DEVICE_HALTED)
        WORLD_FAIL(w, w->sides, "%s of a halted device leaves ok %u, error %u", what, words.ok, words.error);
    world_set_words(w, (device_words_t){.ok = 1});
}

/* The devices' last step: halted in the middle of it, they commit nothing. */
static void halt_everywhere(world_t *w)
{
    const device_words_t well = {.ok = 1};
    const wire_expect_t expect = {.dim = 1};
    world_begin(w, w->seed);
    w->step = 0;
    step(w);
    world_compare_store(w);
    for (side_t *side = w->sides; side < w->sides + w->side_count; side++)
        side->device->ops->halt(side->device);
    world_set_words(w, well);
    world_prepare(w, SET_RECEIVED, 1);
    WORLD_CALL_OK(w, ops->decode(side->device, side->message, WIRE_HEADER_SIZE, &expect, &side->sets[SET_RECEIVED],
                                 side->words, NULL));
    must_be_halted(w, "decode");
    host_set_t *set = &world_set_expected;
    set->count = 1;
    set->index[0] = 0;
    set->value[0] = 1.0f;
    for (side_t *side = w->sides; side < w->sides + w->side_count; side++)
        side_upload_set(side, SET_CURRENT, set);
    world_prepare(w, SET_KEPT, 2);
    world_prepare(w, SET_ALL, 2);
    WORLD_CALL_OK(w, ops->merge(side->device, &side->sets[SET_CURRENT], &side->sets[SET_CURRENT], 2,
                                &side->sets[SET_KEPT], &side->sets[SET_ALL], side->words, NULL));
    must_be_halted(w, "merge");
    WORLD_CALL_OK(
        w, ops->verdict(side->device, &(device_outcome_t){side->words, &side->sets[SET_CURRENT], side->told}, 1, NULL));
    for (side_t *side = w->sides; side < w->sides + w->side_count; side++)
        if (side->told->ok || side->told->error != DEVICE_HALTED)
            WORLD_FAIL(w, side, "the verdict of a halted device is ok %u", side->told->ok);
    must_be_halted(w, "verdict");
    assert_int_equal(world_count(w, SET_RECEIVED) + world_count(w, SET_KEPT) + world_count(w, SET_ALL), 0);
    world_end(w);
}

static void test_devices_agree(void **state)
{
    (void)state;
    const uint64_t seed = environment("GTOPK_TEST_SEED", 1), runs = environment("GTOPK_TEST_RUNS", RUNS_DEFAULT);
    add_sides(&world);
    for (uint64_t run = 0; run < runs; run++) {
        world_begin(&world, seed + run);
        const int steps = world.dim > 20000 ? 4 : 3 + (int)random_below(&world.random, 8);
        for (world.step = 0; world.step < steps; world.step++)
            step(&world);
        world_end(&world);
    }
    check_misses(&world);
    halt_everywhere(&world);
    for (size_t s = 0; s < world.side_count; s++)
        side_close(&world.sides[s]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_devices_agree)};
    return cmocka_run_group_tests_name("device", tests, NULL, NULL);
}
