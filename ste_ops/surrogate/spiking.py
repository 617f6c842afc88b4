"""The curves known from spiking nets. They save x."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ste_ops.surrogate.base import Surrogate, check_field, exp_of_negative, logistic, times_slope

__all__ = ["ATan", "Erf", "FastSigmoid", "PiecewiseExp", "PiecewiseQuadratic", "Sigmoid", "SoftSign"]


@dataclass(frozen=True)
class Sigmoid(Surrogate):
    """s'(x) = alpha sigma(alpha x) (1 - sigma(alpha x)). Saves x.

    Source: SpikingJelly's ``Sigmoid``, with its default.

    Args:
        alpha: how narrow the curve is, whose area is 1; a finite number > 0, or a floating tensor of one element.

    Raises:
        ValueError: the field is none of these.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([0.0, 1.0], requires_grad=True)
        >>> ste_ops.heaviside(x, ste_ops.surrogate.Sigmoid()).sum().backward()
        >>> x.grad
        tensor([1.0000, 0.0707])
    """

    alpha: float | Tensor = 4.0

    def __post_init__(self) -> None:
        check_field(self, "alpha")

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor]:
        return self.alpha, 0.0

    def _derivative(self, x: Tensor) -> Tensor:
        return self.alpha * logistic(self.alpha * x.abs())[1]

    def primitive(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.alpha * x)

    def _by_parameters(self, x: Tensor) -> tuple[Tensor, ...]:
        return (times_slope(x, logistic(self.alpha * x.abs())[1]),)


@dataclass(frozen=True)
class ATan(Surrogate):
    """s'(x) = (alpha / 2) / (1 + (pi alpha x / 2)^2). Saves x.

    Source: Fang et al., arXiv:2007.05785; SpikingJelly's ``ATan`` and snnTorch's ``atan``, with their default.

    Args:
        alpha: how narrow the curve is, whose area is 1; a finite number > 0, or a floating tensor of one element.

    Raises:
        ValueError: the field is none of these.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([0.0, 1.0], requires_grad=True)
        >>> ste_ops.heaviside(x, ste_ops.surrogate.ATan()).sum().backward()
        >>> x.grad
        tensor([1.0000, 0.0920])
    """

    alpha: float | Tensor = 2.0

    def __post_init__(self) -> None:
        check_field(self, "alpha")

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor]:
        return self.alpha, 0.0

    def _derivative(self, x: Tensor) -> Tensor:
        return self.alpha / 2 / (1 + (math.pi / 2 * self.alpha * x) ** 2)

    def primitive(self, x: Tensor) -> Tensor:
        return torch.atan(math.pi / 2 * self.alpha * x) / math.pi

    def _by_parameters(self, x: Tensor) -> tuple[Tensor, ...]:
        return (times_slope(x, 0.5 / (1 + (math.pi / 2 * self.alpha * x) ** 2)),)


@dataclass(frozen=True)
class FastSigmoid(Surrogate):
    """s'(x) = 1 / (1 + slope abs(x))^2. Saves x.

    Source: SuperSpike (Zenke and Ganguli, arXiv:1705.11146); snnTorch's ``fast_sigmoid``, with its default.

    Args:
        slope: how narrow the curve is; a finite number > 0, or a floating tensor of one element.

    Raises:
        ValueError: the field is none of these.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([0.0, 0.04], requires_grad=True)
        >>> ste_ops.heaviside(x, ste_ops.surrogate.FastSigmoid()).sum().backward()
        >>> x.grad
        tensor([1.0000, 0.2500])
    """

    slope: float | Tensor = 25.0

    def __post_init__(self) -> None:
        check_field(self, "slope")

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor]:
        return self.slope, 0.0

    def _derivative(self, x: Tensor) -> Tensor:
        return (1 / (1 + self.slope * x.abs())) ** 2

    def primitive(self, x: Tensor) -> Tensor:
        return x / (1 + self.slope * x.abs())

    def _by_parameters(self, x: Tensor) -> tuple[Tensor, ...]:
        # Written in 1 / u where u is large: at infinity it is -1 / slope^2.
        u = x.abs()
        small, large = u.clamp(max=1), 1 / u.clamp(min=1)
        part = torch.where(u > 1, 1 / (large + self.slope), small / (1 + self.slope * small))
        return (-torch.sign(x) * part**2,)


@dataclass(frozen=True)
class SoftSign(Surrogate):
    """s'(x) = (alpha / 2) / (1 + alpha abs(x))^2. Saves x.

    Source: SpikingJelly's ``SoftSign``, with its default.

    Args:
        alpha: how narrow the curve is, whose area is 1; a finite number > 0, or a floating tensor of one element.

    Raises:
        ValueError: the field is none of these.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([0.0, 0.5], requires_grad=True)
        >>> ste_ops.heaviside(x, ste_ops.surrogate.SoftSign()).sum().backward()
        >>> x.grad
        tensor([1.0000, 0.2500])
    """

    alpha: float | Tensor = 2.0

    def __post_init__(self) -> None:
        check_field(self, "alpha")

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor]:
        return self.alpha, 0.0

    def _derivative(self, x: Tensor) -> Tensor:
        return self.alpha / 2 * (1 / (1 + self.alpha * x.abs())) ** 2

    def primitive(self, x: Tensor) -> Tensor:
        return self.alpha * x / 2 / (1 + self.alpha * x.abs())

    def _by_parameters(self, x: Tensor) -> tuple[Tensor, ...]:
        return (times_slope(x, 0.5 * (1 / (1 + self.alpha * x.abs())) ** 2),)


@dataclass(frozen=True)
class PiecewiseQuadratic(Surrogate):
    """s'(x) = alpha (1 - alpha abs(x)) where abs(x) <= 1 / alpha, else 0. Saves x.

    Source: Esser et al., arXiv:1603.08270; SpikingJelly's ``PiecewiseQuadratic``, with its default.

    Args:
        alpha: height of the triangle, whose area is 1; a finite number > 0, or a floating tensor of one element.

    Raises:
        ValueError: the field is none of these.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([0.0, 0.5, 2.0], requires_grad=True)
        >>> ste_ops.heaviside(x, ste_ops.surrogate.PiecewiseQuadratic()).sum().backward()
        >>> x.grad
        tensor([1.0000, 0.5000, 0.0000])
    """

    alpha: float | Tensor = 1.0

    def __post_init__(self) -> None:
        check_field(self, "alpha")

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor]:
        return self.alpha, 0.0

    def _derivative(self, x: Tensor) -> Tensor:
        u = self.alpha * x.abs()
        return torch.where(u > 1, torch.zeros_like(x), self.alpha * (1 - u))

    def primitive(self, x: Tensor) -> Tensor:
        bound: Any = 1 / self.alpha
        inside = x.clamp(-bound, bound)
        return self.alpha * inside - (self.alpha * inside) * (self.alpha * inside).abs() / 2

    def _by_parameters(self, x: Tensor) -> tuple[Tensor, ...]:
        u = self.alpha * x.abs()
        return (torch.where(u > 1, torch.zeros_like(u), x * (1 - u)),)


@dataclass(frozen=True)
class PiecewiseExp(Surrogate):
    """s'(x) = (alpha / 2) exp(-alpha abs(x)). Saves x.

    Source: SLAYER (Shrestha and Orchard, arXiv:1810.08646); SpikingJelly's ``PiecewiseExp``, with its default.

    Args:
        alpha: how narrow the curve is, whose area is 1; a finite number > 0, or a floating tensor of one element.

    Raises:
        ValueError: the field is none of these.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([0.0, 1.0], requires_grad=True)
        >>> ste_ops.heaviside(x, ste_ops.surrogate.PiecewiseExp()).sum().backward()
        >>> x.grad
        tensor([0.5000, 0.1839])
    """

    alpha: float | Tensor = 1.0

    def __post_init__(self) -> None:
        check_field(self, "alpha")

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor]:
        return self.alpha, 0.0

    def _derivative(self, x: Tensor) -> Tensor:
        return self.alpha / 2 * exp_of_negative(-self.alpha * x.abs())

    def primitive(self, x: Tensor) -> Tensor:
        return -torch.sign(x) * torch.expm1(-self.alpha * x.abs()) / 2

    def _by_parameters(self, x: Tensor) -> tuple[Tensor, ...]:
        return (times_slope(x, exp_of_negative(-self.alpha * x.abs()) / 2),)


@dataclass(frozen=True)
class Erf(Surrogate):
    """s'(x) = (alpha / sqrt(pi)) exp(-(alpha x)^2). Saves x.

    Source: SpikingJelly's ``Erf``, with its default.

    Args:
        alpha: how narrow the curve is, whose area is 1; a finite number > 0, or a floating tensor of one element.

    Raises:
        ValueError: the field is none of these.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([0.0, 0.5], requires_grad=True)
        >>> ste_ops.heaviside(x, ste_ops.surrogate.Erf()).sum().backward()
        >>> x.grad
        tensor([1.1284, 0.4151])
    """

    alpha: float | Tensor = 2.0

    def __post_init__(self) -> None:
        check_field(self, "alpha")

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor]:
        return self.alpha, 0.0

    def _derivative(self, x: Tensor) -> Tensor:
        return self.alpha / math.sqrt(math.pi) * exp_of_negative(-((self.alpha * x) ** 2))

    def primitive(self, x: Tensor) -> Tensor:
        return torch.erf(self.alpha * x) / 2

    def _by_parameters(self, x: Tensor) -> tuple[Tensor, ...]:
        return (times_slope(x, exp_of_negative(-((self.alpha * x) ** 2)) / math.sqrt(math.pi)),)
