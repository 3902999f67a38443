"""What the host has to know of tensors. Those of a GPU are asked together, as each question waits for the GPU."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor


def answers(questions: list[Tensor]) -> list[bool]:
    """Of tensors with one value each."""
    if not questions:
        return []
    return [bool(one) for one in (torch.stack(questions).tolist() if questions[0].is_cuda else questions)]


def are_zero(gradients: list[Tensor]) -> list[bool]:
    """Which have nothing but zeros, as DDP leaves them."""
    if not gradients or not gradients[0].is_cuda:
        return [_is_zero(gradient) for gradient in gradients]
    return [not some for some in answers([gradient.any() for gradient in gradients])]


def _is_zero(gradient: Tensor) -> bool:
    """Whether all bits are zero. Nearly always the first entry or the last one is not."""
    size, address = gradient.element_size(), gradient.data_ptr()
    if gradient.numel() == 0:
        return False
    ends = ctypes.string_at(address, size) + ctypes.string_at(address + gradient.nbytes - size, size)
    return not any(ends) and not bool(gradient.any())
