/* The first half of a random step: gradients of every type, somewhere in memory, accumulated in any order on all sides. */
#ifndef GTOPK_TESTS_DEVICE_ACCUMULATE_H
#define GTOPK_TESTS_DEVICE_ACCUMULATE_H

#include "device_world.h"

static uint8_t arena[SIDE_ARENA];

static uint8_t *arena_of(side_t *side)
{
    return side->arena;
}

/* Gives the segments places in the arena, aligned to their type and no better; returns the bytes used. */
static size_t lay_out(world_t *w, device_span_t *spans, size_t *at)
{
    size_t used = 0;
    for (size_t s = 0; s < w->segments; s++) {
        const int32_t dtype = (int32_t)random_below(&w->random, 3);
        const size_t size = dtype_size(dtype);
        at[s] = (used + size - 1) / size * size + size * (size_t)random_below(&w->random, 16);
        spans[s] = (device_span_t){.offset = w->offset[s], .length = w->offset[s + 1] - w->offset[s], .dtype = dtype};
        used = at[s] + size * (size_t)spans[s].length;
    }
    assert_true(used + FAR_BEHIND <= sizeof arena);
    return used + FAR_BEHIND;
}

static void fill_gradients(world_t *w, const device_span_t *spans, const size_t *at)
{
    static const float magnitudes[] = {1.0f, 1e6f, 1e-6f};
    const style_t common = w->one_tie ? STYLE_CONSTANT : random_style(&w->random);
    const float magnitude = w->one_tie ? 1.0f : magnitudes[random_below(&w->random, 3)];
    const int mixed = !w->one_tie && random_chance(&w->random, 3), poisoned = random_chance(&w->random, 8);
    for (size_t s = 0; s < w->segments; s++) {
        const style_t style = mixed ? random_style(&w->random) : common;
        const float factor = style < STYLE_DENORMAL ? magnitude : 1.0f;
        for (uint64_t i = 0; i < spans[s].length; i++) {
            float value = random_value(&w->random, style, spans[s].offset + i) * factor;
            if (poisoned && random_chance(&w->random, 100))
                value = random_chance(&w->random, 2) ? NAN : -INFINITY;
            dtype_store(arena + at[s] + i * dtype_size(spans[s].dtype), spans[s].dtype, value);
        }
    }
}

static float draw_scale(random_state_t *random)
{
    static const float scales[] = {1.0f, 1.0f, 1.0f, 0.25f, 1.0f / 3.0f, 1.0f / 1024.0f, -3.0f, 1e30f, 0.0f};
    return scales[random_below(random, sizeof scales / sizeof scales[0])];
}

/* The spans of order[from..to), each with its data in the side's arena. Left out: data NULL. */
static gtopk_status_t accumulate_part(side_t *side, const device_span_t *spans, const size_t *at,
                                      const uint8_t *left_out, const size_t *order, size_t count,
                                      const device_accumulate_t *params)
{
    device_span_t part[WORLD_SEGMENTS];
    for (size_t i = 0; i < count; i++) {
        part[i] = spans[order[i]];
        part[i].data = left_out[order[i]] ? NULL : side->arena + at[order[i]];
    }
    return side->device->ops->accumulate(side->store, part, count, params, side->words, NULL);
}

/* All segments once, in any order, in any number of calls. Returns 1 when a part was left out, because an Inf had been
 * found. */
static int accumulate_all(world_t *w)
{
    device_span_t spans[WORLD_SEGMENTS];
    size_t at[WORLD_SEGMENTS], order[WORLD_SEGMENTS];
    uint8_t left_out[WORLD_SEGMENTS];
    random_state_t *random = &w->random;
    const size_t used = lay_out(w, spans, at);
    memset(arena, 0xa5, used);
    fill_gradients(w, spans, at);
    world_upload(w, arena_of, arena, used);

    const uint64_t leave_out = random_chance(random, 3) ? 2 : 50;
    for (size_t i = 0; i < w->segments; i++) {
        left_out[i] = (uint8_t)random_chance(random, leave_out);
        const size_t j = (size_t)random_below(random, i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    int found_inf = 0;
    for (size_t from = 0, count; from < w->segments; from += count) {
        const device_accumulate_t params = {.scale = w->one_tie ? 1.0f : draw_scale(random),
                                            .zero_input = random_chance(random, 2),
                                            .found_inf = random_chance(random, 60),
                                            .momentum = random_chance(random, 4) ? 0.0f : 0.9f,
                                            .nesterov = random_chance(random, 2)};
        count = 1 + (size_t)random_below(random, w->segments - from);
        found_inf |= params.found_inf;
        WORLD_CALL_OK(w, accumulate_part(side, spans, at, left_out, order + from, count, &params));
    }
    if (w->with_second)
        WORLD_CALL_OK(w, ops->swap(side->store, NULL));
    WORLD_COMPARE(w, arena, used);
    if (!w->with_second || !found_inf) /* then a part of the second arrays was not written */
        world_compare_store(w);
    assert_true(world_words(w).nonfinite || !found_inf);
    return found_inf;
}

#endif
