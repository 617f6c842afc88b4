"""Small nets of every kind, and examples for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ste_ops import surrogate as s
from ste_ops.nn import (
    LSQ,
    PACT,
    SRSTE,
    BitNetActivation,
    BitNetWeight,
    DoReFaActivation,
    DoReFaWeight,
    FakeQuantize,
    Heaviside,
    MagnitudeAwareSign,
    QuantConv1d,
    QuantConv2d,
    QuantLinear,
    Sign,
    quantize_,
)

Conv = Callable[[int, int, int], nn.Module]


def mlp() -> nn.Module:
    observed = FakeQuantize(8, signed=False, momentum=0.1)
    return nn.Sequential(
        QuantLinear(16, 32, weight_quantizer=FakeQuantize(8, axis=0), input_quantizer=observed),
        nn.ReLU(),
        QuantLinear(32, 10, weight_quantizer=LSQ(8, axis=0), input_quantizer=PACT(4.0, 8)),
    )


class Block(nn.Module):
    def __init__(self, conv: Conv, act: nn.Module, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs, 1), nn.BatchNorm2d(outputs)
        self.act = act
        down = nn.Sequential(nn.AvgPool2d(stride), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity() if inputs == outputs else down

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv1(x)))
        return self.act(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet(conv: Conv, act: nn.Module) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(Block(conv, act, 8, 8, 1), Block(conv, act, 8, 16, 2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    )


def lsq_resnet() -> nn.Module:
    def conv(inputs: int, outputs: int, stride: int) -> nn.Module:
        quantizers = {"weight_quantizer": LSQ(4, axis=0), "input_quantizer": LSQ(4, signed=False)}
        return QuantConv2d(inputs, outputs, 3, stride, 1, bias=False, **quantizers)

    return resnet(conv, nn.ReLU())


def bireal_resnet() -> nn.Module:
    def conv(inputs: int, outputs: int, stride: int) -> nn.Module:
        quantizers = {"weight_quantizer": MagnitudeAwareSign(), "input_quantizer": Sign(s.ApproxSign())}
        return QuantConv2d(inputs, outputs, 3, stride, 1, bias=False, **quantizers)

    return resnet(conv, nn.Hardtanh())


class BitNetBlock(nn.Module):
    """Attention and a gated layer of ternary weights, on tokens of eight bits."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = self.linear(width, 3 * width), self.linear(width, width)
        self.up, self.down = self.linear(width, 2 * width), self.linear(2 * width, width)

    @staticmethod
    def linear(inputs: int, outputs: int) -> nn.Module:
        quantizers = {"weight_quantizer": BitNetWeight(), "input_quantizer": BitNetActivation()}
        return QuantLinear(inputs, outputs, bias=False, **quantizers)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(nn.functional.silu(self.up(self.norm2(x))))


class SpikingNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out, self.spike = nn.Linear(8, 16), nn.Linear(16, 4), Heaviside(s.ATan())

    def forward(self, x: Tensor) -> Tensor:
        potential, counted = x.new_zeros(x.shape[0], 16), x.new_zeros(x.shape[0], 4)
        for step in range(3):
            potential = 0.9 * potential + self.hidden(x[:, step])
            spikes = self.spike(potential - 1)
            potential, counted = potential - spikes, counted + self.out(spikes)
        return counted


def dorefa_conv1d() -> nn.Module:
    return nn.Sequential(
        QuantConv1d(4, 8, 3, weight_quantizer=DoReFaWeight(2), input_quantizer=DoReFaActivation(4)),
        *(nn.BatchNorm1d(8), nn.Hardtanh(0, 1)),
        QuantConv1d(8, 8, 3, padding=1, padding_mode="circular", weight_quantizer=SRSTE(2, 4)),
        *(nn.Flatten(), nn.Linear(80, 5)),
    )


class Attached(nn.Module):
    """Modules that have no quantized class, their weights as parametrizations."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.cell = nn.Embedding(20, 8), nn.LSTMCell(8, 8)
        self.attention, self.up = nn.MultiheadAttention(8, 2, batch_first=True), nn.ConvTranspose1d(8, 4, 3)

    def forward(self, indices: Tensor) -> Tensor:
        x = self.embedding(indices)
        y = self.attention(x, x, x, need_weights=False)[0] + self.cell(x[:, 0])[0][:, None]
        return self.up(y.transpose(1, 2))


def attached() -> nn.Module:
    model = Attached()
    kinds = nn.Embedding, nn.LSTMCell, nn.MultiheadAttention, nn.ConvTranspose1d
    quantize_(model, weight=LSQ(4), input=LSQ(8), also=kinds)
    return model


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any]]] = {
    "MLP": (mlp, lambda batch: torch.randn(batch, 16)),
    "ResNet, LSQ of 4 bits": (lsq_resnet, lambda batch: torch.randn(batch, 3, 8, 8)),
    "Bi-Real ResNet": (bireal_resnet, lambda batch: torch.randn(batch, 3, 8, 8)),
    "BitNet block": (BitNetBlock, lambda batch: torch.randn(batch, 5, 16)),
    "spiking net": (SpikingNet, lambda batch: torch.randn(batch, 3, 8)),
    "DoReFa, 1-D": (dorefa_conv1d, lambda batch: torch.randn(batch, 4, 12)),
    "attached": (attached, lambda batch: torch.randint(0, 20, (batch, 6))),
}


def trained(name: str) -> nn.Module:
    """Its scales and statistics set by two batches, then in evaluation."""
    make, example = NETS[name]
    model = make().train()
    for _ in range(2):
        model(example(4))
    return model.eval()
