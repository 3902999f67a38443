"""The warning about steps that were skipped because a gradient was not finite."""

from __future__ import annotations

import logging

_log = logging.getLogger("gtopk")


_EXCHANGED = "a gradient was Inf or NaN on some rank, so no rank can use this step ({}"


class NonfiniteWarning:
    """Warns at the 1st, 10th, 100th and every 1000th such step in a row."""

    def __init__(self, what: str = _EXCHANGED) -> None:
        self._what = what
        self.in_a_row = 0

    def note(self, nonfinite: bool, rank: int, step: int, *, kept_out: bool) -> None:
        """Counts one step. `kept_out`: it leaves residuals as they were before it."""
        self.in_a_row = self.in_a_row + 1 if nonfinite else 0
        if self.in_a_row in (1, 10, 100) or (self.in_a_row and self.in_a_row % 1000 == 0):
            _log.warning(
                "rank %d, step %d: %s in a row). A few are normal with a GradScaler; otherwise lower the learning rate or "
                "clip gradients%s",
                rank,
                step,
                self._what.format(self.in_a_row),
                "" if kept_out else ". What was finite in it is sent in later steps; rollback=True would keep it out",
            )
