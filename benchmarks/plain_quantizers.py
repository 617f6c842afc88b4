"""The usual straight-through code in plain torch, as it stands in papers' repositories, for comparison."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def passed(value: Tensor, x: Tensor) -> Tensor:
    """`value` with the gradient of x."""
    return (value - x).detach() + x


class PlainSign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return passed(torch.where(x >= 0, 1.0, -1.0), x.clamp(-1, 1))


class PlainLSQ(nn.Module):
    def __init__(self, bits: int, signed: bool = True) -> None:
        super().__init__()
        self.low, self.high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        self.signed = signed
        self.scale = nn.Parameter(torch.tensor([0.1]))

    def forward(self, x: Tensor) -> Tensor:
        numbers = x.numel() if self.signed else x[0].numel()
        factor = (numbers * self.high) ** -0.5
        scale = passed(self.scale, self.scale * factor)
        clipped = (x / scale).clamp(self.low, self.high)
        return passed(clipped.round(), clipped) * scale


class PlainBitNetActivation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        return passed((x * scale).round().clamp(-128, 127) / scale, x)


class PlainBitNetWeight(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        scale = 1 / w.abs().mean().clamp(min=1e-5)
        return passed((w * scale).round().clamp(-1, 1) / scale, w)


class PlainConv2d(nn.Conv2d):
    def __init__(self, *args: Any, input_quantizer: nn.Module, weight_quantizer: nn.Module, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.input_quantizer, self.weight_quantizer = input_quantizer, weight_quantizer

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(self.input_quantizer(input), self.weight_quantizer(self.weight), self.bias)


class PlainLinear(nn.Linear):
    def __init__(self, *args: Any, input_quantizer: nn.Module, weight_quantizer: nn.Module, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.input_quantizer, self.weight_quantizer = input_quantizer, weight_quantizer

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(self.input_quantizer(input), self.weight_quantizer(self.weight), self.bias)
