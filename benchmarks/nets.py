"""python -m benchmarks.nets [--nets NAME ...] [--batches 4 64] [--size 64] [--compiled | --bytes] [--out FILE]

Whole training steps: time, bytes kept for the backward, and the most that is allocated during a step. Each net in
float, with the usual straight-through code in plain torch, and on our layers; images contiguous and channels_last. With
--compiled under torch.compile too. Times are medians of rounds in which all take turns.

With --bytes the bytes kept alone, which any machine gives; there "ours, floats kept" is what our layers kept if they
kept floats, as they do where hooks of others are around them.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import ste_ops
from benchmarks.memory import kept_bytes
from benchmarks.plain_quantizers import (
    PlainBitNetActivation,
    PlainBitNetWeight,
    PlainConv2d,
    PlainLinear,
    PlainLSQ,
    PlainSign,
)
from ste_ops.nn import LSQ, BitNetActivation, BitNetWeight, QuantConv2d, QuantLinear, Sign

KINDS = ("float", "plain", "ours")
ROUNDS = 9


class Layers:
    """The layers of a kind, on the quantizers that `quantizers` makes: of an input and of a weight, for each kind."""

    def __init__(self, kind: str, **quantizers: tuple[Callable[[], nn.Module], Callable[[], nn.Module]]) -> None:
        self.kind = kind
        self._quantizers = quantizers.get(kind)

    def _with(self, of_float: type[nn.Module], plain: type[nn.Module], ours: type[nn.Module], *args: int) -> nn.Module:
        if self._quantizers is None:
            return of_float(*args, bias=False)
        of_input, of_weight = self._quantizers
        layer = {"plain": plain, "ours": ours}[self.kind]
        return layer(*args, bias=False, input_quantizer=of_input(), weight_quantizer=of_weight())

    def conv(self, inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Module:
        return self._with(nn.Conv2d, PlainConv2d, QuantConv2d, inputs, outputs, size, stride, size // 2)

    def linear(self, inputs: int, outputs: int) -> nn.Module:
        return self._with(nn.Linear, PlainLinear, QuantLinear, inputs, outputs)


def lsq_layers(kind: str) -> Layers:
    return Layers(
        kind,
        plain=(lambda: PlainLSQ(4, signed=False), lambda: PlainLSQ(4)),
        ours=(lambda: LSQ(4, signed=False, scale=0.1), lambda: LSQ(4, scale=0.1)),
    )


def sign_layers(kind: str) -> Layers:
    return Layers(kind, plain=(PlainSign, PlainSign), ours=(Sign, Sign))


def bitnet_layers(kind: str) -> Layers:
    return Layers(kind, plain=(PlainBitNetActivation, PlainBitNetWeight), ours=(BitNetActivation, BitNetWeight))


class Block(nn.Module):
    """The basic block of a ResNet."""

    def __init__(self, layers: Layers, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = layers.conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = layers.conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(layers.conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (out + self.shortcut(x)).relu()


class BiRealBlock(nn.Module):
    """One binary convolution with a shortcut of its own (Liu et al., arXiv:1808.00278)."""

    def __init__(self, layers: Layers, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        activation = nn.ReLU() if layers.kind == "float" else nn.Identity()
        self.body = nn.Sequential(activation, layers.conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            shortcut = nn.AvgPool2d(2), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


STAGES = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
STAGES += [(512, 512, 1)]


def small_resnet(kind: str) -> nn.Module:
    stages = [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
    stem = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    return nn.Sequential(*stem, *(Block(lsq_layers(kind), *stage) for stage in stages), *head)


def resnet18(blocks: list[nn.Module], *activation: nn.Module) -> nn.Module:
    stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), *activation, nn.MaxPool2d(3, 2, 1)
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def lsq_resnet18(kind: str) -> nn.Module:
    return resnet18([Block(lsq_layers(kind), *stage) for stage in STAGES], nn.ReLU())


def bireal_resnet18(kind: str) -> nn.Module:
    halves = [half for i, o, stride in STAGES for half in ((i, o, stride), (o, o, 1))]
    return resnet18([BiRealBlock(sign_layers(kind), *half) for half in halves])


class BitNetBlock(nn.Module):
    """The gated MLP of a transformer (SwiGLU), for tokens of 256."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        layers = bitnet_layers(kind)
        self.norm = nn.RMSNorm(256)
        self.gate, self.up, self.down = (layers.linear(*sizes) for sizes in ((256, 688), (256, 688), (688, 256)))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.down(nn.functional.silu(self.gate(h)) * self.up(h))


def mlp(kind: str) -> nn.Module:
    layers = lsq_layers(kind)
    hidden = [part for _ in range(2) for part in (layers.linear(1024, 1024), nn.BatchNorm1d(1024), nn.ReLU())]
    return nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), *hidden, nn.Linear(1024, 10))


# Of each net what makes it, and the shape of a sample.
NETS: dict[str, tuple[Callable[[str], nn.Module], tuple[int, ...]]] = {
    "small ResNet, LSQ 4 bits": (small_resnet, (3, 32, 32)),
    "Bi-Real ResNet-18": (bireal_resnet18, (3, 64, 64)),
    "ResNet-18, LSQ 4 bits": (lsq_resnet18, (3, 64, 64)),
    "BitNet block": (BitNetBlock, (64, 256)),
    "MLP, LSQ 4 bits": (mlp, (784,)),
}


def kept_and_peak(forward: Callable[[], Tensor], backward: Callable[[Tensor], None]) -> tuple[int, int]:
    """Bytes: what is allocated after a forward while its graph lives, and the most within forward and backward."""
    kept = kept_bytes(lambda _: forward(), torch.empty(0))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        backward(forward())
    now = most = 0
    moves = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(moves, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return kept, most


class Trained:
    """A net of a kind with its optimizer and a batch."""

    def __init__(self, make: Callable[[str], nn.Module], kind: str, x: Tensor, compiled: bool) -> None:
        torch.manual_seed(0)
        net = make(kind)
        self.x = x
        if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            net = net.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(net.parameters(), 1e-3)
        self.net: Callable[[Tensor], Tensor] = torch.compile(net, fullgraph=True) if compiled else net
        for _ in range(3):
            self.step()

    def forward(self) -> Tensor:
        return self.net(self.x).square().mean()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.forward().backward()
        self.optimizer.step()


def lines(name: str, batch: int, compiled: bool) -> Iterator[str]:
    make, shape = NETS[name]
    for layout in ("contiguous", "channels_last") if len(shape) == 3 else ("contiguous",):
        x = torch.randn(batch, *shape)
        if layout == "channels_last":
            x = x.to(memory_format=torch.channels_last)
        torch._dynamo.reset()
        trained = {kind: Trained(make, kind, x, compiled) for kind in KINDS}
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(ROUNDS):
            for kind, one in trained.items():
                start = time.perf_counter()
                one.step()
                times[kind].append(time.perf_counter() - start)
        of_plain = statistics.median(times["plain"])
        for kind, one in trained.items():
            one.optimizer.zero_grad()
            kept, peak = kept_and_peak(one.forward, lambda loss: loss.backward())
            step = statistics.median(times[kind])
            mode = "compiled" if compiled else "eager"
            yield (
                f"| {name}, {batch} | {layout} | {mode} | {kind} | {step * 1e3:.1f} | {step / of_plain:.2f} | "
                f"{kept / 2**20:.1f} | {peak / 2**20:.1f} |"
            )


def byte_lines(name: str, batch: int) -> Iterator[str]:
    make, shape = NETS[name]
    x = torch.randn(batch, *shape)
    floats = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
    of_float = 0
    for kind, around in [(kind, contextlib.nullcontext()) for kind in KINDS] + [("ours, floats kept", floats)]:
        torch.manual_seed(0)
        net = make(kind.split(",")[0])
        net(x)
        with around:
            kept = kept_bytes(net, x)
        of_float = of_float or kept
        work = f"{name}, {batch} of {'x'.join(map(str, shape))}"
        yield f"| {work} | {kind} | {kept / 2**20:.1f} | {kept / of_float:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="*", choices=[*NETS], default=[*NETS])
    parser.add_argument("--batches", nargs="*", type=int, default=[4, 64])
    parser.add_argument("--size", type=int, default=64, help="of the images of a ResNet-18; default: 64")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--bytes", action="store_true", help="no times")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    table = [f"torch {torch.__version__}, {torch.get_num_threads()} threads, ste_ops {ste_ops.__version__}", ""]
    for name, (make, shape) in NETS.items():
        if "ResNet-18" in name:
            NETS[name] = make, (*shape[:1], chosen.size, chosen.size)
    columns = ["net, batch", "kind", "MiB kept", "of float's"]
    if not chosen.bytes:
        columns = ["net, batch", "layout", "mode", "kind", "ms a step", "of plain's", "MiB kept", "MiB at most"]
    table += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    print("\n".join(table), flush=True)
    for name in chosen.nets:
        for batch in chosen.batches:
            modes = (False, True) if chosen.compiled else (False,)
            timed = (line for compiled in modes for line in lines(name, batch, compiled))
            for line in byte_lines(name, batch) if chosen.bytes else timed:
                print(line, flush=True)
                table.append(line)
    if chosen.out:
        chosen.out.write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
