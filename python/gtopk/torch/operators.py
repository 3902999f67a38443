"""`torch.ops.gtopk.select` and `torch.ops.gtopk.merge`: the blocks as PyTorch operators on CPU and CUDA tensors.

The kernels for the CPU are C, registered over libtorch's stable C ABI. Here are those for GPUs, which call the same library by
way of `gtopk.blocks`, and the shapes for torch.compile and torch.export. The
number of results depends on the data (zeros are left out), so it is a symbolic size there. Needs PyTorch 2.10 or newer.

Examples
--------
>>> import torch, gtopk.torch.operators
>>> torch.ops.gtopk.select(torch.tensor([1.0, -8.0, 2.0, 0.0]), 2)
(tensor([1, 2]), tensor([-8.,  2.]))
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _c_api, blocks
from ..errors import InvalidError


def register() -> None:
    """Makes the operators known to PyTorch; importing this module does it.

    Raises
    ------
    NotFoundError
        PyTorch is older than 2.10.
    """
    if hasattr(torch.ops.gtopk, "select"):
        return
    _c_api.check(_c_api.library().gtopk_torch_register())
    torch.library.impl("gtopk::select", "CUDA")(_select_on_gpu)
    torch.library.impl("gtopk::merge", "CUDA")(_merge_on_gpu)
    torch.library.register_fake("gtopk::select")(_fake_select)
    torch.library.register_fake("gtopk::merge")(_fake_merge)


def _select_on_gpu(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    _check("x", x, torch.float32)
    indices, values = blocks.select(x, k)
    return indices.long(), values


def _merge_on_gpu(
    a_indices: Tensor, a_values: Tensor, b_indices: Tensor, b_values: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    for name, indices, values in (("a", a_indices, a_values), ("b", b_indices, b_values)):
        _check(f"{name}_indices", indices, torch.int64)
        _check(f"{name}_values", values, torch.float32)
    indices, values = blocks.merge((a_indices, a_values), (b_indices, b_values), k)
    return indices.long(), values


def _check(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if not tensor.is_cuda or tensor.dtype != dtype or tensor.dim() != 1 or not tensor.is_contiguous():
        raise InvalidError(
            f"{name} must be a contiguous one-dimensional {dtype} tensor on the GPU of the others: use "
            f".to({dtype}).contiguous().view(-1)"
        )


def _fake_set(like: Tensor, most: int) -> tuple[Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    torch._check(count <= most)  # type: ignore[no-untyped-call]
    return like.new_empty(count, dtype=torch.int64), like.new_empty(count, dtype=torch.float32)


def _fake_select(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    good = x.dim() == 1 and x.dtype == torch.float32
    torch._check(good, lambda: "x must be a one-dimensional float32 tensor")  # type: ignore[no-untyped-call]
    return _fake_set(x, x.numel())


def _fake_merge(
    a_indices: Tensor, a_values: Tensor, b_indices: Tensor, b_values: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    return _fake_set(a_values, a_values.numel() + b_values.numel())


register()
