/* Operations that all host devices share. */
#include "device/host.h"

#include <string.h>

#include "util/fpenv.h"
#include "util/memory.h"
#include "wire/convert.h"

gtopk_status_t host_allocate(device_t *device, size_t bytes, const char *what, void **out)
{
    (void)device;
    return memory_alloc(out, bytes, 1, what);
}

void host_release(device_t *device, void *block)
{
    (void)device;
    memory_free(block);
}

gtopk_status_t host_copy(device_t *device, void *to, const void *from, size_t bytes, void *stream)
{
    (void)device;
    (void)stream;
    if (bytes > 0)
        memmove(to, from, bytes);
    return GTOPK_OK;
}

gtopk_status_t host_widen(device_t *device, device_set_t *set, device_range_t range, void *stream)
{
    const uint32_t count = *set->count;
    uint32_t *index = set->index;
    (void)device;
    (void)stream;
    for (uint32_t i = 0; i < count; i++)
        index[i] = range_outside(range, index[i]);
    return GTOPK_OK;
}

gtopk_status_t host_synchronize(device_t *device, void *stream)
{
    (void)device;
    (void)stream;
    return GTOPK_OK;
}

gtopk_status_t host_passed(device_t *device, void *stream, int *passed)
{
    (void)device;
    (void)stream;
    *passed = 1;
    return GTOPK_OK;
}

gtopk_status_t host_enter(device_t *device)
{
    (void)device;
    return GTOPK_OK;
}

void host_leave(device_t *device)
{
    (void)device;
}

void host_halt(device_t *device)
{
    __atomic_store_n(&device->halted, 1u, __ATOMIC_SEQ_CST);
}

int host_is_halted(const device_t *device, device_words_t *words)
{
    if (!__atomic_load_n(&device->halted, __ATOMIC_SEQ_CST))
        return 0;
    host_words_fail(words, DEVICE_HALTED);
    return 1;
}

/* ---- words ---- */

void host_words_begin(device_words_t *words)
{
    *words = (device_words_t){.ok = 1};
}

void host_words_fail(device_words_t *words, device_error_t error)
{
    if (words->error == DEVICE_NO_ERROR)
        words->error = error;
    words->ok = 0;
}

int host_has_room(const device_set_t *set, uint64_t needed, device_words_t *words)
{
    if (needed <= set->capacity)
        return 1;
    *set->count = 0;
    host_words_fail(words, DEVICE_NO_ROOM);
    return 0;
}

gtopk_status_t host_words_join(device_t *device, device_words_t *const *words, size_t count, int joined, void *stream)
{
    uint32_t nonfinite = 0;
    (void)device;
    (void)stream;
    for (size_t i = 0; i < count; i++)
        nonfinite |= words[i]->nonfinite;
    for (size_t i = 0; i < count; i++) {
        words[i]->nonfinite = nonfinite;
        words[i]->joined = joined != 0;
    }
    return GTOPK_OK;
}

gtopk_status_t host_verdict(device_t *device, const device_outcome_t *outcomes, size_t count, void *stream)
{
    uint32_t ok = 1, nonfinite = 0;
    (void)stream;
    for (size_t i = 0; i < count; i++) {
        (void)host_is_halted(device, outcomes[i].words);
        ok &= outcomes[i].words->ok;
        nonfinite |= outcomes[i].words->nonfinite;
    }
    for (size_t i = 0; i < count; i++) {
        const device_outcome_t *outcome = &outcomes[i];
        device_words_t *words = outcome->words;
        words->ok = ok;
        words->nonfinite = nonfinite;
        if (outcome->final)
            words->count = *outcome->final->count;
        if (nonfinite || words->joined)
            words->count = 0;
        *outcome->host = *words;
    }
    return GTOPK_OK;
}

/* ---- shares ---- */

static float read_entry(const device_span_t *span, uint64_t i)
{
    switch (span->dtype) {
    case GTOPK_F16: return convert_float_from_fp16(((const uint16_t *)span->data)[i]);
    case GTOPK_BF16: return convert_float_from_bf16(((const uint16_t *)span->data)[i]);
    default: return ((const float *)span->data)[i];
    }
}

static void stage_floats(const float *from, uint64_t length, float scale, int add, float *to)
{
    if (add)
        for (uint64_t i = 0; i < length; i++)
            to[i] += scale * from[i];
    else if (scale == 1.0f)
        memcpy(to, from, (size_t)length * sizeof *to);
    else
        for (uint64_t i = 0; i < length; i++)
            to[i] = scale * from[i];
}

static void stage_span(const device_span_t *span, const device_stage_t *params, float *to)
{
    if (!span->data) {
        if (!params->add)
            memset(to, 0, (size_t)span->length * sizeof *to);
        return;
    }
    if (span->dtype == GTOPK_F32)
        stage_floats(span->data, span->length, params->scale, params->add, to);
    else
        for (uint64_t i = 0; i < span->length; i++) {
            const float x = params->scale * read_entry(span, i);
            to[i] = params->add ? to[i] + x : x;
        }
    if (params->zero_input)
        memset(span->data, 0, (size_t)span->length * device_entry_size(span->dtype));
}

gtopk_status_t host_stage(device_t *device, const device_span_t *spans, size_t count, const device_stage_t *params,
                          float *out, void *stream)
{
    (void)device;
    (void)stream;
    const fpenv_t saved = fpenv_enter();
    for (size_t s = 0; s < count; s++)
        if (spans[s].length > 0)
            stage_span(&spans[s], params, out + spans[s].offset);
    fpenv_leave(saved);
    return GTOPK_OK;
}

gtopk_status_t host_add_up(device_t *device, const float *parts, size_t stride, uint32_t count, float *out,
                           uint64_t length, void *stream)
{
    (void)device;
    (void)stream;
    const fpenv_t saved = fpenv_enter();
    memcpy(out, parts, (size_t)length * sizeof *out);
    for (uint32_t p = 1; p < count; p++)
        for (uint64_t i = 0; i < length; i++)
            out[i] += parts[p * stride + i];
    fpenv_leave(saved);
    return GTOPK_OK;
}

gtopk_status_t host_append(device_t *device, const device_set_t *set, uint32_t offset, device_set_t *to,
                           device_words_t *words, void *stream)
{
    const uint32_t count = *set->count, before = *to->count;
    (void)device;
    (void)stream;
    if (!host_has_room(to, (uint64_t)before + count, words))
        return GTOPK_OK;
    for (uint32_t i = 0; i < count; i++) {
        to->index[before + i] = set->index[i] + offset;
        to->value[before + i] = set->value[i];
    }
    *to->count = before + count;
    return GTOPK_OK;
}

/* ---- messages ---- */

gtopk_status_t host_address(device_t *device, uint8_t *message, uint32_t sender, uint16_t round, uint32_t k,
                            const device_words_t *words, void *stream)
{
    (void)device;
    (void)stream;
    wire_readdress(message, sender, round, k);
    if (!words->ok)
        wire_make_last_word(message, WIRE_FAILED_STEP);
    return GTOPK_OK;
}

void host_mark(const device_words_t *words, wire_header_t *header)
{
    if (words->nonfinite)
        header->flags |= WIRE_NONFINITE;
    if (words->joined)
        header->flags |= WIRE_JOINED;
    if (!words->ok) {
        header->flags |= WIRE_ABORT;
        header->attachment = WIRE_FAILED_STEP;
    }
}

void host_blame(const uint8_t *message, size_t capacity, const wire_expect_t *expect, device_error_t error,
                device_words_t *words)
{
    if (words->error == DEVICE_NO_ERROR) {
        const size_t held = capacity < sizeof words->header ? capacity : sizeof words->header;
        words->expect = *expect;
        memcpy(words->header, message, held);
    }
    host_words_fail(words, error);
}

int host_judge(const uint8_t *message, size_t capacity, const wire_expect_t *expect, wire_header_t *header,
               device_words_t *words)
{
    if (wire_header_trust(message, capacity, header) != GTOPK_OK || !wire_header_matches(header, expect)) {
        host_blame(message, capacity, expect, DEVICE_BAD_HEADER, words);
        return 0;
    }
    if (expect->tail && !wire_tail_matches(message, header)) {
        host_blame(message, capacity, expect, DEVICE_BAD_TAIL, words);
        return 0;
    }
    words->nonfinite |= (header->flags & WIRE_NONFINITE) != 0;
    words->joined &= (header->flags & WIRE_JOINED) != 0;
    return 1;
}
