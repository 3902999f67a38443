"""A model under fully_shard, on nodes that are made of neighbouring ranks: GTOPK_TEST_NODES of them."""

from __future__ import annotations

import os
from contextlib import contextmanager

import torch
from harness import assert_same_on_all_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import gtopk

ALL = {"density": 1.0, "value_type": "fp32"}

_meshes = {}
_nodes = [int(os.environ.get("GTOPK_TEST_NODES", "2"))]


def nodes():
    """How many there are."""
    return _nodes[-1]


@contextmanager
def on_nodes(number):
    """The same ranks on as many nodes."""
    _nodes.append(number)
    yield
    _nodes.pop()


def mesh():
    """Made once: every mesh has process groups."""
    shape = (nodes(), gtopk.size() // nodes())
    if shape not in _meshes:
        _meshes[shape] = init_device_mesh("cpu", shape, mesh_dim_names=("replicas", "shards"))
    return _meshes[shape]


def node():
    return mesh().get_local_rank("replicas")


def shard():
    return mesh().get_local_rank("shards")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        return x + torch.tanh(self.linear(self.norm(x)))


class Text(nn.Module):
    """Tied weights, a parameter that is not sharded, one that has a single row, and one that is not used."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.blocks = nn.ModuleList([Block()])
        self.scale = nn.Parameter(torch.ones(6))
        self.gate = nn.Linear(6, 1)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.unused = nn.Parameter(torch.ones(5))

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x * self.scale.to(x.dtype) * torch.sigmoid(self.gate(x)))


def plain(seed=0):
    torch.manual_seed(seed)
    return Text()


def sharded(model=None, change=lambda model: None, whole=("scale",), **options):
    """The model, its blocks and the rest sharded on this rank's node, but for what is left whole."""
    model = plain() if model is None else model
    change(model)
    for block in model.blocks:
        fully_shard(block, mesh=mesh()["shards"], **options)
    return fully_shard(model, mesh=mesh()["shards"], ignored_params={getattr(model, name) for name in whole}, **options)


def wrapped(model, kind=torch.optim.SGD, *, lr=0.1, more=None, group="replicas", **options):
    optimizer = kind(model.parameters(), lr=lr, **(more or {}))
    return gtopk.DistributedOptimizer(optimizer, model.named_parameters(), group=group, **options)


def tokens(step, rank):
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randint(0, 11, (4, 5), generator=generator)


def loss_of(model, x):
    return nn.functional.cross_entropy(model(x[:, :-1]).float().flatten(0, 1), x[:, 1:].flatten())


def train(model, optimizer, steps=4, begin=0):
    for step in range(begin, begin + steps):
        optimizer.zero_grad()
        loss_of(model, tokens(step, gtopk.rank())).backward()
        optimizer.step()


def whole(tensor):
    """All of a tensor, on every rank."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def local(tensor):
    return (tensor._local_tensor if isinstance(tensor, DTensor) else tensor).detach()


def flat(model):
    return torch.cat([whole(p).float().flatten() for p in model.parameters()])


def assert_replicas(model):
    """All nodes have the same parameters, and what is not sharded is the same on all ranks."""
    assert_same_on_all_ranks(flat(model).numpy())


def residuals(optimizer):
    """This rank's, as one vector, in the order of the names."""
    found = optimizer.state_dict()["gtopk"]["residual"]
    return torch.cat([torch.zeros(0), *(found[name].flatten() for name in sorted(found))])


def parts(model):
    """What this rank has of the gradients, as one vector, in the order of the names."""
    named = sorted(model.named_parameters())
    return torch.cat([local(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for _, p in named])


def give(model, values):
    """Gradients made by hand: `values(name, shape)` of this rank's part."""
    for name, p in model.named_parameters():
        part = values(name, local(p).shape).to(p.dtype)
        if isinstance(p, DTensor):
            like = {"shape": p.shape, "stride": p.stride()}
            part = DTensor.from_local(part, p.device_mesh, p.placements, run_check=False, **like)
        p.grad = part
