"""N:M sparsity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ste_ops.reference._arithmetic import widen


def kept(w: Tensor, n: int, m: int) -> Tensor:
    """Whether each weight is among the n largest of its m neighbours along dim 1 (dim 0 of a vector).

    Of equal ones the first is kept; a NaN counts as the largest.
    """
    dim = 1 if w.dim() > 1 else 0
    groups = w.detach().movedim(dim, -1)
    shape = groups.shape
    magnitude = groups.reshape(-1, m).abs()
    order = torch.argsort(magnitude, dim=-1, descending=True, stable=True)  # NaN first
    keep = torch.zeros_like(magnitude, dtype=torch.bool).scatter_(-1, order[:, :n], True)
    return keep.reshape(shape).movedim(-1, dim)


class _SRSTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, n: int, m: int, decay: float) -> Tensor:
        keep = kept(w, n, m)
        ctx.save_for_backward(w, keep)
        ctx.decay = decay
        return torch.where(keep, w, 0.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        w, keep = ctx.saved_tensors
        pruned = (widen(grad) + ctx.decay * widen(w)).to(w.dtype)
        return torch.where(keep, grad, pruned), None, None, None


def sr_ste(w: Tensor, n: int, m: int, decay: float = 2e-4) -> Tensor:
    """The n largest of every m neighbours along dim 1, the others 0 (SR-STE, arXiv:2102.04010, eq. 8).

    The gradient passes, plus decay * w where w was set to 0.
    """
    return _SRSTE.apply(w, n, m, decay)


@torch.no_grad()
def sr_ste_decay_(w: Tensor, n: int, m: int, decay: float = 2e-4) -> None:
    """Adds decay * w to w.grad where w is set to 0, computed in float32 (float64 for float64)."""
    if w.grad is not None:
        pruned = (widen(w.grad) + decay * widen(w)).to(w.dtype)
        w.grad.copy_(torch.where(kept(w, n, m), w.grad, pruned))
