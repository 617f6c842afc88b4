"""Weights scaled by their mean magnitude, whose sign has a gradient of its own, that of any surrogate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ste_ops._functions.base import NativeFunction, batch_first, fake, needs_function, recorded, widen
from ste_ops._functions.quantize.channels import fold_channels, unfold_channels
from ste_ops._functions.quantize.scaled import along_groups, held_sign, mean_of_groups, members
from ste_ops._library import ops


@fake("scaled_sign_backward")
def _(grad: Tensor, w: Tensor, mean: Tensor, per_channel: bool, held: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(w), w.new_empty(0) if held else torch.empty_like(w)


@recorded("scaled_sign")
class ScaledSign(NativeFunction):
    """`forward(sign, w, per_channel, held[, again]) -> (out, mean)`: the sign of w times the mean of abs(w).

    `sign` takes its gradient and w that of the mean, unless that is held. The values come from w alone, and are those
    of `xnor_weight`. A backward that is recorded needs the sign again, as a function of w: `again(w)` makes it; without
    `again`, which a compiled graph cannot hold, the sign is saved, and only stays where the backward reads it.
    """

    returns_more = True

    @staticmethod
    def forward(sign: Tensor, w: Tensor, per_channel: bool, held: bool, again: Any = None) -> tuple[Tensor, Tensor]:
        return ops.xnor_weight(w, per_channel)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        sign, w, ctx.per_channel, ctx.held, *again = inputs
        ctx.others = (None,) * (len(inputs) - 2)
        ctx.again = again[0] if again else None  # the transforms of torch.func hand over the default too
        ctx.mark_non_differentiable(output[1])
        saved = (w, output[1]) if ctx.again is not None or ctx.held else (w, output[1], sign)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None = None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, *ctx.others
        w, mean, *_sign = ctx.saved_tensors
        if needs_function(grad) or needs_function(w):
            return *_gradients(ctx, grad), *ctx.others
        of_sign, of_w = ops.scaled_sign_backward(grad, w, mean, ctx.per_channel, ctx.held)
        return of_sign, None if ctx.held else of_w, *ctx.others

    @staticmethod
    def jvp(ctx: Any, of_sign: Tensor | None, of_w: Tensor | None, *_: None) -> tuple[Tensor | None, None]:
        x, scale, dims = _parts(ctx)
        terms = []
        if of_sign is not None:
            terms.append(widen(of_sign) * scale)
        if of_w is not None and not ctx.held:
            terms.append(_sign_of(ctx) * mean_of_groups(widen(of_w) * held_sign(x), dims))
        return (sum(terms[1:], terms[0]).to(ctx.saved_tensors[0].dtype) if terms else None), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], sign: Tensor, w: Tensor, per_channel: bool, *others: Any) -> Any:
        sign, w = batch_first(info, in_dims, sign, w)
        axis = 0 if per_channel else -1
        out, mean = ScaledSign.apply(fold_channels(sign, axis), fold_channels(w, axis), True, *others)
        of_all = -1 if mean.numel() else 0
        return (unfold_channels(out, w.shape, axis), mean.reshape(info.batch_size, of_all)), (0, 0)


def _parts(ctx: Any) -> tuple[Tensor, Tensor, list[int]]:
    """w in the dtype of the arithmetic, its mean in differentiable operations, and the dimensions of a group."""
    w, mean = ctx.saved_tensors[:2]
    x, dims = widen(w), members(w, ctx.per_channel)
    return x, along_groups(mean, w) if ctx.held else mean_of_groups(x * held_sign(x), dims), dims


def _sign_of(ctx: Any) -> Tensor:
    w, _, *sign = ctx.saved_tensors
    again: Callable[[Tensor], Tensor] | None = ctx.again
    s = widen(sign[0] if again is None else again(w))
    return torch.where(w.isnan(), widen(w), s)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
    """The backward in differentiable operations."""
    g, w = widen(grad), ctx.saved_tensors[0]
    x, scale, dims = _parts(ctx)
    of_w = None if ctx.held else (held_sign(x) * mean_of_groups(g * _sign_of(ctx), dims)).to(w.dtype)
    return (g * scale).to(w.dtype), of_w
