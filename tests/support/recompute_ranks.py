"""What every rank does and checks in the tests of recomputed models over several processes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from ste_ops.nn import LSQ, QuantConv2d, Sign, XNORWeight, recompute_
from support.kept import assert_equal


class Block(nn.Module):
    def __init__(self, binary: bool) -> None:
        super().__init__()
        quantizers = (Sign(), XNORWeight()) if binary else (LSQ(4, signed=False, scale=0.2), LSQ(4, scale=0.2))
        self.conv = QuantConv2d(8, 8, 3, padding=1, input_quantizer=quantizers[0], weight_quantizer=quantizers[1])
        self.norm, self.relu = nn.BatchNorm2d(8), nn.Identity() if binary else nn.ReLU()

    def forward(self, x):
        return self.relu(self.norm(self.conv(x)) + x)


def network() -> nn.Module:
    blocks = [Block(False), Block(False), Block(True), Block(True)]
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), *blocks)


def data(rank: int) -> torch.Tensor:
    return torch.randn(2, 3, 66, 66, generator=torch.Generator().manual_seed(rank))


def full(x: torch.Tensor | None) -> torch.Tensor | None:
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def trained(model: nn.Module, rank: int, accumulate: bool = False) -> list[torch.Tensor | None]:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    got = []
    for _ in range(2):
        for _ in range(1 + accumulate):
            loss = model(data(rank)).square().mean()
            loss.backward()
        got += [loss.detach(), *(full(p.grad) for p in model.parameters())]
        got = [None if g is None else g.clone() for g in got]
        optimizer.step()
        optimizer.zero_grad()
    return [*got, *(b.clone() for b in model.buffers())]


def data_parallel(rank: int, world: int) -> None:
    plain = network()
    recomputed = recompute_(copy.deepcopy(plain), data(0))
    for options in ({}, {"static_graph": True}, {"gradient_as_bucket_view": True}):
        one, other = (DistributedDataParallel(copy.deepcopy(model), **options) for model in (plain, recomputed))
        accumulate = not options
        assert_equal(trained(other, rank, accumulate), trained(one, rank, accumulate))


def wrapped_before(rank: int, world: int) -> None:
    one, other = (DistributedDataParallel(network()) for _ in range(2))
    other.load_state_dict(one.state_dict())
    recompute_(other.module, data(0))
    assert_equal(trained(other, rank), trained(one, rank))


def sharded(rank: int, world: int) -> None:
    mesh = init_device_mesh("cpu", (world,))
    plain = network()
    recomputed = recompute_(copy.deepcopy(plain), data(0))
    for units in ([], [4, 5, 6], [1, 4, 5, 6, 7]):
        models = []
        for model in map(copy.deepcopy, (plain, recomputed)):
            for unit in units:
                fully_shard(model[unit], mesh=mesh, reshard_after_forward=True)
            models.append(fully_shard(model, mesh=mesh, reshard_after_forward=True))
        one, other = models
        assert_equal(trained(other, rank), trained(one, rank))
    with pytest.raises(
        RuntimeError, match=r"recompute_: the model must be copied for a trial.*before the model is wrap"
    ):
        recompute_(one, data(0))


CASES = {f.__name__: f for f in (data_parallel, wrapped_before, sharded)}
