"""Functions and fake kernels of the straight-through steps."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from ste_ops._functions.base import FAKES, NativeFunction, batch_first, fake, inverse, memory_order, needs_function
from ste_ops._functions.curve import curve_gradient, refuse_batched_parameters
from ste_ops._library import ops

Saves: TypeAlias = Literal["nothing", "mask", "input"]

# Name of each surrogate of the library, and what it keeps for the backward; its number is its place.
SURROGATES: list[tuple[str, Saves]] = [tuple(entry.split(":")) for entry in ops.surrogates().split()]  # type: ignore[misc]


def saves(number: int) -> Saves:
    """What the surrogate of that number keeps for the backward."""
    # Under torch.compile(dynamic=True) the number is a SymInt, which no list takes.
    return SURROGATES[int(number)][1]


def _mask_bytes(numel: int) -> int:
    return (numel + 7) // 8


@fake("heaviside")
@fake("sign")
def _(x: Tensor, surrogate: int, a: float, b: float) -> tuple[Tensor, Tensor]:
    numel = x.numel() if saves(surrogate) == "mask" else 0
    return torch.empty_like(x), x.new_empty(_mask_bytes(numel), dtype=torch.uint8)


@fake("ternary")
def _(x: Tensor, surrogate: int, a: float, b: float, threshold: float) -> tuple[Tensor, Tensor]:
    return FAKES["sign"](x, surrogate, a, b)


@fake("binarize_backward")
def _(grad: Tensor, mask: Tensor, factor: float = 1.0) -> Tensor:
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


class Binarize(NativeFunction):
    """A step forward, its surrogate backward.

    `forward(x, surrogate, a, b, factor, parameters, ...) -> (out, mask)`: a mask's gradients are multiplied by factor,
    a curve's `parameters` stand in for a and b where they are a tensor.
    """

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, surrogate, a, b, factor, parameters = inputs[:6]
        out, mask = output
        ctx.mark_non_differentiable(mask)
        ctx.set_materialize_grads(False)
        ctx.others = (None,) * (len(inputs) - 1)
        ctx.saves = saves(surrogate)
        if ctx.saves == "mask":
            ctx.save_for_backward(mask)
            ctx.save_for_forward(mask)
            ctx.order, ctx.factor = memory_order(out), factor
        elif ctx.saves == "input":
            ctx.save_for_backward(x, parameters)
            ctx.save_for_forward(x, parameters)
            ctx.curve = surrogate, a, b

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None = None) -> tuple[Tensor | None, ...]:
        return _surrogate_gradient(ctx, grad), *ctx.others

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: None) -> tuple[Tensor | None, None]:
        gradient = _surrogate_gradient(ctx, tangent)
        if gradient is not None and gradient is tangent:
            # A new tensor object: forward-mode AD does not take its input back as the tangent of another output.
            gradient = gradient.view_as(gradient)
        return gradient, None

    @classmethod
    def _vmap(cls, info: Any, in_dims: tuple[int, ...], x: Tensor, surrogate: int, *others: Any) -> Any:
        refuse_batched_parameters(in_dims[5])
        dim = in_dims[0]
        if saves(surrogate) != "mask":
            return cls.apply(x, surrogate, *others), (dim, None)
        # A row of the batch keeps a mask of its own, so every row is padded to whole mask bytes.
        rows, numel = _rows(x, dim)
        out, mask = cls.apply(_pad(rows), surrogate, *others)
        shape = x.movedim(dim, 0).shape
        mask = mask.view(info.batch_size, mask.numel() // max(info.batch_size, 1))
        return (out[:, :numel].reshape(shape), mask), (0, 0)


def _surrogate_gradient(ctx: Any, grad: Tensor | None) -> Tensor | None:
    """grad times the surrogate's derivative, which is the backward and, of a tangent, the forward mode."""
    if grad is None or ctx.saves == "nothing":
        return grad
    if ctx.saves == "mask":
        return mask_gradient(grad, ctx.saved_tensors[0], ctx.order, ctx.factor)
    x, parameters = ctx.saved_tensors
    return curve_gradient(grad, x, parameters, ctx.curve)


def _rows(x: Tensor, dim: int) -> tuple[Tensor, int]:
    """A batched tensor as (batch, elements of one sample), and that number of elements."""
    x = x.movedim(dim, 0)
    numel = x[0].numel() if x.shape[0] else x.shape[1:].numel()
    return x.reshape(x.shape[0], numel), numel


def _pad(rows: Tensor) -> Tensor:
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % 8)).contiguous()


class Heaviside(Binarize):
    @staticmethod
    def forward(x: Tensor, surrogate: int, a: float, b: float, factor: float, parameters: Tensor | None) -> Any:
        return ops.heaviside(x, surrogate, a, b)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, ...], *args: Any) -> Any:
        return Heaviside._vmap(info, in_dims, *args)


class Sign(Binarize):
    @staticmethod
    def forward(x: Tensor, surrogate: int, a: float, b: float, factor: float, parameters: Tensor | None) -> Any:
        return ops.sign(x, surrogate, a, b)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, ...], *args: Any) -> Any:
        return Sign._vmap(info, in_dims, *args)


class Ternary(Binarize):
    @staticmethod
    def forward(
        x: Tensor, surrogate: int, a: float, b: float, factor: float, parameters: Tensor | None, threshold: float
    ) -> Any:
        return ops.ternary(x, surrogate, a, b, threshold)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, ...], *args: Any) -> Any:
        return Ternary._vmap(info, in_dims, *args)


BINARIZERS: dict[str, type[Binarize]] = {"heaviside": Heaviside, "sign": Sign, "ternary": Ternary}


class BinarizeBackward(NativeFunction):
    """factor * grad where the mask has a one. Linear in grad, so its own backward and tangent are itself."""

    @staticmethod
    def forward(grad: Tensor, mask: Tensor, factor: float) -> Tensor:
        return ops.binarize_backward(grad, mask, factor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])
        ctx.set_materialize_grads(False)
        ctx.factor = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None]:
        return (None if grad is None else mask_gradient(grad, ctx.saved_tensors[0], None, ctx.factor)), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: None) -> Tensor | None:
        return None if tangent is None else mask_gradient(tangent, ctx.saved_tensors[0], None, ctx.factor)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, int | None, None], grad: Tensor, mask: Tensor, factor: float
    ) -> tuple[Tensor, int]:
        grad, mask = batch_first(info, in_dims, grad, mask)
        rows, numel = _rows(grad, 0)
        out = BinarizeBackward.apply(_pad(rows), mask.reshape(-1).contiguous(), factor)
        return out[:, :numel].reshape(grad.shape), 0


def mask_gradient(grad: Tensor, mask: Tensor, order: list[int] | None, factor: float = 1.0) -> Tensor:
    """factor * grad where the mask has a one, in the memory order that the mask was made in."""
    call = BinarizeBackward.apply if needs_function(grad) else ops.binarize_backward
    if order is None:
        return call(grad, mask, factor)
    return call(grad.permute(order), mask, factor).permute(inverse(order))
