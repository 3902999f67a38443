"""Lightning with the DDP hook, which a callback registers, as Lightning's own option for hooks is for CUDA only."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, TensorDataset

import gtopk
from gtopk.torch.ddp_hook import GTopKState, gtopk_hook

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
from torch_support import make


class GTopK(lightning.Callback):
    """What users add to their trainer."""

    def on_train_start(self, trainer, pl_module):
        self.state = GTopKState(named_parameters=pl_module.named_parameters(), density=0.05)
        trainer.strategy.model.register_comm_hook(self.state, gtopk_hook)


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = make()
        del self.net.unused
        self.losses = []

    def training_step(self, batch, _):
        loss = self.net(batch[0]).pow(2).mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def main():
    torch.manual_seed(1)
    loader = DataLoader(TensorDataset(torch.randn(64, 3, 6, 6)), batch_size=4)
    callback, module = GTopK(), Module()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=int(sys.argv[1]),
        strategy=DDPStrategy(process_group_backend="gloo"),
        max_epochs=4,
        callbacks=[callback],
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)

    weights = torch.cat([p.detach().flatten() for p in module.parameters()])
    everywhere = gtopk.allgather(weights[None])
    assert (everywhere == everywhere[0]).all()
    assert callback.state.stats()["step"] + 1 == len(module.losses)
    assert 0 < callback.state.stats()["count"] < 0.06 * len(weights)
    assert module.losses[-1] < module.losses[0] / 2, module.losses
    print(f"trained on {trainer.world_size} ranks", flush=True)


if __name__ == "__main__":
    main()
