"""Ray Train with two workers on one machine: what gtopk promises, and going on from a reported checkpoint."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import ray
import ray.train
import torch
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

SUPPORT = str(Path(__file__).resolve().parents[1] / "python")


def train_on_each_worker(config):
    sys.path.insert(0, SUPPORT)
    from torch_support import batch, loss_of, make

    import gtopk

    gtopk.init()  # on the process group that Ray has made
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    optimizer = gtopk.DistributedOptimizer(optimizer, model.named_parameters(), density=0.05)
    gtopk.broadcast_parameters(model.state_dict(), root_rank=0)
    begin = 0
    if config["checkpoint"]:
        with Checkpoint(config["checkpoint"]).as_directory() as folder:
            saved = torch.load(Path(folder) / f"rank-{gtopk.rank()}.pt", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"], strict=True)
        begin = saved["step"]
    for step in range(begin, config["end"]):
        optimizer.zero_grad()
        loss = loss_of(model, batch(step % 4, gtopk.rank()))
        loss.backward()
        optimizer.step()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    everywhere = gtopk.allgather(weights[None])
    assert (everywhere == everywhere[0]).all()
    assert 0 < optimizer.stats()["count"] < 0.06 * len(weights)
    with tempfile.TemporaryDirectory() as folder:  # Ray joins the workers' files
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
        torch.save(state, Path(folder) / f"rank-{gtopk.rank()}.pt")
        digest = float(weights.double().mul(torch.arange(len(weights))).sum())
        report = {"loss": loss.item(), "ranks": gtopk.size(), "step": optimizer.stats()["step"], "digest": digest}
        ray.train.report(report, checkpoint=Checkpoint.from_directory(folder))


def run(workers, folder, name, end, checkpoint=None):
    trainer = TorchTrainer(
        train_on_each_worker,
        train_loop_config={"end": end, "checkpoint": checkpoint},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(name=name, storage_path=folder),
    )
    return trainer.fit()


def main(workers, folder):
    ray.init(num_cpus=workers + 1, include_dashboard=False)
    first = run(workers, folder, "first", 10)
    straight = run(workers, folder, "straight", 20)
    resumed = run(workers, folder, "resumed", 20, first.checkpoint.path)
    files = sorted(file.name for file in Path(first.checkpoint.path).iterdir())
    assert {"rank-0.pt", "rank-1.pt"} <= set(files), files
    assert resumed.metrics["step"] == 19
    assert resumed.metrics["digest"] == straight.metrics["digest"]
    assert resumed.metrics["loss"] < first.metrics["loss"]
    print(f"trained on {resumed.metrics['ranks']} ranks", flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
