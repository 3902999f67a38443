"""The parameters of an optimizer under names, in an order that is the same on all ranks.

Knows torch's optimizers; does not know how gradients are exchanged.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidError, UnsupportedError
from .layout import flat_view, is_dense, order_of

# Exchanged as they are; other floating-point types travel by way of a float32 copy.
_DIRECT = (torch.float32, torch.float16, torch.bfloat16)


class Names:
    """Names of parameters: the caller's where there are any, else the place in the optimizer ("group1.0").

    A parameter keeps the name under which it was met first, and no other parameter ever gets that name: residuals are
    kept by name, and places change when a parameter is taken out of the optimizer.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, Tensor]] | None) -> None:
        self._names: dict[int, str] = {}
        self._owners: dict[str, Tensor] = {}  # keeps them alive: an id stands for a parameter only as long as it lives
        self._complete = named_parameters is not None
        for item in named_parameters or ():
            name, parameter = _named(item)
            if self._owners.setdefault(name, parameter) is not parameter:
                raise InvalidError(f"named_parameters holds two parameters named {name!r}: names must be unique")
            self._names.setdefault(id(parameter), name)

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """All parameters of the optimizer must be named when names were given at all."""
        if not self._complete:
            return
        for g, group in enumerate(optimizer.param_groups):
            for i, parameter in enumerate(group["params"]):
                if id(parameter) not in self._names:
                    raise InvalidError(
                        f"parameter {i} of group {g} (shape {tuple(parameter.shape)}) is not in named_parameters: give "
                        "the named_parameters() of every module whose parameters the optimizer has, or none"
                    )

    def of(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """All parameters by name, each once, in the optimizer's order."""
        found: dict[str, Tensor] = {}
        seen: set[int] = set()
        for g, group in enumerate(optimizer.param_groups):
            own = group.get("param_names")
            for i, parameter in enumerate(group["params"]):
                if id(parameter) in seen:
                    continue
                seen.add(id(parameter))
                found[self._name(parameter, own[i] if own else f"group{g}.{i}")] = parameter
        return found

    def _name(self, parameter: Tensor, proposed: str) -> str:
        known = self._names.get(id(parameter))
        if known is not None:
            return known
        while proposed in self._owners:
            proposed += "'"
        self._owners[proposed] = parameter
        self._names[id(parameter)] = proposed
        return proposed


class Slot:
    """One parameter that takes part in the exchange, and how its gradient is handed over."""

    __slots__ = ("buffer", "direct", "name", "numel", "order", "parameter", "plain", "stride")

    def __init__(self, name: str, parameter: Tensor) -> None:
        self.name = name
        self.parameter = parameter
        self.numel = parameter.numel()
        self.direct = parameter.dtype in _DIRECT
        # Where the parameter has gaps in memory, the index is the place in the order of dimensions.
        in_order = parameter if is_dense(parameter) else torch.empty(parameter.shape, device="meta")
        self.stride = in_order.stride()
        self.order = order_of(in_order)
        self.plain = self.direct and in_order.is_contiguous()  # then most gradients are handed over without a look
        self.buffer: Tensor | None = None

    def describe(self) -> list[Any]:
        """What must be the same on all ranks."""
        return [
            self.name,
            list(self.parameter.shape),
            str(self.parameter.dtype).removeprefix("torch."),
            list(self.order),
        ]

    def gradient(self) -> Tensor:
        """The parameter's gradient; zeros are put there where nothing arrived."""
        grad = self.parameter.grad
        if grad is None:
            grad = self.parameter.grad = torch.zeros_like(self.parameter)
        return grad

    def lies_right(self, grad: Tensor) -> bool:
        """True when the memory of `grad` can be handed over as it is."""
        return self.direct and is_dense(grad) and order_of(grad) == self.order

    def block(self) -> Tensor:
        """Memory of this rank's own, in the parameter's order, for gradients that lie otherwise."""
        if self.buffer is None:
            dtype = self.parameter.dtype if self.direct else torch.float32
            self.buffer = torch.empty_strided(self.parameter.shape, self.stride, dtype=dtype)
        return self.buffer

    def shaped(self, flat: Tensor) -> Tensor:
        """A segment of the reducer in the shape of the parameter; a view."""
        return flat.as_strided(self.parameter.shape, self.stride)

    def flattened(self, values: Tensor) -> Tensor:
        """Values in the shape of the parameter as a segment of the reducer; a copy, as float32."""
        block = torch.empty_strided(self.parameter.shape, self.stride, dtype=torch.float32).copy_(values)
        return flat_view(block).view(-1)

    def put_back(self, grad: Tensor) -> None:
        """Copies the update out of `block` to where the gradient is."""
        if is_dense(grad):
            grad.detach().copy_(self.block())
        else:  # an expanded gradient cannot be written
            self.parameter.grad = self.block().to(grad.dtype, copy=True)


def hand_over(slots: list[Slot]) -> tuple[list[Tensor], list[tuple[Slot, Tensor]]]:
    """Every slot's gradient as one block of memory in the parameter's order, and those that had to be copied for it.

    Raises
    ------
    UnsupportedError
        A gradient is sparse. Nothing was changed but gradients that were None, which are zeros now.
    """
    blocks: list[Tensor] = []
    copied: list[tuple[Slot, Tensor]] = []
    for slot in slots:
        grad = slot.parameter.grad
        if grad is None:
            grad = slot.gradient()
        elif grad.layout is not torch.strided:
            raise UnsupportedError(sparse_text(slot.name))
        if slot.plain and grad.is_contiguous():
            blocks.append(grad)
        elif slot.lies_right(grad):
            blocks.append(flat_view(grad))
        else:
            copied.append((slot, grad))
            blocks.append(flat_view(slot.block()))
    for slot, grad in copied:
        slot.block().copy_(grad.detach())
    return blocks, copied


def sparse_text(name: str) -> str:
    """The error for a sparse gradient."""
    return (
        f"the gradient of {name} is a sparse tensor, which gtopk cannot exchange: make its layer with sparse=False "
        "(torch.nn.Embedding), and use a dense optimizer"
    )


def check_types(parameters: dict[str, Tensor]) -> None:
    """Complex parameters cannot be exchanged."""
    for name, parameter in parameters.items():
        if parameter.is_complex():
            raise UnsupportedError(
                f"parameter {name} is {str(parameter.dtype).removeprefix('torch.')}, which gtopk cannot exchange: keep "
                "torch.view_as_real of it as the parameter, and use torch.view_as_complex in forward"
            )


def _named(item: Any) -> tuple[str, Tensor]:
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], Tensor):
        return item
    raise InvalidError(
        f"named_parameters must give pairs of name and parameter, not {type(item).__name__}: pass model.named_parameters()"
    )
