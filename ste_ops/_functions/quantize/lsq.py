"""Functions and fake kernels of the uniform quantizer whose scale is learned. An axis of -1 is the whole tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ste_ops._functions.base import NativeFunction, batch_first, fake, needs_function, recorded
from ste_ops._functions.mask import new_mask
from ste_ops._functions.quantize.channels import along, fold_channels, per_group, unfold_channels
from ste_ops._functions.quantize.uniform import MaskedSteps
from ste_ops._library import ops


@fake("lsq")
def _(x: Tensor, scale: Tensor, quant_min: int, quant_max: int, axis: int) -> Tensor:
    return torch.empty_like(x)


@fake("lsq_masked")
def _(x: Tensor, scale: Tensor, quant_min: int, quant_max: int, axis: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), new_mask(x)


@fake("lsq_backward")
def _(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int,
    grad_scale: float | None,
    of_sample: bool = False,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(scale)


def _grad_scale(rest: tuple[Any, ...], x: Tensor, scale: Tensor) -> float:
    """What the gradient of scale is multiplied by, as the kernel counts it: ops/quantize/uniform.h."""
    _, quant_max, axis, grad_scale, of_sample = rest
    if grad_scale is not None:
        return grad_scale
    shared = x.numel() // max(scale.numel(), 1)
    if of_sample and x.dim() > 0 and axis != 0:
        shared = shared // torch.sym_max(x.shape[0], 1)
    return 1 / torch.sym_sqrt(torch.sym_max(shared, 1) * quant_max)


class MaskedLSQ(MaskedSteps):
    """`forward(x, scale, quant_min, quant_max, axis) -> (out, mask)`, of a scale that gets no gradient."""

    parameters = 1

    @staticmethod
    def forward(x: Tensor, scale: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return ops.lsq_masked(x, scale, *rest)


@recorded("lsq")
class LSQ(NativeFunction):
    """`forward(x, scale, quant_min, quant_max, axis, grad_scale, of_sample) -> out`; saves x and scale.

    Without a grad_scale the backward counts the elements that share a scale: of x, or of one sample of it, dimension 0
    being the batch.
    """

    @classmethod
    def run(cls, x: Tensor, scale: Tensor, *rest: Any) -> Tensor:
        # A program may be trained with its scales frozen, or not be trained.
        return super().run(x, scale, *rest) if needs_function(scale) else MaskedLSQ.run(x, scale.detach(), *rest[:3])

    @staticmethod
    def forward(x: Tensor, scale: Tensor, *rest: Any) -> Tensor:
        return ops.lsq(x, scale, *rest[:3])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])
        ctx.rest = inputs[2:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 7
        x, scale = ctx.saved_tensors
        call = LSQBackward.apply if needs_function(grad) else ops.lsq_backward
        return *call(grad, x.detach(), scale.detach(), *ctx.rest), *[None] * 5

    @staticmethod
    def jvp(ctx: Any, of_x: Tensor | None, of_scale: Tensor | None, *_: None) -> Tensor | None:
        x, scale = ctx.saved_tensors
        return _lsq_tangent(x, scale, ctx.rest, of_x, of_scale)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, scale: Tensor, *rest: Any) -> tuple[Tensor, int]:
        x, scale = batch_first(info, in_dims, x, scale)
        quant_min, quant_max, axis = rest[:3]
        rows = fold_channels(x, axis)
        factor = _grad_scale_of_batch(rest, x, scale)
        out = LSQ.apply(rows, per_group(scale, rows.shape[0]), quant_min, quant_max, 0, factor, False)
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
        return _lsq_tangent(x, scale, ctx.rest, of_x, of_scale), *[None] * 7

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: None) -> tuple[Tensor | None, Tensor | None]:
        if tangent is None:
            return None, None
        return LSQBackward.apply(tangent, *ctx.saved_tensors, *ctx.rest)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], grad: Tensor, x: Tensor, scale: Tensor, *rest: Any) -> Any:
        quant_min, quant_max, axis = rest[:3]
        grad, x, scale = batch_first(info, in_dims, grad, x, scale)
        factor = _grad_scale_of_batch(rest, x, scale)
        rows = fold_channels(x, axis)
        scales = per_group(scale, rows.shape[0])
        grads = fold_channels(grad, axis)
        of_x, of_scale = LSQBackward.apply(grads, rows, scales, quant_min, quant_max, 0, factor, False)
        return (unfold_channels(of_x, x.shape, axis), of_scale.reshape(scale.shape)), (0, 0)


def _grad_scale_of_batch(rest: tuple[Any, ...], x: Tensor, scale: Tensor) -> float:
    """`_grad_scale` of each tensor of a batch, which lies along dimension 0 of x and of scale."""
    return _grad_scale(rest, x[0], scale[0]) if x.shape[0] else 1.0


def _lsq_tangent(
    x: Tensor, scale: Tensor, rest: tuple[Any, ...], of_x: Tensor | None, of_scale: Tensor | None
) -> Tensor | None:
    """The tangent of the output, by the same derivatives as the backward's: grad_scale too."""
    quant_min, quant_max, axis = rest[:3]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    v = x.detach().to(dtype) * (1 / along(scale.detach().to(dtype), x, axis))
    tangent = None
    if of_x is not None:
        tangent = torch.where((v > quant_min) & (v < quant_max), of_x, 0.0)
    if of_scale is not None:
        slope = torch.where(v <= quant_min, quant_min, torch.where(v >= quant_max, quant_max, torch.round(v) - v))
        along_scale = slope * (along(of_scale.to(dtype), x, axis) * _grad_scale(rest, x, scale))
        along_scale = along_scale.to(x.dtype)
        tangent = along_scale if tangent is None else tangent + along_scale
    return tangent
