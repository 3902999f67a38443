"""A run's curves for TensorBoard, where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agree import on_every_rank

import gtopk
from gtopk.torch.tensorboard import write_stats

__all__ = ["Curves"]


class Curves:
    """Rank 0 writes into `folder`; without a folder nobody writes anything."""

    def __init__(self, folder: Path | None) -> None:
        self._writer: Any = on_every_rank(lambda: _open(folder)) if folder else None

    def add(self, line: dict[str, Any], stats: dict[str, Any], metric: str) -> None:
        """A line of the history, and the statistics of its last step."""
        if self._writer is None:
            return
        for name, key in (("loss", "loss"), (metric, "score"), ("learning rate", "learning_rate"),
                          ("samples a second", "samples_per_s"), ("share of communication", "communication_share"),
                          ("bytes sent", "bytes_sent")):  # fmt: skip
            self._writer.add_scalar(f"training/{name}", line[key], line["step"])
        write_stats(self._writer, stats, line["step"])

    def __enter__(self) -> Curves:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()


def _open(folder: Path) -> Any:
    if gtopk.rank() != 0:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RuntimeError(f"--tensorboard needs the package tensorboard: pip install tensorboard ({error})") from error
    return SummaryWriter(str(folder))
