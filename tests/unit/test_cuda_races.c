/* No two threads of a block use a word of shared memory at the same time: every kernel, on what the tests of single kernels run,
 * compiled so that each access is seen (tests/support/cuda_races.c). And that such a race is found. */
#include "support/cuda_kernels.c"

int main_of_kernels(void);
#define main main_of_kernels
#include "test_cuda_kernels.c"
#undef main

int main_of_nodes(void);
#define main main_of_nodes
#include "test_cuda_nodes.c"
#undef main

enum { BLOCK_THREADS = 64 };

/* What a kernel with a race does, by number; an even one is right. */
typedef struct race_args {
    uint32_t *out;
    int which;
} race_args_t;

static void racing(const void *arguments)
{
    __shared__ uint32_t cell, cells[BLOCK_THREADS];
    const race_args_t *args = arguments;
    const uint32_t t = threadIdx.x, neighbour = t ^ 1, other = t ^ CUDA_WARP;
    uint32_t found = 0;
    if (t == 0)
        cell = 0;
    cells[t] = t;
    switch (args->which) {
    case 0: /* a barrier in between */
        __syncthreads();
        found = cells[other];
        break;
    case 1: found = cells[other]; break;
    case 2: /* lanes of a warp */
        __syncwarp();
        found = cells[neighbour];
        break;
    case 3: /* a ballot is no fence */ found = __ballot_sync(ALL_LANES, 1) + cells[neighbour]; break;
    case 4: /* atomics, and a look after the barrier */
        __syncthreads();
        (void)atomicAdd(&cell, 1u);
        __syncthreads();
        found = cell;
        break;
    case 5:
        __syncthreads();
        (void)atomicAdd(&cell, 1u);
        found = cell;
        break;
    case 6: /* all have read before one writes */
        __syncthreads();
        found = cell;
        __syncthreads();
        if (t == 0)
            cell = 1;
        break;
    default:
        __syncthreads();
        found = cell;
        if (t == 0)
            cell = 0; /* what it was */
    }
    args->out[t] = found;
}

static void test_races_are_found(void **state)
{
    static uint32_t out[BLOCK_THREADS];
    (void)state;
    for (int which = 0; which < 8; which++)
        for (int order = 0; order < EMULATOR_ORDERS; order++) {
            const race_args_t args = {out, which};
            const int status = emulator_run(racing, &args, 1, BLOCK_THREADS, 0, (emulator_order_t)order, 1);
            assert_int_equal(status, which % 2 ? -1 : 0);
            if (which % 2)
                assert_non_null(strstr(emulator_error(), "of shared memory, which thread"));
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_races_are_found)};
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    return failed ? failed : main_of_kernels() + main_of_nodes();
}
