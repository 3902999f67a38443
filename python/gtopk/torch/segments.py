"""Segments of an exchange: a name, a shape, and the order of entries in memory; and tensors as memory in that order.

An entry's index on the wire is its place in the memory of what the segment was made for, usually a parameter. A tensor
that lies in memory like that (channels-last too) is handed over as it is; any other is copied. Knows nothing of
parameters, gradients and ranks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from operator import add, gt
from typing import Any

import torch
from torch import Tensor

from ..errors import StateError, UnsupportedError

# Exchanged as they are; other floating-point types travel by way of a float32 copy.
_DIRECT = (torch.float32, torch.float16, torch.bfloat16)


class Segment:
    """One tensor's place in an exchange.

    Parameters
    ----------
    name : str
        The same on all ranks: compared before the first exchange, used in checkpoints and errors.
    like : Tensor
        Has the shape, type, device and memory order. Where it has gaps in memory, the index is the place in the order of
        dimensions. Not kept.
    whole : bool
        The peers of this rank have the same entries, where others are shards. What is selected of them must not depend on
        a shard.
    """

    __slots__ = ("device", "dtype", "name", "numel", "order", "plain", "shape", "stride", "whole")

    def __init__(self, name: str, like: Tensor, whole: bool = False) -> None:
        self.name = name
        self.whole = whole
        self.shape = like.shape
        self.dtype = like.dtype
        self.device = like.device
        self.numel = like.numel()
        in_order = like if is_dense(like) else torch.empty(like.shape, device="meta")
        self.stride = in_order.stride()
        self.order = _order_of(in_order)
        # Then a contiguous tensor of this many entries lies right, whatever its shape.
        self.plain = self.dtype in _DIRECT and in_order.is_contiguous()

    def describe(self) -> list[Any]:
        """What must be the same on all ranks."""
        return [self.name, list(self.shape), str(self.dtype).removeprefix("torch."), list(self.order)]

    def check(self, tensor: Tensor) -> None:
        """Whether `tensor` can be exchanged in this segment at all.

        Raises
        ------
        UnsupportedError, StateError
            It cannot; with the name, and with what to do about it.
        """
        if tensor.layout is not torch.strided:
            raise UnsupportedError(sparse_text(self.name))
        if tensor.device != self.device:
            raise UnsupportedError(moved_text(f"the gradient of {self.name}", tensor.device, self.device))
        if tensor.numel() != self.numel:
            raise StateError(resized_text(self.name, tensor.shape, self.shape))
        if has_no_memory(tensor):
            raise UnsupportedError(wrapper_text(f"the gradient of {self.name}", tensor))

    def lies_right(self, tensor: Tensor) -> bool:
        """True when the memory of `tensor` can be handed over as it is. One dimension is memory in order already."""
        if tensor.dtype not in _DIRECT:
            return False
        if tensor.dim() == 1:
            return tensor.is_contiguous()
        return is_dense(tensor) and _order_of(tensor) == self.order

    def new_block(self) -> Tensor:
        """Memory of this rank's own, in order, of a type that can be exchanged; one dimension, not filled."""
        return torch.empty(self.numel, dtype=self.dtype if self.dtype in _DIRECT else torch.float32, device=self.device)

    def shaped(self, flat: Tensor) -> Tensor:
        """Memory in order in the shape of the segment; a view."""
        return flat.as_strided(self.shape, self.stride)

    def flattened(self, values: Tensor) -> Tensor:
        """Values in the shape of the segment as memory in order; a copy on the host, as float32."""
        flat = torch.empty(self.numel, dtype=torch.float32, device="cpu")
        self.shaped(flat).copy_(values)
        return flat

    def copy_in(self, tensor: Tensor, block: Tensor) -> None:
        """Fills a block with what `tensor` holds."""
        (block if tensor.dim() == 1 else self.shaped(block)).copy_(tensor.detach())

    def copy_out(self, block: Tensor, tensor: Tensor, fixed: bool) -> Tensor:
        """What the block holds, in `tensor`, which is returned; or in a new one where that is `fixed` or has gaps."""
        values = block if tensor.dim() == 1 else self.shaped(block)
        if fixed or not is_dense(tensor):
            return values.to(tensor.dtype, copy=True)
        tensor.detach().copy_(values)
        return tensor


# ---- memory ----


def is_dense(tensor: Tensor) -> bool:
    """True when the entries fill one block of memory, without gaps and without overlap, in whatever order."""
    if tensor.is_contiguous():
        return True
    expected = 1
    dims = sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1)
    for stride, size in dims:
        if stride != expected:
            return False
        expected *= size
    return True


def _order_of(tensor: Tensor) -> tuple[int, ...]:
    """What decides where an entry lies in memory, beside the shape: strides of dimensions with more than one entry."""
    return tuple(stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1)


def flat_view(tensor: Tensor) -> Tensor:
    """A dense tensor's memory as one dimension; a contiguous tensor is returned as it is."""
    if tensor.is_contiguous():
        return tensor
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def disjoint(starts: Collection[int], sizes: Iterable[int]) -> bool:
    """Whether no two pieces of memory share a byte. In order, each must then end before the next one starts."""
    ends = sorted(map(add, starts, sizes))
    return True not in map(gt, ends, sorted(starts)[1:])


def all_flat(tensors: Sequence[Tensor], segments: Sequence[Segment]) -> bool:
    """Whether each is the memory of its segment already, shared with no other: nothing is to be checked or copied then."""
    strided = torch.strided
    fits = [
        type(x) is Tensor
        and x.layout is strided
        and x.dim() == 1
        and x.numel() == segment.numel
        and x.dtype in _DIRECT
        and x.device == segment.device
        and x.is_contiguous()
        for x, segment in zip(tensors, segments, strict=True)
    ]
    return False not in fits and disjoint([x.data_ptr() for x in tensors], [x.nbytes for x in tensors])


def sharing(tensors: Sequence[Tensor]) -> set[int]:
    """Which of these dense tensors share memory with another one."""
    found: set[int] = set()
    latest, end = -1, 0
    for start, size, i in sorted((t.data_ptr(), t.nbytes, i) for i, t in enumerate(tensors)):
        if start < end and size:
            found |= {latest, i}
        if start + size > end:
            latest, end = i, start + size
    return found


def has_no_memory(tensor: Tensor) -> bool:
    """A tensor that stands for others (DTensor, quantised, functional): its entries are not at its address."""
    return type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__


# ---- texts ----


def sparse_text(name: str) -> str:
    """The error for a sparse gradient."""
    return (
        f"the gradient of {name} is a sparse tensor, which gtopk cannot exchange: make its layer with sparse=False "
        "(torch.nn.Embedding), and use a dense optimizer"
    )


def resized_text(name: str, found: torch.Size, kept: torch.Size) -> str:
    """The error for a parameter whose size has changed."""
    return (
        f"{name} has shape {list(found)} now, but its residual has {list(kept)}: after changing the size of a parameter, "
        "make a new optimizer and wrap it, on all ranks"
    )


def device_text(what: str, device: torch.device) -> str:
    """The error for a tensor on a device that cannot exchange."""
    return (
        f"{what} is on {device}, and gtopk exchanges from CPUs and NVIDIA GPUs only: move the model there (model.to('cuda') or "
        "model.to('cpu')) before the optimizer is made"
    )


def moved_text(what: str, device: torch.device, expected: torch.device) -> str:
    """The error for a tensor on another device than its segment's."""
    return (
        f"{what} is on {device}, but its reducer works on {expected}: give gradients on the device of their parameters, and "
        "move a model before its optimizer is made"
    )


def two_devices_text(first: str, one: torch.device, second: str, other: torch.device) -> str:
    """The error for a model that is spread over devices."""
    return (
        f"{first} is on {one} and {second} is on {other}, but the gradients of one optimizer are exchanged on one device: put "
        "the whole model on one, or make an optimizer for the parameters of each device and wrap each of them with "
        "gtopk.DistributedOptimizer (or exchange by gtopk.Reducer(device=...), one for each device)"
    )


def wrapper_text(what: str, tensor: Tensor) -> str:
    """The error for a tensor without memory of its own."""
    return (
        f"{what} is a {type(tensor).__name__}, which has no memory of its own that gtopk could exchange: under fully_shard "
        'give gtopk.DistributedOptimizer(..., group="replicas"); leave out tensor parallelism and quantised parameters, or '
        "exchange the local tensors with gtopk.Reducer"
    )
