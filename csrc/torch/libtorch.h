/* libtorch, if this process has it. */
#ifndef GTOPK_TORCH_LIBTORCH_H
#define GTOPK_TORCH_LIBTORCH_H

#include "gtopk.h"
#include "torch/stable_abi.h"

typedef struct libtorch {
/* NOLINTNEXTLINE(bugprone-macro-parentheses): `arguments` has its parentheses */
#define LIBTORCH_FIELD(result, name, arguments) result(*(name)) arguments;
    STABLE_ABI_LIST(LIBTORCH_FIELD)
#undef LIBTORCH_FIELD
} libtorch_t;

/* Finds the functions in the loaded libtorch_cpu.so; it is never loaded by this. NOT_FOUND: there is none, or it is
 * older than 2.10. */
gtopk_status_t libtorch_find(void);

/* After libtorch_find has succeeded. */
const libtorch_t *libtorch_get(void);

#endif
