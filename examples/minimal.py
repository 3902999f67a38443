"""The lines that change in a training script are marked with >>>. Start it in one of these ways:

    python examples/minimal.py
    mpirun -n 4 --oversubscribe python examples/minimal.py
    torchrun --nproc-per-node 4 examples/minimal.py

A small network learns to add up 16 numbers; it takes a few seconds.
"""

import argparse

import torch

import gtopk  # >>>

parser = argparse.ArgumentParser(description="A small network learns to add up 16 numbers.")
parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU where there is one")
device = parser.parse_args().device
if device == "auto":
    device = "cuda" if torch.cuda.is_available() else "cpu"

gtopk.init()  # >>>
if device == "cuda":  # each process of a host has a GPU of its own, as far as they go
    torch.cuda.set_device(gtopk.local_rank() % torch.cuda.device_count())
torch.manual_seed(gtopk.rank())  # each rank draws data of its own
model = torch.nn.Sequential(torch.nn.Linear(16, 512), torch.nn.ReLU(), torch.nn.Linear(512, 1)).to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
optimizer = gtopk.DistributedOptimizer(optimizer, named_parameters=model.named_parameters(), density=0.01)  # >>>
gtopk.broadcast_parameters(model.state_dict(), root_rank=0)  # >>> all ranks start from rank 0's model

for step in range(301):
    x = torch.rand(64, 16, device=device)
    loss = torch.nn.functional.mse_loss(model(x).squeeze(1), x.sum(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0 and gtopk.rank() == 0:
        print(f"step {step:3d}  loss {loss:.4f}  sent {optimizer.stats().get('bytes_sent', 0)} bytes")
