"""DistributedOptimizer in one process: it is the user's own optimizer, and whatever worked before goes on working.

With one rank nothing is exchanged. The fixture `exchanging` sends gradients through a reducer all the same, with density
1 and fp32, so that the mean update is the gradient itself, and training must be that of the plain optimizer bit for bit.
"""

from __future__ import annotations

import copy
import gc
import inspect
import math
import pickle
import warnings
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from torch import nn, optim
from torch.optim import lr_scheduler
from torch_support import ALL, Net, assert_equal, batch, loss_of, make, train, twins

import gtopk
from gtopk.torch.ddp_hook import GTopKState
from gtopk.torch.warmup import DensitySchedule, default_density, grown_share

OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "sgd-momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "sgd-foreach": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "sgd-fused": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adam": lambda p: optim.Adam(p, amsgrad=True),
    "adam-fused": lambda p: optim.Adam(p, fused=True),
    "adamw": lambda p: optim.AdamW(p),
    "adamw-foreach": lambda p: optim.AdamW(p, foreach=True),
    "adamw-tensor-lr": lambda p: optim.AdamW(p, lr=torch.tensor(0.01)),
    "adagrad": lambda p: optim.Adagrad(p),
    "adadelta": lambda p: optim.Adadelta(p),
    "adamax": lambda p: optim.Adamax(p),
    "asgd": lambda p: optim.ASGD(p),
    "nadam": lambda p: optim.NAdam(p),
    "radam": lambda p: optim.RAdam(p),
    "rmsprop": lambda p: optim.RMSprop(p, momentum=0.9),
    "rprop": lambda p: optim.Rprop(p),
    "adafactor": lambda p: optim.Adafactor(p),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_does_what_it_did(either, name):
    model, plain = twins()
    distributed = gtopk.DistributedOptimizer(OPTIMIZERS[name](model.parameters()), model.named_parameters(), **ALL)
    reference = OPTIMIZERS[name](plain.parameters())
    model.unused.grad = torch.zeros(7)
    plain.unused.grad = torch.zeros(7)  # gtopk gives unused parameters a gradient of zero, as Horovod does
    for step in range(4):
        for net, optimizer in ((model, distributed), (plain, reference)):
            optimizer.zero_grad(set_to_none=False)
            loss_of(net, batch(step)).backward()
            optimizer.step()
    assert_equal(model, plain)


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=2),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[2]
    ),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 4),
    "SWALR": lambda o: optim.swa_utils.SWALR(o, 0.05),
}


def test_the_list_of_schedulers_is_complete():
    known = {
        name for name, value in vars(lr_scheduler).items() if inspect.isclass(value) and name in lr_scheduler.__all__
    }
    assert known - {"LRScheduler"} <= set(SCHEDULERS)


def rate(optimizer):
    return optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_made_before_or_after(exchanging, name, before):
    model, plain = twins()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    reference = optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a scheduler warns when it believes that step() was not called
        warnings.filterwarnings("ignore", message=".*deprecated.*")
        warnings.filterwarnings("ignore", message=".*epoch parameter.*")
        if before:
            scheduler = SCHEDULERS[name](optimizer)
            assert gtopk.DistributedOptimizer(optimizer, model.named_parameters(), **ALL) is optimizer
        else:
            gtopk.DistributedOptimizer(optimizer, model.named_parameters(), **ALL)
            scheduler = SCHEDULERS[name](optimizer)
        other = SCHEDULERS[name](reference)
        value = [1.0] if name == "ReduceLROnPlateau" else []
        rates, expected = [], []
        train(model, optimizer, after=[lambda: rates.append(rate(optimizer)), lambda: scheduler.step(*value)])
        train(plain, reference, after=[lambda: expected.append(rate(reference)), lambda: other.step(*value)])
    assert rates == expected
    assert len(set(rates)) > 1
    assert optimizer.stats()["step"] == 3
    assert_equal(model, plain)


def test_it_is_the_same_object(either):
    model = make()
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    groups = optimizer.param_groups
    wrapped = gtopk.DistributedOptimizer(optimizer, model.named_parameters())
    assert wrapped is optimizer
    assert isinstance(wrapped, optim.AdamW)
    assert type(wrapped).__name__ == "AdamW"
    assert wrapped.param_groups is groups
    assert repr(wrapped).startswith("AdamW (")


def test_hooks_of_the_optimizer_run_once(exchanging):
    model = make()
    optimizer = gtopk.DistributedOptimizer(optim.SGD(model.parameters(), lr=0.1), **ALL)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    train(model, optimizer, steps=2)
    assert calls == ["pre", "post"] * 2
    optimizer.load_state_dict(optimizer.state_dict())  # after which torch sees to it that step() calls its hooks
    train(model, optimizer, steps=1)
    assert calls == ["pre", "post"] * 3


def test_closure_runs_once_with_gradients(either):
    model, plain = twins()
    distributed = gtopk.DistributedOptimizer(optim.SGD(model.parameters(), lr=0.1), **ALL)
    reference = optim.SGD(plain.parameters(), lr=0.1)
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        distributed.zero_grad()
        loss = loss_of(model, batch(0))
        loss.backward()
        return loss

    with torch.no_grad():
        loss = distributed.step(closure)
    train(plain, reference, steps=1)
    assert calls == [True]
    assert loss.item() == loss_of(make().train(), batch(0)).item()
    assert_equal(model, plain)
    with distributed.skip_synchronize(), pytest.raises(gtopk.StateError, match="closure"):
        distributed.step(closure)


def test_synchronize_then_global_clipping(exchanging):
    model, plain = twins()
    distributed = gtopk.DistributedOptimizer(optim.SGD(model.parameters(), lr=0.1), model.named_parameters(), **ALL)
    reference = optim.SGD(plain.parameters(), lr=0.1)
    for step in range(3):
        for net, optimizer in ((model, distributed), (plain, reference)):
            optimizer.zero_grad()
            loss_of(net, batch(step)).backward()
            if optimizer is distributed:
                optimizer.synchronize()
            nn.utils.clip_grad_norm_([p for n, p in net.named_parameters() if n != "unused"], 0.01)
            if optimizer is distributed:
                with optimizer.skip_synchronize():
                    optimizer.step()
            else:
                optimizer.step()
    assert distributed.stats()["step"] == 2
    assert_equal(model, plain)


def test_step_after_synchronize_is_an_error(exchanging):
    model = make()
    optimizer = gtopk.DistributedOptimizer(optim.SGD(model.parameters(), lr=0.1), **ALL)
    loss_of(model, batch(0)).backward()
    optimizer.synchronize()
    with pytest.raises(gtopk.StateError, match=r"with optimizer\.skip_synchronize\(\):"):
        optimizer.step()
    with optimizer.skip_synchronize():
        optimizer.step()
    optimizer.step()  # and the next step is an ordinary one


def test_gradients_add_up_over_backward_passes(exchanging):
    model, plain = twins()
    distributed = gtopk.DistributedOptimizer(
        optim.SGD(model.parameters(), lr=0.1), model.named_parameters(), backward_passes_per_step=2, **ALL
    )
    reference = optim.SGD(plain.parameters(), lr=0.1)
    for net, optimizer in ((model, distributed), (plain, reference)):
        for step in range(2):
            (loss_of(net, batch(step)) / 2).backward()
        optimizer.step()
    assert_equal(model, plain)


@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad_both_ways(exchanging, to_none):
    model, plain = twins()
    distributed = gtopk.DistributedOptimizer(optim.SGD(model.parameters(), lr=0.1), **ALL)
    reference = optim.SGD(plain.parameters(), lr=0.1)
    for step in range(3):
        for net, optimizer in ((model, distributed), (plain, reference)):
            optimizer.zero_grad(set_to_none=to_none)
            loss_of(net, batch(step)).backward()
            optimizer.step()
    assert_equal(model, plain)


def test_every_registered_parameter_gets_a_gradient(exchanging):
    model = make()
    optimizer = gtopk.DistributedOptimizer(optim.SGD(model.parameters(), lr=0.1), **ALL)
    train(model, optimizer, steps=1)
    assert model.unused.grad is not None
    assert not model.unused.grad.any()


def test_one_rank_changes_nothing(alone):
    model = make()
    optimizer = gtopk.DistributedOptimizer(optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1))
    train(model, optimizer, steps=1)
    assert model.unused.grad is None
    assert torch.equal(model.unused, torch.ones(7))


def test_groups_and_parameters_added_later(exchanging):
    model, plain = twins()

    def run(net, wrap):
        optimizer = optim.SGD(
            [{"params": net.conv.parameters(), "lr": 0.05}, {"params": net.linear.parameters()}], lr=0.1
        )
        if wrap:
            gtopk.DistributedOptimizer(optimizer, net.named_parameters(), **ALL)
        train(net, optimizer, steps=2)
        optimizer.add_param_group({"params": net.tied.parameters(), "lr": 0.01})
        train(net, optimizer, steps=2, begin=2)

    run(model, True)
    run(plain, False)
    assert_equal(model, plain)


def test_freezing_keeps_the_residual_and_unfreezing_gives_it_back(exchanging):
    model = make()
    optimizer = gtopk.DistributedOptimizer(
        optim.SGD(model.parameters(), lr=0.0), model.named_parameters(), density=0.01
    )
    train(model, optimizer, steps=2)
    before = optimizer.state_dict()["gtopk"]["residual"]
    assert before["conv.weight"].any()
    model.conv.weight.requires_grad_(False)
    optimizer.zero_grad()
    loss_of(model, batch(5)).backward()
    optimizer.step()
    assert model.conv.weight.grad is None
    frozen = optimizer.state_dict()["gtopk"]["residual"]
    assert torch.equal(frozen["conv.weight"], before["conv.weight"])
    assert not torch.equal(frozen["linear.weight"], before["linear.weight"])
    model.conv.weight.requires_grad_(True)
    optimizer.zero_grad()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    after = optimizer.state_dict()["gtopk"]["residual"]["conv.weight"]
    sent = model.conv.weight.grad
    assert torch.equal(after + sent, before["conv.weight"])


def test_channels_last(exchanging):
    model, plain = twins(channels_last=True)
    assert not model.conv.weight.is_contiguous()
    distributed = gtopk.DistributedOptimizer(optim.SGD(model.parameters(), lr=0.1), **ALL)
    train(model, distributed)
    train(plain, optim.SGD(plain.parameters(), lr=0.1))
    assert_equal(model, plain)


def test_gradients_of_another_layout_are_copied(exchanging):
    weight = nn.Parameter(torch.zeros(3, 4))
    wide = nn.Parameter(torch.zeros(6, 4)[::2])  # with gaps in memory
    optimizer = gtopk.DistributedOptimizer(optim.SGD([weight, wide], lr=1.0), **ALL)
    values = torch.arange(12.0).reshape(3, 4) + 1
    transposed = values.t().contiguous().t()
    for grad in (transposed, values.clone(), torch.ones(1, 1).expand(3, 4)):
        expected = grad.clone()
        with torch.no_grad():
            weight.zero_()
            wide.zero_()
        weight.grad, wide.grad = grad, grad.clone()
        optimizer.step()
        assert torch.equal(-weight, expected)
        assert torch.equal(-wide, expected)
        assert torch.equal(weight.grad, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floating_point_types(exchanging, dtype):
    weight = nn.Parameter(torch.zeros(3, 4, dtype=dtype))
    optimizer = gtopk.DistributedOptimizer(optim.SGD([weight], lr=1.0), **ALL)
    weight.grad = torch.arange(12).reshape(3, 4).to(dtype)
    optimizer.step()
    assert weight.grad.dtype == dtype
    assert torch.equal(-weight.detach(), torch.arange(12).reshape(3, 4).to(dtype))


def test_what_cannot_be_exchanged_is_a_clear_error(either):
    weight = nn.Parameter(torch.zeros(3))
    with pytest.raises(gtopk.UnsupportedError, match="LBFGS evaluates the model several times"):
        gtopk.DistributedOptimizer(optim.LBFGS([weight]))
    with pytest.raises(gtopk.UnsupportedError, match="SparseAdam"):
        gtopk.DistributedOptimizer(optim.SparseAdam([weight]))
    with pytest.raises(gtopk.UnsupportedError, match=r"parameter group0\.0 is complex64.*view_as_real"):
        gtopk.DistributedOptimizer(optim.SGD([nn.Parameter(torch.zeros(3, dtype=torch.complex64))], lr=1.0))
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = gtopk.DistributedOptimizer(optim.SGD(embedding.parameters(), lr=1.0), embedding.named_parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(gtopk.UnsupportedError, match=r"the gradient of weight is a sparse tensor.*sparse=False"):
        optimizer.step()


def test_wrong_arguments(alone):
    model = make()

    def wrap(**options):
        return gtopk.DistributedOptimizer(optim.Adam(model.parameters()), **options)

    for options, text in (
        ({"density": 0.0}, "density is 0"),
        ({"warmup": [(10, 2.0)]}, "a density of warmup is 2"),
        ({"warmup": [5]}, r"list of \(steps, density\)"),
        ({"dense_below": -1}, "dense_below is -1"),
        ({"backward_passes_per_step": 0}, "backward_passes_per_step is 0"),
        ({"named_parameters": model.parameters()}, r"model\.named_parameters\(\)"),
        ({"named_parameters": [("a", model.unused)]}, "parameter 1 of group 0.*is not in named_parameters"),
        ({"named_parameters": [("a", p) for p in model.parameters()]}, "two parameters named 'a'"),
    ):
        with pytest.raises(gtopk.InvalidError, match=text):
            wrap(**options)
    with pytest.raises(gtopk.UnsupportedError, match=r"for torch\.optim\.SGD, and this is Adam"):
        wrap(momentum_correction=True)
    with pytest.raises(gtopk.UnsupportedError, match="needs dampening=0"):
        gtopk.DistributedOptimizer(
            optim.SGD(model.parameters(), lr=0.1, momentum=0.9, dampening=0.1), momentum_correction=True
        )
    with pytest.raises(gtopk.InvalidError, match=r"no torch\.optim\.Optimizer"):
        gtopk.DistributedOptimizer(model)
    wrapped = wrap()
    with pytest.raises(gtopk.StateError, match="already"):
        gtopk.DistributedOptimizer(wrapped)
    patched = optim.Adam(model.parameters())
    patched.step = lambda: None
    with pytest.raises(gtopk.InvalidError, match=r"something has replaced step\(\)"):
        gtopk.DistributedOptimizer(patched)


def test_before_init():
    with pytest.raises(gtopk.StateError, match=r"gtopk\.init\(\)"):
        gtopk.DistributedOptimizer(optim.SGD(make().parameters(), lr=0.1))


def test_copies_are_refused(alone):
    optimizer = gtopk.DistributedOptimizer(optim.SGD(make().parameters(), lr=0.1))
    for copying in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(gtopk.StateError, match="cannot be copied or pickled"):
            copying(optimizer)


def test_nonfinite_step_is_skipped(exchanging, caplog):
    model = make()
    optimizer = gtopk.DistributedOptimizer(optim.SGD(model.parameters(), lr=0.1), model.named_parameters(), **ALL)
    train(model, optimizer, steps=1)
    kept = copy.deepcopy(model)
    for count in range(1, 12):
        optimizer.zero_grad()
        loss_of(model, batch(1)).backward()
        model.linear.bias.grad[0] = torch.inf
        optimizer.step()
        assert optimizer.stats()["nonfinite"] == 1
        assert all(p.grad.isnan().all() for p in model.parameters())
        assert len(caplog.records) == (1 if count < 10 else 2)
    assert "10 in a row" in caplog.records[-1].message
    assert_equal(model, kept)
    optimizer.zero_grad()
    optimizer.step()
    assert optimizer.stats()["nonfinite"] == 0
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_nonfinite_synchronize_skips_the_one_step_that_follows(exchanging):
    weight = nn.Parameter(torch.zeros(3))
    optimizer = gtopk.DistributedOptimizer(optim.SGD([weight], lr=1.0), **ALL)
    weight.grad = torch.tensor([1.0, torch.nan, 1.0])
    optimizer.synchronize()
    with optimizer.skip_synchronize():
        optimizer.step()
    assert (weight == 0).all()


@pytest.mark.parametrize("bad", ["small", "large"])
def test_nonfinite_step_with_a_dense_part_loses_nothing(exchanging, bad):
    large, small = nn.Parameter(torch.zeros(100)), nn.Parameter(torch.zeros(10))
    optimizer = gtopk.DistributedOptimizer(optim.SGD([large, small], lr=1.0), dense_below=50, **ALL)
    large.grad, small.grad = torch.ones(100), torch.ones(10)
    (small if bad == "small" else large).grad[3] = torch.nan
    optimizer.step()
    assert large.grad.isnan().all() and small.grad.isnan().all()
    assert optimizer.stats()["nonfinite"] == 1
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    assert large.sum() == (-100 if bad == "small" else -99)  # what was finite had stayed in the residual
    assert small.sum() == (-9 if bad == "small" else -10)


def test_dense_below_sends_small_parameters_dense(exchanging):
    large, small = nn.Parameter(torch.zeros(1000)), nn.Parameter(torch.zeros(10))
    optimizer = gtopk.DistributedOptimizer(optim.SGD([large, small], lr=1.0), density=0.01, dense_below=11)
    large.grad, small.grad = torch.arange(1000.0), torch.full((10,), 1e-6)
    optimizer.step()
    assert (small == -1e-6).all()
    assert (large != 0).sum() == 10
    assert optimizer.stats()["count"] == 20


def test_dense_1d_sends_parameters_with_one_dimension_dense(exchanging):
    weight, bias, scalar = (nn.Parameter(torch.zeros(shape)) for shape in ((20, 50), (2000,), ()))
    optimizer = gtopk.DistributedOptimizer(optim.SGD([weight, bias, scalar], lr=1.0), density=0.01, dense_1d=True)
    weight.grad, bias.grad, scalar.grad = torch.arange(1000.0).view(20, 50), torch.full((2000,), 1e-6), torch.ones(())
    optimizer.step()
    assert (bias == -1e-6).all()
    assert scalar == -1
    assert (weight != 0).sum() == 10


def test_a_synchronize_without_its_step(exchanging):
    """The mean update is not exchanged a second time, and a step without it is none of this rank's own."""
    weight = nn.Parameter(torch.zeros(3))
    optimizer = gtopk.DistributedOptimizer(optim.SGD([weight], lr=1.0), **ALL)
    weight.grad = torch.ones(3)
    with optimizer.skip_synchronize(), pytest.raises(gtopk.StateError, match="without synchronize"):
        optimizer.step()
    optimizer.synchronize()
    weight.grad.mul_(0.5)
    with pytest.raises(gtopk.StateError, match="already"):
        optimizer.synchronize()
    with optimizer.skip_synchronize():
        optimizer.step()
    with optimizer.skip_synchronize(), pytest.raises(gtopk.StateError, match="without synchronize"):
        optimizer.step()
    assert (weight == -0.5).all()


@pytest.mark.parametrize(
    "how", ["optimizer.zero_grad()", "optimizer.zero_grad(set_to_none=False)", "weight.grad = None"]
)
def test_going_on_without_the_step_of_a_synchronize(exchanging, how):
    weight = nn.Parameter(torch.zeros(3))
    optimizer = gtopk.DistributedOptimizer(optim.SGD([weight], lr=1.0), **ALL)
    for again in (optimizer.synchronize, optimizer.step):
        weight.grad = torch.full((3,), torch.nan)
        optimizer.synchronize()
        exec(how)
        weight.grad = torch.ones(3) if weight.grad is None else weight.grad.add_(1)
        again()
        if again == optimizer.synchronize:
            with optimizer.skip_synchronize():
                optimizer.step()
    assert (weight == -2).all()


def test_residuals_stay_with_their_parameters(exchanging):
    """Without names a parameter has that of its place, which another one takes when it is gone."""
    weights = [nn.Parameter(torch.zeros(4)) for _ in range(3)]
    optimizer = gtopk.DistributedOptimizer(optim.SGD(weights, lr=1.0), density=0.01, value_type="fp32")
    for i, weight in enumerate(weights):
        weight.grad = torch.tensor([0.0, 1.0, 2.0, 9.0 if i == 0 else 3.0]) * (i + 1)
    optimizer.step()
    del optimizer.param_groups[0]["params"][0]
    added = nn.Parameter(torch.zeros(4))
    optimizer.param_groups[0]["params"].append(added)
    optimizer.zero_grad()
    optimizer.step()
    sent = [weight.detach().clone() for weight in weights]
    for _ in range(20):
        optimizer.zero_grad()
        optimizer.step()
    assert (added == 0).all()
    assert sent[0].tolist() == weights[0].tolist()
    assert weights[1].tolist() == [0, -2, -4, -6]
    assert weights[2].tolist() == [0, -3, -6, -9]


def test_the_residual_of_a_removed_parameter_is_not_saved(exchanging, caplog):
    """Its state loads where the parameter is gone, too."""

    def new(names):
        weights = {name: nn.Parameter(torch.zeros(4)) for name in names}
        sgd = optim.SGD(weights.values(), lr=1.0)
        return weights, gtopk.DistributedOptimizer(sgd, weights.items(), density=0.01, value_type="fp32")

    weights, optimizer = new("ab")
    for weight in weights.values():
        weight.grad = torch.arange(4.0)
    optimizer.step()
    del optimizer.param_groups[0]["params"][0]
    optimizer.step()
    for state in (optimizer.state_dict(), optimizer.consolidate_state_dict()):
        assert list(state["gtopk"]["residual"]) == state["gtopk"]["names"] == ["b"]
        assert "the residual of a is not saved" in caplog.messages[-1]
        _, other = new("b")
        other.load_state_dict(state, strict=True)
        assert torch.equal(other.state_dict()["gtopk"]["residual"]["b"], state["gtopk"]["residual"]["b"])


def test_a_run_on_one_rank_goes_on_at_its_step_on_several():
    gtopk.init()
    weight = nn.Parameter(torch.zeros(3))
    optimizer = gtopk.DistributedOptimizer(optim.SGD([weight], lr=1.0))
    for _ in range(12):
        weight.grad = torch.ones(3)
        optimizer.step()
    state = optimizer.state_dict()["gtopk"]
    assert isinstance(state["run"], int)
    assert state["step"] == 12


def test_interrupt_between_accumulate_and_reduce(exchanging, monkeypatch):
    weight = nn.Parameter(torch.zeros(3))
    optimizer = gtopk.DistributedOptimizer(optim.SGD([weight], lr=1.0), **ALL)
    weight.grad = torch.ones(3)
    optimizer.step()

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    weight.grad = torch.ones(3)
    with monkeypatch.context() as patched:
        patched.setattr("gtopk.torch.exchange.reduce_together", interrupt)
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    assert optimizer.state_dict()["gtopk"]["residual"]["group0.0"].tolist() == [1, 1, 1]
    weight.grad = torch.ones(3)
    optimizer.step()
    assert weight.tolist() == [-3, -3, -3]


def test_warmup(exchanging):
    weight = nn.Parameter(torch.zeros(1000))
    optimizer = gtopk.DistributedOptimizer(optim.SGD([weight], lr=1.0), density=0.01, warmup=[(2, 0.25), (1, 0.1)])
    counts = []
    for _ in range(5):
        weight.grad = torch.randn(1000)
        optimizer.step()
        counts.append(optimizer.stats()["k"])
    assert counts == [250, 250, 100, 10, 10]


def test_the_default_density_falls_with_the_age_of_the_training(exchanging):
    entries = 10**6
    weight = nn.Parameter(torch.zeros(entries))
    optimizer = gtopk.DistributedOptimizer(optim.SGD([weight], lr=1.0))
    seen = {}
    for step in (0, 38, 39, 158, 159, 999, 10**9):
        optimizer._gtopk.session.steps = step
        weight.grad = torch.randn(entries)
        optimizer.step()
        seen[step] = optimizer.stats()["algorithm"], optimizer.stats()["k"]
    assert {algorithm for algorithm, _ in seen.values()} == {"dense", "gtopk"}
    counts = {step: entries if algorithm == "dense" else k for step, (algorithm, k) in seen.items()}
    assert counts == {0: 10**6, 38: 10**6, 39: 10**5, 158: 10**5, 159: 87500, 999: 15625, 10**9: 3000}


def test_the_default_density_is_fourteen_over_the_step_within_a_quarter():
    for step in range(174, 2 * 10**4):
        assert 14 / (step + 1) <= default_density(step) <= 17.5 / (step + 1)
    changes = sum(default_density(step) != default_density(step + 1) for step in range(4 * 10**4))
    assert changes < 40  # each is a collective call
    for density, warmup, then in ((0.5, None, 0.5), (None, [(3, 0.5)], 0.001), (None, lambda _: 0.2, 0.2)):
        assert DensitySchedule(density, warmup)(3) == then  # what is given counts from the first step on


def test_the_default_density_falls_slower_where_an_optimizer_is_not_linear(exchanging, monkeypatch):
    """Weights that are exchanged add up whatever moved them, and the hook does not know the optimizer."""

    monkeypatch.setattr(GTopKState, "_open", lambda *_: None)  # no process group is needed for this

    class Mine(optim.SGD):
        pass

    def of(optimizer, **options):
        weight = nn.Parameter(torch.zeros(9))
        return gtopk.DistributedOptimizer(optimizer([weight], lr=1.0), **options)._gtopk.session.schedule

    for schedule, share in (
        (of(optim.SGD), 14),
        (of(Mine), 14),
        (of(optim.AdamW), 50),
        (of(optim.Adadelta), 50),
        (of(optim.AdamW, local_steps=4), 14),
        (GTopKState()._schedule, 50),
    ):
        assert schedule(0) is schedule(38) is None
        assert schedule(39) == 0.1
        assert share / 1000 <= schedule(999) == share / 896 <= 1.25 * share / 1000
        assert schedule(10**9) == 0.0005


def test_growth_comes_with_the_default_density_alone(exchanging):
    for growth, options in (
        (2.0, {}),
        (1.5, {"merge_growth": 1.5}),
        (1.0, {"density": 0.1}),
        (1.0, {"warmup": [(3, 0.1)]}),
        (1.0, {"algorithm": "topk"}),
        (1.0, {"residual_policy": "paper"}),
    ):
        optimizer = gtopk.DistributedOptimizer(optim.SGD([nn.Parameter(torch.zeros(9))], lr=1.0), **options)
        assert optimizer._gtopk.session.options.merge_growth == growth


def test_the_default_density_is_lower_where_sets_grow(alone):
    for given, expected in (
        ({}, 0.1 * 2 / 3),
        ({"merge_growth": 1.0}, 0.1),
        ({"density": 0.1, "merge_growth": 2.0}, 0.1),
    ):
        optimizer = gtopk.DistributedOptimizer(optim.SGD([nn.Parameter(torch.zeros(9))], lr=1.0), **given)
        exchange = optimizer._gtopk.session.exchange
        exchange.comm = SimpleNamespace(size=4)
        assert math.isclose(exchange._of_entries(0.1), expected)


@pytest.mark.parametrize("growth", [1.0, 1.41, 2.0])
def test_growth_costs_no_bytes(growth):
    """What the busiest rank of the butterfly sends: gtopk.h has the levels, docs/wire-format.md the rounds."""
    assert grown_share(1, growth) == 1.0
    for ranks in range(2, 40):
        levels = [min(4.0, growth**level) for level in range(6)]
        core = int(math.log2(ranks))
        sent = levels[:core] + ([levels[core]] if ranks > 2**core else [])
        assert math.isclose(grown_share(ranks, growth) * sum(sent), len(sent))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("options", [{}, {"nesterov": True}, {"maximize": True}], ids=["plain", "nesterov", "maximize"])
@pytest.mark.parametrize("dense_below", [0, 100, 10**9])
def test_momentum_correction_sends_a_step_of_sgd(exchanging, weight_decay, options, dense_below):
    """Everything is sent in the only step that has a gradient, so the velocity is cleared; then SGD has no momentum either.

    The momentum of weight decay and of dense parameters goes on as in SGD.
    """
    model, plain = twins()
    sgd = {"lr": 0.1, "momentum": 0.9, "weight_decay": weight_decay, **options}
    optimizer = gtopk.DistributedOptimizer(
        optim.SGD(model.parameters(), **sgd), momentum_correction=True, dense_below=dense_below, **ALL
    )
    reference = optim.SGD(plain.parameters(), **sgd)
    for net, one in ((model, optimizer), (plain, reference)):
        net.unused.grad = torch.zeros(7)
        for step in range(3 if dense_below == 10**9 else 1):
            one.zero_grad(set_to_none=False)
            loss_of(net, batch(step)).backward()
            one.step()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    assert all(group["momentum"] == 0.9 for group in optimizer.param_groups)
    assert all(group["weight_decay"] == weight_decay for group in optimizer.param_groups)


def test_momentum_of_weight_decay_alone_is_sgds(exchanging):
    weight, plain = nn.Parameter(torch.ones(100)), nn.Parameter(torch.ones(100))
    sgd = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True}
    optimizer = gtopk.DistributedOptimizer(optim.SGD([weight], **sgd), momentum_correction=True, density=0.01)
    reference = optim.SGD([plain], **sgd)
    for _ in range(5):
        weight.grad, plain.grad = torch.zeros(100), torch.zeros(100)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(weight, plain)


def test_velocity_goes_on_where_nothing_is_sent(exchanging):
    """Entry 0 is sent each step; entry 1 collects what SGD's momentum would have made of its gradients."""
    weight = nn.Parameter(torch.zeros(2))
    optimizer = gtopk.DistributedOptimizer(
        optim.SGD([weight], lr=1.0, momentum=0.5), momentum_correction=True, density=0.5, value_type="fp32"
    )
    for _ in range(3):
        weight.grad = torch.tensor([100.0, 1.0])
        optimizer.step()
        assert weight.grad.tolist() == [100.0, 0.0]
    state = optimizer.state_dict()["gtopk"]
    assert state["residual"]["group0.0"].tolist() == [0.0, 1 + 1.5 + 1.75]
    assert state["velocity"]["group0.0"].tolist() == [0.0, 1.75]


def test_momentum_must_be_one_for_all_groups(exchanging):
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = gtopk.DistributedOptimizer(
        optim.SGD([{"params": [a]}, {"params": [b]}], lr=1.0, momentum=0.5), momentum_correction=True
    )
    optimizer.param_groups[1]["momentum"] = 0.9
    with pytest.raises(gtopk.UnsupportedError, match=r"group 0 has 0\.5.*group 1 has 0\.9"):
        optimizer.step()


def test_two_models_two_optimizers(exchanging):
    """A GAN: the generator's backward leaves gradients in the discriminator, which zero_grad removes."""

    def run(wrap):
        torch.manual_seed(0)
        generator, critic = nn.Linear(4, 6), nn.Linear(6, 1)
        optimizers = [optim.Adam(generator.parameters()), optim.Adam(critic.parameters())]
        if wrap:
            for optimizer in optimizers:
                gtopk.DistributedOptimizer(optimizer, **ALL)
        for _ in range(3):
            noise, real = torch.randn(5, 4), torch.randn(5, 6)
            optimizers[1].zero_grad()
            (critic(generator(noise).detach()).mean() - critic(real).mean()).backward()
            optimizers[1].step()
            optimizers[0].zero_grad()
            (-critic(generator(noise)).mean()).backward()
            optimizers[0].step()
        return nn.Sequential(generator, critic)

    assert_equal(run(True), run(False))


def test_activation_checkpointing(exchanging):
    from torch.utils.checkpoint import checkpoint

    model, plain = twins()
    distributed = gtopk.DistributedOptimizer(optim.SGD(model.parameters(), lr=0.1), **ALL)
    reference = optim.SGD(plain.parameters(), lr=0.1)
    for net, optimizer in ((model, distributed), (plain, reference)):
        optimizer.zero_grad()
        checkpoint(net, batch(0), use_reentrant=False).pow(2).mean().backward()
        optimizer.step()
    assert_equal(model, plain)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile(exchanging, backend):
    model, plain = twins()
    compiled = torch.compile(model, backend=backend)
    distributed = gtopk.DistributedOptimizer(optim.SGD(model.parameters(), lr=0.1), **ALL)
    train(compiled, distributed, steps=2)
    train(plain, optim.SGD(plain.parameters(), lr=0.1), steps=2)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_range_for_the_profiler(exchanging):
    model = make()
    optimizer = gtopk.DistributedOptimizer(optim.SGD(model.parameters(), lr=0.1), **ALL)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(model, optimizer, steps=1)
    assert "gtopk.synchronize" in [event.key for event in profile.key_averages()]


def test_tensorboard(exchanging):
    from gtopk.torch.tensorboard import write_stats

    class Writer:
        def add_scalar(self, tag, value, step):
            points[tag, step] = value

    points = {}
    model = make()
    optimizer = gtopk.DistributedOptimizer(optim.SGD(model.parameters(), lr=0.1), density=0.02)
    for step in range(2):
        train(model, optimizer, steps=1, begin=step)
        write_stats(Writer(), optimizer.stats(residual_norm=True))
    entries = sum(p.numel() for p in model.parameters())
    assert points["gtopk/k", 0] == points["gtopk/k", 1] == round(0.02 * entries)
    residuals = optimizer.state_dict()["gtopk"]["residual"].values()
    assert points["gtopk/residual_norm", 1] == pytest.approx(torch.cat([r.flatten() for r in residuals]).norm().item())


def test_memory_is_given_back(exchanging):
    """Optimizers made and dropped in a loop leave no reducer behind."""
    from gtopk.reducer import Reducer

    def alive():
        gc.collect()
        return sum(type(one) is Reducer for one in gc.get_objects())

    before = alive()
    for _ in range(3):
        model = Net()
        optimizer = gtopk.DistributedOptimizer(optim.SGD(model.parameters(), lr=0.1), **ALL)
        train(model, optimizer, steps=1)
    del model, optimizer
    assert alive() == before


@pytest.mark.parametrize("options", [{}, {"algorithm": "dense"}, {"dense_1d": True}, {"dense_below": 5}])
def test_gradients_that_share_memory(exchanging, options):
    """torch.autograd.grad gives one tensor for both terms of a sum."""
    a, b = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    optimizer = gtopk.DistributedOptimizer(optim.SGD([a, b], lr=1.0), **ALL, **options)
    both = torch.arange(6.0)
    for gradients in (torch.autograd.grad((a + b).sum(), [a, b]), [torch.ones(4)] * 2, (both[:4], both[2:])):
        with torch.no_grad():
            a.zero_()
            b.zero_()
        expected = [-gradient.clone() for gradient in gradients]
        a.grad, b.grad = gradients
        optimizer.step()
        assert torch.equal(a, expected[0])
        assert torch.equal(b, expected[1])
        assert a.grad.data_ptr() != b.grad.data_ptr()


def test_everything_frozen(exchanging):
    model = make()
    optimizer = gtopk.DistributedOptimizer(optim.SGD(model.parameters(), lr=0.1), model.named_parameters(), **ALL)
    model.requires_grad_(False)
    before = copy.deepcopy(model)
    optimizer.step()
    optimizer.synchronize()
    with optimizer.skip_synchronize():
        optimizer.step()
    assert optimizer.stats()["step"] == 1
    assert_equal(model, before)


def test_parameters_appended_to_a_group_with_names(exchanging):
    """torch keeps the names of an optimizer that was made from named parameters in a list of its own."""
    a, b, c = (nn.Parameter(torch.zeros(3)) for _ in range(3))
    optimizer = gtopk.DistributedOptimizer(optim.SGD([("a", a), ("b", b)], lr=1.0), **ALL)
    for weight in (a, b):
        weight.grad = torch.ones(3)
    optimizer.step()
    optimizer.param_groups[0]["params"].append(c)
    for weight in (a, b, c):
        weight.grad = torch.ones(3)
    optimizer.step()
    assert [weight[0].item() for weight in (a, b, c)] == [-2, -2, -1]
    assert optimizer._gtopk.session.exchange.segments[-1].name == "group0.2"


def test_a_resized_parameter_is_named(exchanging):
    weights = {"kept": nn.Parameter(torch.zeros(3)), "resized": nn.Parameter(torch.zeros(4))}
    optimizer = gtopk.DistributedOptimizer(optim.SGD(weights.values(), lr=1.0), weights.items(), density=0.1)

    def step(size):
        weights["kept"].grad, weights["resized"].grad = torch.ones(3), torch.ones(size)
        optimizer.step()

    step(4)
    before = optimizer.state_dict()["gtopk"]["residual"]["kept"]
    weights["resized"].data, weights["resized"].grad = torch.zeros(5), None
    for again in range(2):
        with pytest.raises(gtopk.StateError, match=r"resized has shape \[5\] now, but its residual has \[4\].*wrap it"):
            step(5)
        assert torch.equal(optimizer.state_dict()["gtopk"]["residual"]["kept"], before)
        if again == 0:
            optimizer.param_groups[0]["params"].append(nn.Parameter(torch.zeros(2)))  # then reducers are made anew


def test_what_is_not_in_cpu_memory_is_refused_by_name(exchanging):
    weights = {"here": nn.Parameter(torch.zeros(3)), "there": nn.Parameter(torch.zeros(3, device="meta"))}
    with pytest.raises(gtopk.UnsupportedError, match=r"parameter there is on meta.*model\.to\('cpu'\)"):
        gtopk.DistributedOptimizer(optim.SGD(weights.values(), lr=1.0), weights.items())


def test_one_rank_needs_no_cpu_memory(alone):
    weight = nn.Parameter(torch.zeros(3, device="meta"))
    optimizer = gtopk.DistributedOptimizer(optim.SGD([weight], lr=1.0))
    weight.grad = torch.ones(3, device="meta")
    optimizer.step()


def test_backward_after_synchronize_is_an_error(exchanging):
    """It adds this rank's own gradients to the mean update."""
    model, plain = twins()
    optimizer = gtopk.DistributedOptimizer(optim.SGD(model.parameters(), lr=0.1), model.named_parameters(), **ALL)
    reference = optim.SGD(plain.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model, batch(step)).backward()
        optimizer.synchronize()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        model.tied.weight.sum().backward()
        with (
            optimizer.skip_synchronize(),
            pytest.raises(gtopk.StateError, match=r"backward\(\) was called after synch"),
        ):
            optimizer.step()
        for net, one in ((model, optimizer), (plain, reference)):
            one.zero_grad()
            loss_of(net, batch(step)).backward()
            net.unused.grad = torch.zeros(7)
            if one is optimizer:
                one.synchronize()
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            if one is optimizer:
                with one.skip_synchronize():
                    one.step()
            else:
                one.step()
    assert_equal(model, plain)


def test_the_default_device_does_not_matter(exchanging):
    model, plain = twins(channels_last=True)
    optimizer = gtopk.DistributedOptimizer(optim.SGD(model.parameters(), lr=0.1), model.named_parameters(), **ALL)
    for step in range(3):
        for net in (model, plain):
            net.zero_grad()
            loss_of(net, batch(step)).backward()
        model.conv.weight.grad = model.conv.weight.grad.contiguous()
        with torch.device("meta"):
            optimizer.step()
            state = optimizer.state_dict()
            optimizer.load_state_dict(state)
        optim.SGD(plain.parameters(), lr=0.1).step()
    assert_equal(model, plain)
