"""The uniform quantizer whose scale and offset are learned."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ste_ops.reference._arithmetic import widen
from ste_ops.reference.quantize.uniform import along, quantize


class _LSQPlus(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        offset: Tensor,
        quant_min: int,
        quant_max: int,
        axis: int | None,
        grad_scale: float,
    ) -> Tensor:
        wide = widen(x)
        b = along(offset, wide, axis)
        v, q, out = quantize(wide - b, along(scale, wide, axis), 0.0, quant_min, quant_max)
        ctx.passes = (v > quant_min) & (v < quant_max)
        ctx.slope = torch.where(v <= quant_min, quant_min, torch.where(v >= quant_max, quant_max, q - v))
        ctx.axis, ctx.grad_scale, ctx.scale, ctx.offset = axis, grad_scale, scale, offset
        return (out + b).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        def total(each: Tensor, parameter: Tensor) -> Tensor:
            kept = None if ctx.axis is None or parameter.numel() == 1 else ctx.axis % grad.dim()
            others = [d for d in range(grad.dim()) if d != kept]
            each = each.sum(others) if others else each
            return (each * ctx.grad_scale).to(parameter.dtype).reshape(parameter.shape)

        wide = grad.double()
        of_scale = total(wide * ctx.slope.double(), ctx.scale)
        of_offset = total(torch.where(ctx.passes, 0.0, wide), ctx.offset)
        return torch.where(ctx.passes, grad, 0.0), of_scale, of_offset, None, None, None, None


def lsq_plus(
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    grad_scale: float | None = None,
) -> Tensor:
    """clamp(round(v)) * scale + offset with v = (x - offset) / scale (LSQ+, arXiv:2004.09576, eq. 3 and 4).

    The gradients of x and of scale are those of `lsq` at x - offset; that of offset is the sum of the incoming gradient
    that does not pass to x; grad_scale is by default 1 / sqrt(N * quant_max) with N the elements that share both.
    """
    if grad_scale is None:
        count = max(scale.numel(), offset.numel(), 1)
        grad_scale = 1 / math.sqrt(max(x.numel() // count, 1) * quant_max)
    return _LSQPlus.apply(x, scale, offset, quant_min, quant_max, axis, grad_scale)
