"""The nets of benchmarks/nets.py, each in float and with the quantized layers of several packages."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.plain_quantizers import (
    PlainBitNetActivation,
    PlainBitNetWeight,
    PlainConv2d,
    PlainLinear,
    PlainLSQ,
    PlainSign,
)
from ste_ops.nn import LSQ, BitNetActivation, BitNetWeight, QuantConv2d, QuantLinear, Sign

# What makes a layer of its float class and arguments.
Make = Callable[..., nn.Module]


def _beside(layer: Make, of_input: Make, of_weight: Make) -> Make:
    """A layer that takes its quantizers as arguments."""
    return lambda *args, **options: layer(*args, input_quantizer=of_input(), weight_quantizer=of_weight(), **options)


def _ours(of_input: Make, of_weight: Make) -> dict[type, Make]:
    classes = {nn.Conv2d: QuantConv2d, nn.Linear: QuantLinear}
    return {of: _beside(layer, of_input, of_weight) for of, layer in classes.items()}


def _plain(of_input: Make, of_weight: Make) -> dict[type, Make]:
    classes = {nn.Conv2d: PlainConv2d, nn.Linear: PlainLinear}
    return {of: _beside(layer, of_input, of_weight) for of, layer in classes.items()}


def _brevitas(weight: Any, input: Any, **bits: int) -> dict[type, Make]:
    """Layers of Brevitas behind its quantizer of their input."""
    layers: Any = importlib.import_module("brevitas.nn")

    def behind(layer: Make) -> Make:
        def make(*args: int, **options: Any) -> nn.Module:
            weight_bits = {f"weight_{key}": value for key, value in bits.items()}
            return nn.Sequential(
                layers.QuantIdentity(act_quant=input, **bits),
                layer(*args, weight_quant=weight, **weight_bits, **options),
            )

        return make

    return {nn.Conv2d: behind(layers.QuantConv2d), nn.Linear: behind(layers.QuantLinear)}


def _brevitas_4_bits() -> dict[type, Make]:
    quant: Any = importlib.import_module("brevitas.quant")
    return _brevitas(quant.Int8WeightPerTensorFloat, quant.Uint8ActPerTensorFloat, bit_width=4)


def _brevitas_binary() -> dict[type, Make]:
    quant: Any = importlib.import_module("brevitas.quant")
    return _brevitas(quant.SignedBinaryWeightPerTensorConst, quant.SignedBinaryActPerTensorConst)


def _torchao_4_bits() -> dict[type, Make]:
    """Fake quantization of int4 weights and int8 inputs, of linear layers alone."""
    qat: Any = importlib.import_module("torchao.quantization.qat")
    weight = qat.IntxFakeQuantizeConfig(torch.int4, "per_channel", is_symmetric=True)
    input = qat.IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)

    def make(*args: int, **options: Any) -> nn.Module:
        layer: nn.Module = qat.FakeQuantizedLinear(*args, activation_config=input, weight_config=weight, **options)
        return layer

    return {nn.Linear: make}


def _torchao_bitnet() -> dict[type, Make]:
    torchao: Any = importlib.import_module("torchao")
    training: Any = importlib.import_module("torchao.prototype.quantized_training")

    def make(*args: int, **options: Any) -> nn.Module:
        holder = nn.Sequential(nn.Linear(*args, **options))
        torchao.quantize_(holder, training.bitnet_training())
        return holder[0]

    return {nn.Linear: make}


# Of each way to quantize, what makes the layers of each package that has them.
LAYERS: dict[str, dict[str, Callable[[], dict[type, Make]]]] = {
    "LSQ": {
        "plain": lambda: _plain(lambda: PlainLSQ(4, signed=False), lambda: PlainLSQ(4)),
        "ours": lambda: _ours(lambda: LSQ(4, signed=False, scale=0.1), lambda: LSQ(4, scale=0.1)),
        "brevitas": _brevitas_4_bits,
        "torchao": _torchao_4_bits,
    },
    "sign": {
        "plain": lambda: _plain(PlainSign, PlainSign),
        "ours": lambda: _ours(Sign, Sign),
        "brevitas": _brevitas_binary,
    },
    "BitNet": {
        "plain": lambda: _plain(PlainBitNetActivation, PlainBitNetWeight),
        "ours": lambda: _ours(BitNetActivation, BitNetWeight),
        "torchao": _torchao_bitnet,
    },
}


class Layers:
    """The layers of a kind: "float", or a package."""

    def __init__(self, kind: str, way: str) -> None:
        self.kind = kind
        self._make: dict[type, Make] = {} if kind == "float" else LAYERS[way][kind]()

    def _of(self, of_float: type[nn.Module], *args: int) -> nn.Module:
        if self._make and of_float not in self._make:
            raise LookupError(f"{self.kind} has no {of_float.__name__}")
        return self._make.get(of_float, of_float)(*args, bias=False)

    def conv(self, inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Module:
        return self._of(nn.Conv2d, inputs, outputs, size, stride, size // 2)

    def linear(self, inputs: int, outputs: int) -> nn.Module:
        return self._of(nn.Linear, inputs, outputs)


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
    return nn.Sequential(*stem, *(Block(Layers(kind, "LSQ"), *stage) for stage in stages), *head)


def resnet18(blocks: list[nn.Module], *activation: nn.Module) -> nn.Module:
    stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), *activation, nn.MaxPool2d(3, 2, 1)
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def lsq_resnet18(kind: str) -> nn.Module:
    return resnet18([Block(Layers(kind, "LSQ"), *stage) for stage in STAGES], nn.ReLU())


def bireal_resnet18(kind: str) -> nn.Module:
    halves = [half for i, o, stride in STAGES for half in ((i, o, stride), (o, o, 1))]
    return resnet18([BiRealBlock(Layers(kind, "sign"), *half) for half in halves])


class BitNetBlock(nn.Module):
    """The gated MLP of a transformer (SwiGLU), for tokens of 256."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        layers = Layers(kind, "BitNet")
        self.norm = nn.RMSNorm(256)
        self.gate, self.up, self.down = (layers.linear(*sizes) for sizes in ((256, 688), (256, 688), (688, 256)))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.down(nn.functional.silu(self.gate(h)) * self.up(h))


def mlp(kind: str) -> nn.Module:
    layers = Layers(kind, "LSQ")
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
