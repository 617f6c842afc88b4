"""Functions and fake kernels of the straight-through steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ste_ops import surrogate as _surrogate
from ste_ops._functions._base import NativeFunction, fake, inverse, memory_order, needs_function
from ste_ops._library import ops


def _mask_bytes(numel: int) -> int:
    return (numel + 7) // 8


@fake("heaviside")
@fake("sign")
def _(x: Tensor, surrogate: int, a: float, b: float) -> tuple[Tensor, Tensor]:
    numel = x.numel() if _surrogate.saves(surrogate) == "mask" else 0
    return torch.empty_like(x), x.new_empty(_mask_bytes(numel), dtype=torch.uint8)


@fake("binarize_backward")
def _(grad: Tensor, mask: Tensor) -> Tensor:
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


class Binarize(NativeFunction):
    """A step forward, its surrogate backward. `forward(x, surrogate, a, b) -> (out, mask)`."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        out, mask = output
        ctx.mark_non_differentiable(mask)
        ctx.set_materialize_grads(False)
        ctx.identity = _surrogate.saves(inputs[1]) == "nothing"
        if not ctx.identity:
            ctx.save_for_backward(mask)
            ctx.save_for_forward(mask)
            ctx.order = memory_order(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None = None) -> tuple[Tensor | None, None, None, None]:
        if grad is None or ctx.identity:
            return grad, None, None, None
        (mask,) = ctx.saved_tensors
        return mask_gradient(grad, mask, ctx.order), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: None) -> tuple[Tensor | None, None]:
        if tangent is None or ctx.identity:
            # A new tensor object: forward-mode AD does not take its input back as the tangent of another output.
            return (None if tangent is None else tangent.view_as(tangent)), None
        (mask,) = ctx.saved_tensors
        return mask_gradient(tangent, mask, ctx.order), None

    @classmethod
    def _vmap(cls, info: Any, in_dims: tuple[int, ...], x: Tensor, surrogate: int, a: float, b: float) -> Any:
        # A row of the batch keeps a mask of its own, so every row is padded to whole mask bytes.
        rows, numel = _rows(x, in_dims[0])
        out, mask = cls.apply(_pad(rows), surrogate, a, b)
        shape = x.movedim(in_dims[0], 0).shape
        mask = mask.view(info.batch_size, mask.numel() // max(info.batch_size, 1))
        return (out[:, :numel].reshape(shape), mask), (0, 0)


def _rows(x: Tensor, dim: int) -> tuple[Tensor, int]:
    """A batched tensor as (batch, elements of one sample), and that number of elements."""
    x = x.movedim(dim, 0)
    numel = x[0].numel() if x.shape[0] else x.shape[1:].numel()
    return x.reshape(x.shape[0], numel), numel


def _pad(rows: Tensor) -> Tensor:
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % 8)).contiguous()


class Heaviside(Binarize):
    @staticmethod
    def forward(x: Tensor, surrogate: int, a: float, b: float) -> tuple[Tensor, Tensor]:
        return ops.heaviside(x, surrogate, a, b)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, ...], *args: Any) -> Any:
        return Heaviside._vmap(info, in_dims, *args)


class Sign(Binarize):
    @staticmethod
    def forward(x: Tensor, surrogate: int, a: float, b: float) -> tuple[Tensor, Tensor]:
        return ops.sign(x, surrogate, a, b)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, ...], *args: Any) -> Any:
        return Sign._vmap(info, in_dims, *args)


class BinarizeBackward(NativeFunction):
    """`grad` where the mask has a one. Linear in grad, so its own backward and tangent are itself."""

    @staticmethod
    def forward(grad: Tensor, mask: Tensor) -> Tensor:
        return ops.binarize_backward(grad, mask)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        return (None if grad is None else mask_gradient(grad, ctx.saved_tensors[0], None)), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, _: None) -> Tensor | None:
        return None if tangent is None else mask_gradient(tangent, ctx.saved_tensors[0], None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], grad: Tensor, mask: Tensor) -> tuple[Tensor, int]:
        size = info.batch_size
        if in_dims[0] is None:
            grad = grad.expand(size, *grad.shape)
        else:
            grad = grad.movedim(in_dims[0], 0)
        mask = mask.expand(size, *mask.shape) if in_dims[1] is None else mask.movedim(in_dims[1], 0)
        rows, numel = _rows(grad, 0)
        out = BinarizeBackward.apply(_pad(rows), mask.reshape(-1).contiguous())
        return out[:, :numel].reshape(grad.shape), 0


def mask_gradient(grad: Tensor, mask: Tensor, order: list[int] | None) -> Tensor:
    """`grad` where the mask has a one, in the memory order that the mask was made in."""
    call = BinarizeBackward.apply if needs_function(grad) else ops.binarize_backward
    if order is None:
        return call(grad, mask)
    return call(grad.permute(order), mask).permute(inverse(order))
