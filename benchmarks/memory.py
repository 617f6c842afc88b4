"""Bytes that a small ResNet keeps for its backward: in float, with torch's fake quantization, and with ours."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import ste_ops
from benchmarks.measure import Count

_WEIGHT = {"scale": 0.01, "quant_min": -128, "quant_max": 127}
_INPUT = {"scale": 0.05, "quant_min": 0, "quant_max": 255}


class Block(nn.Module):
    """The basic block of a ResNet. `act` may be nn.Identity where the next layer's quantizer clips at 0 by itself."""

    def __init__(self, inputs: int, outputs: int, stride: int, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1, self.act1 = nn.BatchNorm2d(outputs), act()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2, self.act2 = nn.BatchNorm2d(outputs), nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.act1(self.norm1(self.conv1(x))))
        return self.act2(self.norm2(out) + self.shortcut(x))


def small_resnet(act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Three stages of two blocks, for images of 32 by 32."""
    stages = [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    for inputs, outputs, stride in stages:
        net.append(Block(inputs, outputs, stride, act))
    return net.extend((nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)))


def _torchs(net: nn.Module) -> nn.Module:
    def quantizer(scale: float, quant_min: int, quant_max: int) -> Callable[[Any], Callable[[Tensor], Tensor]]:
        return lambda _: lambda x: torch.fake_quantize_per_tensor_affine(x, scale, 0, quant_min, quant_max)

    return ste_ops.nn.quantize_(net, quantizer(**_WEIGHT), quantizer(**_INPUT), skip=("0", str(len(net) - 1)))


def _ours(net: nn.Module) -> nn.Module:
    def quantizer(scale: float, signed: bool) -> Callable[[Any], nn.Module]:
        return lambda _: ste_ops.nn.FakeQuantize(8, signed=signed, scale=scale)

    return ste_ops.nn.quantize_(net, quantizer(0.01, True), quantizer(0.05, False), skip=("0", str(len(net) - 1)))


def kept_bytes(net: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """What is allocated after a forward while its graph lives, by the allocator's own count."""
    if x.is_cuda:
        before = torch.cuda.memory_allocated()
        y = net(x)
        return torch.cuda.memory_allocated() - before - y.untyped_storage().nbytes()
    gc.collect()  # what is freed meanwhile would be subtracted
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        y = net(x)
    return sum(event.self_cpu_memory_usage for event in profiled.events()) - y.untyped_storage().nbytes()


def rows(device: str, quick: bool) -> Iterator[Count]:
    x = torch.randn(4 if quick else 64, 3, 32, 32, device=device)
    nets = small_resnet(), _torchs(small_resnet()), _ours(small_resnet()), _ours(small_resnet(nn.Identity))
    plain, torchs, ours, bare = (kept_bytes(net.to(device), x) for net in nets)
    work = f"bytes kept for backward, small ResNet, {len(x)} images, fake quantization to 8 bits"
    megabytes = [f"{size / 2**20:.1f} MiB" for size in (plain, torchs, ours, bare)]
    yield Count(f"{work}: {megabytes[2]}", f"torch's fake quantization: {megabytes[1]}", ours / torchs, 0.75)
    yield Count(f"{work}: {megabytes[2]}", f"in float: {megabytes[0]}", ours / plain, 1.2)
    yield Count(
        f"{work}, no ReLU before a quantizer that clips at 0: {megabytes[3]}",
        f"in float: {megabytes[0]}",
        bare / plain,
        1.0,
    )
