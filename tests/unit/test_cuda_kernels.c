/* The CUDA kernels, compiled as C and emulated, on what the random steps of tests/property/test_cuda.c do not meet: pools
 * that are too small, ties without end, indices up to 2^32 - 1, more spans and reducers than fit into a launch. The
 * reference device says what is right. */
#include "support/emulated_queue.h"
#include "wire/convert.h"

#define TOP 0xffffffffull /* the largest dim */
enum { SETS = 6 };

/* What operations leave in the memory that they share: nothing. */
static void assert_scratch_is_clean(void)
{
    static cuda_scratch_t clean;
    const cuda_scratch_t *scratch = queue.scratch;
    assert_int_equal(scratch->largest, 0);
    assert_int_equal(scratch->faults, 0);
    assert_memory_equal(scratch->pool_bins, clean.pool_bins, sizeof clean.pool_bins);
    assert_memory_equal(scratch->scan_bins, clean.scan_bins, sizeof clean.scan_bins);
    assert_memory_equal(scratch->sample_bins, clean.sample_bins, sizeof clean.sample_bins);
    assert_memory_equal(scratch->near_bins, clean.near_bins, sizeof clean.near_bins);
    assert_int_equal(scratch->finished, 0);
}

/* ---- selection ---- */

/* A store over x[0..n) with so much room for candidates. */
static cuda_memory_t memory_make(float *x, uint64_t n, uint64_t k, uint64_t capacity)
{
    return (cuda_memory_t){
        .dim = n,
        .k = k,
        .residual = x,
        .pool = {zeros(capacity * 8), zeros(sizeof(cuda_pool_state_t)), (uint32_t)capacity},
        .buckets = zeros(2 * CUDA_BUCKETS * 4),
        .chosen = zeros(k * 8),
    };
}

static void memory_free_all(cuda_memory_t *memory)
{
    free(memory->pool.keys);
    free(memory->pool.state);
    free(memory->buckets);
    free(memory->chosen);
}

static uint32_t count_from(const float *x, uint64_t n, uint32_t floor)
{
    uint32_t count = 0;
    for (uint64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], 4);
        count += (bits & 0x7fffffffu) >= floor;
    }
    return count;
}

/* A step with a given floor and room: the candidates are counted, and the answer is right whatever they were. */
static void select_with(float *x, uint64_t n, uint64_t k, uint64_t capacity, uint32_t floor)
{
    device_words_t words;
    cuda_memory_t memory = memory_make(x, n, k, capacity);
    device_set_t out = set_make(k), expected = set_make(k);
    const device_span_t all = {.length = n};
    const device_accumulate_t params = {.scale = 1.0f};
    (void)launch_begin(&queue, &memory, &words, NULL);
    memory.pool.state->floor = floor;
    (void)launch_accumulate(&queue, &memory, &all, 1, &params, &words, NULL);
    const uint32_t offered = count_from(x, n, floor);
    assert_int_equal(memory.pool.state->offered[CUDA_PASS_ACCUMULATE], offered);
    assert_int_equal(launch_select(&queue, &memory, k, &out, &words, NULL), GTOPK_OK);
    assert_int_equal(reference->ops->array_select(reference, x, n, k, NULL, &expected, NULL), GTOPK_OK);
    assert_same_set(&out, &expected);
    assert_int_equal(words.selected, *expected.count);
    assert_int_equal(words.misses, offered > capacity || (offered < k && floor > 1));
    assert_scratch_is_clean();
    memory_free_all(&memory);
    set_free(&out);
    set_free(&expected);
}

static void test_pools_and_floors(void **state)
{
    (void)state;
    for (int run = 0; run < 120; run++) {
        const kind_t kind = (kind_t)(run % KIND_SPECIAL);
        const uint64_t n = 1 + random_below(&random_state, run % 10 == 0 ? 60000 : run % 3 == 0 ? 40 : 5000);
        const uint64_t k = 1 + random_below(&random_state, run % 4 ? 1 + n / 10 : n);
        const uint64_t room = run % 3 == 0 ? k : k + random_below(&random_state, n - k + 1);
        float *x = zeros(n * 4);
        uint32_t floor;
        for (uint64_t i = 0; i < n; i++)
            x[i] = draw(kind);
        memcpy(&floor, &x[random_below(&random_state, n)], 4); /* of some entry, or everything, or nothing */
        floor &= 0x7fffffffu;
        if (run % 5 == 0 || floor == 0)
            floor = run % 2 ? 1 : 0x7f7fffffu;
        select_with(x, n, k, room, floor);
        free(x);
    }
}

/* A residual in bf16: what is selected goes by the values that are stored, of which many are alike. */
static void test_selection_in_bf16(void **state)
{
    (void)state;
    enum { N = 700, K = 90 };
    for (uint64_t seed = 0; seed < 5; seed++) {
        float *gradient = zeros(N * 4);
        uint16_t *narrow = zeros(N * 2);
        cuda_memory_t memory = memory_make(NULL, N, K, N);
        device_words_t words[2];
        device_set_t out = set_make(K), expected = set_make(K);
        device_store_t *store;
        const device_span_t all = {.length = N, .data = gradient, .dtype = GTOPK_F32};
        const device_accumulate_t params = {.scale = 1.0f};
        memory.narrow = narrow;
        memory.seed = seed;
        for (int i = 0; i < N; i++)
            gradient[i] = 1.0f + (float)random_below(&random_state, 1u << 20) * 0x1p-20f;
        (void)launch_begin(&queue, &memory, &words[1], NULL);
        memory.pool.state->floor = 1; /* all are candidates */
        (void)launch_accumulate(&queue, &memory, &all, 1, &params, &words[1], NULL);
        assert_int_equal(launch_select(&queue, &memory, K, &out, &words[1], NULL), GTOPK_OK);
        assert_int_equal(reference->ops->store_create(reference, N, K, DEVICE_WITH_BF16, NULL, &store), GTOPK_OK);
        (void)reference->ops->store_seed(store, seed, NULL);
        (void)reference->ops->step_begin(store, &words[0], NULL);
        (void)reference->ops->accumulate(store, &all, 1, &params, &words[0], NULL);
        assert_int_equal(reference->ops->select(store, K, &expected, &words[0], NULL), GTOPK_OK);
        assert_same_set(&out, &expected);
        reference->ops->store_destroy(store);
        memory_free_all(&memory);
        set_free(&out);
        set_free(&expected);
        free(narrow);
        free(gradient);
    }
}

/* Fewer entries than are wanted, all of them in the pool: the shortest way through select. */
static void test_all_in_the_pool(void **state)
{
    (void)state;
    enum { N = 30000, ENTRIES = 400 };
    float *x = zeros(N * 4);
    for (int i = 0; i < ENTRIES; i++)
        x[random_below(&random_state, N)] = draw(KIND_EXPONENT);
    for (int run = 0; run < 60; run++)
        select_with(x, N, ENTRIES, N, 1);
    free(x);
}

/* Far more ties than are wanted: the index decides, digit by digit. */
static void test_ties(void **state)
{
    (void)state;
    const uint64_t n = 1u << 20;
    float *x = zeros(n * 4);
    for (uint64_t i = 0; i < n; i++)
        x[i] = i % 3 == 0 ? 1.0f : -1.0f;
    select_with(x, n, 3000, 3001, 0x7f7fffffu);
    x[n - 1] = 2.0f;
    select_with(x, n, 2000, 40000, 1);
    free(x);
}

/* What the sample does not see is found all the same. */
static void test_misleading_sample(void **state)
{
    (void)state;
    const uint64_t n = 200000, k = 2000;
    float *x = zeros(n * 4);
    for (uint64_t i = 0; i < n; i++)
        x[i] = i / 256 % 16 == 0 ? 10.0f + (float)(i % 97) : 1.0f + (float)(i % 89); /* only large ones in it */
    select_with(x, n, k, 2 * k, 0x7f7fffffu);
    for (uint64_t i = 0; i < n; i++)
        x[i] = i / 256 % 16 == 0 ? 0.001f : 1.0f + (float)(i % 89); /* only small ones */
    select_with(x, n, k, 2 * k, 0x7f7fffffu);
    free(x);
}

static void test_arrays(void **state)
{
    (void)state;
    for (int run = 0; run < 40; run++) {
        const uint64_t n = 1 + random_below(&random_state, run % 4 ? 3000 : 40000);
        const uint64_t k = run % 5 == 0 ? n + 3 : 1 + random_below(&random_state, n), most = k < n ? k : n;
        float *x = zeros(n * 4);
        for (uint64_t i = 0; i < n; i++)
            x[i] = draw(run % 2 ? KIND_SPECIAL : (kind_t)random_below(&random_state, KINDS));
        cuda_memory_t memory = memory_make(x, n, most, cuda_pool_capacity(n, most));
        device_set_t out = set_make(most), expected = set_make(most);
        (void)launch_array_select(&queue, &memory, x, k, &out, NULL);
        assert_int_equal(reference->ops->array_select(reference, x, n, k, NULL, &expected, NULL), GTOPK_OK);
        assert_same_set(&out, &expected);
        (void)launch_array_select(&queue, &memory, x, 0, &out, NULL);
        assert_int_equal(*out.count, 0);
        memory_free_all(&memory);
        set_free(&out);
        set_free(&expected);
        free(x);
    }
}

/* ---- the largest indices ---- */

/* Where entry 0 would have to lie for memory[0] to be entry `first`. Never read. */
static float *as_if_from(float *memory, uint64_t first)
{
    return (float *)((uintptr_t)memory - first * sizeof *memory);
}

static void test_store_at_the_end(void **state)
{
    (void)state;
    enum { LENGTH = 3001, K = 100 };
    for (int dtype = GTOPK_F32; dtype <= GTOPK_BF16; dtype++) {
        const uint64_t first = TOP - LENGTH;
        float *residual = zeros(LENGTH * 4), *x = zeros(LENGTH * 4), *copy = zeros(LENGTH * 4);
        device_words_t words;
        cuda_memory_t memory = memory_make(as_if_from(residual, first), TOP, K, LENGTH);
        device_set_t out = set_make(K), expected = set_make(K);
        const device_span_t span = {.offset = first, .length = LENGTH, .data = x, .dtype = dtype};
        const device_accumulate_t params = {.scale = 0.5f, .zero_input = 1};
        device_store_t *store;
        for (uint64_t i = 0; i < (dtype == GTOPK_F32 ? LENGTH : LENGTH / 2); i++)
            x[i] = (float)random_below(&random_state, 1000) * 0.5f;
        memcpy(copy, x, LENGTH * 4);
        (void)launch_begin(&queue, &memory, &words, NULL);
        memory.pool.state->floor = 1;
        (void)launch_accumulate(&queue, &memory, &span, 1, &params, &words, NULL);
        (void)launch_select(&queue, &memory, K, &out, &words, NULL);

        const device_span_t low = {.length = LENGTH, .data = copy, .dtype = dtype};
        assert_int_equal(reference->ops->store_create(reference, LENGTH, K, 0, NULL, &store), GTOPK_OK);
        (void)reference->ops->step_begin(store, &words, NULL);
        (void)reference->ops->accumulate(store, &low, 1, &params, &words, NULL);
        (void)reference->ops->select(store, K, &expected, &words, NULL);
        for (uint32_t i = 0; i < *expected.count; i++)
            expected.index[i] += (uint32_t)first;
        assert_same_set(&out, &expected);
        assert_memory_equal(x, copy, LENGTH * 4);
        reference->ops->store_destroy(store);
        memory_free_all(&memory);
        set_free(&out);
        set_free(&expected);
        free(residual);
        free(x);
        free(copy);
    }
}

static void draw_set(device_set_t *set, uint32_t count, uint64_t dim)
{
    random_indices(&random_state, set->index, count, dim);
    if (count > 0)
        set->index[count - 1] = (uint32_t)dim - 1;
    for (uint32_t i = 0; i < count; i++)
        set->value[i] = draw(KIND_WIDE) + 1e-20f;
    *set->count = count;
}

/* Messages and sums of sets whose indices go up to 2^32 - 2, and of the widest and narrowest fields. */
static void test_sets_at_the_end(void **state)
{
    static const uint64_t dims[] = {TOP, TOP - 1, 1u << 31, 5000, 4001, 4000, 1};
    (void)state;
    for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++)
        for (int type = GTOPK_VALUE_F32; type <= GTOPK_VALUE_I8; type++) {
            const uint32_t most = (uint32_t)(dims[d] < 4000 ? dims[d] : 4000);
            const uint32_t count = d % 2 ? most : 1 + (uint32_t)random_below(&random_state, most);
            device_set_t a = set_make(count), b = set_make(count), sets[2][SETS];
            draw_set(&a, count, dims[d]);
            draw_set(&b, count, dims[d]);
            const wire_header_t header = {.value_type = (uint8_t)type,
                                          .algorithm = GTOPK_ALGORITHM_GTOPK,
                                          .k = (uint32_t)dims[d],
                                          .dim = (uint32_t)dims[d]};
            const wire_expect_t expect = {.value_type = (uint8_t)type,
                                          .algorithm = GTOPK_ALGORITHM_GTOPK,
                                          .k = (uint32_t)dims[d],
                                          .dim = (uint32_t)dims[d]};
            const size_t capacity = wire_message_capacity(dims[d], count, type);
            uint8_t *messages[2] = {zeros(capacity), zeros(capacity)}, *shifted = zeros(capacity + 1);
            device_words_t words[2] = {{.ok = 1}, {.ok = 1}};
            for (int s = 0; s < SETS; s++)
                for (int side = 0; side < 2; side++)
                    sets[side][s] = set_make(2 * (uint64_t)count);

            (void)reference->ops->encode(reference, &a, &header, messages[0], &sets[0][0], &words[0], NULL);
            (void)launch_encode(&queue, &a, &header, messages[1], &sets[1][0], &words[1], NULL);
            assert_memory_equal(messages[1], messages[0], wire_own_size(messages[0]));
            memcpy(shifted + 1, messages[1], capacity);
            (void)reference->ops->decode(reference, messages[0], capacity, &expect, &sets[0][1], &words[0], NULL);
            (void)launch_decode(&queue, shifted + 1, capacity, &expect, &sets[1][1], &words[1], NULL);
            (void)reference->ops->merge(reference, &sets[0][1], &b, count, &sets[0][2], &sets[0][3], &words[0], NULL);
            (void)launch_merge(&queue, &sets[1][1], &b, count, &sets[1][2], &sets[1][3], &words[1], NULL);
            (void)reference->ops->deposit(reference, &sets[0][3], &sets[0][2], 0.5f, &sets[0][4], &words[0], NULL);
            (void)launch_deposit(&queue, &sets[1][3], &sets[1][2], 0.5f, &sets[1][4], &words[1], NULL);
            const uint32_t bits = (uint32_t)random_below(&random_state, 4);
            const device_range_t range = {bits, (uint32_t)random_below(&random_state, 1u << bits)};
            (void)reference->ops->cut(reference, &sets[0][3], range, &sets[0][5], &words[0], NULL);
            (void)launch_cut(&queue, &sets[1][3], range, &sets[1][5], &words[1], NULL);
            assert_same_set(&sets[1][5], &sets[0][5]);
            (void)reference->ops->widen(reference, &sets[0][5], range, NULL);
            (void)launch_widen(&queue, &sets[1][5], range, NULL);
            assert_int_equal(words[0].ok, 1);
            assert_memory_equal(&words[0], &words[1], sizeof words[0]);
            assert_scratch_is_clean();
            for (int s = 0; s < SETS; s++) {
                assert_same_set(&sets[1][s], &sets[0][s]);
                set_free(&sets[0][s]);
                set_free(&sets[1][s]);
            }
            set_free(&a);
            set_free(&b);
            free(messages[0]);
            free(messages[1]);
            free(shifted);
        }
}

/* Where all entries of a sum stay its blocks meet once less, and some get far ahead of others. */
static void test_sums_that_are_kept_whole(void **state)
{
    enum { DIM = 100000, COUNT = 1000 };
    (void)state;
    for (int run = 0; run < 60; run++) {
        device_set_t a = set_make(COUNT), b = set_make(COUNT), kept[2], all[2];
        device_words_t words[2] = {{.ok = 1}, {.ok = 1}};
        draw_set(&a, COUNT, DIM);
        draw_set(&b, COUNT, DIM);
        for (int side = 0; side < 2; side++) {
            kept[side] = set_make(2 * COUNT);
            all[side] = set_make(2 * COUNT);
        }
        (void)reference->ops->merge(reference, &a, &b, 2 * COUNT, &kept[0], &all[0], &words[0], NULL);
        (void)launch_merge(&queue, &a, &b, 2 * COUNT, &kept[1], &all[1], &words[1], NULL);
        assert_same_set(&kept[1], &kept[0]);
        assert_same_set(&all[1], &all[0]);
        assert_scratch_is_clean();
        for (int side = 0; side < 2; side++) {
            set_free(&kept[side]);
            set_free(&all[side]);
        }
        set_free(&a);
        set_free(&b);
    }
}

/* Every bit of a message wrong in turn, and every length too short: the verdict, and what the words say, is the reference's. */
static void test_every_bit(void **state)
{
    static const uint64_t dims[] = {1000, 1024, 37, 5};
    (void)state;
    for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++) {
        const uint32_t dim = (uint32_t)dims[d], count = dim < 20 ? dim : 9;
        const int type = (int)d % 4;
        const wire_header_t header = {
            .value_type = (uint8_t)type, .algorithm = GTOPK_ALGORITHM_GTOPK, .k = count, .dim = dim, .step = 5};
        const wire_expect_t expect = {
            .value_type = (uint8_t)type, .algorithm = GTOPK_ALGORITHM_GTOPK, .k = count, .dim = dim, .step = 5};
        device_set_t set = set_make(count), out[2] = {set_make(count), set_make(count)};
        uint8_t message[512] __attribute__((aligned(8)));
        device_words_t clean = {.ok = 1, .joined = 1};
        draw_set(&set, count, dim);
        for (uint32_t i = 0; i < count; i++)
            set.value[i] = (float)(i + 1);
        (void)launch_encode(&queue, &set, &header, message, &out[0], &clean, NULL);
        const size_t size = wire_own_size(message);
        assert_int_equal(clean.ok, 1);
        for (size_t bit = 0; bit < 8 * size + 8; bit++) {
            device_words_t words[2] = {clean, clean};
            const size_t capacity = bit < 8 * size ? size : size - 1 - bit % 8 * 10;
            if (bit < 8 * size)
                message[bit / 8] ^= (uint8_t)(1u << bit % 8);
            (void)reference->ops->decode(reference, message, capacity, &expect, &out[0], &words[0], NULL);
            (void)launch_decode(&queue, message, capacity, &expect, &out[1], &words[1], NULL);
            assert_memory_equal(&words[0], &words[1], sizeof words[0]);
            assert_same_set(&out[1], &out[0]);
            if (bit < 8 * size)
                message[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        set_free(&set);
        set_free(&out[0]);
        set_free(&out[1]);
    }
}

/* ---- more than fits into a launch ---- */

static void test_many_spans(void **state)
{
    (void)state;
    enum { SPANS = 700, MOST = 9 };
    for (int run = 0; run < 4; run++) {
        static const int32_t dtypes[] = {GTOPK_F32, GTOPK_F16, GTOPK_BF16};
        device_span_t spans[2][SPANS];
        uint64_t dim = 0;
        for (int s = 0; s < SPANS; s++) {
            const uint64_t length = random_below(&random_state, MOST);
            const int32_t dtype = dtypes[run == 0 ? 0 : random_below(&random_state, 3)];
            for (int side = 0; side < 2; side++)
                spans[side][s] = (device_span_t){dim, length, zeros(length * 4), dtype};
            for (uint64_t i = 0; i < length && dtype == GTOPK_F32; i++)
                ((float *)spans[0][s].data)[i] = draw(KIND_EXPONENT);
            for (uint64_t i = 0; i < length && dtype != GTOPK_F32; i++)
                ((uint16_t *)spans[0][s].data)[i] = (uint16_t)(random_u64(&random_state) & 0x3fff);
            memcpy(spans[1][s].data, spans[0][s].data, length * 4);
            dim += length;
        }
        float *residual = zeros(dim * 4), *expected = zeros(dim * 4);
        cuda_memory_t memory = memory_make(residual, dim, 50, dim);
        device_words_t words[2];
        device_store_t *store;
        device_set_t out[2] = {set_make(50), set_make(50)};
        const device_accumulate_t params = {.scale = 1.0f / 3.0f};
        assert_int_equal(reference->ops->store_create(reference, dim, 50, 0, NULL, &store), GTOPK_OK);
        (void)reference->ops->step_begin(store, &words[0], NULL);
        (void)launch_begin(&queue, &memory, &words[1], NULL);
        (void)reference->ops->accumulate(store, spans[0], SPANS, &params, &words[0], NULL);
        (void)launch_accumulate(&queue, &memory, spans[1], SPANS, &params, &words[1], NULL);
        (void)reference->ops->select(store, 50, &out[0], &words[0], NULL);
        (void)launch_select(&queue, &memory, 50, &out[1], &words[1], NULL);
        assert_same_set(&out[1], &out[0]);

        for (int side = 0; side < 2; side++) {
            const device_journal_t journal = {.selected = out[side],
                                              .first = out[side],
                                              .final = out[side],
                                              .deposits = &out[side],
                                              .deposit_count = 1,
                                              .divisor = 3};
            const device_target_t target = {.spans = spans[side], .count = SPANS};
            if (side == 0)
                (void)reference->ops->commit(store, &journal, &target, &words[0], NULL);
            else
                (void)launch_commit(&queue, &memory, &journal, &target, &words[1], NULL);
        }
        (void)reference->ops->store_read(store, DEVICE_RESIDUAL, 0, dim, expected, NULL);
        assert_memory_equal(residual, expected, dim * 4);
        for (int s = 0; s < SPANS; s++) {
            assert_memory_equal(spans[1][s].data, spans[0][s].data, spans[0][s].length * 4);
            free(spans[0][s].data);
            free(spans[1][s].data);
        }
        reference->ops->store_destroy(store);
        memory_free_all(&memory);
        set_free(&out[0]);
        set_free(&out[1]);
        free(residual);
        free(expected);
    }
}

/* The end of a step without outputs, whose residual was zero until then. */
static void assert_same_commit(const cuda_memory_t *memory, const device_journal_t *journal)
{
    const device_target_t nowhere = {0};
    float *expected = zeros(memory->dim * 4);
    device_words_t words = {.ok = 1};
    device_store_t *store;
    const int with = memory->narrow ? DEVICE_WITH_BF16 : 0;
    assert_int_equal(reference->ops->store_create(reference, memory->dim, memory->k, with, NULL, &store), GTOPK_OK);
    (void)reference->ops->store_seed(store, memory->seed, NULL);
    (void)reference->ops->commit(store, journal, &nowhere, &words, NULL);
    (void)launch_commit(&queue, memory, journal, &nowhere, &words, NULL);
    (void)reference->ops->store_read(store, DEVICE_RESIDUAL, 0, memory->dim, expected, NULL);
    for (uint64_t i = 0; i < memory->dim && memory->narrow; i++)
        memory->residual[i] = convert_float_from_bf16(memory->narrow[i]);
    assert_memory_equal(memory->residual, expected, memory->dim * 4);
    reference->ops->store_destroy(store);
    free(expected);
}

/* More rounds than one launch has room for deposits: each index gets them in order, and each deposit rounds for itself. */
static void many_deposits(int in_bf16)
{
    enum { DEPOSITS = 150, DIM = 40 };
    float *residual = zeros(DIM * 4);
    uint16_t narrow[DIM] = {0};
    cuda_memory_t memory = memory_make(residual, DIM, DIM, DIM);
    memory.narrow = in_bf16 ? narrow : NULL;
    memory.seed = 77;
    device_set_t nothing = set_make(1), deposits[DEPOSITS];
    for (int d = 0; d < DEPOSITS; d++) {
        deposits[d] = set_make(DIM);
        draw_set(&deposits[d], 1 + (uint32_t)random_below(&random_state, DIM), DIM);
    }
    const device_journal_t journal = {.selected = nothing,
                                      .first = nothing,
                                      .final = nothing,
                                      .deposits = deposits,
                                      .deposit_count = DEPOSITS,
                                      .divisor = 1};
    assert_same_commit(&memory, &journal);
    for (int d = 0; d < DEPOSITS; d++)
        set_free(&deposits[d]);
    set_free(&nothing);
    memory_free_all(&memory);
    free(residual);
}

static void test_many_deposits(void **state)
{
    (void)state;
    for (int in_bf16 = 0; in_bf16 < 2; in_bf16++)
        many_deposits(in_bf16);
}

/* Entries that decode to zero are not in the message, and stay in the residual. */
static void test_what_a_message_leaves_out(void **state)
{
    enum { DIM = 3000, COUNT = 400 };
    (void)state;
    for (int run = 0; run < 12; run++) {
        float *residual = zeros(DIM * 4);
        cuda_memory_t memory = memory_make(residual, DIM, COUNT, COUNT);
        device_set_t selected = set_make(COUNT), first = set_make(COUNT), nothing = set_make(1);
        draw_set(&selected, COUNT, DIM);
        for (uint32_t i = 0; i < COUNT; i++) {
            if (random_below(&random_state, 1 + (uint64_t)run) == 1)
                continue;
            first.index[*first.count] = selected.index[i];
            first.value[(*first.count)++] = selected.value[i] * 0.75f;
        }
        const device_journal_t journal = {.selected = selected, .first = first, .final = nothing, .divisor = 1};
        assert_same_commit(&memory, &journal);
        set_free(&selected);
        set_free(&first);
        set_free(&nothing);
        memory_free_all(&memory);
        free(residual);
    }
}

static void test_many_reducers(void **state)
{
    (void)state;
    static const size_t counts[] = {1, 2, 64, 65, 150};
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++)
        for (int run = 0; run < 4; run++) {
            static device_words_t words[2][150], told[2][150];
            device_words_t *pointers[2][150];
            device_outcome_t outcomes[2][150];
            device_set_t final = set_make(1);
            *final.count = 1;
            memset(told, 0, sizeof told);
            for (size_t i = 0; i < counts[c]; i++)
                for (int side = 0; side < 2; side++) {
                    words[side][i] = (device_words_t){.ok = run != 1 || i != counts[c] - 1,
                                                      .nonfinite = run == 2 && i == counts[c] / 2,
                                                      .joined = run == 3,
                                                      .count = i};
                    pointers[side][i] = &words[side][i];
                    outcomes[side][i] = (device_outcome_t){&words[side][i], i % 2 ? &final : NULL, &told[side][i]};
                }
            (void)reference->ops->words_join(reference, pointers[0], counts[c], run == 3, NULL);
            (void)launch_words_join(&queue, pointers[1], counts[c], run == 3, NULL);
            assert_memory_equal(words[0], words[1], counts[c] * sizeof words[0][0]);
            (void)reference->ops->verdict(reference, outcomes[0], counts[c], NULL);
            (void)launch_verdict(&queue, outcomes[1], counts[c], NULL);
            assert_memory_equal(words[0], words[1], counts[c] * sizeof words[0][0]);
            assert_memory_equal(told[0], told[1], sizeof told[0]);
            assert_scratch_is_clean();
            set_free(&final);
        }
}

/* ---- arguments ---- */

static void test_misaligned_message(void **state)
{
    (void)state;
    const device_set_t nothing = {0};
    const wire_header_t header = {.dim = 1};
    uint64_t message[16];
    device_words_t words;
    assert_int_equal(launch_encode(&queue, &nothing, &header, (uint8_t *)message + 4, &nothing, &words, NULL),
                     GTOPK_ERR_INTERNAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pools_and_floors),
        cmocka_unit_test(test_all_in_the_pool),
        cmocka_unit_test(test_ties),
        cmocka_unit_test(test_misleading_sample),
        cmocka_unit_test(test_arrays),
        cmocka_unit_test(test_store_at_the_end),
        cmocka_unit_test(test_sets_at_the_end),
        cmocka_unit_test(test_sums_that_are_kept_whole),
        cmocka_unit_test(test_every_bit),
        cmocka_unit_test(test_many_spans),
        cmocka_unit_test(test_many_deposits),
        cmocka_unit_test(test_selection_in_bf16),
        cmocka_unit_test(test_what_a_message_leaves_out),
        cmocka_unit_test(test_many_reducers),
        cmocka_unit_test(test_misaligned_message),
    };
    return cmocka_run_group_tests_name("cuda kernels", tests, set_up, tear_down);
}
