"""Functions and fake kernels of the uniform quantizers of a given scale, and of the clipped activations.

An axis of -1 is the whole tensor.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ste_ops._functions.base import NativeFunction, batch_first, fake, inverse, memory_order, needs_function, recorded
from ste_ops._functions.mask import (
    Masked,
    batch_gradient,
    batch_of_masks,
    from_mask_rows,
    mask_gradient,
    mask_rows,
    new_mask,
)
from ste_ops._functions.quantize.channels import from_mask_groups, mask_groups, per_group
from ste_ops._functions.sharding import Sharding
from ste_ops._library import ops


@fake("fake_quantize")
def _(
    x: Tensor,
    scale: Tensor | None,
    zero_point: Tensor | None,
    scale_number: float,
    zero_point_number: float,
    quant_min: int,
    quant_max: int,
    axis: int,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), new_mask(x)


@fake("pact")
def _(x: Tensor, alpha: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), new_mask(x), new_mask(x)


@fake("pact_backward")
def _(grad: Tensor, inside: Tensor, above: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(grad, memory_format=torch.contiguous_format), torch.empty_like(alpha)


@fake("dorefa_activation")
def _(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), new_mask(x)


@recorded("dorefa_activation")
class DorefaActivation(Masked):
    @staticmethod
    def forward(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        return ops.dorefa_activation(x, bits)


class MaskedSteps(Masked):
    """`forward(x, *parameters, ..., axis) -> (out, mask)`: a parameter has one element or one for each channel."""

    parameters: int  # how many come after x

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], x: Tensor, *others: Any) -> Any:
        parameters, rest, axis = list(others[: cls.parameters]), others[cls.parameters : -1], others[-1]
        (x,) = batch_first(info, in_dims, x)
        rows = mask_groups(x, axis)
        for i, value in enumerate(parameters):
            if value is not None:
                (value,) = batch_first(info, in_dims[i + 1 :], value)
                parameters[i] = per_group(value, rows.shape[0])
        out, mask = cls.apply(rows, *parameters, *rest, 0)
        return (from_mask_groups(out, x.shape, axis), batch_of_masks(mask, x.shape)), (0, 0)


@recorded("fake_quantize")
class FakeQuantize(MaskedSteps):
    parameters = 2
    sharding = Sharding(parameters=2, axis=7)

    @staticmethod
    def forward(x: Tensor, scale: Tensor | None, zero_point: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
        return ops.fake_quantize(x, scale, zero_point, *rest)


@recorded("pact")
class PACT(NativeFunction):
    """`forward(x, alpha, bits) -> (out, inside, above)`; saves the two masks."""

    returns_more = True
    sharding = Sharding(parameters=1)

    @staticmethod
    def forward(x: Tensor, alpha: Tensor, bits: int) -> tuple[Tensor, ...]:
        return ops.pact(x, alpha, bits)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        out, inside, above = output
        ctx.mark_non_differentiable(inside, above)
        PACT.keep(ctx, out, (inside, above, inputs[1]))

    @staticmethod
    def keep(ctx: Any, out: Tensor, saved: tuple[Tensor, ...]) -> None:
        """Saves the masks, and alpha for its shape and dtype alone."""
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        ctx.order, ctx.shape, ctx.dtype = memory_order(out), out.shape, out.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None
        inside, above, alpha = ctx.saved_tensors
        call = PACTBackward.apply if needs_function(grad) else ops.pact_backward
        alpha = alpha.detach()
        if ctx.order is None:
            return *call(grad, inside, above, alpha), None
        of_x, of_alpha = call(grad.permute(ctx.order), inside, above, alpha)
        return of_x.permute(inverse(ctx.order)), of_alpha, None

    @staticmethod
    def jvp(ctx: Any, of_x: Tensor | None, of_alpha: Tensor | None, *_: None) -> Any:
        inside, above, _alpha = ctx.saved_tensors
        return _pact_tangent(inside, above, ctx, of_x, of_alpha), None, None

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], x: Tensor, alpha: Tensor, bits: int) -> Any:
        (x,) = batch_first(info, in_dims, x)
        if in_dims[1] is None:
            out, *masks = cls.apply(mask_rows(x), alpha, bits)
            return (from_mask_rows(out, x.shape), *(batch_of_masks(mask, x.shape) for mask in masks)), (0, 0, 0)
        # The kernel takes one alpha; a batch of them is a call each.
        alphas = alpha.unbind(in_dims[1])
        rows = [cls.apply(row, a, bits) for row, a in zip(x.contiguous().unbind(), alphas, strict=True)]
        return tuple(map(torch.stack, zip(*rows, strict=True))), (0, 0, 0)


class PACTBackward(NativeFunction):
    """The gradients of x and of alpha, by masks of grad's row-major order. Linear in grad."""

    @staticmethod
    def forward(grad: Tensor, inside: Tensor, above: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        return ops.pact_backward(grad, inside, above, alpha)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])
        ctx.order, ctx.shape, ctx.dtype = None, inputs[0].shape, inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, of_x: Tensor | None, of_alpha: Tensor | None) -> tuple[Tensor | None, ...]:
        # The transpose of the gradients is the tangent.
        inside, above, _alpha = ctx.saved_tensors
        return _pact_tangent(inside, above, ctx, of_x, of_alpha), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: None) -> tuple[Tensor | None, Tensor | None]:
        return (None, None) if tangent is None else PACTBackward.apply(tangent, *ctx.saved_tensors)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Tensor) -> Any:
        grad, inside, above, alpha = batch_first(info, in_dims, *args)
        of_alpha = batch_gradient(grad, above).reshape(info.batch_size, math.prod(grad.shape[1:]))
        of_alpha = of_alpha.sum(1, dtype=torch.float64).to(alpha.dtype).reshape(alpha.shape)
        return (batch_gradient(grad, inside), of_alpha), (0, 0)


def _pact_tangent(
    inside: Tensor, above: Tensor, of: Any, of_x: Tensor | None, of_alpha: Tensor | None
) -> Tensor | None:
    """The tangent of the output, whose order, shape and dtype the context `of` has."""
    tangent = None if of_x is None else mask_gradient(of_x, inside, of.order)
    if of_alpha is not None:
        along_alpha = mask_gradient(of_alpha.reshape(()).to(of.dtype).expand(of.shape), above, of.order)
        tangent = along_alpha if tangent is None else tangent + along_alpha
    return tangent
