"""The straight-through gradient of the references."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Through(torch.autograd.Function):
    """`out` forward; the gradient goes to x, where it passes."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, x: Tensor, passes: Tensor | None) -> Tensor:
        ctx.passes = passes
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        return None, grad if ctx.passes is None else torch.where(ctx.passes, grad, 0.0), None


def through(out: Tensor, x: Tensor, passes: Tensor | None = None) -> Tensor:
    return _Through.apply(out.detach(), x, passes)
