// The prototypes in csrc/torch/stable_abi.h and PyTorch's own, compared by the compiler: this file must compile.
#include <type_traits>

#include <torch/csrc/stable/c/shim.h>

#include "torch/stable_abi.h"

#define AGREE(result, name, arguments)                                                                                 \
    static_assert(std::is_same_v<decltype(&::name), result(*) arguments>, #name " is declared in another way by PyTorch");

STABLE_ABI_LIST(AGREE)
