"""A small language model under FSDP2: sharded inside each node by fully_shard, exchanged among the nodes by gtopk.

    torchrun --nproc-per-node 4 examples/fsdp.py --nodes 2          # one machine stands for two nodes of two processes
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint node1:29500 examples/fsdp.py

It learns to write like this project's documentation, byte by byte, and prints the loss. With --checkpoint FOLDER it saves by
torch.distributed.checkpoint at the end, and goes on from there when the folder exists: on any number of nodes and processes.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import gtopk

ROOT = Path(__file__).resolve().parents[1]
CONTEXT, WIDTH, HEADS, LAYERS = 64, 96, 4, 2


class Block(nn.Module):
    """Attention and a perceptron, each added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """x: batch, place, width."""
        batch, places, _ = x.shape
        split = self.attention(self.norm1(x)).view(batch, places, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(*split, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, places, WIDTH))
        return x + self.mlp(self.norm2(x))


class Writer(nn.Module):
    """Bytes in, scores of the next byte out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.place = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256, bias=False)
        self.head.weight = self.embedding.weight
        for table in (self.embedding, self.place):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        """text: batch, place."""
        x = self.embedding(text) + self.place(torch.arange(text.shape[1], device=text.device))
        return self.head(self.norm(self.blocks(x)))


def read_text() -> Tensor:
    """The documentation as bytes."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return torch.frombuffer(bytearray(b"".join(page.read_bytes() for page in pages)), dtype=torch.uint8).long()


def draw(text: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Random pieces, each one byte longer than the context."""
    starts = torch.randint(0, len(text) - CONTEXT - 1, (size,), generator=generator)
    return torch.stack([text[start : start + CONTEXT + 1] for start in starts.tolist()])


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Model, optimizer and residual, each rank its shards."""
    residual = optimizer.sharded_state_dict()
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state, "gtopk": residual}, checkpoint_id=folder)


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The same back, whatever the number of nodes and ranks."""
    weights, state = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    optimizer.load_sharded_state(folder)


def main() -> None:
    """Trains."""
    parser = argparse.ArgumentParser(description="A small language model under FSDP2, exchanged by gtopk.")
    parser.add_argument("--nodes", type=int, help="default: as torchrun says")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of what is drawn (%(default)s)")
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    gtopk.init()
    ranks = gtopk.size()
    nodes = options.nodes or ranks // int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    mesh = init_device_mesh(device, (nodes, ranks // nodes), mesh_dim_names=("replicas", "shards"))

    torch.manual_seed(options.seed)  # all nodes start with the same weights
    model = Writer().to(device)
    for block in model.blocks:
        fully_shard(block, mesh=mesh["shards"])
    fully_shard(model, mesh=mesh["shards"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    optimizer = gtopk.DistributedOptimizer(
        optimizer, model.named_parameters(), group=mesh["replicas"], density=options.density
    )
    if options.checkpoint and options.checkpoint.exists():
        load(options.checkpoint, model, optimizer)

    text, generator = read_text(), torch.Generator().manual_seed(1000 * (options.seed + 1) + gtopk.rank())
    for step in range(options.steps):
        batch = draw(text, 16, generator).to(device)
        optimizer.zero_grad()
        loss = cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step == options.steps - 1:
            mean = gtopk.allreduce(loss.detach().reshape(1)).item()
            if gtopk.rank() == 0:
                sent = optimizer.stats().get("bytes_sent", 0)
                print(f"step {step:4d}  loss {mean:.3f}  sent {sent} bytes a rank", flush=True)
    if options.checkpoint:
        save(options.checkpoint, model, optimizer)
    dist.barrier()


if __name__ == "__main__":
    main()
