/* The CUDA device's host code on a stand-in for the driver: drivers and GPUs that will not do, calls that fail one after
 * the other, a context that is lost, streams, and the kernels that are embedded in the library. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "device/cuda/driver.h"
#include "device/cuda/images.h"
#include "device/device.h"
#include "support/check.h"
#include "support/standin.h"
#include "wire/wire.h"

enum { DIM = 5000, K = 50, ROOM = 2 * K };
enum { OUT_OF_MEMORY = 2, ILLEGAL_ADDRESS = 700 };

static const standin_control_t *standin;

static int open_standin(void **state)
{
    (void)state;
    standin = standin_open();
    return 0;
}

static void assert_does_not_open(gtopk_status_t status, const char *says)
{
    device_t *device = NULL;
    assert_says(device_open("cuda", &device), status, says);
    assert_null(device);
    assert_int_equal(standin->live(), 0);
}

/* ---- what will not do; before the first that does, which is kept ---- */

static void test_no_driver(void **state)
{
    (void)state;
    assert_int_equal(setenv("GTOPK_CUDA_DRIVER", "/nowhere/libcuda.so.1", 1), 0);
    assert_does_not_open(GTOPK_ERR_NOT_FOUND, "/nowhere/libcuda.so.1 does not load");
    assert_int_equal(setenv("GTOPK_CUDA_DRIVER", "libm.so.6", 1), 0);
    assert_does_not_open(GTOPK_ERR_UNSUPPORTED, "does not tell its version");
    assert_int_equal(setenv("GTOPK_CUDA_DRIVER", STANDIN_FILE, 1), 0);
}

static void test_old_driver(void **state)
{
    (void)state;
    standin->driver(1, 11080, "");
    assert_does_not_open(GTOPK_ERR_UNSUPPORTED, "supports CUDA 11.8; gtopk needs CUDA 12.0, that is driver 525");
}

static void test_missing_function(void **state)
{
    (void)state;
#define WITHOUT(name, since, parameters) \
    standin->driver(1, 12080, #name);    \
    assert_does_not_open(GTOPK_ERR_UNSUPPORTED, "has no " #name);
    CUDA_DRIVER_FUNCTIONS(WITHOUT)
#undef WITHOUT
}

static void test_no_gpu(void **state)
{
    (void)state;
    standin->driver(0, 12080, "");
    assert_int_equal(setenv("CUDA_VISIBLE_DEVICES", "7", 1), 0);
    assert_does_not_open(GTOPK_ERR_UNSUPPORTED, "finds no GPU (CUDA_VISIBLE_DEVICES is \"7\")");
    assert_int_equal(unsetenv("CUDA_VISIBLE_DEVICES"), 0);
    assert_does_not_open(GTOPK_ERR_UNSUPPORTED, "not set");
    standin->driver(1, 12080, "");
}

static void test_old_gpu(void **state)
{
    (void)state;
    standin->gpu(70, 2, 2);
    assert_does_not_open(GTOPK_ERR_UNSUPPORTED, "GPU 0 (Stand-in 0) has compute capability 7.0; gtopk needs 7.5");
    standin->gpu(90, 2, 2);
}

/* ---- the kernels that are embedded ---- */

static void skip_without_kernels(void)
{
    if (cuda_image_count == 0) {
        print_message("skipped: this build has no CUDA kernels\n");
        skip();
    }
}

static void test_images(void **state)
{
    static const int capabilities[] = {75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121, 130};
    (void)state;
    skip_without_kernels();
    assert_int_equal(cuda_image_count, 6);
    for (size_t i = 0; i < cuda_image_count; i++) {
        const cuda_image_t *image = &cuda_images[i];
        char *code = malloc(image->bytes);
        assert_non_null(code);
        assert_int_equal(image_unpack(image->packed, image->packed_bytes, code, image->bytes), 1);
        assert_int_equal(wire_crc(0, code, image->bytes), image->crc);
        assert_int_equal(image_unpack(image->packed, image->packed_bytes - 1, code, image->bytes), 0);
        assert_int_equal(image_unpack(image->packed, image->packed_bytes, code, image->bytes - 1), 0);
        free(code);
    }
    /* The stand-in refuses what the GPU could not run. */
    for (size_t i = 0; i < sizeof capabilities / sizeof capabilities[0]; i++) {
        device_t *device;
        standin->gpu(capabilities[i], 2, 2);
        ASSERT_OK(device_open("cuda", &device));
        device->ops->close(device);
    }
    standin->gpu(90, 2, 2);
    assert_int_equal(standin->live(), 0);
}

/* Python: lzma.compress(text, lzma.FORMAT_RAW, filters=...) with the settings of scripts/cuda_images.py. */
static const struct {
    const char *text;
    size_t packed_bytes;
    const char *packed;
} texts[] = {
    {"", 10, "\x00\x83\xff\xfb\xff\xff\xc0\x00\x00\x00"},
    {"hello", 15, "\x00\x34\x19\x49\x98\x6f\x83\xff\xff\xff\xff\xc0\x00\x00\x00"},
    {"aaaaaaaa", 12, "\x00\x30\xea\xbd\xff\xff\xff\xff\xe0\x00\x00\x00"}, /* overlaps itself */
    {"abcabcabcxbcabc", 17, "\x00\x30\x98\x88\x72\x04\x78\x8c\xb7\xef\x76\xff\xff\xfd\xac\x90\x00"},
};

/* As image_unpack, with nothing behind the packed bytes, and a byte behind the others that must not change. */
static int unpacks(const void *packed, size_t packed_bytes, char *out, size_t bytes)
{
    void *const in = malloc(packed_bytes + !packed_bytes);
    char *const to = malloc(bytes + 1);
    assert_non_null(in);
    assert_non_null(to);
    memcpy(in, packed, packed_bytes);
    to[bytes] = '!';
    const int good = image_unpack(in, packed_bytes, to, bytes);
    assert_int_equal(to[bytes], '!');
    memcpy(out, to, good ? bytes : 0);
    free(in);
    free(to);
    return good;
}

static void test_unpack(void **state)
{
    char out[64];
    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        const size_t bytes = strlen(texts[i].text), packed_bytes = texts[i].packed_bytes;
        assert_true(unpacks(texts[i].packed, packed_bytes, out, bytes));
        assert_memory_equal(out, texts[i].text, bytes);
        assert_false(unpacks(texts[i].packed, packed_bytes, out, bytes + 1));
        assert_false(bytes > 0 && unpacks(texts[i].packed, packed_bytes, out, bytes - 1));
        for (size_t cut = 0; cut < packed_bytes; cut++)
            assert_false(unpacks(texts[i].packed, cut, out, bytes));
    }
}

/* Most damage is found; the CRC is for the rest. None leads astray, and that is for the sanitizers to say. */
static void test_unpack_damaged(void **state)
{
    static const uint8_t zeros[64];
    char out[64];
    uint8_t packed[32];
    size_t flips = 0, taken = 0;
    (void)state;
    assert_false(unpacks(zeros, sizeof zeros, out, sizeof out));
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        for (size_t bit = 0; bit < texts[i].packed_bytes * 8; bit++, flips++) {
            memcpy(packed, texts[i].packed, texts[i].packed_bytes);
            packed[bit / 8] ^= (uint8_t)(1u << bit % 8);
            (void)unpacks(packed, texts[i].packed_bytes, out, sizeof out);
            taken += unpacks(packed, texts[i].packed_bytes, out, strlen(texts[i].text)) > 0;
        }
    assert_true(taken < flips / 4);
}

/* ---- a small step ---- */

typedef struct job {
    device_t *device;
    device_store_t *store;
    device_words_t *words, *host;
    float *gradient;
    uint8_t *message;
    device_set_t sets[5];
    float result[DIM]; /* the residual after the step */
} job_t;

static float *ones(void)
{
    static float values[DIM];
    for (int i = 0; i < DIM; i++)
        values[i] = (float)(i % 97) - 48.5f;
    return values;
}

static gtopk_status_t job_allocate(job_t *job)
{
    const device_ops_t *ops = job->device->ops;
    void *block = NULL;
    gtopk_status_t status = ops->store_create(job->device, DIM, K, 0, NULL, &job->store);
#define ALLOCATE(to, bytes)                                                    \
    if (status == GTOPK_OK) {                                                  \
        status = ops->allocate(job->device, bytes, "a test's memory", &block); \
        (to) = block;                                                          \
    }
    ALLOCATE(job->words, sizeof *job->words)
    ALLOCATE(job->gradient, DIM * sizeof(float))
    ALLOCATE(job->message, wire_message_capacity(DIM, ROOM, GTOPK_VALUE_BF16))
    for (int s = 0; s < 5; s++) {
        ALLOCATE(job->sets[s].index, ROOM * 4)
        ALLOCATE(job->sets[s].value, ROOM * 4)
        ALLOCATE(job->sets[s].count, 4)
        job->sets[s].capacity = ROOM;
    }
    if (status == GTOPK_OK)
        status = ops->allocate_pinned(job->device, sizeof *job->host, "a test's words", &block);
    if (status == GTOPK_OK)
        job->host = block;
    return status;
}

static void job_release(job_t *job)
{
    const device_ops_t *ops = job->device->ops;
    ops->store_destroy(job->store);
    ops->release(job->device, job->words);
    ops->release(job->device, job->gradient);
    ops->release(job->device, job->message);
    for (int s = 0; s < 5; s++) {
        ops->release(job->device, job->sets[s].index);
        ops->release(job->device, job->sets[s].value);
        ops->release(job->device, job->sets[s].count);
    }
    ops->release_pinned(job->device, job->host);
    ops->close(job->device);
}

/* A round with itself, on `stream`, then a commit; each call only if all before went well. */
static gtopk_status_t job_step(job_t *job, void *stream, void *other_stream)
{
    const device_ops_t *ops = job->device->ops;
    device_set_t *sets = job->sets;
    const device_span_t span = {.length = DIM, .data = job->gradient};
    const device_accumulate_t params = {.scale = 0.5f, .zero_input = 1};
    const wire_header_t header = {
        .value_type = GTOPK_VALUE_BF16, .algorithm = GTOPK_ALGORITHM_GTOPK, .k = K, .dim = DIM};
    const wire_expect_t expect = {
        .value_type = GTOPK_VALUE_BF16, .algorithm = GTOPK_ALGORITHM_GTOPK, .k = K, .dim = DIM};
    const device_outcome_t outcome = {job->words, &sets[2], job->host};
    const device_target_t target = {.spans = &span, .count = 1, .are_zero = 1};
    const device_journal_t journal = {.selected = sets[0],
                                      .first = sets[1],
                                      .final = sets[2],
                                      .deposits = &sets[4],
                                      .deposit_count = 1,
                                      .divisor = 2};
    gtopk_status_t status;
    double sum;
#define STEP(call)                     \
    if ((status = (call)) != GTOPK_OK) \
    return status
    STEP(ops->copy(job->device, job->gradient, ones(), DIM * sizeof(float), stream));
    STEP(ops->step_begin(job->store, job->words, stream));
    STEP(ops->accumulate(job->store, &span, 1, &params, job->words, stream));
    STEP(ops->words_join(job->device, &job->words, 1, 0, stream));
    STEP(ops->select(job->store, K, &sets[0], job->words, stream));
    STEP(ops->encode(job->device, &sets[0], &header, job->message, &sets[1], job->words, other_stream));
    STEP(ops->address(job->device, job->message, 0, 0, K, job->words, other_stream));
    STEP(ops->decode(job->device, job->message, wire_message_capacity(DIM, ROOM, GTOPK_VALUE_BF16), &expect, &sets[3],
                     job->words, stream));
    STEP(ops->merge(job->device, &sets[1], &sets[3], K / 2, &sets[2], &sets[4], job->words, other_stream));
    STEP(ops->deposit(job->device, &sets[4], &sets[2], 0.5f, &sets[3], job->words, stream));
    STEP(ops->copy_set(job->device, &sets[3], &sets[4], job->words, stream));
    STEP(ops->verdict(job->device, &outcome, 1, other_stream));
    STEP(ops->commit(job->store, &journal, &target, job->words, stream));
    STEP(ops->store_square(job->store, &sum, stream));
    STEP(ops->store_read(job->store, DEVICE_RESIDUAL, 0, DIM, job->result, other_stream));
    STEP(ops->store_write(job->store, DEVICE_RESIDUAL, 0, DIM, job->result, stream));
    STEP(ops->store_resize(job->store, K / 2));
    STEP(ops->array_select(job->device, job->gradient, DIM, 3, NULL, &sets[0], stream));
    return ops->synchronize(job->device, stream);
#undef STEP
}

/* Opens a device, makes a step and closes it; what was allocated is released whatever failed. */
static gtopk_status_t whole_job(job_t *job, void *stream, void *other_stream)
{
    memset(job, 0, sizeof *job);
    gtopk_status_t status = device_open("cuda", &job->device);
    if (status != GTOPK_OK)
        return status;
    status = job_allocate(job);
    if (status == GTOPK_OK)
        status = job_step(job, stream, other_stream);
    job_release(job);
    return status;
}

/* On several streams each waits for the one before, and the result is the same as on one. */
static void test_streams(void **state)
{
    static job_t one, two;
    static int streams[2];
    uint64_t launches, waits;
    (void)state;
    skip_without_kernels();
    ASSERT_OK(whole_job(&one, NULL, NULL));
    standin->count(&launches, &waits);
    for (uint64_t seed = 0; seed < 4; seed++) {
        standin->seed(seed);
        ASSERT_OK(whole_job(&two, &streams[0], seed % 2 ? NULL : (void *)&streams[1]));
        assert_memory_equal(one.result, two.result, sizeof one.result);
        assert_int_equal(two.host ? 1 : 0, 1);
    }
    assert_int_equal(standin->live(), 0);
}

/* Each call of each function fails in turn: the error comes out, and nothing is left behind. */
static void test_failing_calls(void **state)
{
    /* What these leave behind when they fail is the driver's. */
    static const char *const releases[] = {
        "cuMemFree",      "cuMemFreeHost",  "cuEventDestroy", "cuCtxPushCurrent", "cuDevicePrimaryCtxRelease",
        "cuModuleUnload", "cuCtxPopCurrent"};
    static const char *const names[] = {
#define NAME(name, since, parameters) #name,
        CUDA_DRIVER_FUNCTIONS(NAME)
#undef NAME
    };
    static job_t job;
    (void)state;
    skip_without_kernels();
    int failures = 0;
    for (size_t f = 0; f < sizeof names / sizeof names[0]; f++) {
        int leaves = 0;
        for (size_t r = 0; r < sizeof releases / sizeof releases[0]; r++)
            leaves |= strcmp(names[f], releases[r]) == 0;
        for (int after = 0; !leaves && after < 400; after += after < 12 ? 1 : 7) {
            standin->inject(names[f], after, after % 2 ? OUT_OF_MEMORY : ILLEGAL_ADDRESS);
            const gtopk_status_t status = whole_job(&job, NULL, NULL);
            const int failed = standin->failed();
            standin->inject("", 0, 0);
            if (!failed)
                break;
            failures++;
            /* Without a name an error can do. */
            if (strcmp(names[f], "cuDeviceGetName") == 0)
                assert_int_equal(status, GTOPK_OK);
            else
                assert_int_equal(status, after % 2 ? GTOPK_ERR_NOMEM : GTOPK_ERR_DEVICE);
            if (standin->live() != 0)
                fail_msg("%s, call %d: %ld things are left", names[f], after, standin->live());
        }
    }
    print_message("{\"failures\": %d}\n", failures);
    assert_true(failures > 60);
}

static void test_lost_context(void **state)
{
    static job_t job;
    (void)state;
    skip_without_kernels();
    memset(&job, 0, sizeof job);
    ASSERT_OK(device_open("cuda", &job.device));
    ASSERT_OK(job_allocate(&job));
    standin->lose(ILLEGAL_ADDRESS);
    assert_says(job_step(&job, NULL, NULL), GTOPK_ERR_DEVICE, "start the process again");
    standin->lose(0);
    job_release(&job);
}

/* ---- several GPUs, several devices on one, memory from the caller ---- */

static void assert_named(const char *name, const char *full)
{
    device_t *device;
    ASSERT_OK(device_open(name, &device));
    assert_string_equal(device->name, full);
    device->ops->close(device);
}

static void test_names(void **state)
{
    static const char *const wrong[] = {"cuda:", "cuda:x", "cuda:1x", "cuda:-1", "cuda0", "gpu", "cuda:99999"};
    char text[128];
    (void)state;
    skip_without_kernels();
    standin->driver(2, 12080, "");
    assert_named("cuda", "cuda:0");
    assert_named("cuda:0", "cuda:0");
    assert_named("cuda:1", "cuda:1");
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        device_t *device;
        assert_says(device_open(wrong[i], &device), GTOPK_ERR_UNSUPPORTED, "no device");
    }
    device_t *device;
    assert_says(device_open("cuda:2", &device), GTOPK_ERR_UNSUPPORTED, "no GPU 2: the driver finds 2");
    assert_null(device);
    ASSERT_OK(gtopk_device_describe("cuda:1", text, sizeof text));
    assert_string_equal(text, "Stand-in 1, compute capability 9.0, driver for CUDA 12.8");
    ASSERT_OK(gtopk_device_describe("cpu", text, sizeof text));
    assert_string_equal(text, device_instruction_set());
    assert_int_equal(standin->live(), 0);
    standin->driver(1, 12080, "");
}

/* Kernels are loaded by the first device on a GPU and unloaded by the last. */
static void test_kernels_are_loaded_once(void **state)
{
    device_t *first, *second, *other;
    (void)state;
    skip_without_kernels();
    standin->driver(2, 12080, "");
    ASSERT_OK(device_open("cuda:0", &first));
    standin->inject("cuModuleLoadData", 0, ILLEGAL_ADDRESS);
    ASSERT_OK(device_open("cuda:0", &second));
    assert_int_equal(standin->failed(), 0);
    assert_says(device_open("cuda:1", &other), GTOPK_ERR_DEVICE, "loading gtopk's kernels");
    ASSERT_OK(device_open("cuda:1", &other)); /* what failed was not kept */
    standin->inject("cuModuleUnload", 0, ILLEGAL_ADDRESS);
    first->ops->close(first);
    assert_int_equal(standin->failed(), 0);
    second->ops->close(second);
    assert_int_equal(standin->failed(), 1);
    standin->inject("", 0, 0);
    other->ops->close(other);
    assert_int_equal(standin->live(), 0);
    standin->driver(1, 12080, "");
}

typedef struct pool {
    long live;
    int left; /* blocks that it still has */
    void *stream;
} pool_t;

static void *pool_take(void *context, size_t bytes, void *stream)
{
    pool_t *pool = context;
    if (pool->left-- <= 0)
        return NULL;
    pool->live++;
    pool->stream = stream;
    return standin->allocate(0, bytes);
}

static void pool_give_back(void *context, void *block)
{
    pool_t *pool = context;
    pool->live--;
    standin->release(block);
}

static void test_allocator(void **state)
{
    static int a_stream;
    pool_t pool = {.left = 1000};
    const gtopk_allocator_t allocator = {sizeof allocator, &pool, pool_take, pool_give_back};
    device_t *device;
    device_store_t *store;
    (void)state;
    skip_without_kernels();
    ASSERT_OK(device_open_with("cuda", &allocator, &device));
    assert_int_equal(pool.live, 0);
    ASSERT_OK(device->ops->synchronize(device, &a_stream));
    ASSERT_OK(device->ops->store_create(device, DIM, K, DEVICE_WITH_VELOCITY, NULL, &store));
    assert_true(pool.live > 3);
    assert_ptr_equal(pool.stream, &a_stream); /* its earlier work is done */
    const long live = pool.live;
    ASSERT_OK(device->ops->store_resize(store, 2 * K));
    assert_int_equal(pool.live, live);
    standin->lose(ILLEGAL_ADDRESS); /* the pool gets its memory back all the same */
    device->ops->store_destroy(store);
    standin->lose(0);
    assert_int_equal(pool.live, 0);
    for (pool.left = 0;; pool.left++) { /* after so many it has no more */
        const int had = pool.left;
        const gtopk_status_t status = device->ops->store_create(device, DIM, K, 0, NULL, &store);
        if (status == GTOPK_OK)
            break;
        assert_says(status, GTOPK_ERR_NOMEM, "allocator has no memory of the GPU left");
        assert_int_equal(pool.live, 0);
        pool.left = had;
    }
    device->ops->store_destroy(store);
    device->ops->close(device);
    assert_int_equal(pool.live, 0);
    assert_int_equal(standin->live(), 0);
}

/* A GPU that is used for blocks stays open. */
static void test_blocks(void **state)
{
    uint32_t indices[2] = {0}, *there = standin->allocate(0, sizeof indices);
    float values[2], *x = standin->allocate(0, DIM * sizeof *x), *chosen = standin->allocate(0, sizeof values);
    gtopk_set_t set = {there, chosen, 2, 0};
    (void)state;
    skip_without_kernels();
    standin->peek(1);
    memcpy(x, ones(), DIM * sizeof *x);
    standin->peek(0);
    for (int time = 0; time < 2; time++) {
        ASSERT_OK(gtopk_select_on("cuda:0", x, DIM, 2, &set, NULL));
        assert_int_equal(set.count, 2);
        standin->peek(1);
        memcpy(indices, there, sizeof indices);
        memcpy(values, chosen, sizeof values);
        standin->peek(0);
        assert_int_equal(indices[0], 0);
        assert_int_equal(indices[1], 97);
        assert_true(values[0] == -48.5f && values[1] == -48.5f);
    }
    assert_says(gtopk_select_on("cuda:0", NULL, DIM, 2, &set, NULL), GTOPK_ERR_INVALID, "takes an array");
    assert_says(gtopk_merge_on("cuda:0", &set, NULL, 2, &set, NULL), GTOPK_ERR_INVALID, "two sets");
    standin->inject("cuLaunchCooperativeKernel", 0, ILLEGAL_ADDRESS);
    assert_says(gtopk_select_on("cuda:0", x, DIM, 2, &set, NULL), GTOPK_ERR_DEVICE, "launching the kernel select");
    assert_int_equal(set.count, 0);
    ASSERT_OK(gtopk_select_on("cuda:0", x, DIM, 2, &set, NULL));
    standin->release(x);
    standin->release(there);
    standin->release(chosen);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_driver),
        cmocka_unit_test(test_old_driver),
        cmocka_unit_test(test_missing_function),
        cmocka_unit_test(test_no_gpu),
        cmocka_unit_test(test_old_gpu),
        cmocka_unit_test(test_images),
        cmocka_unit_test(test_unpack),
        cmocka_unit_test(test_unpack_damaged),
        cmocka_unit_test(test_streams),
        cmocka_unit_test(test_failing_calls),
        cmocka_unit_test(test_lost_context),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_kernels_are_loaded_once),
        cmocka_unit_test(test_allocator),
        cmocka_unit_test(test_blocks),
    };
    return cmocka_run_group_tests_name("cuda driver", tests, open_standin, NULL);
}
