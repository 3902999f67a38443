"""What the top k / P of each range costs in place of the top k: training with gtopk, gtopk-split and topk, and dense.

    python benchmarks/split_convergence.py [--ranks 16 --density 0.001 --steps 300]

P ranks are threads of this process, with the library's own exchange between them: a perceptron of 784, 128 and 10 units on
Fashion-MNIST (the data that examples/ use; --data its folder), 16 images a rank and step, SGD. Prints the mean loss of the
last fifth of the steps and the accuracy on the test images, for each seed, and writes them as JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

import gtopk

sys.path.insert(0, str(Path(__file__).resolve().parent / "convergence"))
from ranks import on_ranks

Array = np.ndarray[Any, np.dtype[Any]]
SHAPES = ((784, 128), (128,), (128, 10), (10,))
ALGORITHMS = ("dense", "topk", "gtopk", "gtopk-split")


def read(folder: Path, name: str, head: int) -> Array:
    with gzip.open(folder / f"{name}.gz") as file:
        return np.frombuffer(file.read(), np.uint8, offset=head)


def load(folder: Path) -> tuple[Array, Array, Array, Array]:
    train, test = (read(folder, f"{part}-images-idx3-ubyte", 16).reshape(-1, 784) for part in ("train", "t10k"))
    labels, wanted = (read(folder, f"{part}-labels-idx1-ubyte", 8).astype(int) for part in ("train", "t10k"))
    return train[:20000] / np.float32(255), labels[:20000], test / np.float32(255), wanted


def gradients(weights: list[Array], x: Array, y: Array) -> tuple[float, list[Array]]:
    hidden = np.maximum(x @ weights[0] + weights[1], 0)
    scores = hidden @ weights[2] + weights[3]
    scores -= scores.max(1, keepdims=True)
    p = np.exp(scores)
    p /= p.sum(1, keepdims=True)
    rows = np.arange(len(y))
    loss = -np.log(p[rows, y] + 1e-9).mean()
    p[rows, y] -= 1
    p /= len(y)
    back = (p @ weights[2].T) * (hidden > 0)
    return float(loss), [x.T @ back, back.sum(0), hidden.T @ p, p.sum(0)]


def train_rank(comm: gtopk.Comm, job: argparse.Namespace, data: Any, losses: Array) -> float:
    """Trains, and gives the accuracy on the test images."""
    rank = comm.rank
    x, y, test, wanted = data
    start, own = np.random.default_rng(job.seed), np.random.default_rng([job.seed, rank])
    weights = [start.standard_normal(s).astype(np.float32) * (0.05 if len(s) == 2 else 0) for s in SHAPES]
    with gtopk.Reducer([w.size for w in weights], density=job.density, algorithm=job.algorithm, comm=comm) as reducer:
        for step in range(job.steps):
            batch = own.integers(0, len(y), 16)
            losses[rank, step], grads = gradients(weights, x[batch], y[batch])
            flat = [np.ascontiguousarray(g, np.float32).reshape(-1) for g in grads]
            reducer.accumulate_many(None, flat)
            reducer.reduce(flat)
            for w, g in zip(weights, flat, strict=True):
                w -= np.float32(job.rate) * g.reshape(w.shape)
    hidden = np.maximum(test @ weights[0] + weights[1], 0)
    return float(((hidden @ weights[2] + weights[3]).argmax(1) == wanted).mean())


def train(job: argparse.Namespace, data: Any) -> dict[str, Any]:
    losses = np.zeros((job.ranks, job.steps))
    accuracies = on_ranks(job.ranks, lambda comm: train_rank(comm, job, data, losses))
    return {"loss": float(losses[:, -job.steps // 5 :].mean()), "accuracy": accuracies[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=16)
    parser.add_argument("--density", type=float, default=0.001)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path.home() / ".cache/gtopk/fashion-mnist")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/split_convergence.json")
    job = parser.parse_args()
    data = load(job.data)
    rows = []
    for algorithm in ALGORITHMS:
        for seed in range(job.seeds):
            job.algorithm, job.seed = algorithm, seed
            rows.append({"algorithm": algorithm, "seed": seed, **train(job, data)})
            print(
                f"{algorithm:12} seed {seed}  loss {rows[-1]['loss']:.4f}  accuracy {rows[-1]['accuracy']:.4f}",
                flush=True,
            )
    job.out.write_text(
        json.dumps(
            {
                "date": datetime.now(timezone.utc).date().isoformat(),
                "command": "python benchmarks/split_convergence.py",
                "ranks": job.ranks,
                "density": job.density,
                "steps": job.steps,
                "rows": rows,
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
