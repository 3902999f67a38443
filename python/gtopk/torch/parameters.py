"""The parameters of an optimizer under names, in an order that is the same on all ranks.

Knows torch's optimizers; does not know how gradients are exchanged.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidError, UnsupportedError
from .segments import device_text, has_no_memory, two_devices_text, wrapper_text
from .shards import here

# What torch.compile, and PyTorch's activation checkpointing, put into the names of the modules that they wrap.
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")


def plain_name(name: str) -> str:
    """The name that a parameter has in the model before torch.compile and activation checkpointing."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


class Names:
    """Names of parameters: the caller's where there are any, else the place in the optimizer ("group1.0").

    A parameter keeps the name under which it was met first, and no other parameter ever gets that name: residuals are
    kept by name, and places change when a parameter is taken out of the optimizer.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, Tensor]] | None) -> None:
        self._names: dict[int, str] = {}
        self._owners: dict[str, Tensor] = {}  # keeps them alive: an id stands for a parameter only as long as it lives
        self.complete = named_parameters is not None
        for item in named_parameters or ():
            given, parameter = _named(item)
            name = plain_name(given)
            if self._owners.setdefault(name, parameter) is not parameter:
                raise InvalidError(f"named_parameters holds two parameters named {name!r}: names must be unique")
            self._names.setdefault(id(parameter), name)

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """All parameters of the optimizer must be named when names were given at all."""
        if not self.complete:
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
            own = group.get("param_names") or ()
            for i, parameter in enumerate(group["params"]):
                if id(parameter) in seen:
                    continue
                seen.add(id(parameter))
                # Appending to the list of parameters leaves the list of their names as it was.
                proposed = plain_name(own[i]) if i < len(own) else f"group{g}.{i}"
                found[self.name(parameter, proposed)] = parameter
        return found

    def name(self, parameter: Tensor, proposed: str) -> str:
        """The name it has already, else the proposed one, made different from all others."""
        known = self._names.get(id(parameter))
        if known is not None:
            return known
        while proposed in self._owners:
            proposed += "'"
        self._owners[proposed] = parameter
        self._names[id(parameter)] = proposed
        return proposed


def check_parameters(parameters: dict[str, Tensor], *, exchanged: bool, sharded: bool = False) -> None:
    """Whether these can be exchanged, before anything was done. `exchanged`: there are other ranks; `sharded`: shards can.

    Raises
    ------
    UnsupportedError
        One of them cannot: the text has its name and what to do.
    """
    first: tuple[str, torch.device] | None = None
    for name, parameter in parameters.items():
        if parameter.is_complex():
            raise UnsupportedError(
                f"parameter {name} is {str(parameter.dtype).removeprefix('torch.')}, which gtopk cannot exchange: keep "
                "torch.view_as_real of it as the parameter, and use torch.view_as_complex in forward"
            )
        if exchanged and has_no_memory(here(parameter) if sharded else parameter):
            raise UnsupportedError(wrapper_text(f"parameter {name}", parameter))
        if exchanged and not (parameter.is_cpu or parameter.is_cuda):
            raise UnsupportedError(device_text(f"parameter {name}", parameter.device))
        if exchanged and parameter.requires_grad:
            first = first or (name, parameter.device)
            if parameter.device != first[1]:
                raise UnsupportedError(two_devices_text(f"parameter {first[0]}", first[1], name, parameter.device))


def _named(item: Any) -> tuple[str, Tensor]:
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], Tensor):
        return item
    raise InvalidError(
        f"named_parameters must give pairs of name and parameter, not {type(item).__name__}: pass model.named_parameters()"
    )
