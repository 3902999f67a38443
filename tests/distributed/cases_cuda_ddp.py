"""The hook with tensors on GPUs: those cases in which DDP itself has nothing to send that matters, as on the stand-in its
own messages go nowhere (torch_cuda.BACKEND)."""

from __future__ import annotations

from cases_torch_ddp import (
    case_a_skipped_step_is_not_applied_later,
    case_grad_scaler,
    case_indices_are_places_in_memory,
    case_rebuilt_buckets_keep_residuals,
    case_the_scale_does_not_change_the_result,
    case_types_and_layouts,
)

__all__ = [
    "case_a_skipped_step_is_not_applied_later",
    "case_grad_scaler",
    "case_indices_are_places_in_memory",
    "case_rebuilt_buckets_keep_residuals",
    "case_the_scale_does_not_change_the_result",
    "case_types_and_layouts",
]
