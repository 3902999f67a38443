"""The form of gtopk's part of a saved state: every field's type, range and length, before anything is done with it.

Knows nothing of models and ranks; whether a state fits them is `checkpoint.check`'s question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..errors import CorruptError

FORMAT = 1
CONSOLIDATED = -1  # in place of a rank, in a state that holds the sum of all ranks: so many as its size says
FIELDS = (
    "format",
    "rank",
    "size",
    "run",
    "step",
    "names",
    "shapes",
    "residual_of",
    "velocity_of",
    "residual",
    "velocity",
)
# Of an optimizer with local steps; all of them or none.
LOCAL_FIELDS = ("local_steps", "start_of", "outer_velocity_of", "start", "outer_velocity")
_LARGEST = 2**63 - 1


def check_form(saved: Any) -> None:
    """Changes nothing.

    Raises
    ------
    CorruptError
        It was not made by this package, or is damaged; the text names the field.
    """
    if not isinstance(saved, Mapping):
        raise CorruptError(
            f"gtopk's part of the state is a {type(saved).__name__} and no mapping: it was not made by this package; load "
            "what state_dict() or consolidate_state_dict() gave"
        )
    missing = next((name for name in FIELDS if name not in saved), None)
    if missing:
        raise CorruptError(
            f"gtopk's part of the state has no {missing!r}: it was not made by this package, or is damaged; load what "
            "state_dict() or consolidate_state_dict() gave"
        )
    _whole_number(saved, "format", 1)
    if saved["format"] != FORMAT:
        raise CorruptError(
            f"the state has format {saved['format']}, this version reads {FORMAT}: install a newer gtopk"
        )
    _whole_number(saved, "size", 1)
    _whole_number(saved, "rank", CONSOLIDATED, saved["size"] - 1)
    if saved["run"] is not None:
        _whole_number(saved, "run", 0)
    _whole_number(saved, "step", 0)
    _different_names(saved, "names")
    shapes = dict(zip(saved["names"], _shapes(saved), strict=True))
    for what in ("residual", "velocity"):
        _check_entries(saved, what, shapes)
    alone = next((name for name in saved["velocity"] if name not in saved["residual"]), None)
    if alone is not None:
        _damaged("residual", f"has nothing of {_short(alone)}, of which there is a velocity")
    if any(field in saved for field in LOCAL_FIELDS):
        _check_local(saved, shapes)
    if saved.get("as_gradients", True) is not True:
        _damaged("as_gradients", f"is {_short(saved['as_gradients'])}, but must be True where it is there")
    shard: Any = saved.get("shard")
    if shard is not None and not (
        _is_list(shard) and len(shard) == 2 and all(type(n) is int for n in shard) and 0 <= shard[0] < shard[1]
    ):
        _damaged("shard", f"is {_short(shard)}, but must be its number and how many there are")


def _check_local(saved: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> None:
    for field in LOCAL_FIELDS:
        if field not in saved:
            _damaged(field, "is missing, though there are others of local steps")
    counts: Any = saved["local_steps"]
    if not _is_list(counts) or len(counts) != 2 or not all(type(n) is int and 0 <= n <= _LARGEST for n in counts):
        _damaged(
            "local_steps", f"is {_short(counts)}, but must be two whole numbers: steps, and those since an exchange"
        )
    for what in ("start", "outer_velocity"):
        _check_entries(saved, what, shapes)


def _whole_number(saved: Mapping[str, Any], field: str, least: int, largest: int = _LARGEST) -> None:
    found = saved[field]
    if not isinstance(found, int) or isinstance(found, bool) or not least <= found <= largest:
        _damaged(field, f"is {_short(found)}, but must be a whole number from {least} to {largest}")


def _different_names(saved: Mapping[str, Any], field: str) -> None:
    found = saved[field]
    if not _is_list(found) or not all(isinstance(name, str) for name in found) or len(set(found)) != len(found):
        _damaged(field, f"is {_short(found)}, but must be a list of different names")


def _shapes(saved: Mapping[str, Any]) -> Sequence[Sequence[int]]:
    found: Any = saved["shapes"]
    if not _is_list(found) or len(found) != len(saved["names"]):
        _damaged("shapes", f"is {_short(found)}, but must be a list of {len(saved['names'])} shapes, one for each name")
    for name, shape in zip(saved["names"], found, strict=True):
        if not _is_list(shape) or not all(type(extent) is int and 0 <= extent <= _LARGEST for extent in shape):
            _damaged("shapes", f"has {_short(shape)} for {name}, but must have a list of whole numbers, 0 or more")
    return found  # type: ignore[no-any-return]


def _check_entries(saved: Mapping[str, Any], what: str, shapes: Mapping[str, Sequence[int]]) -> None:
    """Residual or velocity: a tensor for each of the names that are listed beside it, of that parameter's shape."""
    listed = f"{what}_of"
    _different_names(saved, listed)
    entries: Any = saved[what]
    if not isinstance(entries, Mapping):
        _damaged(what, f"is {_short(entries)}, but must be a mapping of names to tensors")
    for name in [*entries, *saved[listed]]:
        if name not in entries or name not in saved[listed]:
            _damaged(what, f"and its {listed} must have the same names, and {_short(name)} is in one of them only")
        if name not in shapes:
            _damaged(what, f"has {_short(name)}, which is not in its names")
    for name, values in entries.items():
        _check_values(what, name, values, shapes[name])


def _check_values(what: str, name: str, values: Any, shape: Sequence[int]) -> None:
    types = (torch.float32, torch.float64) if what == "start" else (torch.float32,)
    if not isinstance(values, Tensor) or values.dtype not in types:
        _damaged(what, f"of {name} is no float32 tensor")
    if values.layout is not torch.strided or values.is_nested or values.is_meta:
        _damaged(what, f"of {name} is no ordinary tensor with its values in memory")
    if list(values.shape) != list(shape):
        _damaged(what, f"of {name} has shape {list(values.shape)}, but its parameter has {list(shape)}")
    if not bool(torch.isfinite(values).all()):
        _damaged(what, f"of {name} holds Inf or NaN")


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _damaged(field: str, text: str) -> NoReturn:
    raise CorruptError(f"gtopk's part of the state is damaged: its {field} {text}. Load another checkpoint")


def _short(value: Any) -> str:
    """For the text of an error: what is wrong may be large."""
    if value is None or isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) <= _LARGEST):
        return repr(value)
    return repr(value[:60]) if isinstance(value, str) else f"something of type {type(value).__name__}"
