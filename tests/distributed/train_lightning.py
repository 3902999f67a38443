"""Lightning with gtopk's callback, on CPUs, and going on from one of its checkpoints."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset

import gtopk

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "python"), str(ROOT / "examples")]
from imagenet import import_torchvision
from torch_support import make

import_torchvision()  # Lightning imports it, and beside a CPU build of PyTorch that takes help
import lightning
from lightning.pytorch.strategies import DDPStrategy

from gtopk.frameworks.lightning import GTopKCallback


class Module(lightning.LightningModule):
    def __init__(self, seed=0):
        super().__init__()
        self.net = make(seed=seed)
        del self.net.unused
        self.losses = []

    def on_train_start(self):
        callback = next(one for one in self.trainer.callbacks if isinstance(one, GTopKCallback))
        self.begun = callback.state.state_dict()

    def training_step(self, batch, _):
        loss = self.net(batch[0]).pow(2).mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def fit(devices, epochs, module, file=None, accumulated=1):
    torch.manual_seed(1)
    loader = DataLoader(TensorDataset(torch.randn(64, 3, 6, 6)), batch_size=4)
    callback = GTopKCallback(density=0.05)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=DDPStrategy(process_group_backend="gloo"),
        max_epochs=epochs,
        callbacks=[callback],
        gradient_clip_val=1.0,
        accumulate_grad_batches=accumulated,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader, ckpt_path=file)
    return trainer, callback


def check(module, state):
    weights = torch.cat([p.detach().flatten() for p in module.parameters()])
    everywhere = gtopk.allgather(weights[None])
    assert (everywhere == everywhere[0]).all()
    assert 0 < state.stats()["count"] < 0.06 * len(weights)


def total(state):
    return {name: gtopk.allreduce(values, gtopk.Sum) for name, values in state.state_dict()["residual"].items()}


def main(devices, folder):
    module = Module()
    trainer, callback = fit(devices, 4, module)
    state = callback.state
    check(module, state)
    assert state.stats()["step"] + 1 == len(module.losses)
    assert module.losses[-1] < module.losses[0] / 2, module.losses

    file, waiting, steps = f"{folder}/lightning.ckpt", total(state), state.stats()["step"]
    trainer.save_checkpoint(file)
    saved = torch.load(file, weights_only=False, map_location="cpu")["callbacks"]["GTopKCallback"]["residual"]
    assert all(torch.equal(saved[name], values) for name, values in waiting.items())
    assert any(values.any() for values in saved.values())
    again = Module(seed=1)
    trainer, callback = fit(devices, 5, again, file)
    check(again, callback.state)
    done = steps + len(again.losses)
    assert callback.state.stats()["step"] == done

    # Another fit() goes on with what this one left, not with the checkpoint's residual once more.
    left = callback.state.state_dict()["residual"]
    trainer.fit_loop.max_epochs = 6
    trainer.fit(again, trainer.train_dataloader)
    begun = again.begun["residual"]
    assert begun.keys() == left.keys() and all(torch.equal(begun[name], values) for name, values in left.items())
    check(again, callback.state)
    assert callback.state.stats()["step"] == steps + len(again.losses) > done

    pairs = Module()
    _, callback = fit(devices, 1, pairs, accumulated=2)
    check(pairs, callback.state)
    assert callback.state.stats()["step"] + 1 == len(pairs.losses) // 2
    print(f"trained on {trainer.world_size} ranks", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
