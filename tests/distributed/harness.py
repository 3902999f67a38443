"""Runs cases on all ranks of a launch: harness.py MODULE... calls every case_* function of the modules, in order.

Started by mpirun with numpy arrays, by torchrun with torch tensors (GTOPK_TEST_KIND=torch); with GTOPK_TEST_DEVICE=cuda
torch tensors are on GPUs; GTOPK_TEST_TRANSPORT names a transport. Rank 0 prints one line a
case. The first failure ends the process at once with status 1, and the launcher ends the other ranks: after it they
would not be doing the same things any more.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import time
import traceback
from pathlib import Path

import numpy as np

import gtopk

KIND = os.environ.get("GTOPK_TEST_KIND", "numpy")
# With GTOPK_TEST_EACH_NODE=2 every two ranks share a node, by its name, and reducers use hierarchy "node".
EACH_NODE = int(os.environ.get("GTOPK_TEST_EACH_NODE", "0"))
HIERARCHY = {"hierarchy": "node"} if EACH_NODE else {}
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))


def given(x):
    """A numpy array as the kind of tensor that this launch tests, sharing its memory."""
    if KIND == "torch":
        import torch

        return torch.from_numpy(x)
    return x


def as_numpy(x):
    return x if isinstance(x, np.ndarray) else x.detach().cpu().numpy()


def gather(x):
    """Every rank's array, stacked along a new first dimension."""
    return gtopk.allgather(np.ascontiguousarray(x)[None])


def assert_same_on_all_ranks(x):
    everywhere = gather(np.ascontiguousarray(x).view(np.uint8))
    for rank, other in enumerate(everywhere):
        assert (other == everywhere[0]).all(), f"rank {rank} differs from rank 0"


def raises(error, call, *words):
    """The exception of `call`, which must be of type `error` and contain the words."""
    try:
        call()
    except error as raised:
        for word in words:
            assert word in str(raised), f"{word!r} is not in: {raised}"
        return raised
    raise AssertionError(f"{error} was not raised")


class Warnings(logging.Handler):
    """What gtopk warned about."""

    def __enter__(self):
        self.texts = []
        logging.getLogger("gtopk").addHandler(self)
        logging.getLogger("gtopk").propagate = False
        return self.texts

    def __exit__(self, *_):
        logging.getLogger("gtopk").removeHandler(self)
        logging.getLogger("gtopk").propagate = True

    def emit(self, record):
        self.texts.append(record.getMessage())


def name_node():
    rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["RANK"]
    os.environ["GTOPK_NODE"] = f"node-{int(rank) // EACH_NODE}"


def use_gpu():
    """Tensors are made on a GPU from here on, or on what stands in for one; ranks take different ones where there are, or that
    of GTOPK_TEST_GPU."""
    import torch
    import torch_cuda

    torch_cuda.install()
    names = ("GTOPK_TEST_GPU", "LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
    gpu = int(next((os.environ[name] for name in names if name in os.environ), "0"))
    torch.cuda.set_device(gpu % torch.cuda.device_count())
    torch.set_default_device("cuda")
    if "RANK" in os.environ:
        torch.distributed.init_process_group(torch_cuda.BACKEND)


def main(modules):
    if EACH_NODE:
        name_node()
    if os.environ.get("GTOPK_TEST_DEVICE") == "cuda":
        use_gpu()
    transport = os.environ.get("GTOPK_TEST_TRANSPORT")
    gtopk.init(transport=transport)
    assert not transport or gtopk.comm.current().description.startswith(transport)
    count = 0
    for module in map(importlib.import_module, modules):
        for name, case in list(vars(module).items()):
            if not name.startswith("case_"):
                continue
            begin = time.monotonic()
            try:
                case()
                gtopk.barrier()
            except BaseException:  # whatever it is, the other ranks must not wait
                sys.stdout.flush()
                sys.stderr.write(f"FAILED {name} on rank {gtopk.rank()} of {gtopk.size()}\n{traceback.format_exc()}\n")
                sys.stderr.flush()
                os._exit(1)
            count += 1
            if gtopk.rank() == 0:
                print(f"passed {name} ({time.monotonic() - begin:.2f} s)", flush=True)
    if gtopk.rank() == 0:
        print(f"all {count} cases passed on {gtopk.size()} ranks", flush=True)


if __name__ == "__main__":
    # The cases import this file as `harness`; it must be one module, not two.
    sys.modules["harness"] = sys.modules["__main__"]
    main(sys.argv[1:])
