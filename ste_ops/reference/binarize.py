"""Reference of the straight-through steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ste_ops.surrogate import Clip, Surrogate

_DEFAULT = Clip(1.0)


class _Heaviside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return _surrogate_gradient(grad, x, ctx.surrogate), None


class _Sign(_Heaviside):
    @staticmethod
    def forward(ctx: Any, x: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def _surrogate_gradient(grad: Tensor, x: Tensor, surrogate: Surrogate) -> Tensor:
    # Where the derivative is 0 the gradient is exactly 0, also for an incoming NaN or infinity.
    derivative = surrogate.derivative(x)
    return torch.where(derivative == 0, torch.zeros_like(grad), grad * derivative)


def heaviside(x: Tensor, surrogate: Surrogate = _DEFAULT) -> Tensor:
    """1 where x > 0 and 0 elsewhere, at both zeros and at NaN too; backward as `surrogate` says."""
    return _Heaviside.apply(x, surrogate)


def sign(x: Tensor, surrogate: Surrogate = _DEFAULT) -> Tensor:
    """+1 where x >= 0, at both zeros too, and -1 elsewhere, at NaN too; backward as `surrogate` says."""
    return _Sign.apply(x, surrogate)
