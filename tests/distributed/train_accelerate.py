"""Hugging Face Accelerate: the loop of its documentation, what gtopk promises after it, and going on from save_state."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

import gtopk
from gtopk.frameworks.accelerate import register

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
from torch_support import make


def prepared(seed=0):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = make(seed=seed)
    del model.unused
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    torch.manual_seed(1)
    loader = DataLoader(TensorDataset(torch.randn(64, 3, 6, 6)), batch_size=4)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    return accelerator, model, optimizer, loader, scheduler, register(accelerator, model, density=0.05)


def train(parts, epochs):
    accelerator, model, optimizer, loader, scheduler, _ = parts
    losses = []
    for _ in range(epochs):
        for (x,) in loader:
            with accelerator.accumulate(model):
                loss = model(x).pow(2).mean()
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                losses.append(loss.item())
    return losses


def weights_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def main(folder):
    parts = prepared()
    accelerator, model, *_, state = parts
    losses = train(parts, 4)
    weights = weights_of(model)
    everywhere = gtopk.allgather(weights[None])
    assert (everywhere == everywhere[0]).all()
    assert state.stats()["step"] + 1 == len(losses) // 2
    assert 0 < state.stats()["count"] < 0.06 * len(weights)
    assert losses[-1] < losses[0] / 2, losses

    accelerator.save_state(folder)
    kept = {name: values.clone() for name, values in state.state_dict()["residual"].items()}
    assert any(values.any() for values in kept.values())
    again = prepared(seed=1)
    again[0].load_state(folder)
    loaded = again[-1].state_dict()["residual"]
    assert all(torch.equal(loaded[name], values) for name, values in kept.items())
    assert torch.equal(weights_of(again[1]), weights)
    train(again, 1)
    everywhere = gtopk.allgather(weights_of(again[1])[None])
    assert (everywhere == everywhere[0]).all()
    assert again[-1].stats()["step"] == state.stats()["step"] + len(losses) // 8
    print(f"trained on {accelerator.num_processes} ranks", flush=True)
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[2])
