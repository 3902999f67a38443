/* The CUDA kernels for exchanges on nodes, compiled as C and emulated, on what random steps seldom meet: more spans than fit
 * into a launch, of every type and alignment, outputs that begin anywhere, sums of many parts, sets without room. The reference
 * device says what is right. */
#include "support/emulated_queue.h"

static void assert_same_floats(const float *got, const float *expected, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (memcmp(&got[i], &expected[i], 4) != 0 && !(isnan(got[i]) && isnan(expected[i])))
            fail_msg("float %zu of %zu is %a, not %a", i, count, (double)got[i], (double)expected[i]);
}

/* ---- stage ---- */

enum { SPANS = 500, MARGIN = 8 };

/* Most are short; some are longer than a chunk. With gaps between them, which stay as they are. */
static uint64_t draw_spans(device_span_t spans[2][SPANS], char *data[2], uint64_t most_bytes)
{
    static const int32_t dtypes[] = {GTOPK_F32, GTOPK_F16, GTOPK_BF16};
    uint64_t dim = 0, at = 0;
    for (int s = 0; s < SPANS; s++) {
        const int32_t dtype = dtypes[random_below(&random_state, 3)];
        const uint64_t length = random_below(&random_state, s % 25 == 0 ? 3000 : 9), size = dtype == GTOPK_F32 ? 4 : 2;
        const int missing = random_below(&random_state, 10) == 0;
        at = (at + size - 1) / size * size + size * random_below(&random_state, 5);
        assert_true(at + size * length <= most_bytes);
        for (int side = 0; side < 2; side++)
            spans[side][s] = (device_span_t){dim, length, missing ? NULL : data[side] + at, dtype};
        for (uint64_t i = 0; i < length && !missing; i++) {
            const float value = draw(i % 7 == 0 ? KIND_SPECIAL : KIND_WIDE);
            const uint16_t half = (uint16_t)random_u64(&random_state);
            memcpy(data[0] + at + i * size, dtype == GTOPK_F32 ? (const void *)&value : &half, size);
        }
        at += size * length;
        dim += length + random_below(&random_state, 3);
    }
    memcpy(data[1], data[0], most_bytes);
    return dim;
}

static void test_stage(void **state)
{
    static device_span_t spans[2][SPANS];
    static const float scales[] = {1.0f, 0.25f, -1.0f / 3.0f};
    enum { BYTES = 300000 };
    (void)state;
    for (int run = 0; run < 24; run++) {
        char *data[2] = {zeros(BYTES), zeros(BYTES)};
        const uint64_t dim = draw_spans(spans, data, BYTES) + MARGIN;
        float *out[2] = {zeros(dim * 4), zeros(dim * 4)};
        const device_stage_t params = {.scale = scales[run % 3], .add = run / 3 % 2, .zero_input = run / 6 % 2};
        const uint64_t skip = run < 12 ? 0 : random_below(&random_state, 4);
        for (uint64_t i = 0; i < dim; i++)
            out[0][i] = out[1][i] = draw(KIND_WIDE);
        assert_int_equal(reference->ops->stage(reference, spans[0], SPANS, &params, out[0] + skip, NULL), GTOPK_OK);
        assert_int_equal(launch_stage(&queue, spans[1], SPANS, &params, out[1] + skip, NULL), GTOPK_OK);
        assert_same_floats(out[1], out[0], dim);
        assert_memory_equal(data[1], data[0], BYTES);
        for (int side = 0; side < 2; side++) {
            free(data[side]);
            free(out[side]);
        }
    }
}

/* ---- sums ---- */

static void test_add_up(void **state)
{
    static const uint64_t lengths[] = {0, 1, 3, 4, 7, 1000, 4096, 9001};
    (void)state;
    for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++)
        for (uint32_t count = 1; count <= 8; count += count < 3 ? 1 : 5)
            for (uint64_t more = 0; more < 6; more++) {
                const uint64_t length = lengths[l], stride = length + more, skip = more % 4;
                const size_t all = (size_t)(skip + count * stride);
                float *parts = zeros(all * 4), *out[2] = {zeros((length + MARGIN) * 4), zeros((length + MARGIN) * 4)};
                for (size_t i = 0; i < all; i++)
                    parts[i] = draw(KIND_WIDE);
                for (uint64_t i = 0; i < length + MARGIN; i++)
                    out[0][i] = out[1][i] = 7.0f;
                const uint64_t to = more == 5 ? 1 : 0;
                (void)reference->ops->add_up(reference, parts + skip, stride, count, out[0] + to, length, NULL);
                (void)launch_add_up(&queue, parts + skip, stride, count, out[1] + to, length, NULL);
                assert_same_floats(out[1], out[0], (size_t)length + MARGIN);
                free(parts);
                free(out[0]);
                free(out[1]);
            }
}

/* ---- sets behind each other ---- */

static void fill_set(device_set_t *set, uint32_t count, uint32_t first)
{
    *set->count = count;
    for (uint32_t i = 0; i < count; i++) {
        set->index[i] = first + i * 3;
        set->value[i] = 1.0f + (float)i;
    }
}

static void test_append(void **state)
{
    static const uint32_t counts[] = {0, 1, 5, 700, 3000};
    enum { COUNTS = sizeof counts / sizeof *counts };
    (void)state;
    for (int a = 0; a < COUNTS; a++)
        for (int b = 0; b < COUNTS; b++)
            for (uint32_t lacking = 0; lacking < 2; lacking++) {
                const uint32_t all = counts[a] + counts[b];
                if (lacking > counts[b])
                    continue;
                device_set_t to[2], set = set_make(3000);
                device_words_t words[2] = {{.ok = 1}, {.ok = 1}};
                fill_set(&set, counts[b], 2);
                for (int side = 0; side < 2; side++) {
                    to[side] = set_make(all + 1);
                    to[side].capacity = all - lacking;
                    fill_set(&to[side], counts[a], 1);
                    to[side].index[all - lacking] = 77;
                }
                (void)reference->ops->append(reference, &set, 0xffffd000u, &to[0], &words[0], NULL);
                (void)launch_append(&queue, &set, 0xffffd000u, &to[1], &words[1], NULL);
                assert_same_set(&to[1], &to[0]);
                assert_int_equal(*to[1].count, lacking ? 0 : all);
                assert_int_equal(words[1].ok, !lacking);
                assert_int_equal(words[1].error, lacking ? DEVICE_NO_ROOM : DEVICE_NO_ERROR);
                assert_int_equal(to[1].index[all - lacking], 77);
                set_free(&set);
                set_free(&to[0]);
                set_free(&to[1]);
            }
}

/* ---- the end of a step ---- */

enum { OUTPUTS = 300, EACH = 11 };

/* Outputs of 16 bits: what they cannot hold goes to the residual once for each rank whose values lie there, or, of a write,
 * nowhere. */
static void test_outputs(void **state)
{
    enum { DIM = OUTPUTS * EACH };
    static uint16_t halves[2][DIM];
    static device_span_t spans[2][OUTPUTS];
    (void)state;
    for (uint32_t run = 0; run < 8; run++) {
        float *residual = zeros(DIM * 4), *expected = zeros(DIM * 4);
        device_set_t final = set_make(DIM), nothing = set_make(1);
        device_words_t words = {.ok = run != 6, .nonfinite = run == 5, .joined = run == 7};
        device_store_t *store;
        for (uint32_t i = 0; i < DIM; i += 1 + (uint32_t)random_below(&random_state, 4)) {
            final.index[*final.count] = i;
            final.value[(*final.count)++] = 1.0f + draw(KIND_EXPONENT) / 16.0f;
        }
        for (uint64_t i = 0; i < DIM; i++)
            residual[i] = draw(KIND_EXPONENT);
        assert_int_equal(reference->ops->store_create(reference, DIM, 1, 0, NULL, &store), GTOPK_OK);
        (void)reference->ops->store_write(store, DEVICE_RESIDUAL, 0, DIM, residual, NULL);
        cuda_memory_t memory = {.dim = DIM, .k = 1, .residual = residual};
        const device_journal_t journal = {
            .selected = nothing, .first = nothing, .final = final, .divisor = 3, .others = run};
        for (int side = 0; side < 2; side++)
            for (uint64_t s = 0; s < OUTPUTS; s++)
                spans[side][s] = (device_span_t){s * EACH, EACH, halves[side] + s * EACH,
                                                 s % 2 ? GTOPK_F16 : GTOPK_BF16};
        for (int write = 0; write < 2; write++) {
            memset(halves, 0xa5, sizeof halves);
            const device_target_t targets[2] = {{.spans = spans[0], .count = OUTPUTS},
                                                {.spans = spans[1], .count = OUTPUTS}};
            if (write) {
                (void)reference->ops->write(reference, &final, 3, &targets[0], &words, NULL);
                (void)launch_write(&queue, &final, 3, &targets[1], &words, NULL);
            } else {
                (void)reference->ops->commit(store, &journal, &targets[0], &words, NULL);
                (void)launch_commit(&queue, &memory, &journal, &targets[1], &words, NULL);
            }
            assert_memory_equal(halves[1], halves[0], sizeof halves[0]);
            (void)reference->ops->store_read(store, DEVICE_RESIDUAL, 0, DIM, expected, NULL);
            assert_memory_equal(residual, expected, DIM * 4);
        }
        reference->ops->store_destroy(store);
        set_free(&final);
        set_free(&nothing);
        free(residual);
        free(expected);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stage),
        cmocka_unit_test(test_add_up),
        cmocka_unit_test(test_append),
        cmocka_unit_test(test_outputs),
    };
    return cmocka_run_group_tests_name("cuda nodes", tests, set_up, tear_down);
}
