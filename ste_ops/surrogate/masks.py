"""The surrogates with at most two values: the masks save one bit an element for the backward, `Identity` nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ste_ops.surrogate.base import Surrogate, check_field

__all__ = ["Clip", "Identity", "Rect"]


@dataclass(frozen=True)
class Identity(Surrogate):
    """s'(x) = 1: the plain straight-through estimator (Bengio et al., arXiv:1308.3432). Saves nothing.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([-3.0, 0.5], requires_grad=True)
        >>> ste_ops.sign(x, ste_ops.surrogate.Identity()).sum().backward()
        >>> x.grad
        tensor([1., 1.])
    """

    def _derivative(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)

    def primitive(self, x: Tensor) -> Tensor:
        return x


@dataclass(frozen=True)
class Clip(Surrogate):
    """s'(x) = 1 unless abs(x) > threshold: the bounds pass, and so does NaN. Saves one bit an element.

    Source: BinaryNet (Courbariaux et al., arXiv:1602.02830, eq. 4); Larq's ``ste_sign``.

    Args:
        threshold: where the gradient stops; a finite number > 0, or a floating tensor of one element. It is compared in
            float32 (float64 for float64).

    Raises:
        ValueError: threshold is none of these.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([-0.5, 0.3, 1.2, -0.8], requires_grad=True)
        >>> ste_ops.heaviside(x, ste_ops.surrogate.Clip(0.6)).sum().backward()
        >>> x.grad
        tensor([1., 1., 0., 0.])
    """

    threshold: float | Tensor = 1.0

    def __post_init__(self) -> None:
        check_field(self, "threshold")

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor]:
        return self.threshold, 0.0

    def _derivative(self, x: Tensor) -> Tensor:
        return (~(x.abs() > self.threshold)).to(x.dtype)

    def primitive(self, x: Tensor) -> Tensor:
        bound: Any = self.threshold
        return x.clamp(-bound, bound)

    def _by_parameters(self, x: Tensor) -> tuple[Tensor, ...]:
        return (torch.where(x.abs() > self.threshold, torch.sign(x), torch.zeros_like(x)),)

    def kinks(self) -> list[float]:
        return [-float(self.threshold), float(self.threshold)]


@dataclass(frozen=True)
class Rect(Surrogate):
    """s'(x) = alpha where abs(x) < 1 / (2 alpha), else 0, at the bounds and at NaN too. Saves one bit an element.

    Source: SpikingJelly's ``Rect``, with its default; STBP (Wu et al., arXiv:1706.02609) with a = 1 / alpha.

    Args:
        alpha: height of the rectangle, whose area is 1; a finite number > 0, or a floating tensor of one element. The
            bound is compared in float32 (float64 for float64).

    Raises:
        ValueError: alpha is none of these.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([-0.2, 0.25, 0.3], requires_grad=True)
        >>> ste_ops.heaviside(x, ste_ops.surrogate.Rect(2.0)).sum().backward()
        >>> x.grad
        tensor([2., 0., 0.])
    """

    alpha: float | Tensor = 1.0

    def __post_init__(self) -> None:
        check_field(self, "alpha")

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor]:
        return self.alpha, 0.0

    @property
    def factor(self) -> float | Tensor:
        return self.alpha

    def _derivative(self, x: Tensor) -> Tensor:
        return self.alpha * (x.abs() < 0.5 / self.alpha).to(x.dtype)

    def primitive(self, x: Tensor) -> Tensor:
        bound: Any = 0.5 / self.alpha
        return self.alpha * x.clamp(-bound, bound)

    def _by_parameters(self, x: Tensor) -> tuple[Tensor, ...]:
        return (torch.where(x.abs() < 0.5 / self.alpha, x, torch.zeros_like(x)),)

    def kinks(self) -> list[float]:
        return [-0.5 / float(self.alpha), 0.5 / float(self.alpha)]
