"""What the hook has to know of the DistributedDataParallel that calls it, which does not tell it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn.parallel import DistributedDataParallel


class Ddp(NamedTuple):
    """What a step has to know of the DDP object."""

    object: weakref.ref[DistributedDataParallel] | None  # None: it was not found
    parameters: int | None  # it hands over in each iteration, where it may not say which bucket is the last
    skips_unused: bool  # it does not apply the update of a parameter that no rank used


def find_ddp(state: object) -> Ddp:
    """The DDP object that `state` was registered with. A hook is not told, so it is looked for, once."""
    for found in gc.get_objects():
        if issubclass(type(found), DistributedDataParallel) and any(
            registered is state for _, registered in getattr(found, "_comm_hooks", ())
        ):
            count = _count_parameters(found) if found.static_graph else None
            return Ddp(weakref.ref(found), count, found.find_unused_parameters or found.static_graph)
    return Ddp(None, None, True)


def _count_parameters(ddp: DistributedDataParallel) -> int:
    """As DDP counts. Its own figures cannot be asked for inside a hook: their lock is taken."""
    handed = {
        id(parameter)
        for prefix, module in ddp.module.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad and f"{prefix}.{name}" not in ddp.parameters_to_ignore
    }
    return len(handed)


def after_backward(call: Callable[[], None]) -> None:
    """When DDP has put the update into the gradients, which it does after the callbacks that are queued now."""
    queue = torch.autograd.Variable._execution_engine.queue_callback
    queue(lambda: queue(call))
