"""What the references of the quantizers share. 16-bit inputs are computed in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    return x if x.dtype.itemsize >= 4 else x.float()


def along(value: Tensor | float, x: Tensor, axis: int | None) -> Tensor:
    """A number, a tensor of one element or one of x.shape[axis] elements, in x's dtype, shaped to broadcast with x."""
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device).detach()
    if axis is None or value.numel() == 1:
        return value.reshape(())
    shape = [1] * x.dim()
    shape[axis] = x.shape[axis]
    return value.reshape(shape)


class Through(torch.autograd.Function):
    """`out` forward; the gradient goes to x, where it passes."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, x: Tensor, passes: Tensor | None) -> Tensor:
        ctx.passes = passes
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        return None, grad if ctx.passes is None else torch.where(ctx.passes, grad, 0.0), None


def through(out: Tensor, x: Tensor, passes: Tensor | None = None) -> Tensor:
    return Through.apply(out.detach(), x, passes)
