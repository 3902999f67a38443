"""The weights that a period of local steps started from, theta0, of one parameter.

In float32 whatever the parameter's type (float64 for float64), so that small updates add up: 4 bytes an entry. Of a float32
parameter it can be in bf16: what that rounds away is part of the next difference, and so stays in the residual.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..comm import Comm
from ..errors import MismatchError
from .segments import flat_view

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Start:
    """theta0 of a parameter.

    Parameters
    ----------
    parameter : Tensor
        Its values and its memory order are taken over, without gaps. Not kept.
    bf16 : bool
        Keep a float32 parameter's in 2 bytes an entry.
    """

    def __init__(self, parameter: Tensor, bf16: bool = False) -> None:
        self.wide = wide_type(parameter)  # computed in
        narrow = bf16 and parameter.dtype is torch.float32
        self.weights = zeros_like(parameter, torch.bfloat16 if narrow else self.wide)
        self.weights.copy_(parameter.detach())

    def is_at(self, parameter: Tensor) -> bool:
        """Whether the parameter is where the period started."""
        if self.weights.dtype is not self.wide:
            return torch.equal(self.weights, parameter.detach().to(self.weights.dtype))
        return torch.equal(self._in_type_of(parameter), parameter.detach())

    def begin(self, parameter: Tensor) -> Tensor:
        """theta0 of a period that begins where the parameter is, with what bf16 is going to round away; not always a copy."""
        if self.weights.dtype is self.wide and self.is_at(parameter):  # a 16-bit parameter's is more than it holds
            return self.weights
        return parameter.detach().to(self.wide)

    def difference(self, parameter: Tensor) -> Tensor:
        """theta0 - theta in the shape of the weights, exact for 16-bit parameters."""
        result = zeros_like(self.weights, torch.float32)
        return torch.sub(self._in_type_of(parameter).to(self.wide), parameter.detach(), out=result)

    def move(self, parameter: Tensor, update: Tensor, outer_lr: float) -> None:
        """The outer step, which uses up `update`, flat, and sets the parameter to where the next period starts.

        Product and sum are rounded each: the same bits on every machine.
        """
        moved = self.weights.to(self.wide)
        flat(moved).sub_(update if outer_lr == 1.0 else update.mul_(outer_lr))
        parameter.copy_(moved)
        if moved is not self.weights:
            self.weights.copy_(moved)

    def _in_type_of(self, parameter: Tensor) -> Tensor:
        """What the parameter was set to."""
        return self.weights.to(parameter.dtype)


def wide_type(parameter: Tensor) -> torch.dtype:
    """In which theta0 of it is kept and computed."""
    return torch.float64 if parameter.dtype is torch.float64 else torch.float32


def zeros_like(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In the memory order of `tensor`, without gaps."""
    return torch.zeros_like(tensor, dtype=dtype, memory_format=torch.preserve_format)


def flat(tensor: Tensor) -> Tensor:
    """The memory of a tensor without gaps, as one dimension."""
    return flat_view(tensor).view(-1)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """One pass over them, as a sum is finite only if all terms are; a second one where a sum overflows."""
    return all(bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all()) for tensor in tensors)


def check_same(
    comm: Comm, parameters: Mapping[str, Tensor], starts: Mapping[str, Start], velocities: Mapping[str, Tensor]
) -> None:
    """Raises `MismatchError` on every rank unless all start from the same bits, in the same types. Collective."""
    mine = {}
    for name, parameter in parameters.items():
        tensors = [starts[name].weights] + ([velocities[name]] if name in velocities else [])
        mine[name] = [str(parameter.dtype), *(_bits(tensor) for tensor in tensors)]
    everywhere = comm.allgather_json(mine)
    for rank, theirs in enumerate(everywhere):
        for name in everywhere[0]:
            if theirs.get(name) != everywhere[0][name]:
                raise MismatchError(
                    f"{name} does not start from the same weights, in the same type, on rank 0 and on rank {rank}: call "
                    "gtopk.broadcast_parameters(model.state_dict()) on all ranks before the first step"
                )


def _bits(tensor: Tensor) -> list[int]:
    """A sum of the bits, and one that depends on their order."""
    bits = flat(tensor).view(_INTEGERS[tensor.element_size()]).long()
    return [int(bits.sum()), int((bits * torch.arange(1, 1 + len(bits), device=bits.device)).sum())]
