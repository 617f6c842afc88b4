"""Trains a binary network on imbalanced digits in several processes; killed, it goes on in any number of them.

    pip install scikit-learn
    torchrun --standalone --nproc-per-node 2 examples/distributed_digits.py --folder run
    # Ctrl-C, kill -9 of a rank, a power cut, whenever; then the same again, on as many processes as there are now:
    torchrun --standalone --nproc-per-node 3 examples/distributed_digits.py --folder run

On several machines torchrun takes --nnodes, --rdzv-backend c10d and --rdzv-endpoint, and all must see the folder. With
--fsdp parameters and gradients are sharded (FSDP2), without they are copied (DDP); a checkpoint of either goes on in
the other.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import ste_ops
from ste_ops.data import DistributedWeightedSampler, class_weights
from ste_ops.demo.data import Digits, digits, imbalance, is_rare
from ste_ops.nn import QuantLinear, Sign

# Whole tensors on the first rank's host, whether they are copied or sharded over the ranks that run now.
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def dataset_of(seed: int) -> Digits:
    """The odd digits are ten times rarer than the even ones, but for the test images."""
    return imbalance(digits(seed), seed)


def sampler_of(labels: Tensor, draws: int, seed: int, **ranks: int) -> DistributedWeightedSampler:
    """An epoch is a stream of draws, every class equally often; each rank draws its own part of it, without a word."""
    return DistributedWeightedSampler(class_weights(labels)[labels], draws, seed=seed, **ranks)


def binary_net(width: int = 128) -> nn.Sequential:
    """Signs between a first and a last layer in float; the normalization before a sign centers it."""
    net = nn.Sequential(nn.Linear(64, width))
    for _ in range(2):
        net.append(nn.LayerNorm(width))
        net.append(QuantLinear(width, width, bias=False, weight_quantizer=Sign(), input_quantizer=Sign()))
    return net.extend((nn.LayerNorm(width), nn.Linear(width, 10)))


def distributed(net: nn.Sequential, fsdp: bool, device: torch.device) -> nn.Module:
    if not fsdp:
        return DistributedDataParallel(net)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in net:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def save(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer, sampler: dict[str, Any]) -> None:
    """All ranks take part, the first one writes. Whoever is killed in between leaves the old checkpoint whole."""
    model, optimization = get_state_dict(net, optimizer, options=WHOLE)
    if dist.get_rank() == 0:
        part = path.with_suffix(".part")
        with open(part, "wb") as file:
            torch.save({"model": model, "optimizer": optimization, "sampler": sampler}, file)
            file.flush()
            os.fsync(file.fileno())  # or after a power cut the new name may stand before an empty file
        os.replace(part, path)


def resume(
    path: Path, net: nn.Module, optimizer: torch.optim.Optimizer, sampler: DistributedWeightedSampler
) -> dict[str, Any]:
    state = torch.load(path, weights_only=True, map_location="cpu")
    set_state_dict(net, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=WHOLE)
    sampler.load_state_dict(state["sampler"])
    return state["sampler"]


@torch.no_grad()
def accuracies(net: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """On all classes and on the rare ones."""
    right = net(images).argmax(1) == labels
    return float(right.float().mean()), float(right[is_rare(labels)].float().mean())


def train(options: argparse.Namespace, device: torch.device) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    options.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = options.folder / "checkpoint.pt"

    data = dataset_of(options.seed)
    numbers = torch.arange(len(data.train_labels))
    dataset = TensorDataset(data.train_images, data.train_labels, numbers)
    sampler = sampler_of(data.train_labels, options.draws, options.seed)
    loader = DataLoader(dataset, options.batch, sampler=sampler, num_workers=options.workers)

    torch.manual_seed(options.seed)
    net = distributed(binary_net().to(device), options.fsdp, device)
    optimizer = torch.optim.Adam(net.parameters(), lr=options.lr)
    if checkpoint.exists():
        state = resume(checkpoint, net, optimizer, sampler)
        if rank == 0:
            print(f"resumed epoch {state['epoch']} at draw {state['position']} of {options.draws}", flush=True)
    if rank == 0:
        print(f"{world} ranks, {'FSDP2' if options.fsdp else 'DDP'} over {dist.get_backend()}", flush=True)

    test_images, test_labels = data.test_images.to(device), data.test_labels.to(device)
    record = options.folder / f"rank-{rank}-of-{world}.jsonl"
    for epoch in range(sampler.epoch, options.epochs):
        sampler.set_epoch(epoch)  # the epoch of the checkpoint goes on where it was
        losses = []
        for batch, (images, labels, drawn) in enumerate(loader, start=1):
            if options.record:  # before the ranks meet in backward: what one has checkpointed, all have written
                line = {"pid": os.getpid(), "epoch": epoch, "batch": batch, "drawn": drawn.tolist()}
                with record.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            loss = cross_entropy(net(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            # DDP leaves the whole gradient on every rank and nothing has to be sent for its norm; of the shards of
            # FSDP2 the norms are joined over the mesh. Parameters divided by hand would need process_group=.
            ste_ops.clip_grad_norm_(net.parameters(), max_norm=1.0)
            optimizer.step()
            losses.append(loss.detach())
            if batch % options.every == 0:
                # Where training is, and not how far a worker has fetched ahead: the same place on every rank.
                save(checkpoint, net, optimizer, sampler.state_dict(consumed=batch * options.batch))
        if losses:
            mean = torch.stack(losses).mean()
            dist.all_reduce(mean)
            every, rare = accuracies(net, test_images, test_labels)
            if rank == 0:
                shown = f"test accuracy {every:.1%}, of the rare classes {rare:.1%}"
                print(f"epoch {epoch}  loss {mean.item() / world:.3f}  {shown}", flush=True)
        sampler.set_epoch(epoch + 1)
        save(checkpoint, net, optimizer, sampler.state_dict())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("run"), help="of checkpoint.pt; default: run")
    parser.add_argument("--epochs", type=int, default=10, help="default: 10")
    parser.add_argument("--draws", type=int, default=1500, help="in an epoch, of all ranks together; default: 1500")
    parser.add_argument("--batch", type=int, default=16, help="of each rank; default: 16")
    parser.add_argument("--every", type=int, default=10, help="batches from checkpoint to checkpoint; default: 10")
    parser.add_argument("--lr", type=float, default=3e-3, help="default: 3e-3")
    parser.add_argument("--seed", type=int, default=0, help="of the data, the network and the draws; default: 0")
    parser.add_argument("--workers", type=int, default=0, help="that load for each rank; default: 0")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: cpu")
    parser.add_argument("--fsdp", action="store_true", help="shard parameters and gradients (FSDP2)")
    parser.add_argument("--record", action="store_true", help="write what each rank has drawn into the folder")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(minutes=2))
    try:
        train(options, device)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
