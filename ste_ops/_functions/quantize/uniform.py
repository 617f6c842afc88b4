"""Functions and fake kernels of the uniform quantizers. An axis of -1 is the whole tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ste_ops._functions.base import NativeFunction, fake, inverse, memory_order, needs_function
from ste_ops._functions.mask import (
    as_bool,
    batch_first,
    fold_channels,
    masked,
    new_mask,
    unfold_channels,
    unpacked,
)
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


@fake("lsq")
def _(x: Tensor, scale: Tensor, quant_min: int, quant_max: int, axis: int) -> Tensor:
    return torch.empty_like(x)


@fake("lsq_backward")
def _(
    grad: Tensor, x: Tensor, scale: Tensor, quant_min: int, quant_max: int, axis: int, grad_scale: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(scale)


@fake("pact")
def _(x: Tensor, alpha: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), new_mask(x), new_mask(x)


@fake("pact_backward")
def _(grad: Tensor, inside: Tensor, above: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(grad, memory_format=torch.contiguous_format), torch.empty_like(alpha)


@fake("dorefa_activation")
def _(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), new_mask(x)


class Masked(NativeFunction):
    """`forward(x, ...) -> (out, mask)`: the gradient of x passes where the mask has a one; nothing else has one."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        out, mask = output
        ctx.mark_non_differentiable(mask)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mask)
        ctx.save_for_forward(mask)
        ctx.order = memory_order(out)
        ctx.arguments = len(inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None = None) -> tuple[Tensor | None, ...]:
        of_x = None if grad is None else masked(grad, ctx.saved_tensors[0], ctx.order)
        return of_x, *[None] * (ctx.arguments - 1)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: None) -> tuple[Tensor | None, None]:
        return None if tangent is None else masked(tangent, ctx.saved_tensors[0], ctx.order), None


class DorefaActivation(Masked):
    @staticmethod
    def forward(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        return ops.dorefa_activation(x, bits)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], x: Tensor, bits: int) -> Any:
        x = x.movedim(in_dims[0], 0).contiguous()
        out, mask = DorefaActivation.apply(x, bits)
        return (out, as_bool(mask, out)), (0, 0)


class FakeQuantize(Masked):
    @staticmethod
    def forward(x: Tensor, scale: Tensor | None, zero_point: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
        return ops.fake_quantize(x, scale, zero_point, *rest)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        scale: Tensor | None,
        zero_point: Tensor | None,
        scale_number: float,
        zero_point_number: float,
        quant_min: int,
        quant_max: int,
        axis: int,
    ) -> Any:
        x = batch_first(x, in_dims[0], info.batch_size)
        parameters = [
            value if value is None else _per_row(batch_first(value, dim, info.batch_size), x, axis)
            for value, dim in ((scale, in_dims[1]), (zero_point, in_dims[2]))
        ]
        rows = fold_channels(x, axis).contiguous()
        out, mask = FakeQuantize.apply(rows, *parameters, scale_number, zero_point_number, quant_min, quant_max, 0)
        mask = unfold_channels(as_bool(mask, out), x.shape, axis)
        return (unfold_channels(out, x.shape, axis), mask), (0, 0)


def _per_row(parameter: Tensor, x: Tensor, axis: int) -> Tensor:
    """A batch of scales, one element or one for each channel in a sample, as one for each row of `fold_channels`."""
    batch = x.shape[0]
    return parameter.reshape(batch, -1).expand(batch, 1 if axis < 0 else x.shape[axis + 1]).reshape(-1)


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
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        scale: Tensor,
        quant_min: int,
        quant_max: int,
        axis: int,
        grad_scale: float,
    ) -> tuple[Tensor, int]:
        x = batch_first(x, in_dims[0], info.batch_size)
        scale = _per_row(batch_first(scale, in_dims[1], info.batch_size), x, axis)
        out = LSQ.apply(fold_channels(x, axis), scale, quant_min, quant_max, 0, grad_scale)
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
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        grad: Tensor,
        x: Tensor,
        scale: Tensor,
        quant_min: int,
        quant_max: int,
        axis: int,
        grad_scale: float,
    ) -> Any:
        size, shape = info.batch_size, _sample_shape(scale, in_dims[2])
        grad, x = batch_first(grad, in_dims[0], size), batch_first(x, in_dims[1], size)
        scale = _per_row(batch_first(scale, in_dims[2], size), x, axis)
        rest = quant_min, quant_max, 0, grad_scale
        of_x, of_scale = LSQBackward.apply(fold_channels(grad, axis), fold_channels(x, axis), scale, *rest)
        return (unfold_channels(of_x, x.shape, axis), of_scale.reshape(size, *shape)), (0, 0)


def _sample_shape(x: Tensor, dim: int | None) -> torch.Size:
    return x.shape if dim is None else x.select(dim, 0).shape if x.shape[dim] else x.movedim(dim, 0).shape[1:]


def _along(parameter: Tensor, x: Tensor, axis: int) -> Tensor:
    shape = [1] * x.dim()
    if axis >= 0:
        shape[axis] = x.shape[axis]
    return parameter.reshape(shape)


def _lsq_tangent(
    x: Tensor, scale: Tensor, rest: tuple[int, int, int, float], of_x: Tensor | None, of_scale: Tensor | None
) -> Tensor | None:
    """The tangent of the output, by the same derivatives as the backward's: grad_scale too."""
    quant_min, quant_max, axis, grad_scale = rest
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    v = x.detach().to(dtype) * (1 / _along(scale.detach().to(dtype), x, axis))
    q = torch.round(v)
    below, above = q < quant_min, q > quant_max
    tangent = None
    if of_x is not None:
        tangent = torch.where((q >= quant_min) & (q <= quant_max), of_x, 0.0)
    if of_scale is not None:
        slope = torch.where(below, quant_min, torch.where(above, quant_max, q - v))
        along_scale = (slope * (_along(of_scale.to(dtype), x, axis) * grad_scale)).to(x.dtype)
        tangent = along_scale if tangent is None else tangent + along_scale
    return tangent


class PACT(NativeFunction):
    """`forward(x, alpha, bits) -> (out, inside, above)`; saves the two masks."""

    @staticmethod
    def forward(x: Tensor, alpha: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
        return ops.pact(x, alpha, bits)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        out, inside, above = output
        ctx.mark_non_differentiable(inside, above)
        ctx.set_materialize_grads(False)
        # alpha for its shape and dtype alone.
        ctx.save_for_backward(inside, above, inputs[1])
        ctx.save_for_forward(inside, above, inputs[1])
        ctx.order, ctx.shape, ctx.dtype = memory_order(out), out.shape, out.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None
        inside, above, alpha = ctx.saved_tensors
        if inside.dtype == torch.bool:
            return *_pact_gradients(grad, inside, above, alpha), None
        call = PACTBackward.apply if needs_function(grad) else ops.pact_backward
        alpha = alpha.detach()
        if ctx.order is None:
            return *call(grad, inside, above, alpha), None
        of_x, of_alpha = call(grad.permute(ctx.order), inside, above, alpha)
        return of_x.permute(inverse(ctx.order)), of_alpha, None

    @staticmethod
    def jvp(ctx: Any, of_x: Tensor | None, of_alpha: Tensor | None, *_: None) -> Any:
        inside, above, _alpha = ctx.saved_tensors
        inside, above = (unpacked(mask, ctx.shape, ctx.order) for mask in (inside, above))
        return _pact_tangent(inside, above, ctx.dtype, of_x, of_alpha), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, alpha: Tensor, bits: int) -> Any:
        x = batch_first(x, in_dims[0], info.batch_size).contiguous()
        if in_dims[1] is None:
            out, inside, above = PACT.apply(x, alpha, bits)
            return (out, as_bool(inside, out), as_bool(above, out)), (0, 0, 0)
        # The kernel takes one alpha; a batch of them is a call each.
        rows = [PACT.apply(row, a, bits) for row, a in zip(x.unbind(), alpha.unbind(in_dims[1]), strict=True)]
        rows = [(out, as_bool(inside, out), as_bool(above, out)) for out, inside, above in rows]
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
        ctx.shape, ctx.dtype = inputs[0].shape, inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, of_x: Tensor | None, of_alpha: Tensor | None) -> tuple[Tensor | None, ...]:
        # The transpose of the gradients is the tangent.
        inside, above = (unpacked(mask, ctx.shape, None) for mask in ctx.saved_tensors[:2])
        return _pact_tangent(inside, above, ctx.dtype, of_x, of_alpha), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: None) -> tuple[Tensor | None, Tensor | None]:
        return (None, None) if tangent is None else PACTBackward.apply(tangent, *ctx.saved_tensors)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], grad: Tensor, inside: Tensor, above: Tensor, alpha: Tensor
    ) -> Any:
        # Batched masks are bool (PACT.vmap) and do not come here; alpha gives no more than its shape and dtype.
        grad = batch_first(grad, in_dims[0], info.batch_size)
        inside, above = (unpacked(mask, grad.shape[1:], None) for mask in (inside, above))
        shape = _sample_shape(alpha, in_dims[3])
        of_x, of_alpha = torch.where(inside, grad, 0.0), torch.where(above, grad, 0.0).flatten(1)
        of_alpha = of_alpha.sum(1, dtype=torch.float64).to(alpha.dtype)
        return (of_x, of_alpha.reshape(info.batch_size, *shape)), (0, 0)


def _pact_gradients(grad: Tensor, inside: Tensor, above: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    of_alpha = torch.where(above, grad, 0.0).sum(dtype=torch.float64).to(alpha.dtype)
    return torch.where(inside, grad, 0.0), of_alpha.reshape(alpha.shape)


def _pact_tangent(
    inside: Tensor, above: Tensor, dtype: torch.dtype, of_x: Tensor | None, of_alpha: Tensor | None
) -> Tensor | None:
    tangent = None if of_x is None else torch.where(inside, of_x, 0.0)
    if of_alpha is not None:
        along_alpha = torch.where(above, of_alpha.reshape(()).to(dtype), 0.0)
        tangent = along_alpha if tangent is None else tangent + along_alpha
    return tangent
