"""The surrogates in plain torch: a derivative, and the primitive that it is the derivative of.

A class has the name of its dataclass in `ste_ops.surrogate`; its functions take x and the dataclass's fields in order.
x is float64 or float32.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Identity:
    @staticmethod
    def derivative(x: Tensor) -> Tensor:
        return torch.ones_like(x)

    @staticmethod
    def primitive(x: Tensor) -> Tensor:
        return x

    @staticmethod
    def kinks() -> list[float]:
        return []


class Clip:
    @staticmethod
    def derivative(x: Tensor, threshold: float) -> Tensor:
        return (~(x.abs() > threshold)).to(x.dtype)

    @staticmethod
    def primitive(x: Tensor, threshold: float) -> Tensor:
        return x.clamp(-threshold, threshold)

    @staticmethod
    def kinks(threshold: float) -> list[float]:
        return [-threshold, threshold]
