"""References of the binarizers, with the surrogate's derivative as gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ste_ops.reference._arithmetic import widen
from ste_ops.surrogate import Clip, Surrogate

__all__ = ["heaviside", "sign", "ternary"]

_DEFAULT = Clip(1.0)


class _Binarizer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, out: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        derivative = ctx.surrogate.derivative(widen(x))
        # Where the derivative is 0 the gradient is exactly 0, also for an incoming NaN or infinity.
        gradient = torch.where(derivative == 0, torch.zeros_like(derivative), grad * derivative)
        return gradient.to(x.dtype), None, None


def heaviside(x: Tensor, surrogate: Surrogate = _DEFAULT) -> Tensor:
    """1 where x > 0 and 0 elsewhere, at both zeros and at NaN too; backward as `surrogate` says."""
    return _Binarizer.apply(x, (x > 0).to(x.dtype), surrogate)


def sign(x: Tensor, surrogate: Surrogate = _DEFAULT) -> Tensor:
    """+1 where x >= 0, at both zeros too, and -1 elsewhere, at NaN too; backward as `surrogate` says."""
    return _Binarizer.apply(x, torch.where(x >= 0, 1.0, -1.0).to(x.dtype), surrogate)


def ternary(x: Tensor, surrogate: Surrogate = _DEFAULT, threshold: float = 0.05) -> Tensor:
    """+1 where x > threshold, -1 where x < -threshold, 0 between and NaN at NaN; backward as `surrogate` says."""
    wide = widen(x.detach())
    level = (wide > threshold).to(x.dtype) - (wide < -threshold).to(x.dtype)
    return _Binarizer.apply(x, torch.where(wide.isnan(), x.detach(), level), surrogate)
