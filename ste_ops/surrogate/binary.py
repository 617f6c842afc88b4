"""The curves known from binary nets. They save x."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ste_ops.surrogate.base import Surrogate, check_field, logistic, times_slope

__all__ = ["ApproxSign", "ReSTE", "Swish", "Tanh"]


@dataclass(frozen=True)
class ApproxSign(Surrogate):
    """s'(x) = 2 - 2 abs(x) where abs(x) <= 1, else 0. Saves x.

    Source: Bi-Real Net (Liu et al., arXiv:1808.00278); Larq's ``approx_sign``.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([0.5, 1.5], requires_grad=True)
        >>> ste_ops.heaviside(x, ste_ops.surrogate.ApproxSign()).sum().backward()
        >>> x.grad
        tensor([1., 0.])
    """

    def _derivative(self, x: Tensor) -> Tensor:
        return torch.where(x.abs() > 1, torch.zeros_like(x), 2 - 2 * x.abs())

    def primitive(self, x: Tensor) -> Tensor:
        inside = x.clamp(-1, 1)
        return 2 * inside - inside * inside.abs()


@dataclass(frozen=True)
class Swish(Surrogate):
    """s'(x) = beta (2 - beta x tanh(beta x / 2)) / (1 + cosh(beta x)), negative where abs(beta x) > 2.4. Saves x.

    Source: BNN+ (Darabi et al., arXiv:1812.11800); Larq's ``swish_sign``, with its default.

    Args:
        beta: how narrow the curve is; a finite number > 0, or a floating tensor of one element.

    Raises:
        ValueError: the field is none of these.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([0.0, 1.0], requires_grad=True)
        >>> ste_ops.sign(x, ste_ops.surrogate.Swish()).sum().backward()
        >>> x.grad
        tensor([ 5.0000, -0.1950])
    """

    beta: float | Tensor = 5.0

    def __post_init__(self) -> None:
        check_field(self, "beta")

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor]:
        return self.beta, 0.0

    def _derivative(self, x: Tensor) -> Tensor:
        u, slope, tanh = logistic(self.beta * x.abs())
        return 2 * self.beta * (slope * (2 - u * tanh))

    def primitive(self, x: Tensor) -> Tensor:
        z = self.beta * x
        return 2 * torch.sigmoid(z) * (1 + z * (1 - torch.sigmoid(z))) - 1

    def _by_parameters(self, x: Tensor) -> tuple[Tensor, ...]:
        u, slope, tanh = logistic(self.beta * x.abs())
        return (times_slope(x, 2 * (slope * (2 - u * tanh))),)


@dataclass(frozen=True)
class Tanh(Surrogate):
    """s'(x) = k t (1 - tanh(t x)^2). Saves x.

    Source: the error decay estimator of IR-Net (Qin et al., arXiv:1909.10788). It goes from t = 0.1 to t = 10 over
    training, on a logarithmic scale, with k = max(1 / t, 1).

    Args:
        t: how narrow the curve is; a finite number > 0, or a floating tensor of one element.
        k: its factor; a finite number > 0, or a floating tensor of one element.

    Raises:
        ValueError: a field is none of these.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([0.0, 1.0], requires_grad=True)
        >>> ste_ops.sign(x, ste_ops.surrogate.Tanh()).sum().backward()
        >>> x.grad
        tensor([1.0000, 0.4200])
    """

    t: float | Tensor = 1.0
    k: float | Tensor = 1.0

    def __post_init__(self) -> None:
        check_field(self, "t")
        check_field(self, "k")

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor]:
        return self.t, self.k

    def _derivative(self, x: Tensor) -> Tensor:
        return self.k * (4 * self.t * logistic(2 * self.t * x.abs())[1])

    def primitive(self, x: Tensor) -> Tensor:
        return self.k * torch.tanh(self.t * x)

    def _by_parameters(self, x: Tensor) -> tuple[Tensor, ...]:
        by_t = times_slope(x, self.k * (4 * logistic(2 * self.t * x.abs())[1]))
        return by_t, torch.tanh(self.t * x)


@dataclass(frozen=True)
class ReSTE(Surrogate):
    """s'(x) = abs(x)^((1 - power) / power) / power up to abs(x) = threshold, 0 above; up to abs(x) = 0.1, where that
    has no bound, the slope of the chord, 0.1^(1 / power) / 0.1. Saves x.

    Source: ReSTE (Wu et al., ICCV 2023), which raises power from 1 to 3 over training; the chord is that of its
    authors' code (DravenALG/ReSTE).

    Args:
        power: o in the paper, where 1 is ``Clip(threshold)``; a finite number >= 1, or a
            floating tensor of one element.
        threshold: where the gradient stops; a finite number > 0, or a floating tensor of one element.

    Raises:
        ValueError: a field is none of these.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([0.05, 1.0, 2.0], requires_grad=True)
        >>> ste_ops.sign(x, ste_ops.surrogate.ReSTE()).sum().backward()
        >>> x.grad
        tensor([4.6416, 0.3333, 0.0000])
    """

    power: float | Tensor = 3.0
    threshold: float | Tensor = 1.5

    def __post_init__(self) -> None:
        check_field(self, "power", least=1.0)
        check_field(self, "threshold")

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor]:
        return self.power, self.threshold

    def _derivative(self, x: Tensor) -> Tensor:
        # Not a power: NaN to the power of 0 is 1.
        u = x.abs()
        value = torch.exp(torch.log(u.clamp(min=0.1)) * ((1 - self.power) / self.power))
        value = torch.where(u <= 0.1, value, value / self.power)
        return torch.where(u > self.threshold, torch.zeros_like(x), value)

    def primitive(self, x: Tensor) -> Tensor:
        u = x.abs().clamp(max=self.threshold)
        chord = 0.1 ** (1 / self.power) / 0.1
        return torch.sign(x) * torch.where(u <= 0.1, chord * u, u.clamp(min=0.1) ** (1 / self.power))

    def _by_parameters(self, x: Tensor) -> tuple[Tensor, ...]:
        u = x.abs()
        held = torch.where(u > self.threshold, self.threshold, u)
        root = held.clamp(min=0.1)
        slope = torch.exp(torch.log(root) * ((1 - self.power) / self.power))
        by_power = -torch.sign(x) * (held * slope) * torch.log(root) / self.power**2
        at_threshold = torch.where(held <= 0.1, slope, slope / self.power)
        return by_power, torch.where(u > self.threshold, torch.sign(x) * at_threshold, torch.zeros_like(x))

    def kinks(self) -> list[float]:
        bounds = [min(0.1, float(self.threshold)), float(self.threshold)]
        return sorted({sign * bound for sign in (-1, 1) for bound in bounds})
