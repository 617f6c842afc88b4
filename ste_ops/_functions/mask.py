"""Masks of one bit an element: their size, the gradient through one, and how a batch of them is packed.

Element i of the output's memory is bit i % 8 of byte i / 8, and under vmap every sample has a mask of its own, of whole
bytes (docs/decisions/mask-layout.md).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ste_ops._functions.base import NativeFunction, batch_first, fake, inverse, memory_order, needs_function
from ste_ops._functions.sharding import Sharding
from ste_ops._library import ops


def mask_bytes(numel: int) -> int:
    return (numel + 7) // 8


def new_mask(x: Tensor) -> Tensor:
    """For fake kernels: one bit an element."""
    return x.new_empty(mask_bytes(x.numel()), dtype=torch.uint8)


@fake("binarize_backward")
def _(grad: Tensor, mask: Tensor, factor: float = 1.0) -> Tensor:
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


@fake("binarize_backward_held")
def _(grad: Tensor, mask: Tensor, factor: Tensor) -> Tensor:
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


class BinarizeBackward(NativeFunction):
    """factor * grad where the mask has a one. Linear in grad, so its own backward and tangent are itself."""

    @staticmethod
    def forward(grad: Tensor, mask: Tensor, factor: float | Tensor) -> Tensor:
        return _times(grad, mask, factor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float | Tensor], output: Tensor) -> None:
        _, mask, factor = inputs
        held = (mask, factor) if isinstance(factor, Tensor) else (mask,)
        ctx.save_for_backward(*held)
        ctx.save_for_forward(*held)
        ctx.set_materialize_grads(False)
        ctx.factor = None if isinstance(factor, Tensor) else factor

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None]:
        return (None if grad is None else saved_mask_gradient(ctx, grad, None)), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: None) -> Tensor | None:
        return None if tangent is None else saved_mask_gradient(ctx, tangent, None)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], grad: Tensor, mask: Tensor, factor: float | Tensor
    ) -> tuple[Tensor, int]:
        grad, mask = batch_first(info, in_dims, grad, mask)
        return batch_gradient(grad, mask, factor), 0


def _times(grad: Tensor, mask: Tensor, factor: float | Tensor) -> Tensor:
    if type(factor) is not float and isinstance(factor, Tensor):
        return ops.binarize_backward_held(grad, mask, factor)
    return ops.binarize_backward(grad, mask, factor)


def saved_mask_gradient(ctx: Any, grad: Tensor, order: list[int] | None) -> Tensor:
    """`mask_gradient` by what is saved: the mask, and the factor where it is a tensor."""
    saved = ctx.saved_tensors
    return mask_gradient(grad, saved[0], order, saved[1] if ctx.factor is None else ctx.factor)


def mask_gradient(grad: Tensor, mask: Tensor, order: list[int] | None, factor: float | Tensor = 1.0) -> Tensor:
    """factor * grad where the mask has a one, in the memory order that the mask was made in."""
    call = BinarizeBackward.apply if needs_function(grad) else _times
    if order is None:
        return call(grad, mask, factor)
    return call(grad.permute(order), mask, factor).permute(inverse(order))


def batch_gradient(grad: Tensor, masks: Tensor, factor: float | Tensor = 1.0) -> Tensor:
    """`mask_gradient` of a batch of row-major samples, each with the mask in its row of `masks`."""
    out = BinarizeBackward.apply(mask_rows(grad), masks.reshape(-1).contiguous(), factor)
    return from_mask_rows(out, grad.shape)


def mask_rows(x: Tensor) -> Tensor:
    """A batch, the batch first, as one row of whole mask bytes a sample."""
    numel = math.prod(x.shape[1:])
    rows = x.reshape(x.shape[0], numel)
    return torch.nn.functional.pad(rows, (0, -numel % 8)).contiguous()


def from_mask_rows(rows: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `mask_rows`, `shape` being that of the batch."""
    return rows[:, : math.prod(shape[1:])].contiguous().view(shape)


def batch_of_masks(mask: Tensor, shape: torch.Size) -> Tensor:
    """The mask of a batch whose samples begin at whole bytes, as the mask of each sample in a row."""
    masks = mask.view(shape[0], mask.numel() // max(shape[0], 1))
    return masks[:, : mask_bytes(math.prod(shape[1:]))]


class Masked(NativeFunction):
    """`forward(x, ...) -> (out, mask)`: the gradient of x passes where the mask has a one; nothing else has one."""

    returns_more = True
    sharding = Sharding()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        out, mask = output
        ctx.mark_non_differentiable(mask)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mask)
        ctx.save_for_forward(mask)
        ctx.order = memory_order(out)
        ctx.others = (None,) * (len(inputs) - 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None = None) -> tuple[Tensor | None, ...]:
        return (None if grad is None else mask_gradient(grad, ctx.saved_tensors[0], ctx.order)), *ctx.others

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: None) -> tuple[Tensor | None, None]:
        return None if tangent is None else mask_gradient(tangent, ctx.saved_tensors[0], ctx.order), None

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], x: Tensor, *others: Any) -> Any:
        """Of an elementwise operator."""
        (x,) = batch_first(info, in_dims, x)
        out, mask = cls.apply(mask_rows(x), *others)
        return (from_mask_rows(out, x.shape), batch_of_masks(mask, x.shape)), (0, 0)
