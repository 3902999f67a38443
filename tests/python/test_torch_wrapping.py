"""Optimizers of other packages, and what a wrapped one does with methods that they have themselves. One process."""

from __future__ import annotations

import abc
from typing import ClassVar, Generic, Protocol, TypeVar

import pytest

torch = pytest.importorskip("torch")

from torch import nn, optim
from torch_support import ALL, assert_equal, make, train, twins

import gtopk
from gtopk.torch.mixin import DistributedMixin

T = TypeVar("T")


class Steps(Protocol):
    def step(self, closure=None): ...


class Counting(type):
    made = 0

    def __new__(mcls, name, bases, namespace):
        Counting.made += 1
        return super().__new__(mcls, name, bases, namespace)


class OverAbc(abc.ABC, optim.SGD):
    pass


class OverGeneric(Generic[T], optim.SGD):
    pass


class OverProtocol(Steps, optim.SGD):
    def step(self, closure=None):
        return optim.SGD.step(self, closure)


class OverMetaclass(optim.SGD, metaclass=Counting):
    pass


class OverMixin(OverAbc, OverGeneric[int]):
    pass


class OverSlots(optim.SGD):
    __slots__ = ("more",)


KINDS = [optim.SGD, OverAbc, OverGeneric, OverProtocol, OverMetaclass, OverMixin, OverSlots]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_whatever_its_bases(either, kind):
    model, plain = twins()
    optimizer = kind(model.parameters(), lr=0.1, momentum=0.9)
    wrapped = gtopk.DistributedOptimizer(optimizer, model.named_parameters(), **ALL)
    assert wrapped is optimizer
    assert isinstance(wrapped, kind)
    assert isinstance(wrapped, DistributedMixin)
    assert type(wrapped).__name__ == kind.__name__
    reference = kind(plain.parameters(), lr=0.1, momentum=0.9)
    model.unused.grad, plain.unused.grad = torch.zeros(7), torch.zeros(7)
    train(model, optimizer)
    train(plain, reference)
    assert_equal(model, plain)
    assert optimizer.stats()["step"] == 3
    with pytest.raises(gtopk.StateError, match="already"):
        gtopk.DistributedOptimizer(optimizer)


class Busy(optim.SGD):
    """Calls methods of its own in its step, which have names of gtopk's."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = []

    def synchronize(self):
        self.calls.append("synchronize")

    def stats(self):
        return {"mine": 1}

    def join(self):
        return "joined"

    def skip_synchronize(self):
        return "skipped"

    def consolidate_state_dict(self, to=0):
        self.calls.append(f"consolidate to {to}")

    def step(self, closure=None):
        self.synchronize()
        self.found = self.stats(), self.join(), self.skip_synchronize()
        return super().step(closure)

    def state_dict(self):
        assert self.stats() == {"mine": 1}
        return super().state_dict()


def test_methods_of_its_own_with_our_names(either):
    model = make()
    optimizer = gtopk.DistributedOptimizer(Busy(model.parameters(), lr=0.1), model.named_parameters(), **ALL)
    train(model, optimizer, steps=2)
    assert optimizer.found == ({"mine": 1}, "joined", "skipped")
    assert optimizer.calls == ["synchronize"] * 2
    assert optimizer.stats()["step"] == 1  # from outside it is gtopk's
    state = optimizer.consolidate_state_dict(to=0)
    assert optimizer.calls[-1] == "consolidate to 0"
    assert state["gtopk"]["step"] == 2


def test_statistics_in_a_hook_of_the_step(either):
    model = make()
    optimizer = gtopk.DistributedOptimizer(optim.SGD(model.parameters(), lr=0.1), model.named_parameters(), **ALL)
    seen = []
    optimizer.register_step_post_hook(lambda one, *_: seen.append(one.stats()["step"]))
    train(model, optimizer, steps=2)
    assert seen == [0, 1]


class Sam(optim.Optimizer):
    """As published: to the worst place near by, and from there back, with a step of the base optimizer."""

    def __init__(self, params, kind, **options):
        super().__init__(params, options)
        self.base_optimizer = kind(self.param_groups, **options)

    def step(self, closure):
        closure()
        self.base_optimizer.step()


class Twice(optim.SGD):
    def step(self, closure):
        closure()
        closure()


def test_optimizers_that_evaluate_the_model_themselves_are_refused(either):
    weight = nn.Parameter(torch.zeros(3))
    sam = Sam([weight], optim.SGD, lr=0.1)
    with pytest.raises(gtopk.UnsupportedError, match=r"Sam steps by way of .*base_optimizer = gtopk\.Distributed"):
        gtopk.DistributedOptimizer(sam)
    assert type(sam) is Sam
    gtopk.DistributedOptimizer(sam.base_optimizer, **ALL)
    with pytest.raises(gtopk.UnsupportedError, match="Twice cannot do without a closure"):
        gtopk.DistributedOptimizer(Twice([weight], lr=0.1))


def test_a_communicator_of_its_own():
    with gtopk.Comm(transport="self") as comm:
        weight = nn.Parameter(torch.zeros(3))
        optimizer = gtopk.DistributedOptimizer(optim.SGD([weight], lr=1.0), comm=comm)
        weight.grad = torch.ones(3)
        optimizer.step()
        assert not gtopk.is_initialized()
        assert (weight == -1).all()
        gtopk.broadcast_parameters({"weight": weight}, comm=comm)
        gtopk.broadcast_optimizer_state(optimizer)


class Registered(optim.SGD):
    """A class whose subclasses must say something about themselves, and are listed."""

    known: ClassVar[list[str]] = []

    def __init_subclass__(cls, *, label, **kwargs):
        super().__init_subclass__(**kwargs)
        Registered.known.append(label)


class Mine(Registered, label="mine"):
    pass


def test_a_class_whose_subclasses_need_arguments(either):
    for kind in (Mine, Registered):
        model, plain = twins()
        reference = kind(plain.parameters(), lr=0.1)
        optimizer = gtopk.DistributedOptimizer(kind(model.parameters(), lr=0.1), model.named_parameters(), **ALL)
        for one, its in ((plain, reference), (model, optimizer)):
            train(one, its, 2)
        assert_equal(model, plain)
        assert isinstance(optimizer, kind)
    assert Registered.known == ["mine"]  # and the wrapper is not one that a user made


class Asking(type):
    def __new__(mcls, name, bases, namespace, *, label):
        return super().__new__(mcls, name, bases, namespace)

    def __init__(cls, name, bases, namespace, *, label):
        super().__init__(name, bases, namespace)


class OverAsking(optim.SGD, metaclass=Asking, label="x"):
    pass


def test_a_metaclass_that_needs_arguments_is_a_clear_error(alone):
    model = make()
    optimizer = OverAsking(model.parameters(), lr=0.1)
    with pytest.raises(gtopk.UnsupportedError, match=r"Asking, the metaclass of OverAsking, refuses .*label"):
        gtopk.DistributedOptimizer(optimizer, model.named_parameters())
    assert type(optimizer) is OverAsking
