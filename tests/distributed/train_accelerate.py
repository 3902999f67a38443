"""Hugging Face Accelerate with the DDP hook: the training loop of its documentation, and what gtopk promises after it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

import gtopk
from gtopk.torch.ddp_hook import GTopKState, gtopk_hook

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
from torch_support import make


def main():
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = make()
    del model.unused
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    torch.manual_seed(1)
    loader = DataLoader(TensorDataset(torch.randn(64, 3, 6, 6)), batch_size=4)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    state = GTopKState(density=0.05)
    model.register_comm_hook(state, gtopk_hook)

    losses = []
    for _ in range(4):
        for (x,) in loader:
            with accelerator.accumulate(model):
                loss = model(x).pow(2).mean()
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                losses.append(loss.item())

    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    everywhere = gtopk.allgather(weights[None])
    assert (everywhere == everywhere[0]).all()
    assert state.stats()["step"] + 1 == len(losses) // 2
    assert 0 < state.stats()["count"] < 0.06 * len(weights)
    assert losses[-1] < losses[0] / 2, losses
    print(f"trained on {accelerator.num_processes} ranks", flush=True)
    accelerator.end_training()


if __name__ == "__main__":
    main()
