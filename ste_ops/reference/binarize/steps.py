"""References of the binarizers, with the surrogate's derivative as gradient."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from ste_ops.reference._arithmetic import widen
from ste_ops.surrogate import Clip, Surrogate

__all__ = ["heaviside", "sign", "ternary"]

_DEFAULT = Clip(1.0)


class _Binarizer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, out: Tensor, surrogate: Surrogate, *held: Tensor | None) -> Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate, ctx.held = surrogate, held
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        gradient = _times(grad, ctx.surrogate.derivative(widen(x))).to(x.dtype)
        of_held: list[Tensor | None] = [None] * len(ctx.held)
        for place, by in enumerate(ctx.surrogate.by_parameters(widen(x))):
            if (held := ctx.held[place]) is not None:
                of_held[place] = _times(grad.double(), by.double()).sum().to(held.dtype).view(held.shape)
        return gradient, None, None, *of_held


def _times(grad: Tensor, slope: Tensor) -> Tensor:
    """Exactly 0 where the slope is, also for an incoming NaN or infinity."""
    return torch.where(slope == 0, torch.zeros_like(slope), grad * slope)


def _step(x: Tensor, out: Tensor, surrogate: Surrogate) -> Tensor:
    """`out` of x, with the gradients of x and of what the surrogate holds as tensors."""
    values = [getattr(surrogate, field.name) for field in fields(surrogate)]
    return _Binarizer.apply(x, out, surrogate, *(value if isinstance(value, Tensor) else None for value in values))


def heaviside(x: Tensor, surrogate: Surrogate = _DEFAULT, at_zero: int = 0) -> Tensor:
    """1 where x > 0, at both zeros at_zero, 0 elsewhere and at NaN; backward as `surrogate` says."""
    return _step(x, (x >= 0 if at_zero else x > 0).to(x.dtype), surrogate)


def sign(x: Tensor, surrogate: Surrogate = _DEFAULT) -> Tensor:
    """+1 where x >= 0, at both zeros too, and -1 elsewhere, at NaN too; backward as `surrogate` says."""
    return _step(x, torch.where(x >= 0, 1.0, -1.0).to(x.dtype), surrogate)


def ternary(x: Tensor, surrogate: Surrogate = _DEFAULT, threshold: float = 0.05) -> Tensor:
    """+1 where x > threshold, -1 where x < -threshold, 0 between and NaN at NaN; backward as `surrogate` says."""
    wide = widen(x.detach())
    level = (wide > threshold).to(x.dtype) - (wide < -threshold).to(x.dtype)
    return _step(x, torch.where(wide.isnan(), x.detach(), level), surrogate)
