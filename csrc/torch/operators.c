/* torch.ops.gtopk.select and .merge: the blocks of the same names as PyTorch operators on CPU tensors, over libtorch's
 * stable C ABI. Indices are int64 here, which is what PyTorch indexes with.
 *
 * aoti_torch_check throws a C++ exception through these functions: they are compiled with -fexceptions, and everything
 * that they hold is freed before. */
#include <string.h>

#include "torch/libtorch.h"
#include "util/memory.h"

/* The version of the ABI that these calls are written against: 2.10. */
#define STABLE_VERSION ((uint64_t)2 << 56 | (uint64_t)10 << 48)

static AtenTensorHandle tensor_of(StableIValue value)
{
    return (AtenTensorHandle)(uintptr_t)value;
}

static void raise_error(const char *operator_name)
{
    libtorch_get()->aoti_torch_check(false, operator_name, "csrc/torch/operators.c", __LINE__, gtopk_last_error());
}

/* A one-dimensional array in an argument, borrowed from its tensor. */
typedef struct argument {
    const void *data;
    int64_t length;
} argument_t;

static gtopk_status_t torch_failed(const char *what)
{
    return status_set(GTOPK_ERR_INTERNAL, "libtorch could not tell %s", what);
}

static gtopk_status_t read_argument(const char *name, AtenTensorHandle tensor, int32_t dtype, const char *type,
                                    argument_t *out)
{
    const libtorch_t *torch = libtorch_get();
    int32_t device, own_dtype;
    int64_t dim;
    bool contiguous;
    if (torch->aoti_torch_get_device_type(tensor, &device) || torch->aoti_torch_get_dtype(tensor, &own_dtype) ||
        torch->aoti_torch_get_dim(tensor, &dim) || torch->aoti_torch_is_contiguous(tensor, &contiguous) ||
        torch->aoti_torch_get_numel(tensor, &out->length))
        return torch_failed("what an argument is");
    if (device != torch->aoti_torch_device_type_cpu() || own_dtype != dtype || dim != 1 || !contiguous)
        return status_set(GTOPK_ERR_INVALID,
                          "%s must be a contiguous one-dimensional %s tensor on the CPU: use "
                          ".to(%s).contiguous().view(-1)",
                          name, type, type);
    if (torch->torch_get_const_data_ptr(tensor, &out->data))
        return torch_failed("where an argument's data is");
    return GTOPK_OK;
}

static void delete_tensors(const StableIValue *stack, int count)
{
    for (int i = 0; i < count; i++)
        (void)libtorch_get()->aoti_torch_delete_tensor_object(tensor_of(stack[i]));
}

/* ---- sets in and out ---- */

static gtopk_status_t set_allocate(gtopk_set_t *set, uint64_t capacity)
{
    *set = (gtopk_set_t){.capacity = capacity};
    gtopk_status_t status = memory_alloc(&set->indices, capacity, sizeof *set->indices, "an operator's indices");
    if (status == GTOPK_OK)
        status = memory_alloc(&set->values, capacity, sizeof *set->values, "an operator's values");
    return status;
}

static void set_free(gtopk_set_t *set)
{
    memory_free(set->indices);
    memory_free(set->values);
}

static gtopk_status_t set_read(const char *name, const argument_t *indices, const argument_t *values, gtopk_set_t *set)
{
    if (indices->length != values->length)
        return status_set(GTOPK_ERR_INVALID, "%s has %lld indices and %lld values: one of each for an entry", name,
                          (long long)indices->length, (long long)values->length);
    const gtopk_status_t status = set_allocate(set, (uint64_t)indices->length);
    for (int64_t i = 0; i < indices->length && status == GTOPK_OK; i++) {
        const int64_t index = ((const int64_t *)indices->data)[i];
        if (index < 0 || index > UINT32_MAX)
            return status_set(GTOPK_ERR_INVALID, "index %lld of %s is not in [0, 2^32)", (long long)index, name);
        set->indices[i] = (uint32_t)index;
    }
    if (status == GTOPK_OK && values->length > 0)
        memcpy(set->values, values->data, (size_t)values->length * sizeof *set->values);
    set->count = set->capacity;
    return status;
}

static gtopk_status_t new_tensor(int64_t length, int32_t dtype, AtenTensorHandle *tensor, void **data)
{
    const libtorch_t *torch = libtorch_get();
    const int64_t stride = 1;
    *tensor = NULL;
    if (torch->aoti_torch_empty_strided(1, &length, &stride, dtype, torch->aoti_torch_device_type_cpu(), 0, tensor) ||
        torch->torch_get_mutable_data_ptr(*tensor, data))
        return status_set(GTOPK_ERR_NOMEM, "PyTorch could not make a result of %lld entries", (long long)length);
    return GTOPK_OK;
}

/* Leaves the set on the stack as two tensors. */
static gtopk_status_t set_write(const gtopk_set_t *set, StableIValue *stack)
{
    const libtorch_t *torch = libtorch_get();
    AtenTensorHandle indices = NULL, values = NULL;
    void *index_data, *value_data;
    gtopk_status_t status = new_tensor((int64_t)set->count, torch->aoti_torch_dtype_int64(), &indices, &index_data);
    if (status == GTOPK_OK)
        status = new_tensor((int64_t)set->count, torch->aoti_torch_dtype_float32(), &values, &value_data);
    if (status != GTOPK_OK) {
        if (indices)
            (void)torch->aoti_torch_delete_tensor_object(indices);
        if (values)
            (void)torch->aoti_torch_delete_tensor_object(values);
        return status;
    }
    for (uint64_t i = 0; i < set->count; i++)
        ((int64_t *)index_data)[i] = set->indices[i];
    if (set->count > 0)
        memcpy(value_data, set->values, set->count * sizeof *set->values);
    stack[0] = (StableIValue)(uintptr_t)indices;
    stack[1] = (StableIValue)(uintptr_t)values;
    return GTOPK_OK;
}

static gtopk_status_t check_k(int64_t k)
{
    if (k >= 0)
        return GTOPK_OK;
    return status_set(GTOPK_ERR_INVALID, "k is %lld: the number of entries to keep, at least 0", (long long)k);
}

static uint64_t at_most(uint64_t limit, uint64_t value)
{
    return value < limit ? value : limit;
}

/* ---- the operators ---- */

/* select(Tensor x, int k) -> (Tensor indices, Tensor values) */
static void operator_select(StableIValue *stack, uint64_t inputs, uint64_t outputs)
{
    (void)inputs;
    (void)outputs;
    const int64_t k = (int64_t)stack[1];
    const StableIValue arguments[1] = {stack[0]};
    argument_t x;
    gtopk_set_t set = {.capacity = 0};
    gtopk_status_t status = check_k(k);
    if (status == GTOPK_OK)
        status = read_argument("x", tensor_of(arguments[0]), libtorch_get()->aoti_torch_dtype_float32(),
                               "torch.float32", &x);
    if (status == GTOPK_OK)
        status = set_allocate(&set, at_most((uint64_t)x.length, (uint64_t)k));
    if (status == GTOPK_OK)
        status = gtopk_select_parallel(x.data, (uint64_t)x.length, (uint64_t)k, &set, gtopk_torch_parallel_for(), NULL);
    if (status == GTOPK_OK)
        status = set_write(&set, stack);
    set_free(&set);
    delete_tensors(arguments, 1);
    if (status != GTOPK_OK)
        raise_error("gtopk::select");
}

/* merge(Tensor a_indices, Tensor a_values, Tensor b_indices, Tensor b_values, int k) -> (Tensor indices, Tensor values) */
static void operator_merge(StableIValue *stack, uint64_t inputs, uint64_t outputs)
{
    (void)inputs;
    (void)outputs;
    static const char *const names[4] = {"a_indices", "a_values", "b_indices", "b_values"};
    const libtorch_t *torch = libtorch_get();
    const int64_t k = (int64_t)stack[4];
    const StableIValue arguments[4] = {stack[0], stack[1], stack[2], stack[3]};
    argument_t read[4];
    gtopk_set_t a = {.capacity = 0}, b = {.capacity = 0}, sum = {.capacity = 0};
    gtopk_status_t status = check_k(k);
    for (int i = 0; i < 4 && status == GTOPK_OK; i++)
        status = read_argument(names[i], tensor_of(arguments[i]),
                               i % 2 ? torch->aoti_torch_dtype_float32() : torch->aoti_torch_dtype_int64(),
                               i % 2 ? "torch.float32" : "torch.int64", &read[i]);
    if (status == GTOPK_OK)
        status = set_read("a", &read[0], &read[1], &a);
    if (status == GTOPK_OK)
        status = set_read("b", &read[2], &read[3], &b);
    if (status == GTOPK_OK)
        status = set_allocate(&sum, at_most(a.count + b.count, (uint64_t)k));
    if (status == GTOPK_OK)
        status = gtopk_merge(&a, &b, (uint64_t)k, &sum);
    if (status == GTOPK_OK)
        status = set_write(&sum, stack);
    set_free(&a);
    set_free(&b);
    set_free(&sum);
    delete_tensors(arguments, 4);
    if (status != GTOPK_OK)
        raise_error("gtopk::merge");
}

static const struct {
    const char *name, *schema;
    stable_kernel_fn kernel;
} operators[] = {
    {"select", "select(Tensor x, SymInt k) -> (Tensor indices, Tensor values)", operator_select},
    {"merge",
     "merge(Tensor a_indices, Tensor a_values, Tensor b_indices, Tensor b_values, SymInt k) -> (Tensor indices, Tensor values)",
     operator_merge},
};

gtopk_status_t gtopk_torch_register(void)
{
    static int registered;
    const gtopk_status_t status = libtorch_find();
    if (status != GTOPK_OK || registered)
        return status;
    const libtorch_t *torch = libtorch_get();
    TorchLibraryHandle definitions, kernels;
    int failed = torch->aoti_torch_library_init_def("gtopk", "csrc/torch/operators.c", __LINE__, &definitions) != 0;
    for (size_t i = 0; i < sizeof operators / sizeof *operators && !failed; i++)
        failed = torch->aoti_torch_library_def(definitions, operators[i].schema) != 0;
    failed = failed ||
             torch->aoti_torch_library_init_impl("gtopk", "CPU", "csrc/torch/operators.c", __LINE__, &kernels) != 0;
    for (size_t i = 0; i < sizeof operators / sizeof *operators && !failed; i++)
        failed = torch->torch_library_impl(kernels, operators[i].name, operators[i].kernel, STABLE_VERSION) != 0;
    if (failed)
        return status_set(GTOPK_ERR_INTERNAL, "PyTorch refused gtopk's operators; its own message is on stderr");
    registered = 1; /* the library objects live as long as the process */
    return GTOPK_OK;
}
