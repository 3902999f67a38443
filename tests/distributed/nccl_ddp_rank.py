"""One rank of DistributedDataParallel with backend nccl and our hook, whose exchanges go over NCCL as well; see
nccl_on_one_gpu.py. Says "the same weights" when all ranks have them after some steps, and that the loss fell; the same with
the ranks as a node."""

from __future__ import annotations

import torch
import torch.distributed as dist

import gtopk
from gtopk.torch.ddp_hook import GTopKState, gtopk_hook


def train(hierarchy: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 8)).cuda()
    ddp = torch.nn.parallel.DistributedDataParallel(model, device_ids=[0])
    state = GTopKState(named_parameters=model.named_parameters(), density=0.05, hierarchy=hierarchy)
    ddp.register_comm_hook(state, gtopk_hook)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05)
    torch.manual_seed(1 + dist.get_rank())
    teacher = torch.randn(64, 8, generator=torch.Generator().manual_seed(7)).cuda()
    losses = []
    for _ in range(60):
        inputs = torch.randn(32, 64, device="cuda")
        loss = torch.nn.functional.mse_loss(ddp(inputs), inputs @ teacher)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    everywhere = [torch.empty_like(weights) for _ in range(dist.get_world_size())]
    dist.all_gather(everywhere, weights)
    assert all(torch.equal(other, weights) for other in everywhere), f"hierarchy {hierarchy}: ranks have other weights"
    assert losses[-1] < 0.9 * losses[0], losses
    if dist.get_rank() == 0:
        text = gtopk.comm.current().description
        print(f"the same weights; hierarchy {hierarchy}, loss {losses[0]:.3f} to {losses[-1]:.3f}, {text}")


def main() -> None:
    torch.cuda.set_device(0)
    dist.init_process_group("nccl")
    gtopk.init(transport="nccl", timeout=60)
    assert gtopk.comm.current().description.startswith("nccl")
    for hierarchy in ("off", "node"):
        train(hierarchy)
    gtopk.shutdown()
    dist.destroy_process_group()


main()
