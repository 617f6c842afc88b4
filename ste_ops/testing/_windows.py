"""Surrogates of the quantizers that pass the gradient in a range and stop it outside."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """s'(x) = 1 from low to high and 0 elsewhere, at NaN too; with ``closed="left"`` 0 at high itself, with
    ``closed="neither"`` 0 at both.

    Example:
        >>> import torch, ste_ops
        >>> relu = ste_ops.testing.Window(0.0, float("inf"))
        >>> relu.derivative(torch.tensor([-1.0, 0.0, 2.0]))
        tensor([0., 1., 1.])
    """

    low: float
    high: float
    closed: str = "both"

    def derivative(self, x: Tensor) -> Tensor:
        above = x > self.low if self.closed == "neither" else x >= self.low
        below = x <= self.high if self.closed == "both" else x < self.high
        return (above & below).to(x.dtype)

    def primitive(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)

    def kinks(self) -> list[float]:
        return [bound for bound in (self.low, self.high) if abs(bound) != float("inf")]


@dataclass(frozen=True)
class IntegerWindow:
    """s'(x) = 1 where quant_min <= round(x / scale) + zero_point <= quant_max, half to even; 0 elsewhere, at NaN too.

    What passes through `fake_quantize`: the bounds lie half a step beyond the outermost values, and belong to
    the range where the integer there is even. x / scale is x times the reciprocal of scale in x's dtype, as there.

    Example:
        >>> import torch, ste_ops
        >>> window = ste_ops.testing.IntegerWindow(-2, 1, scale=0.5)
        >>> window.kinks()
        [-1.25, 0.75]
        >>> window.derivative(torch.tensor([-1.25, 0.0, 0.75]))
        tensor([1., 1., 0.])
    """

    quant_min: int
    quant_max: int
    scale: float = 1.0
    zero_point: float = 0.0

    def derivative(self, x: Tensor) -> Tensor:
        q = torch.round(x * (1 / torch.as_tensor(self.scale, dtype=x.dtype, device=x.device))) + self.zero_point
        return ((q >= self.quant_min) & (q <= self.quant_max)).to(x.dtype)

    def primitive(self, x: Tensor) -> Tensor:
        return x.clamp(*self.kinks())

    def kinks(self) -> list[float]:
        low, high = self.quant_min - 0.5 - self.zero_point, self.quant_max + 0.5 - self.zero_point
        return [low * self.scale, high * self.scale]
