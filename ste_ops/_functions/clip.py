"""Functions and fake kernels of gradient clipping."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ste_ops._dtensor import is_dtensor
from ste_ops._functions.base import Elementwise, NativeFunction, fake, inverse, needs_function, new_tangent, recorded
from ste_ops._functions.sharding import Sharding
from ste_ops._functions.tensor_list import (
    check_list,
    check_nonfinite,
    check_norm_type,
    check_samples,
    check_total_norm,
    check_units,
)
from ste_ops._library import ops


def _empty_norm(tensors: list[Tensor]) -> Tensor:
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return tensors[0].new_empty((), dtype=dtype)


def _empty_norms(tensors: list[Tensor], each: bool) -> tuple[Tensor, Tensor]:
    total_norm = _empty_norm(tensors)
    return total_norm, total_norm.new_empty(len(tensors) if each else 0)


@fake("total_norm")
def _(tensors: list[Tensor], norm_type: float, each: bool = False) -> tuple[Tensor, Tensor]:
    check_list("total_norm", tensors, writes=False)
    check_norm_type("total_norm", norm_type)
    return _empty_norms(tensors, each)


@fake("clip_grad_norm_")
def _(
    grads: list[Tensor], max_norm: float, norm_type: float, nonfinite: int = 0, each: bool = False
) -> tuple[Tensor, Tensor]:
    check_list("clip_grad_norm_", grads, writes=True)
    check_norm_type("clip_grad_norm_", norm_type)
    check_nonfinite("clip_grad_norm_", nonfinite)
    return _empty_norms(grads, each)


@fake("clip_grads_with_norm_")
def _(grads: list[Tensor], total_norm: Tensor, max_norm: float, nonfinite: int = 0) -> None:
    check_list("clip_grads_with_norm_", grads, writes=True)
    check_total_norm("clip_grads_with_norm_", total_norm, grads)
    check_nonfinite("clip_grads_with_norm_", nonfinite)


@fake("clip_grad_value_")
def _(grads: list[Tensor], clip_value: float) -> None:
    check_list("clip_grad_value_", grads, writes=True)


@fake("clip_grad_agc_")
def _(parameters: list[Tensor], grads: list[Tensor], clip_factor: float, eps: float) -> None:
    check_units("clip_grad_agc_", parameters, grads)


@fake("clip_per_sample_")
def _(grad_samples: list[Tensor], sums: list[Tensor], max_norm: float) -> Tensor:
    check_samples("clip_per_sample_", grad_samples, sums)
    return _empty_norm(grad_samples).new_empty(grad_samples[0].shape[0])


@fake("clip_gradient_value_backward")
def _(grad: Tensor, clip_value: float) -> Tensor:
    return torch.empty_like(grad)


@fake("clip_gradient_norm_backward")
def _(grad: Tensor, row_dims: int, max_norm: float, norm_type: float) -> Tensor:
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


@recorded("clip_gradient_value")
class ClipGradientValue(Elementwise):
    """x forward, the clamped gradient backward."""

    @staticmethod
    def forward(x: Tensor, clip_value: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.clip_value = inputs[1]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        if grad is None:
            return None, None
        call = ClipGradientValueBackward.apply if needs_function(grad) else ops.clip_gradient_value_backward
        return call(grad, ctx.clip_value), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, _: None) -> Tensor | None:
        return new_tangent(tangent)


class ClipGradientValueBackward(Elementwise):
    """The clamp of a gradient; its derivative is 1 where it changes nothing, at the bounds and at NaN too."""

    @staticmethod
    def forward(grad: Tensor, clip_value: float) -> Tensor:
        return ops.clip_gradient_value_backward(grad, clip_value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        grad, ctx.clip_value = inputs
        ctx.save_for_backward(grad)
        ctx.save_for_forward(grad)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, upper: Tensor | None) -> tuple[Tensor | None, None]:
        return (None if upper is None else torch.where(_clamped(ctx), 0.0, upper).to(upper.dtype)), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, _: None) -> Tensor | None:
        return None if tangent is None else torch.where(_clamped(ctx), 0.0, tangent).to(tangent.dtype)


def _clamped(ctx: Any) -> Tensor:
    (grad,) = ctx.saved_tensors
    # Against the bound as an element holds it, which is what the kernel compares with.
    return grad.abs() > torch.tensor(ctx.clip_value, dtype=grad.dtype).item()


class _OfRows(NativeFunction):
    """`forward(x, max_norm, norm_type, dims) -> out`; `dims` are sorted and not negative."""

    @classmethod
    def vmap(
        cls, info: Any, in_dims: tuple[Any, ...], x: Tensor, max_norm: float, norm_type: float, dims: tuple[int, ...]
    ) -> tuple[Tensor, int]:
        return cls.apply(x.movedim(in_dims[0], 0), max_norm, norm_type, tuple(d + 1 for d in dims)), 0


@recorded("clip_gradient_norm")
class ClipGradientNorm(_OfRows):
    """x forward, the gradient scaled to the norm backward."""

    sharding = Sharding(direct=True)  # gathered is the gradient, where there is one

    @staticmethod
    def forward(x: Tensor, max_norm: float, norm_type: float, dims: tuple[int, ...]) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.how = inputs[1:]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        if grad is None:
            return None, None, None, None
        recorded = needs_function(grad) or is_dtensor(grad)
        call = ClipGradientNormBackward.apply if recorded else _clip_rows
        return call(grad, *ctx.how), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: None) -> Tensor | None:
        return new_tangent(tangent)


class ClipGradientNormBackward(_OfRows):
    """`grad * min(1, max_norm / (norm + 1e-6))`, differentiable through the norm."""

    sharding = Sharding(whole=lambda grad, max_norm, norm_type, dims: dims)

    @staticmethod
    def forward(grad: Tensor, max_norm: float, norm_type: float, dims: tuple[int, ...]) -> Tensor:
        return _clip_rows(grad, max_norm, norm_type, dims)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])
        ctx.how = inputs[1:]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, upper: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        if upper is None:
            return None, None, None, None
        (grad,) = ctx.saved_tensors
        coefficient, slope = _coefficient(grad, *ctx.how)
        along = (upper * grad).sum(ctx.how[2], keepdim=True) if ctx.how[2] else upper * grad
        return (coefficient * upper + along * slope).to(grad.dtype), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: None) -> Tensor | None:
        if tangent is None:
            return None
        (grad,) = ctx.saved_tensors
        coefficient, slope = _coefficient(grad, *ctx.how)
        along = (slope * tangent).sum(ctx.how[2], keepdim=True) if ctx.how[2] else slope * tangent
        return (coefficient * tangent + along * grad).to(grad.dtype)


def _clip_rows(grad: Tensor, max_norm: float, norm_type: float, dims: tuple[int, ...]) -> Tensor:
    """Brings the reduced dimensions last, in memory order, so that a dense gradient is not copied."""
    if dims == tuple(range(grad.dim() - len(dims), grad.dim())) and grad.is_contiguous():
        return ops.clip_gradient_norm_backward(grad, len(dims), max_norm, norm_type)
    strides = grad.stride()
    order = sorted(range(grad.dim()), key=lambda d: (d in dims, -strides[d]))
    rows = ops.clip_gradient_norm_backward(grad.permute(order), len(dims), max_norm, norm_type)
    return rows.permute(inverse(order))


def _coefficient(grad: Tensor, max_norm: float, p: float, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The coefficient of each norm, and its derivative with respect to each element, in differentiable operations."""
    magnitude = grad.abs()
    if not dims:
        norm = (grad != 0).to(grad.dtype) if p == 0 else magnitude
    else:
        norm = torch.linalg.vector_norm(grad, p, dims, keepdim=True)
    coefficient = max_norm / (norm + 1e-6)
    clipped = ~(coefficient >= 1)
    if p == 0:
        norm_slope = torch.zeros_like(grad)
    elif p in (float("inf"), float("-inf")):
        extreme = (magnitude == norm).to(grad.dtype)
        ties = extreme.sum(dims, keepdim=True) if dims else extreme
        norm_slope = grad.sgn() * extreme / ties
    else:
        norm_slope = grad.sgn() * (magnitude / norm) ** (p - 1)
    slope = torch.where(clipped, -coefficient / (norm + 1e-6) * norm_slope, 0.0)
    return torch.where(clipped, coefficient, 1.0), slope
