"""Do all ranks have the same gradients? Looked at in the first steps, for two mistakes that nothing else shows."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ..comm import Comm

_log = logging.getLogger("gtopk")

_STEPS = 3
_ENOUGH = 2  # of these; in one of them all gradients may be zero
_FIRST = 16  # entries of each tensor
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class SameGradients:
    """Warns on rank 0 when the gradients of several ranks are the same, bit for bit, in the first steps."""

    def __init__(self, ranks: int) -> None:
        self._left = _STEPS if ranks > 1 else 0
        self._same = 0

    @property
    def looks(self) -> bool:
        """Whether the coming step is one of those."""
        return self._left > 0

    def look(self, comm: Comm, tensors: Sequence[Tensor] | None) -> None:
        """At the tensors of one step, None for a rank that has no more. Collective in the first steps."""
        if not self.looks:
            return
        self._left -= 1
        found = comm.allgather_json(None if tensors is None else _digest(tensors))
        if found.count(found[0]) < len(found):
            self._left = 0
        elif found[0] is not None:
            self._same += 1
            if self._same == _ENOUGH and comm.rank == 0:
                _warn(comm.size)


def _warn(ranks: int) -> None:
    _log.warning(
        "all %d ranks have the same gradients, bit for bit, in their first steps. Either they read the same data: give the "
        "DataLoader a DistributedSampler(dataset, num_replicas=gtopk.size(), rank=gtopk.rank()). Or their gradients are "
        "exchanged elsewhere, too: leave out DistributedDataParallel, or keep it and register gtopk's hook in place of "
        "gtopk's optimizer",
        ranks,
    )


def _digest(tensors: Sequence[Tensor]) -> str | None:
    """Of the tensors' bits: sums, for which the number of threads does not matter, and the first entries. None for zeros."""
    found = [_bits(tensor) for tensor in tensors if type(tensor) is Tensor and (tensor.is_cpu or tensor.is_cuda)]
    return hashlib.sha256(repr(found).encode()).hexdigest() if any(total for total, _ in found) else None


def _bits(tensor: Tensor) -> tuple[int, list[int]]:
    if tensor.layout is not torch.strided or tensor.element_size() not in _INTEGERS:
        return 0, []
    bits = tensor.detach().reshape(-1).view(_INTEGERS[tensor.element_size()])
    return int(bits.sum(dtype=torch.int64)), bits[:_FIRST].tolist()
