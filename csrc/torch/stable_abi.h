/* The functions of libtorch's stable C ABI that gtopk calls (PyTorch 2.10 or newer). PyTorch's own headers are C++, so
 * they are declared here once more, in C: X(result, name, arguments). tests/torch_abi/agree.cpp includes both and has
 * the compiler compare them. Nothing is linked: libtorch.c looks the functions up in the libtorch_cpu.so that Python has
 * loaded. */
#ifndef GTOPK_TORCH_STABLE_ABI_H
#define GTOPK_TORCH_STABLE_ABI_H

#include <stdint.h>

#ifndef __cplusplus
#include <stdbool.h>

typedef int32_t AOTITorchError; /* 0: success */
typedef struct AtenTensorOpaque *AtenTensorHandle;
typedef struct TorchLibraryOpaque *TorchLibraryHandle;
typedef uint64_t StableIValue;
typedef void (*ParallelFunc)(int64_t begin, int64_t end, void *context);
#endif

/* A kernel takes its arguments from the stack, owns the tensors among them, and leaves its results there. */
typedef void (*stable_kernel_fn)(StableIValue *stack, uint64_t inputs, uint64_t outputs);

#define STABLE_ABI_LIST(X)                                                                             \
    X(AOTITorchError, aoti_torch_library_init_def,                                                     \
      (const char *ns, const char *file, uint32_t line, TorchLibraryHandle *library))                  \
    X(AOTITorchError, aoti_torch_library_init_impl,                                                    \
      (const char *ns, const char *key, const char *file, uint32_t line, TorchLibraryHandle *library)) \
    X(AOTITorchError, aoti_torch_library_def, (TorchLibraryHandle library, const char *schema))        \
    X(AOTITorchError, torch_library_impl,                                                              \
      (TorchLibraryHandle library, const char *name, stable_kernel_fn kernel, uint64_t version))       \
    X(AOTITorchError, torch_get_const_data_ptr, (AtenTensorHandle tensor, const void **data))          \
    X(AOTITorchError, torch_get_mutable_data_ptr, (AtenTensorHandle tensor, void **data))              \
    X(AOTITorchError, torch_parallel_for,                                                              \
      (int64_t begin, int64_t end, int64_t grain, ParallelFunc body, void *context))                   \
    X(AOTITorchError, aoti_torch_get_numel, (AtenTensorHandle tensor, int64_t *numel))                 \
    X(AOTITorchError, aoti_torch_get_dim, (AtenTensorHandle tensor, int64_t *dim))                     \
    X(AOTITorchError, aoti_torch_get_dtype, (AtenTensorHandle tensor, int32_t *dtype))                 \
    X(AOTITorchError, aoti_torch_get_device_type, (AtenTensorHandle tensor, int32_t *type))            \
    X(AOTITorchError, aoti_torch_is_contiguous, (AtenTensorHandle tensor, bool *contiguous))           \
    X(AOTITorchError, aoti_torch_empty_strided,                                                        \
      (int64_t dim, const int64_t *sizes, const int64_t *strides, int32_t dtype, int32_t device_type,  \
       int32_t device_index, AtenTensorHandle *tensor))                                                \
    X(AOTITorchError, aoti_torch_delete_tensor_object, (AtenTensorHandle tensor))                      \
    X(int32_t, aoti_torch_dtype_float32, (void))                                                       \
    X(int32_t, aoti_torch_dtype_int64, (void))                                                         \
    X(int32_t, aoti_torch_device_type_cpu, (void))                                                     \
    X(void, aoti_torch_check, (bool condition, const char *function, const char *file, uint32_t line, const char *text))

#endif
