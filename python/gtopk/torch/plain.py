"""An optimizer's options and state as JSON: numbers, strings, tuples, lists and dictionaries, with places for tensors.

Pickle could carry all of it, and would run whatever code a message names.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UnsupportedError


class Place(NamedTuple):
    """What stands for a tensor in the JSON."""

    shape: list[int]
    stride: list[int]
    dtype: str

    def make(self) -> Tensor:
        """A new tensor of this kind, not filled."""
        return torch.empty_strided(self.shape, self.stride, dtype=getattr(torch, self.dtype))


def encode(value: Any, tensors: list[Tensor]) -> Any:
    """`value` as JSON can hold it: every container is a list that begins with its kind. Tensors are collected in order.

    Raises
    ------
    UnsupportedError
        Something else is among the options.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors.append(value)
        return ["tensor", *Place(list(value.shape), list(value.stride()), str(value.dtype).removeprefix("torch."))]
    if isinstance(value, dict):
        return ["dict", *([encode(key, tensors), encode(entry, tensors)] for key, entry in value.items())]
    if isinstance(value, list | tuple):
        return [type(value).__name__, *(encode(entry, tensors) for entry in value)]
    raise UnsupportedError(
        f"an optimizer's state with a {type(value).__name__} in it cannot be broadcast without pickle: send it by "
        "gtopk.broadcast_object(optimizer.state_dict()), or load the same checkpoint on every rank"
    )


def decode(value: Any, tensors: list[Tensor]) -> Any:
    """What `encode` was given, with new tensors, which are collected in order."""
    if not isinstance(value, list):
        return value
    kind, *entries = value
    if kind == "tensor":
        tensors.append(Place(*entries).make())
        return tensors[-1]
    if kind == "dict":
        return {decode(key, tensors): decode(entry, tensors) for key, entry in entries}
    decoded = [decode(entry, tensors) for entry in entries]
    return tuple(decoded) if kind == "tuple" else decoded
