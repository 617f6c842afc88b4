"""Function and fake kernels of N:M sparsity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ste_ops._functions.base import NativeFunction, batch_first, fake, needs_function, new_tangent, recorded
from ste_ops._functions.sharding import Sharding
from ste_ops._library import ops


@fake("sr_ste")
def _(w: Tensor, n: int, m: int) -> Tensor:
    return torch.empty_like(w)


@fake("sr_ste_backward")
def _(grad: Tensor, w: Tensor, n: int, m: int, decay: float) -> Tensor:
    return torch.empty_like(w)


def _neighbours(w: Tensor, n: int, m: int, decay: float) -> list[int]:
    """The dimension of the groups, where a part of a DTensor may end within one."""
    dim = 1 if w.dim() > 1 else 0
    sizes = [
        size
        for size, placement in zip(w.device_mesh.shape, w.placements, strict=True)  # type: ignore[attr-defined]
        if getattr(placement, "dim", None) == dim
    ]
    # All parts but the last ones are of one size, rounded up.
    apart = not sizes or (len(sizes) == 1 and -(-w.shape[dim] // sizes[0]) % m == 0)
    return [] if apart else [dim]


@recorded("sr_ste")
class SRSTE(NativeFunction):
    """The n largest of every m neighbours. Saves w, from which the backward ranks again: a parameter costs nothing."""

    sharding = Sharding(whole=_neighbours)

    @staticmethod
    def forward(w: Tensor, n: int, m: int, decay: float) -> Tensor:
        return ops.sr_ste(w, n, m)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.how = inputs[1:]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        if grad is None:
            return None, None, None, None
        (w,) = ctx.saved_tensors
        # The decay is a function of w, so that w alone may need the backward recorded.
        call = SRSTEBackward.apply if needs_function(grad) or needs_function(w) else ops.sr_ste_backward
        return call(grad, w, *ctx.how), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: None) -> Any:
        return new_tangent(tangent)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], w: Tensor, n: int, m: int, decay: float) -> tuple[Tensor, int]:
        w = w.movedim(in_dims[0], 0)
        return SRSTE.apply(_fold(w), n, m, decay).reshape(w.shape), 0


class SRSTEBackward(NativeFunction):
    """grad, plus decay * w where w was set to 0."""

    @staticmethod
    def forward(grad: Tensor, w: Tensor, n: int, m: int, decay: float) -> Tensor:
        return ops.sr_ste_backward(grad, w, n, m, decay)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int, int, float], output: Tensor) -> None:
        _, w, *ctx.how = inputs
        ctx.save_for_backward(w)
        ctx.save_for_forward(w)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, upper: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        if upper is None:
            return None, None, None, None, None
        return upper, _decay(ctx, upper), None, None, None

    @staticmethod
    def jvp(ctx: Any, of_grad: Tensor | None, of_w: Tensor | None, *_: None) -> Any:
        if of_w is None:
            return new_tangent(of_grad)
        decayed = _decay(ctx, of_w)
        return decayed if of_grad is None else of_grad + decayed

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], grad: Tensor, w: Tensor, n: int, m: int, decay: float) -> Any:
        grad, w = batch_first(info, in_dims, grad, w)
        return SRSTEBackward.apply(_fold(grad), _fold(w), n, m, decay).reshape(w.shape), 0


def _decay(ctx: Any, x: Tensor) -> Tensor:
    """decay * x where w was set to 0. Second order alone comes here."""
    n, m, decay = ctx.how
    return torch.where(_kept(ctx.saved_tensors[0], n, m), 0.0, decay * x)


def _kept(w: Tensor, n: int, m: int) -> Tensor:
    """Whether each weight is among the n largest of its m neighbours: of equal ones the first; NaN is the largest."""
    dim = 1 if w.dim() > 1 else 0
    groups = w.detach().unflatten(dim, (-1, m)).abs()
    order = torch.argsort(groups, dim=dim + 1, descending=True, stable=True)
    first = order.narrow(dim + 1, 0, n)
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(dim + 1, first, True).flatten(dim, dim + 1)


def _fold(batch: Tensor) -> Tensor:
    """A batch of weights, the batch first, as one weight whose dimension 1 is theirs, or the only one of a vector."""
    if batch.dim() == 1:
        return batch.unsqueeze(1)
    return batch if batch.dim() == 2 else batch.flatten(0, 1)
