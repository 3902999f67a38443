"""Reducers and optimizers on GPUs, or on what stands in for them: the bits of the CPU, streams, and errors on every rank."""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch_cuda
from harness import assert_same_on_all_ranks, raises
from torch import nn, optim

import gtopk

CUDA = torch.device("cuda", torch.cuda.current_device())
LENGTHS = (5000, 0, 37, 300)
TYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16)


def gradients(step, device):
    generator = torch.Generator().manual_seed(1000 * step + gtopk.rank())
    made = [torch.randn(length, generator=generator, device="cpu") for length in LENGTHS]
    return [x.to(dtype).to(device) for x, dtype in zip(made, TYPES, strict=True)]


def three_steps(device, momentum=False, **options):
    """Updates, residuals and what statistics count; on the host."""
    kept = []
    with gtopk.Reducer(LENGTHS, device=device, momentum_correction=momentum, **options) as reducer:
        if momentum:
            reducer.set_momentum(0.9, nesterov=True)
        for step in range(3):
            mine = gradients(step, device)
            reducer.accumulate_many([0, 2, 3], [mine[0], mine[2], mine[3]], 0.5, zero_input=True)
            stats = reducer.reduce(mine, outputs_are_zero=True)
            kept += [x.cpu() for x in mine]
            kept.append(torch.tensor([stats[name] for name in ("count", "selected", "bytes_sent")], device="cpu"))
        reducer.accumulate(0, mine[0])
        indices, values = reducer.reduce_sparse()
        assert indices.device == values.device == torch.device(device)
        kept += [indices.cpu().long(), values.cpu()]
        kept += [reducer.residual(i) for i in range(len(LENGTHS))]
        kept += [reducer.velocity(i) for i in range(len(LENGTHS))] if momentum else []
        kept.append(reducer.state_dict()["state"][64:])
    return kept


def case_the_bits_of_the_cpu():
    algorithms, types = (
        ("gtopk", "gtopk-tree", "gtopk-split", "topk", "dense"),
        ("bf16", "int8", "bf16", "fp16", "fp32"),
    )
    settings = [{"algorithm": a, "value_type": t} for a, t in zip(algorithms, types, strict=True)]
    settings += [{"momentum": True}, {"merge_growth": 2.0, "residual_policy": "paper"}, {"density": 1.0}]
    settings += [{"hierarchy": "node"}, {"hierarchy": "node", "momentum": True, "algorithm": "gtopk-split"}]
    for options in settings:
        for one, other in zip(three_steps("cpu", **options), three_steps(CUDA, **options), strict=True):
            assert torch.equal(one, other), options


def case_hierarchies_are_tried():
    with gtopk.Reducer([20_000], density=0.01, hierarchy="auto", device=CUDA) as reducer:
        tried = reducer.hierarchy_seconds
        assert tried.keys() == {"off", "node"}
        assert reducer.hierarchy == ("node" if tried["node"] < tried["off"] else "off")
        assert_same_on_all_ranks(np.array([tried["off"], tried["node"]]))


def case_ranks_on_different_devices():
    expected = three_steps("cpu")
    for one, other in zip(expected, three_steps(("cpu", CUDA)[gtopk.rank() % 2]), strict=True):
        assert torch.equal(one, other)


class Model(nn.Module):
    def __init__(self, device):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(30, 20, device=device))
        self.bias = nn.Parameter(torch.zeros(20, device=device))


def trained(device, steps=4, **options):
    """Parameters, gradients and the state of an optimizer that was given the same gradients, whatever the device."""
    model = Model(device)
    momentum = 0.9 if options.get("momentum_correction") else 0.0
    optimizer = gtopk.DistributedOptimizer(
        optim.SGD(model.parameters(), lr=1.0, momentum=momentum), model.named_parameters(), density=0.05, **options
    )
    generator = torch.Generator().manual_seed(gtopk.rank())
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator, device="cpu").to(device)
        optimizer.step()
    assert not steps or all(p.grad.device == torch.device(device) for p in model.parameters())
    return model, optimizer


def case_an_optimizer_has_the_bits_of_the_cpu():
    for options in (
        {},
        {"dense_below": 100},
        {"momentum_correction": True},
        {"value_type": "int8", "algorithm": "topk"},
        {"hierarchy": "node", "momentum_correction": True},
    ):
        (one, a), (other, b) = trained("cpu", **options), trained(CUDA, **options)
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(p, q.cpu()), options
            assert torch.equal(p.grad, q.grad.cpu()), options
            assert_same_on_all_ranks(q.detach().cpu().numpy())
        first, second = a.state_dict()["gtopk"], b.state_dict()["gtopk"]
        for what in ("residual", "velocity"):
            assert first[what].keys() == second[what].keys()
            for name, values in first[what].items():
                assert values.is_cpu and second[what][name].is_cpu
                assert torch.equal(values, second[what][name])


def case_a_state_moves_between_devices():
    """Saved on the CPU, loaded on a GPU, and the other way round; and consolidated on both."""
    for start, end in (("cpu", CUDA), (CUDA, "cpu")):
        model, optimizer = trained(start)
        again, other = trained(end, steps=0)
        other.load_state_dict(optimizer.state_dict(), strict=True)
        summed = [one.consolidate_state_dict(to=0) for one in (optimizer, other)]
        if gtopk.rank() == 0:
            for name, values in summed[0]["gtopk"]["residual"].items():
                assert values.any()
                assert torch.equal(values, summed[1]["gtopk"]["residual"][name])
        for one, device in ((model, start), (again, end)):
            for p in one.parameters():
                p.grad = torch.full(p.shape, float(gtopk.rank()), device=device)
        optimizer.step()
        other.step()
        for p, q in zip(model.parameters(), again.parameters(), strict=True):
            assert torch.equal(p.grad.cpu(), q.grad.cpu())


def case_streams():
    """Gradients that another stream than the default one writes, and a change of streams in between steps and within one."""
    one, other = torch.cuda.Stream(), torch.cuda.Stream()
    expected = three_steps("cpu")
    with torch.cuda.stream(one):
        found = three_steps(CUDA)
    assert all(map(torch.equal, expected, found))
    with gtopk.Reducer([1000, 1000], density=0.1, device=CUDA) as reducer:
        x, y = torch.ones(1000), torch.ones(1000)
        for before, after in itertools.permutations((one, other, torch.cuda.current_stream()), 2):
            before.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(before):
                x.fill_(3.0)
                reducer.accumulate(0, x, zero_input=True)
            after.wait_stream(before)
            with torch.cuda.stream(after):
                y.fill_(2.0)
                reducer.accumulate(1, y, zero_input=True)
                reducer.reduce([x, y], outputs_are_zero=True)
                assert (x + y).sum() > 0
        reducer.wait()


def case_collectives():
    x = torch.arange(6.0).reshape(2, 3).t() + gtopk.rank()
    for call in (gtopk.allreduce, gtopk.allgather, gtopk.broadcast):
        assert call(x).device == CUDA
        assert torch.equal(call(x).cpu(), call(x.cpu()))
    gtopk.broadcast_(x, 1)
    assert torch.equal(x.cpu(), torch.arange(6.0, device="cpu").reshape(2, 3).t() + 1)


def case_errors_of_devices():
    weight = nn.Parameter(torch.zeros(4))
    if torch.cuda.device_count() > 1:
        there = torch.device("cuda", 1 - CUDA.index)
        model = [weight, nn.Parameter(torch.zeros(4, device=there))]
        raises(
            gtopk.UnsupportedError,
            lambda: gtopk.DistributedOptimizer(optim.SGD(model, lr=1.0)),
            "group0.0 is on cuda",
            "group0.1 is on cuda",
            "make an optimizer for the parameters of each device",
        )
        with gtopk.Reducer([4], device=there) as reducer:
            raises(gtopk.InvalidError, lambda: reducer.accumulate(0, weight.detach()), f"works on {there}")
    raises(gtopk.UnsupportedError, lambda: gtopk.Reducer([4], device="cuda:9"), "there is no GPU 9")
    with gtopk.Reducer([4], device=CUDA) as reducer:
        raises(gtopk.InvalidError, lambda: reducer.accumulate(0, torch.zeros(4, device="cpu")), "is on cpu", str(CUDA))
    with gtopk.Reducer([4], device="cpu") as reducer:
        raises(gtopk.InvalidError, lambda: reducer.accumulate(0, weight.detach()), f"is on {CUDA}", "host memory")


def case_one_rank_without_the_gpu_is_an_error_on_all():
    bad = gtopk.rank() == 1
    error = raises(gtopk.GtopkError, lambda: gtopk.Reducer([4], device="cuda:9" if bad else CUDA))
    assert isinstance(error, gtopk.UnsupportedError if bad else gtopk.MismatchError), error
    assert bad or "rank 1 could not create its reducer" in str(error)


ILLEGAL_ADDRESS = 700


def case_faults_are_errors_on_every_rank():
    """Of rank 1's GPU: a launch, a copy or a wait that fails, a lost context. Nobody takes the step, and nobody hangs."""
    if torch_cuda.install() is not None:
        for function in (
            b"cuLaunchKernel",
            b"cuLaunchCooperativeKernel",
            b"cuMemcpyAsync",
            b"cuStreamSynchronize",
            b"",
        ):
            _fault(torch_cuda.install(), function)
            gtopk.barrier()


def _fault(standin, function):
    """The next call of this function on rank 1; "": all calls."""
    with gtopk.Comm(transport=gtopk.comm.current().transport, timeout=30) as comm:
        bad = comm.rank == 1
        reducer = gtopk.Reducer(
            [1000], density=0.1, algorithm="dense" if b"Mem" in function else "gtopk", comm=comm, device=CUDA
        )
        x = torch.randn(1000)
        if bad and function:
            standin.inject(function, 0, ILLEGAL_ADDRESS)
        elif bad:
            standin.lose(ILLEGAL_ADDRESS)
        error = raises(gtopk.GtopkError, lambda: _step(reducer, x))
        standin.inject(b"", 0, 0)
        standin.lose(0)
        wanted = gtopk.DeviceError if bad else (gtopk.AbortedError, gtopk.TransportError)
        assert isinstance(error, wanted), (function, error)
        assert not bad or "start the process again" in str(error), error
        raises(gtopk.GtopkError, lambda: _step(reducer, x))  # it is broken
        reducer.close()


def _step(reducer, x):
    reducer.accumulate(0, x)
    reducer.reduce([x])


def case_memory_that_is_not_there_is_an_error_on_every_rank():
    if torch_cuda.REAL:
        return
    before = torch.cuda.memory_allocated()
    bad = gtopk.rank() == 1

    def make():
        return gtopk.Reducer([1000], device=CUDA)

    if bad:
        with torch_cuda.without_memory():
            raises(gtopk.OutOfMemoryError, make, "allocator has no memory of the GPU left")
    else:
        raises(gtopk.MismatchError, make, "rank 1 could not create")
    assert torch.cuda.memory_allocated() == before
    with make() as reducer:
        _step(reducer, torch.ones(1000))
    assert torch.cuda.memory_allocated() == before


def case_a_model_that_moves_during_training():
    """On all ranks alike: reducers are made anew where it is, and residuals go along."""
    model, optimizer = trained("cpu")
    norm = optimizer.stats(residual_norm=True)["residual_norm"]
    for device in (CUDA, torch.device("cpu"), CUDA):
        model.to(device)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        assert all(p.grad.device == device for p in model.parameters())
        assert 0 < optimizer.stats(residual_norm=True)["residual_norm"] < norm
        norm = optimizer.stats(residual_norm=True)["residual_norm"]
        assert_same_on_all_ranks(model.weight.detach().cpu().numpy())
