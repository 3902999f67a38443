"""The memory order of a tensor: an entry's index on the wire is its place in the memory of the parameter.

Gradients that lie in memory as their parameter does (channels-last too) are handed over as they are; others are copied.
Knows nothing of optimizers and of the exchange.
"""

from __future__ import annotations

from torch import Tensor

# Strides of the dimensions that have more than one entry; the others' strides mean nothing.
Order = tuple[int, ...]


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


def order_of(tensor: Tensor) -> Order:
    """What decides where an entry lies in memory, beside the shape."""
    return tuple(stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1)


def flat_view(tensor: Tensor) -> Tensor:
    """A dense tensor's memory as one dimension; a contiguous tensor is returned as it is."""
    if tensor.is_contiguous():
        return tensor
    return tensor.detach().as_strided((tensor.numel(),), (1,))
