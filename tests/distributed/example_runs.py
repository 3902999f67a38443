"""The examples' trainer, several times on the same ranks: a run with made-up images, and runs that have to end with an error.

Prints a line for each that went as it should, on all ranks. Wants an empty folder.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import numpy as np
import torch
import trainer
from imagenet import ImageNet
from PIL import Image
from torch import nn

import gtopk

SMALL = ["--image-size", "8", "--workers", "0", "--batch-size", "4", "--warmup-epochs", "0", "--threads", "1"]


def tiny(models, classes):
    """Of 49,000 parameters, so that the least number of entries is not all of them."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, classes))


def run(*arguments):
    """Exit status of each rank, and what rank 0 has printed."""
    sys.argv = ["example", *SMALL, *map(str, arguments)]
    status, output = 0, io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            trainer.main(ImageNet("tiny", tiny, batch_size=4), "")
        except SystemExit as end:
            status = end.code
    gtopk.init()
    return gtopk.allgather(np.array([status], np.int64)).tolist(), gtopk.broadcast_object(output.getvalue(), 0)


def expect(arguments, wanted, *texts):
    statuses, output = run(*arguments)
    assert statuses == [wanted] * gtopk.size(), (statuses, output)
    for text in texts:
        assert output.count(text) == 1, (text, output)
    if gtopk.rank() == 0:
        print(f"as expected on all {gtopk.size()} ranks: {arguments}", flush=True)


def make_folder(folder, train, val):
    if gtopk.rank() == 0:
        for part, classes in (("train", train), ("val", val)):
            (folder / part).mkdir(parents=True)
            for name in classes:
                (folder / part / name).mkdir()
                Image.new("RGB", (8, 8)).save(folder / part / name / "image.png")
    gtopk.barrier()
    return folder


def made_up_images(folder):
    """With the library's default: 39 dense steps, and then a density of 0.1."""
    result = folder / "run.json"
    recipe = ["--density", "default", "--steps", 42, "--report-every", 39, "--json", result]
    expect(recipe, 0, "data: MADE-UP IMAGES, for throughput: loss and accuracy say nothing", "identical: yes")
    run = json.loads(result.read_text())
    assert run["data"] == "made-up images" and run["replicas_identical"] and run["ranks"] == gtopk.size()
    assert run["default_density"] and abs(run["density"] - 0.1) < 0.001, run["density"]
    dense, sparse = run["history"]
    assert (dense["step"], sparse["step"]) == (39, 42)
    assert dense["bytes_sent_per_step"] > 4 * sparse["bytes_sent_per_step"] > 0


def folders(folder):
    expect(["--data", folder / "none"], 1, f"rank 0: --data {folder}/none is no folder")
    no_parts = make_folder(folder / "a", [], [])
    (no_parts / "val").rmdir() if gtopk.rank() == 0 else None
    expect(["--data", no_parts], 1, f"--data {no_parts}: {no_parts}/train has no folders with images, one a class")
    no_val = make_folder(folder / "b", ["cat"], [])
    expect(["--data", no_val], 1, f"--data {no_val}: {no_val}/val has no folders with images, one a class")
    differing = make_folder(folder / "c", ["cat", "dog"], ["cat", "emu"])
    text = f"--data {differing}: {differing}/train and {differing}/val have different classes (dog, emu, ...)"
    expect(["--data", differing], 1, text)


def devices():
    """Rank 1's alone is wrong."""
    for name in ("cuda", "cuda:9", "tpu"):
        text = f"rank 1: --device {name}" + (" is none of" if name == "tpu" else ": PyTorch sees no GPU")
        torch.cuda.is_available = lambda: False
        expect(["--device", name if gtopk.rank() == 1 else "cpu", "--steps", 1], 1, text)


def a_loss_that_is_not_finite():
    expect(["--lr", "1e38", "--steps", 9, "--report-every", 1], 1, "is not finite: try a smaller --lr")


if __name__ == "__main__":
    gtopk.init()
    place = Path(sys.argv[1])
    made_up_images(place)
    folders(place)
    devices()
    a_loss_that_is_not_finite()
