"""The surrogates in plain torch: a derivative, and the primitive that it is the derivative of.

A class has the name of its dataclass in `ste_ops.surrogate`; its functions take x and the dataclass's fields in order.
x is float64 or float32. A NaN gives NaN, but for the masks, which compare.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _exp(x: Tensor) -> Tensor:
    """exp of what is negative, and 0 where that would soon be a denormal number: the kernels have none here."""
    limit = -708.0 if x.dtype == torch.float64 else -87.0
    return torch.where(x < limit, torch.zeros_like(x), torch.exp(x.clamp(min=limit)))


def _logistic(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of u >= 0, which may be infinite: u capped where all below is 0, sigma(u) (1 - sigma(u)), and tanh(u / 2)."""
    u = u.clamp(max=709.0 if u.dtype == torch.float64 else 88.0)
    e = _exp(-u)
    return u, e / (1 + e) ** 2, (1 - e) / (1 + e)


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


class Rect:
    @staticmethod
    def derivative(x: Tensor, alpha: float) -> Tensor:
        return alpha * (x.abs() < 0.5 / alpha).to(x.dtype)

    @staticmethod
    def primitive(x: Tensor, alpha: float) -> Tensor:
        return alpha * x.clamp(-0.5 / alpha, 0.5 / alpha)

    @staticmethod
    def kinks(alpha: float) -> list[float]:
        return [-0.5 / alpha, 0.5 / alpha]


class _Smooth:
    """A curve without a jump."""

    @staticmethod
    def kinks(*_: float) -> list[float]:
        return []


class ApproxSign(_Smooth):
    @staticmethod
    def derivative(x: Tensor) -> Tensor:
        return torch.where(x.abs() > 1, torch.zeros_like(x), 2 - 2 * x.abs())

    @staticmethod
    def primitive(x: Tensor) -> Tensor:
        inside = x.clamp(-1, 1)
        return 2 * inside - inside * inside.abs()


class Swish(_Smooth):
    @staticmethod
    def derivative(x: Tensor, beta: float) -> Tensor:
        u, slope, tanh = _logistic(beta * x.abs())
        return 2 * beta * (slope * (2 - u * tanh))

    @staticmethod
    def primitive(x: Tensor, beta: float) -> Tensor:
        z = beta * x
        return 2 * torch.sigmoid(z) * (1 + z * (1 - torch.sigmoid(z))) - 1


class Tanh(_Smooth):
    @staticmethod
    def derivative(x: Tensor, t: float, k: float) -> Tensor:
        return k * (4 * t * _logistic(2 * t * x.abs())[1])

    @staticmethod
    def primitive(x: Tensor, t: float, k: float) -> Tensor:
        return k * torch.tanh(t * x)


class ReSTE:
    @staticmethod
    def derivative(x: Tensor, power: float, threshold: float) -> Tensor:
        # Not a power: NaN to the power of 0 is 1.
        value = torch.exp(torch.log(x.abs().clamp(min=0.1)) * ((1 - power) / power)) / power
        return torch.where(x.abs() > threshold, torch.zeros_like(x), value)

    @staticmethod
    def primitive(x: Tensor, power: float, threshold: float) -> Tensor:
        u = x.abs().clamp(max=threshold)
        line = 0.1 ** ((1 - power) / power) / power
        curve = 0.1 * line + u.clamp(min=0.1) ** (1 / power) - 0.1 ** (1 / power)
        return torch.sign(x) * torch.where(u < 0.1, line * u, curve)

    @staticmethod
    def kinks(power: float, threshold: float) -> list[float]:
        return [-threshold, threshold]


class Sigmoid(_Smooth):
    @staticmethod
    def derivative(x: Tensor, alpha: float) -> Tensor:
        return alpha * _logistic(alpha * x.abs())[1]

    @staticmethod
    def primitive(x: Tensor, alpha: float) -> Tensor:
        return torch.sigmoid(alpha * x)


class ATan(_Smooth):
    @staticmethod
    def derivative(x: Tensor, alpha: float) -> Tensor:
        return alpha / 2 / (1 + (math.pi / 2 * alpha * x) ** 2)

    @staticmethod
    def primitive(x: Tensor, alpha: float) -> Tensor:
        return torch.atan(math.pi / 2 * alpha * x) / math.pi


class FastSigmoid(_Smooth):
    @staticmethod
    def derivative(x: Tensor, slope: float) -> Tensor:
        return (1 / (1 + slope * x.abs())) ** 2

    @staticmethod
    def primitive(x: Tensor, slope: float) -> Tensor:
        return x / (1 + slope * x.abs())


class SoftSign(_Smooth):
    @staticmethod
    def derivative(x: Tensor, alpha: float) -> Tensor:
        return alpha / 2 * (1 / (1 + alpha * x.abs())) ** 2

    @staticmethod
    def primitive(x: Tensor, alpha: float) -> Tensor:
        return alpha * x / 2 / (1 + alpha * x.abs())


class PiecewiseQuadratic(_Smooth):
    @staticmethod
    def derivative(x: Tensor, alpha: float) -> Tensor:
        u = alpha * x.abs()
        return torch.where(u > 1, torch.zeros_like(x), alpha * (1 - u))

    @staticmethod
    def primitive(x: Tensor, alpha: float) -> Tensor:
        inside = x.clamp(-1 / alpha, 1 / alpha)
        return alpha * inside - (alpha * inside) * (alpha * inside).abs() / 2


class PiecewiseExp(_Smooth):
    @staticmethod
    def derivative(x: Tensor, alpha: float) -> Tensor:
        return alpha / 2 * _exp(-alpha * x.abs())

    @staticmethod
    def primitive(x: Tensor, alpha: float) -> Tensor:
        return -torch.sign(x) * torch.expm1(-alpha * x.abs()) / 2


class Erf(_Smooth):
    @staticmethod
    def derivative(x: Tensor, alpha: float) -> Tensor:
        return alpha / math.sqrt(math.pi) * _exp(-((alpha * x) ** 2))

    @staticmethod
    def primitive(x: Tensor, alpha: float) -> Tensor:
        return torch.erf(alpha * x) / 2
