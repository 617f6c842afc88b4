"""Uniform quantizers. `s` and `z` are a scale and a zero point laid along x's axis, `n` a number of steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ste_ops.reference._arithmetic import widen
from ste_ops.reference.quantize._through import through


def along(value: Tensor | float, x: Tensor, axis: int | None) -> Tensor:
    """A number, a tensor of one element or one of x.shape[axis] elements, in x's dtype, shaped to broadcast with x."""
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device).detach()
    if axis is None or value.numel() == 1:
        return value.reshape(())
    shape = [1] * x.dim()
    shape[axis] = x.shape[axis]
    return value.reshape(shape)


def _is_affine(zero_point: Tensor | float) -> bool:
    """Whether a zero point need not be whole."""
    if isinstance(zero_point, Tensor):
        return zero_point.is_floating_point()
    return zero_point != math.floor(zero_point)


def quantize(
    x: Tensor, s: Tensor, z: Tensor | float, quant_min: int, quant_max: int, affine: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """x in steps, the integer before it is clamped, and the values of the clamped one. By the reciprocal, as torch."""
    v = x * (1 / s)
    q = torch.round(v + z) if affine else torch.round(v) + z
    return v, q, (q.clamp(quant_min, quant_max) - z) * s


def fake_quantize(
    x: Tensor,
    scale: Tensor | float,
    zero_point: Tensor | float,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
) -> Tensor:
    """(clamp(round(x / scale) + zero_point) - zero_point) * scale; passes where the unclamped integer is in range.

    A zero point that need not be whole, a floating tensor or such a number, is added before the rounding.
    """
    wide = widen(x.detach())
    z, affine = along(zero_point, wide, axis), _is_affine(zero_point)
    _, q, out = quantize(wide, along(scale, wide, axis), z, quant_min, quant_max, affine)
    return through(out, x, (q >= quant_min) & (q <= quant_max))


class _LSQ(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, quant_min: int, quant_max: int, axis: int | None, grad_scale: float
    ) -> Tensor:
        wide = widen(x)
        v, q, out = quantize(wide, along(scale, wide, axis), 0.0, quant_min, quant_max)
        ctx.passes = (v > quant_min) & (v < quant_max)
        # What a larger step would change: the bound, or the rounding error. NaN at NaN.
        ctx.slope = torch.where(v <= quant_min, quant_min, torch.where(v >= quant_max, quant_max, q - v))
        ctx.axis, ctx.grad_scale, ctx.scale = axis, grad_scale, scale
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_x = torch.where(ctx.passes, grad, 0.0)
        each = grad.double() * ctx.slope.double()
        others = [d for d in range(grad.dim()) if ctx.axis is None or d != ctx.axis % grad.dim()]
        total = each.sum() if ctx.axis is None else each.sum(others) if others else each
        return of_x, (total * ctx.grad_scale).to(ctx.scale.dtype).reshape(ctx.scale.shape), None, None, None, None


def lsq(
    x: Tensor,
    scale: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    grad_scale: float | None = None,
) -> Tensor:
    """clamp(round(x / scale)) * scale, and a gradient for scale too (LSQ, arXiv:1902.08153, eq. 3).

    The gradient of x passes where x / scale lies strictly between quant_min and quant_max. That of scale is the sum
    over the elements of the incoming gradient times round(x / scale) - x / scale there, quant_min below and quant_max
    above; times grad_scale, by default 1 / sqrt(N * quant_max) with N the elements that share a step.
    """
    if scale.numel() == 1:
        axis = None
    if grad_scale is None:
        grad_scale = 1 / math.sqrt(max(x.numel() // max(scale.numel(), 1), 1) * quant_max)
    return _LSQ.apply(x, scale, quant_min, quant_max, axis, grad_scale)


class _PACT(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, bits: int) -> Tensor:
        wide = widen(x)
        a = along(alpha, wide, None)
        n = torch.full_like(a, 2**bits - 1)  # a division of tensors is rounded once on every device
        ctx.passes, ctx.above, ctx.alpha = (wide >= 0) & (wide < a), wide >= a, alpha
        return (torch.round(torch.clamp(wide, min=0.0).minimum(a) * (n / a)) * (a / n)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_alpha = torch.where(ctx.above, grad, 0.0).double().sum()
        return torch.where(ctx.passes, grad, 0.0), of_alpha.to(ctx.alpha.dtype).reshape(ctx.alpha.shape), None


def pact(x: Tensor, alpha: Tensor, bits: int) -> Tensor:
    """x clipped to [0, alpha] in 2^bits - 1 steps (PACT, arXiv:1805.06085, eq. 1 to 3).

    The gradient of x passes where 0 <= x < alpha; that of alpha is the sum of the incoming gradient where x >= alpha.
    """
    return _PACT.apply(x, alpha, bits)


def dorefa_activation(x: Tensor, bits: int) -> Tensor:
    """x clipped to [0, 1] in 2^bits - 1 steps; passes on [0, 1] (DoReFa-Net, arXiv:1606.06160, eq. 11)."""
    wide = widen(x.detach())
    n = wide.new_full((), 2**bits - 1)
    return through(torch.round(wide.clamp(0, 1) * n) / n, x, (wide >= 0) & (wide <= 1))
