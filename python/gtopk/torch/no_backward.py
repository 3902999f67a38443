"""Results of collectives that have no gradient, though what went in has one: who calls backward hears of it."""

from __future__ import annotations

from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from ..errors import UnsupportedError


def without_backward(tensor: Tensor, result: Tensor, call: str) -> Tensor:
    """`result`, as a function of `tensor` whose backward raises."""
    return cast(Tensor, _WithoutBackward.apply(tensor, result, call))  # type: ignore[no-untyped-call]


class _WithoutBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, result: Tensor, call: str) -> Tensor:
        ctx.call = call
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, *_grads: Any) -> NoReturn:
        raise UnsupportedError(
            f"backward() came to the result of gtopk's {ctx.call}, which has no gradient: gtopk exchanges gradients in "
            "optimizer.step(). Call backward() on this rank's own loss, or detach() the tensor if the result is a constant"
        )
