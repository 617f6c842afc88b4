"""Functions of heaviside, sign and ternary with a Python callable as surrogate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ste_ops._functions.base import Elementwise, NativeFunction, batch_first, recorded, recording, widen
from ste_ops._functions.binarize import IDENTITY
from ste_ops._functions.learned_surrogate import Held, as_operands, from_operands, step_without_mask
from ste_ops._functions.sharding import Sharding

Slope = Callable[[Tensor], Tensor]


def custom_step(step: str, threshold: tuple[Held, ...], x: Tensor, slope: Slope) -> Tensor:
    """`threshold` is empty but for a ternary step."""
    if torch.compiler.is_compiling() or recording():
        # A callable is no argument of an opaque call; it is traced here, and autograd records its derivative.
        return SlopedStep.apply(x, slope(widen(x)), step, threshold)
    return CustomStep.apply(x, slope, step, threshold)


def _slope_alone(slope: Slope, x: Tensor) -> Tensor:
    """The callable's value. In a backward that nothing records autograd watches what else it reads than x: for nothing,
    where that requires no gradient."""
    if torch.is_grad_enabled():
        return slope(widen(x))
    with torch.enable_grad():
        value = slope(widen(x.detach()))
    if value.requires_grad:
        raise ValueError(
            "Custom: derivative reads a tensor that requires a gradient, which it cannot get: only the fields of the "
            "other surrogates can be learned, as in ATan(alpha); detach it where it is to stay as it is"
        )
    return value


def _times(grad: Tensor, slope: Tensor) -> Tensor:
    return torch.where(slope == 0, 0.0, grad * slope).to(grad.dtype)


class CustomStep(Elementwise):
    """Saves x and calls the callable in the backward, where autograd may differentiate it."""

    @staticmethod
    def forward(x: Tensor, slope: Slope, step: str, threshold: tuple[Held, ...]) -> Tensor:
        return step_without_mask(x, step, IDENTITY, threshold)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])
        ctx.set_materialize_grads(False)
        ctx.slope = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        gradient = None if grad is None else _times(grad, _slope_alone(ctx.slope, ctx.saved_tensors[0]))
        return gradient, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: None) -> Tensor | None:
        return None if tangent is None else _times(tangent, ctx.slope(widen(ctx.saved_tensors[0])))


@recorded("sloped_step")
class SlopedStep(NativeFunction):
    """A step whose gradient is the incoming one times `slope`, a tensor that autograd may differentiate."""

    sharding = Sharding(alike=2)

    @classmethod
    def operands(cls, x: Tensor, slope: Tensor, step: str, threshold: tuple[Held, ...]) -> tuple[Any, ...]:
        return x, slope, step, *as_operands(threshold)

    @classmethod
    def run(cls, x: Tensor, slope: Tensor, step: str, *operands: Any) -> Tensor:
        return super().run(x, slope, step, from_operands(*operands))

    @staticmethod
    def forward(x: Tensor, slope: Tensor, step: str, threshold: tuple[Held, ...]) -> Tensor:
        return step_without_mask(x, step, IDENTITY, threshold)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        return (None if grad is None else _times(grad, ctx.saved_tensors[0])), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> Tensor | None:
        return None if tangent is None else _times(tangent, ctx.saved_tensors[0])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, slope: Tensor, *others: Any) -> Any:
        return SlopedStep.apply(*batch_first(info, in_dims, x, slope), *others), 0
