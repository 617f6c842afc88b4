"""Functions and fake kernels of the uniform quantizer whose scale is learned. An axis of -1 is the whole tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ste_ops._functions.base import NativeFunction, batch_first, fake, needs_function
from ste_ops._functions.quantize.channels import along, fold_channels, per_group, unfold_channels
from ste_ops._library import ops


@fake("lsq")
def _(x: Tensor, scale: Tensor, quant_min: int, quant_max: int, axis: int) -> Tensor:
    return torch.empty_like(x)


@fake("lsq_backward")
def _(
    grad: Tensor, x: Tensor, scale: Tensor, quant_min: int, quant_max: int, axis: int, grad_scale: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(scale)


class LSQ(NativeFunction):
    """`forward(x, scale, quant_min, quant_max, axis, grad_scale) -> out`; saves x and scale."""

    @staticmethod
    def forward(x: Tensor, scale: Tensor, quant_min: int, quant_max: int, axis: int, grad_scale: float) -> Tensor:
        return ops.lsq(x, scale, quant_min, quant_max, axis)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])
        ctx.rest = inputs[2:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 6
        x, scale = ctx.saved_tensors
        call = LSQBackward.apply if needs_function(grad) else ops.lsq_backward
        return *call(grad, x.detach(), scale.detach(), *ctx.rest), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, of_x: Tensor | None, of_scale: Tensor | None, *_: None) -> Tensor | None:
        x, scale = ctx.saved_tensors
        return _lsq_tangent(x, scale, ctx.rest, of_x, of_scale)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, scale: Tensor, *rest: Any) -> tuple[Tensor, int]:
        quant_min, quant_max, axis, grad_scale = rest
        x, scale = batch_first(info, in_dims, x, scale)
        rows = fold_channels(x, axis)
        out = LSQ.apply(rows, per_group(scale, rows.shape[0]), quant_min, quant_max, 0, grad_scale)
        return unfold_channels(out, x.shape, axis), 0


class LSQBackward(NativeFunction):
    """The gradients of x and of scale. Linear in grad; x and scale count as constants."""

    @staticmethod
    def forward(grad: Tensor, x: Tensor, scale: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return ops.lsq_backward(grad, x, scale, *rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[1:3])
        ctx.save_for_forward(*inputs[1:3])
        ctx.rest = inputs[3:]

    @staticmethod
    def backward(ctx: Any, of_x: Tensor | None, of_scale: Tensor | None) -> tuple[Tensor | None, ...]:
        # The transpose of the gradients is the tangent.
        x, scale = ctx.saved_tensors
        return _lsq_tangent(x, scale, ctx.rest, of_x, of_scale), *[None] * 6

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: None) -> tuple[Tensor | None, Tensor | None]:
        if tangent is None:
            return None, None
        return LSQBackward.apply(tangent, *ctx.saved_tensors, *ctx.rest)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], grad: Tensor, x: Tensor, scale: Tensor, *rest: Any) -> Any:
        quant_min, quant_max, axis, grad_scale = rest
        grad, x, scale = batch_first(info, in_dims, grad, x, scale)
        rows = fold_channels(x, axis)
        scales = per_group(scale, rows.shape[0])
        grads = fold_channels(grad, axis)
        of_x, of_scale = LSQBackward.apply(grads, rows, scales, quant_min, quant_max, 0, grad_scale)
        return (unfold_channels(of_x, x.shape, axis), of_scale.reshape(scale.shape)), (0, 0)


def _lsq_tangent(
    x: Tensor, scale: Tensor, rest: tuple[int, int, int, float], of_x: Tensor | None, of_scale: Tensor | None
) -> Tensor | None:
    """The tangent of the output, by the same derivatives as the backward's: grad_scale too."""
    quant_min, quant_max, axis, grad_scale = rest
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    v = x.detach().to(dtype) * (1 / along(scale.detach().to(dtype), x, axis))
    q = torch.round(v)
    below, above = q < quant_min, q > quant_max
    tangent = None
    if of_x is not None:
        tangent = torch.where((q >= quant_min) & (q <= quant_max), of_x, 0.0)
    if of_scale is not None:
        slope = torch.where(below, quant_min, torch.where(above, quant_max, q - v))
        along_scale = (slope * (along(of_scale.to(dtype), x, axis) * grad_scale)).to(x.dtype)
        tangent = along_scale if tangent is None else tangent + along_scale
    return tangent
