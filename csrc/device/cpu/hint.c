/* The hint: the last threshold, less the largest fall that recent steps have seen, less a margin. */
#include "device/cpu/hint.h"

#include <string.h>

/* .95 missed no steady step in simulation; the margin adds about 40 % to the candidates of a Laplace tail. */
#define HINT_MARGIN 0.95f

/* A fall is remembered for 16 to 32 steps. */
#define HINT_WINDOW 16u

/* Bits of the largest finite float. */
#define HINT_LARGEST 0x7f7fffffu

static float minimum(float a, float b)
{
    return a < b ? a : b;
}

void hint_reset(hint_t *hint)
{
    *hint = (hint_t){.recent = 1.0f, .before = 1.0f};
}

void hint_reset_dense(hint_t *hint)
{
    hint_reset(hint);
    hint->unwanted = 1;
}

uint32_t hint_magnitude(const hint_t *hint)
{
    if (hint->unwanted)
        return HINT_LARGEST;
    float value = HINT_MARGIN * minimum(hint->recent, hint->before) * hint->last;
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits > 1 ? bits : 1;
}

void hint_learn(hint_t *hint, uint32_t smallest)
{
    float value;
    memcpy(&value, &smallest, sizeof value);
    if (hint->last > 0.0f && value > 0.0f)
        hint->recent = minimum(hint->recent, value / hint->last);
    hint->last = value;
    hint->unwanted = 0;
    if (++hint->age >= HINT_WINDOW) {
        hint->before = hint->recent;
        hint->recent = 1.0f;
        hint->age = 0;
    }
}
