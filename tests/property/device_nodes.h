/* What exchanges on nodes take of a device, on all sides: sums of a node's ranks, sets behind each other, and the end of a
 * step without a residual. */
#ifndef GTOPK_TESTS_DEVICE_NODES_H
#define GTOPK_TESTS_DEVICE_NODES_H

#include "device_accumulate.h"

/* Floats from `skip` on in what `dense` is on each side. Which NaN a NaN becomes is the device's own. */
static void compare_floats(world_t *w, size_t skip, uint64_t length, const char *what)
{
    for (side_t *side = w->sides; side < w->sides + w->side_count; side++) {
        float *to = side == w->sides ? world_expected.floats : world_got.floats;
        side_copy(side, to, side->dense + skip, (size_t)length * sizeof(float));
        for (uint64_t i = 0; i < length; i++)
            to[i] = isnan(to[i]) ? NAN : to[i];
        if (side != w->sides)
            world_compare(w, side, what, world_expected.floats, world_got.floats, (size_t)length * sizeof(float));
    }
}

/* Something in all of `dense`, what is behind it included. */
static void fill_dense(world_t *w, size_t length)
{
    static float values[SIDE_DIM_MAX + SIDE_BEHIND];
    const style_t style = random_style(&w->random);
    for (size_t i = 0; i < length; i++)
        values[i] = random_finite(&w->random, style, i);
    for (side_t *side = w->sides; side < w->sides + w->side_count; side++)
        side_copy(side, side->dense, values, length * sizeof(float));
}

/* The spans of order[0..count), those of left_out without data. */
static gtopk_status_t stage_part(side_t *side, const device_span_t *spans, const size_t *at, const uint8_t *left_out,
                                 const size_t *order, size_t count, const device_stage_t *params, size_t skip)
{
    device_span_t part[WORLD_SEGMENTS];
    for (size_t i = 0; i < count; i++) {
        part[i] = spans[order[i]];
        part[i].data = left_out[order[i]] ? NULL : side->arena + at[order[i]];
    }
    return side->device->ops->stage(side->device, part, count, params, side->dense + skip, NULL);
}

/* All segments once, in any order, in any number of calls, to floats that begin anywhere. */
static void stage_all(world_t *w)
{
    device_span_t spans[WORLD_SEGMENTS];
    size_t at[WORLD_SEGMENTS], order[WORLD_SEGMENTS];
    uint8_t left_out[WORLD_SEGMENTS];
    random_state_t *random = &w->random;
    const size_t used = lay_out(w, spans, at), skip = random_chance(random, 2) ? 0 : (size_t)random_below(random, 4);
    memset(arena, 0xa5, used);
    fill_gradients(w, spans, at);
    world_upload(w, arena_of, arena, used);
    fill_dense(w, (size_t)w->dim + SIDE_BEHIND);
    for (size_t i = 0; i < w->segments; i++) {
        left_out[i] = (uint8_t)random_chance(random, 5);
        const size_t j = (size_t)random_below(random, i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    for (size_t from = 0, count; from < w->segments; from += count) {
        const device_stage_t params = {
            .scale = draw_scale(random), .zero_input = random_chance(random, 2), .add = random_chance(random, 2)};
        count = 1 + (size_t)random_below(random, w->segments - from);
        WORLD_CALL_OK(w, stage_part(side, spans, at, left_out, order + from, count, &params, skip));
    }
    WORLD_COMPARE(w, arena, used);
    compare_floats(w, 0, w->dim + SIDE_BEHIND, "staged floats");
}

/* Parts of any number, distance and alignment. */
static void add_up_parts(world_t *w)
{
    random_state_t *random = &w->random;
    const uint32_t count = 1 + (uint32_t)random_below(random, 5);
    const uint64_t most = (SIDE_ARENA / sizeof(float) - 4) / count;
    const uint64_t length = random_below(random, (most < w->dim ? most : w->dim) + 1);
    const uint64_t more = random_below(random, most - length + 1);
    const size_t stride = (size_t)(random_chance(random, 2) ? (length + more) / 4 * 4 : length + more);
    const size_t skip = random_chance(random, 2) ? 0 : (size_t)random_below(random, 4);
    const size_t to = random_chance(random, 2) ? 0 : (size_t)random_below(random, 4);
    const style_t style = random_style(random);
    float *values = (float *)(void *)arena;
    const size_t all = skip + (size_t)(count - 1) * stride + (size_t)length;
    if (count > 1 && stride < length)
        return;
    for (size_t i = 0; i < all; i++)
        values[i] = random_value(random, style, i);
    world_upload(w, arena_of, arena, all * sizeof(float));
    fill_dense(w, (size_t)length + SIDE_BEHIND);
    WORLD_CALL_OK(w, ops->add_up(side->device, (float *)(void *)side->arena + skip, stride, count, side->dense + to,
                                 length, NULL));
    compare_floats(w, 0, length + SIDE_BEHIND, "sums of parts");
}

/* A set, cut in two, with the indices of the second part counted from some place before it. Returns that place. */
static uint32_t cut_set(world_t *w, const host_set_t *set)
{
    static host_set_t part;
    const uint32_t low = (uint32_t)random_below(&w->random, (uint64_t)set->count + 1);
    const uint32_t begin = low < set->count ? (uint32_t)random_below(&w->random, (uint64_t)set->index[low] + 1) : 0;
    for (side_t *side = w->sides; side < w->sides + w->side_count; side++) {
        part.count = low;
        memcpy(part.index, set->index, low * sizeof *part.index);
        memcpy(part.value, set->value, low * sizeof *part.value);
        side_upload_set(side, SET_ALL, &part);
        part.count = set->count - low;
        for (uint32_t i = 0; i < part.count; i++)
            part.index[i] = set->index[low + i] - begin;
        memcpy(part.value, set->value + low, part.count * sizeof *part.value);
        side_upload_set(side, SET_PEER, &part);
    }
    return begin;
}

static void set_capacity(world_t *w, int which, uint32_t capacity)
{
    const uint32_t canaries[SIDE_CANARIES] = {SIDE_CANARY, SIDE_CANARY, SIDE_CANARY, SIDE_CANARY};
    for (side_t *side = w->sides; side < w->sides + w->side_count; side++) {
        device_set_t *set = &side->sets[which];
        set->capacity = capacity;
        side_copy(side, set->index + capacity, canaries, sizeof canaries);
        side_copy(side, set->value + capacity, canaries, sizeof canaries);
    }
}

/* The current set again, out of two of its parts; or, without room, none. */
static void append_part(world_t *w, const host_set_t *set)
{
    const device_words_t kept = world_words(w);
    const uint32_t begin = cut_set(w, set), second = world_count(w, SET_PEER);
    const int room = second == 0 || !random_chance(&w->random, 4);
    set_capacity(w, SET_ALL, set->count - !room);
    world_set_words(w, (device_words_t){.ok = 1});
    WORLD_CALL_OK(w, ops->append(side->device, &side->sets[SET_PEER], begin, &side->sets[SET_ALL], side->words, NULL));
    const device_words_t words = world_words(w);
    if (words.ok != (uint32_t)room || (!room && words.error != DEVICE_NO_ROOM))
        WORLD_FAIL(w, w->sides, "append leaves ok %u, error %u", words.ok, words.error);
    world_compare_set(w, SET_ALL, "appended sets");
    if (world_set_expected.count != (room ? set->count : 0))
        WORLD_FAIL(w, w->sides, "append leaves %u entries of %u", world_set_expected.count, set->count);
    world_compare(w, w->sides, "indices of appended sets", set->index, world_set_expected.index,
                  world_set_expected.count * sizeof(uint32_t));
    world_set_words(w, kept);
}

#endif
