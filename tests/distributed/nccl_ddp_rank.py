"""One rank of DistributedDataParallel with backend nccl and our hook, whose exchanges go over NCCL as well; see
nccl_on_one_gpu.py. Says "the same weights" when all ranks have them after some steps, and that the loss fell."""

from __future__ import annotations

import torch
import torch.distributed as dist

import gtopk
from gtopk.torch.ddp_hook import GTopKState, gtopk_hook


def main() -> None:
    torch.cuda.set_device(0)
    dist.init_process_group("nccl")
    gtopk.init(transport="nccl", timeout=60)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 8)).cuda()
    ddp = torch.nn.parallel.DistributedDataParallel(model, device_ids=[0])
    ddp.register_comm_hook(GTopKState(named_parameters=model.named_parameters(), density=0.05), gtopk_hook)
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
    weights = torch.cat([p.detach().flatten() for p in model.parameters()]).cpu()
    everywhere = [torch.empty_like(weights).cuda() for _ in range(dist.get_world_size())]
    dist.all_gather(everywhere, weights.cuda())
    assert all(torch.equal(other.cpu(), weights) for other in everywhere), "ranks have other weights"
    assert losses[-1] < 0.9 * losses[0], losses
    text = gtopk.comm.current().description
    assert text.startswith("nccl"), text
    if dist.get_rank() == 0:
        print(f"the same weights; loss {losses[0]:.3f} to {losses[-1]:.3f}, {text}")
    gtopk.shutdown()
    dist.destroy_process_group()


main()
