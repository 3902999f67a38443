/* Configurations: a communicator and a reducer made from any bytes are refused as INVALID, MISMATCH, NOT_FOUND or
 * UNSUPPORTED, or they work: one step runs, keeps the mass, and everything is freed.
 *
 * The bytes are the two config structs, then six lengths. What holds a pointer is drawn from a short list, and lengths
 * are kept small where they would be accepted: this is no test of memory. */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "fuzz.h"
#include "gtopk.h"
#include "support/step.h"

enum { LENGTHS = 6, DIM_MAX = 1 << 12 };

typedef struct input {
    gtopk_comm_config_t network;
    gtopk_reducer_config_t reducer;
    uint64_t count;
    uint64_t lengths[LENGTHS];
    uint8_t transport, device; /* places in the lists below */
} input_t;

static const char *const transports[] = {NULL,  "self",  "thread", "callback",         "",
                                         "sel", "selff", "SELF",   "no such transport"};
static const char *const devices[] = {NULL, "cpu", "reference", "", "cp", "cuda", "no such device"};

#define ITEM(name, i) {offsetof(input_t, name) + (i) * sizeof(uint64_t), sizeof(uint64_t)}

static const fuzz_field_t fields[] = {
    {offsetof(input_t, network.struct_size), 8},
    {offsetof(input_t, network.size), 4},
    {offsetof(input_t, network.rank), 4},
    {offsetof(input_t, network.timeout), 8},
    {offsetof(input_t, network.warn_after), 8},
    {offsetof(input_t, network.setup_timeout), 8},
    {offsetof(input_t, reducer.struct_size), 8},
    {offsetof(input_t, reducer.density), 8},
    {offsetof(input_t, reducer.algorithm), 4},
    {offsetof(input_t, reducer.value_type), 4},
    {offsetof(input_t, reducer.residual_policy), 4},
    {offsetof(input_t, reducer.momentum_correction), 4},
    {offsetof(input_t, reducer.merge_growth), 8},
    {offsetof(input_t, reducer.rollback), 4},
    {offsetof(input_t, reducer.hierarchy), 4},
    {offsetof(input_t, reducer.residual_dtype), 4},
    {offsetof(input_t, reducer.reserved), 4},
    {offsetof(input_t, reducer.steps_before), 8},
    {offsetof(input_t, count), 8},
    {offsetof(input_t, transport), 1},
    {offsetof(input_t, device), 1},
    ITEM(lengths, 0),
    ITEM(lengths, 1),
    ITEM(lengths, 5),
};

/* ---- inputs ---- */

static size_t valid_config(random_state_t *random, uint8_t *out)
{
    input_t input;
    const gtopk_comm_config_t network = GTOPK_COMM_CONFIG_INIT;
    const gtopk_reducer_config_t reducer = GTOPK_REDUCER_CONFIG_INIT;
    memset(&input, 0, sizeof input);
    input.network = network;
    input.reducer = reducer;
    input.network.timeout = (double)random_below(random, 100);
    input.reducer.density = (double)(1 + random_below(random, 1000)) / 1000;
    input.reducer.algorithm = (int32_t)random_below(random, 6);
    if (input.reducer.algorithm == 5)
        input.reducer.algorithm = GTOPK_ALGORITHM_AUTO;
    input.reducer.value_type = (int32_t)random_below(random, 4);
    input.reducer.residual_policy = (int32_t)random_below(random, 2);
    input.reducer.momentum_correction = (int32_t)random_below(random, 2);
    input.reducer.rollback = (int32_t)random_below(random, 2);
    input.reducer.hierarchy = (int32_t)random_below(random, 3);
    input.reducer.residual_dtype = random_below(random, 2) ? GTOPK_BF16 : GTOPK_F32;
    input.reducer.merge_growth = 1.0 + (double)random_below(random, 3) / 2;
    input.count = 1 + random_below(random, LENGTHS);
    for (int i = 0; i < LENGTHS; i++)
        input.lengths[i] = random_below(random, 50);
    input.lengths[0]++;
    input.transport = (uint8_t)random_below(random, 2);
    input.device = (uint8_t)random_below(random, 3);
    memcpy(out, &input, sizeof input);
    return sizeof input;
}

static void repair_config(random_state_t *random, uint8_t *data, size_t bytes)
{
    (void)random;
    (void)data;
    (void)bytes;
}

/* Puts in the pointers, and numbers alone are taken from the input: a pointer that comes to the structs later is NULL here.
 * Lengths that would be accepted, and are large, are made small. */
static void make_safe(input_t *input)
{
    static const char *const data[] = {NULL, "", "auto", "nccl", "tcp"};
    gtopk_comm_config_t network = GTOPK_COMM_CONFIG_INIT;
    network.struct_size = input->network.struct_size;
    network.size = input->network.size;
    network.rank = input->network.rank;
    network.timeout = input->network.timeout;
    network.warn_after = input->network.warn_after;
    network.setup_timeout = input->network.setup_timeout;
    network.transport = transports[input->transport % (sizeof transports / sizeof *transports)];
    network.node = network.size % 2 == 0 ? NULL : "a node";
    network.data = data[(uint32_t)network.size % (sizeof data / sizeof *data)];
    input->network = network;

    gtopk_reducer_config_t reducer = GTOPK_REDUCER_CONFIG_INIT;
    reducer.struct_size = input->reducer.struct_size;
    reducer.density = input->reducer.density;
    reducer.algorithm = input->reducer.algorithm;
    reducer.value_type = input->reducer.value_type;
    reducer.residual_policy = input->reducer.residual_policy;
    reducer.momentum_correction = input->reducer.momentum_correction;
    reducer.merge_growth = input->reducer.merge_growth;
    reducer.rollback = input->reducer.rollback;
    reducer.hierarchy = input->reducer.hierarchy;
    reducer.residual_dtype = input->reducer.residual_dtype;
    reducer.reserved = input->reducer.reserved;
    reducer.steps_before = input->reducer.steps_before;
    reducer.device = devices[input->device % (sizeof devices / sizeof *devices)];
    input->reducer = reducer;

    input->count %= LENGTHS + 1;
    uint64_t dim = 0;
    int wrong = 0;
    for (uint64_t i = 0; i < input->count; i++) {
        wrong |= input->lengths[i] > UINT32_MAX;
        dim += input->lengths[i];
    }
    for (uint64_t i = 0; i < input->count && !wrong && dim <= UINT32_MAX; i++)
        input->lengths[i] %= DIM_MAX;
}

/* ---- promises ---- */

static int is_refusal(gtopk_status_t status)
{
    return status == GTOPK_ERR_INVALID || status == GTOPK_ERR_MISMATCH || status == GTOPK_ERR_NOT_FOUND ||
           status == GTOPK_ERR_UNSUPPORTED;
}

/* With one rank the update and what stays in the residual are the gradient, index by index. */
static void check_step(gtopk_reducer_t *reducer, const input_t *input)
{
    static float memory[LENGTHS * DIM_MAX], left[DIM_MAX];
    gtopk_tensor_t tensors[LENGTHS];
    uint64_t at = 0;
    for (uint64_t s = 0; s < input->count; s++) {
        for (uint64_t i = 0; i < input->lengths[s]; i++)
            memory[at + i] = (float)((at + i) % 13) - 6.0f;
        tensors[s] = (gtopk_tensor_t){memory + at, input->lengths[s], GTOPK_F32, 0};
        at += input->lengths[s];
    }
    gtopk_stats_t stats = {.struct_size = sizeof stats};
    FUZZ_CHECK(gtopk_reducer_dim(reducer) == at);
    FUZZ_CHECK(gtopk_reducer_accumulate(reducer, NULL, tensors, input->count, 1.0, 0, NULL) == GTOPK_OK);
    FUZZ_CHECK(step_reduce(reducer, tensors, input->count, 0, &stats) == GTOPK_OK);
    FUZZ_CHECK(stats.nonfinite == 0 && stats.count <= gtopk_reducer_max_count(reducer));
    at = 0;
    for (uint64_t s = 0; s < input->count; s++) {
        FUZZ_CHECK(gtopk_reducer_residual(reducer, (uint32_t)s, left, input->lengths[s]) == GTOPK_OK);
        for (uint64_t i = 0; i < input->lengths[s]; i++)
            FUZZ_CHECK(memory[at + i] + left[i] == (float)((at + i) % 13) - 6.0f);
        at += input->lengths[s];
    }
}

static int run_config(const uint8_t *data, size_t bytes)
{
    input_t input;
    gtopk_comm_t *comm = NULL;
    gtopk_reducer_t *reducer = NULL;
    memset(&input, 0, sizeof input);
    memcpy(&input, data, bytes < sizeof input ? bytes : sizeof input);
    make_safe(&input);

    gtopk_status_t status = gtopk_comm_create(&comm, &input.network);
    if (status == GTOPK_OK)
        status = gtopk_reducer_create(&reducer, comm, &input.reducer, input.lengths, input.count);
    if (status == GTOPK_OK)
        check_step(reducer, &input);
    else
        FUZZ_CHECK(is_refusal(status) && !reducer && gtopk_last_error()[0] != 0);
    gtopk_reducer_destroy(reducer);
    gtopk_comm_destroy(comm);
    return status == GTOPK_OK;
}

const fuzz_target_t fuzz_target = {"config",     fields,        sizeof fields / sizeof *fields,
                                   valid_config, repair_config, run_config};
