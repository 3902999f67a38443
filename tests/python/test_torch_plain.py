"""Options and state of an optimizer as JSON, and back."""

from __future__ import annotations

import json
import math

import pytest

torch = pytest.importorskip("torch")

from gtopk import UnsupportedError
from gtopk.torch import plain


def there_and_back(value):
    tensors, made = [], []
    message = json.loads(json.dumps(plain.encode(value, tensors)))
    result = plain.decode(message, made)
    for one, other in zip(made, tensors, strict=True):
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)
        one.copy_(other)
    return result


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        0.1,
        math.inf,
        "tensor",
        (0.9, 0.999),
        [],
        (),
        {},
        {0: {"step": 3, "betas": (0.9, [1, None])}, "list": ["tuple", "dict"]},
    ],
)
def test_values_come_back_as_they_were(value):
    result = there_and_back(value)
    assert result == value
    assert repr(result) == repr(value)


def test_tensors_come_back_in_their_layout():
    value = {0: {"a": torch.randn(2, 3).t(), "b": (torch.tensor(2.0, dtype=torch.float64),)}, 1: torch.empty(0, 4)}
    result = there_and_back(value)
    assert torch.equal(result[0]["a"], value[0]["a"])
    assert torch.equal(result[0]["b"][0], value[0]["b"][0])
    assert result[1].shape == (0, 4)


def test_optimizers_state_comes_back():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.8, 0.9))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    result = there_and_back(state)
    assert result["param_groups"] == state["param_groups"]
    for number, entries in state["state"].items():
        for name, tensor in entries.items():
            assert torch.equal(result["state"][number][name], tensor)


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(UnsupportedError, match="broadcast_object"):
        plain.encode({"hook": print}, [])
