/* Fills dense outputs. */
#include "device/cpu/output.h"

#include <math.h>
#include <string.h>

static void clear(const device_span_t *outputs, size_t count)
{
    for (size_t s = 0; s < count; s++)
        if (outputs[s].length)
            memset(outputs[s].data, 0, (size_t)outputs[s].length * device_entry_size(outputs[s].dtype));
}

static void fill_nan(const device_span_t *outputs, size_t count)
{
    for (size_t s = 0; s < count; s++) {
        uint16_t half = outputs[s].dtype == GTOPK_F16 ? 0x7e00u : 0x7fc0u;
        for (uint64_t i = 0; i < outputs[s].length; i++) {
            if (outputs[s].dtype == GTOPK_F32)
                ((float *)outputs[s].data)[i] = NAN;
            else
                ((uint16_t *)outputs[s].data)[i] = half;
        }
    }
}

int outputs_drop(const device_words_t *words, const device_target_t *target)
{
    if (!words->ok)
        return 1;
    if (words->nonfinite)
        fill_nan(target->spans, target->count);
    else if (!target->are_zero)
        clear(target->spans, target->count);
    return words->nonfinite || words->joined;
}
