"""Functions and fake kernels of the uniform quantizers whose scale is learned, and with it maybe an offset.

An axis of -1 is the whole tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ste_ops._functions.base import NativeFunction, batch_first, fake, needs_function, recorded
from ste_ops._functions.mask import new_mask
from ste_ops._functions.quantize.channels import along, fold_channels, per_group, unfold_channels
from ste_ops._functions.quantize.uniform import MaskedSteps
from ste_ops._functions.sharding import Sharding
from ste_ops._library import ops
from ste_ops._torch import differentiated_around, dispatch_modes


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


@fake("lsq_backward_of_scale")
def _(grad: Tensor, x: Tensor, scale: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(scale)


@fake("lsq_plus")
def _(x: Tensor, scale: Tensor, offset: Tensor, quant_min: int, quant_max: int, axis: int) -> Tensor:
    return torch.empty_like(x)


@fake("lsq_plus_masked")
def _(x: Tensor, scale: Tensor, offset: Tensor, quant_min: int, quant_max: int, axis: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), new_mask(x)


@fake("lsq_plus_backward")
def _(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int,
    grad_scale: float | None,
    of_sample: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(scale), torch.empty_like(offset)


@fake("lsq_plus_backward_of_parameters")
def _(grad: Tensor, x: Tensor, scale: Tensor, offset: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(scale), torch.empty_like(offset)


@fake("checked_steps")
def _(scale: Tensor, offset: Tensor | None, wide: bool, op: str) -> Tensor:
    rows, count = (2, scale.numel()) if offset is None else (3, torch.sym_max(scale.numel(), offset.numel()))
    return scale.new_empty((rows, count), dtype=torch.float64 if wide else torch.float32)


def _grad_scale(rest: tuple[Any, ...], x: Tensor, scale: Tensor) -> float:
    """What the gradient of scale is multiplied by, as the kernel counts it: ops/quantize/uniform.h."""
    _, quant_max, axis, grad_scale, of_sample = rest
    if grad_scale is not None:
        return grad_scale
    shared = x.numel() // max(scale.numel(), 1)
    if of_sample and x.dim() > 0 and axis != 0:
        shared = shared // torch.sym_max(x.shape[0], 1)
    return 1 / torch.sym_sqrt(torch.sym_max(shared, 1) * quant_max)


def _with_grad_scale(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*args[:-2], _grad_scale(args[-5:], *args[:2]), False)


class MaskedLSQ(MaskedSteps):
    """`forward(x, scale, quant_min, quant_max, axis) -> (out, mask)`, of a scale that gets no gradient."""

    parameters = 1
    sharding = Sharding(parameters=1, axis=4)

    @staticmethod
    def forward(x: Tensor, scale: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return ops.lsq_masked(x, scale, *rest)


class MaskedLSQPlus(MaskedSteps):
    """`forward(x, scale, offset, quant_min, quant_max, axis) -> (out, mask)`, of parameters that get no gradient."""

    parameters = 2
    sharding = Sharding(parameters=2, axis=5)

    @staticmethod
    def forward(x: Tensor, scale: Tensor, offset: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return ops.lsq_plus_masked(x, scale, offset, *rest)


class LearnedBackward(NativeFunction):
    """`forward(grad, x, *parameters, ...)`: the gradients of x and of the parameters, a scale and maybe an offset.

    Linear in grad; x and the parameters count as constants.
    """

    parameters: int

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        saved = inputs[1 : 2 + cls.parameters]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        ctx.rest = inputs[2 + cls.parameters :]

    @classmethod
    def backward(cls, ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        # The transpose of the gradients is the tangent.
        return _tangent(ctx.saved_tensors, ctx.rest, gradients), *[None] * (cls.parameters + 6)

    @classmethod
    def jvp(cls, ctx: Any, tangent: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if tangent is None:
            return (None,) * (cls.parameters + 1)
        return cls.apply(tangent, *ctx.saved_tensors, *ctx.rest)

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        rest = inputs[2 + cls.parameters :]
        quant_min, quant_max, axis = rest[:3]
        grad, x, *parameters = batch_first(info, in_dims, *inputs[: 2 + cls.parameters])
        factor = _grad_scale_of_batch(rest, x, parameters[0])
        rows, grads = fold_channels(x, axis), fold_channels(grad, axis)
        folded = [per_group(parameter, rows.shape[0]) for parameter in parameters]
        of_x, *others = cls.apply(grads, rows, *folded, quant_min, quant_max, 0, factor, False)
        others = [of.reshape(parameter.shape) for of, parameter in zip(others, parameters, strict=True)]
        return (unfold_channels(of_x, x.shape, axis), *others), (0,) * (cls.parameters + 1)


class LSQBackward(LearnedBackward):
    parameters = 1

    @staticmethod
    def forward(grad: Tensor, x: Tensor, scale: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return ops.lsq_backward(grad, x, scale, *rest)


class LSQPlusBackward(LearnedBackward):
    parameters = 2

    @staticmethod
    def forward(grad: Tensor, x: Tensor, scale: Tensor, offset: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        return ops.lsq_plus_backward(grad, x, scale, offset, *rest)


class Learned(NativeFunction):
    """`forward(x, *parameters, quant_min, quant_max, axis, grad_scale, of_sample) -> out`; saves x and the parameters.

    Without a grad_scale the backward counts the elements that share a scale: of x, or of one sample of it, dimension 0
    being the batch.
    """

    of_gradient: type[LearnedBackward]
    masked: type[MaskedSteps]

    @classmethod
    def run(cls, *inputs: Any) -> Tensor:
        # A program may be trained with its parameters frozen, or not be trained.
        x, *parameters = inputs[: 1 + cls.of_gradient.parameters]
        if any(needs_function(parameter) for parameter in parameters):
            return super().run(*inputs)
        rest = inputs[1 + cls.of_gradient.parameters :]
        return cls.masked.run(x, *[parameter.detach() for parameter in parameters], *rest[:3])

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        saved = inputs[: 1 + cls.of_gradient.parameters]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        ctx.rest = inputs[1 + cls.of_gradient.parameters :]

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        function = cls.of_gradient
        if grad is None:
            return (None,) * (function.parameters + 6)
        # Most backwards: nothing of them is recorded, by autograd or by a compiler.
        if not (torch.is_grad_enabled() or differentiated_around() or dispatch_modes()):
            return *function.forward(grad, *ctx.saved_tensors, *ctx.rest), None, None, None, None, None
        call = function.apply if needs_function(grad) else function.forward
        return *call(grad, *[saved.detach() for saved in ctx.saved_tensors], *ctx.rest), *[None] * 5

    @classmethod
    def again(cls, ctx: Any) -> Tensor:
        """The result once more, for a layer that does not keep it: `ste_ops.nn._kept`."""
        made: Tensor = cls.forward(*[saved.detach() for saved in ctx.saved_tensors], *ctx.rest)
        return made

    @classmethod
    def jvp(cls, ctx: Any, *tangents: Tensor | None) -> Tensor | None:
        return _tangent(ctx.saved_tensors, ctx.rest, tangents[: 1 + cls.of_gradient.parameters])

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        count = 1 + cls.of_gradient.parameters
        x, *parameters = batch_first(info, in_dims, *inputs[:count])
        quant_min, quant_max, axis = inputs[count : count + 3]
        rows = fold_channels(x, axis)
        factor = _grad_scale_of_batch(inputs[count:], x, parameters[0])
        folded = [per_group(parameter, rows.shape[0]) for parameter in parameters]
        out = cls.apply(rows, *folded, quant_min, quant_max, 0, factor, False)
        return unfold_channels(out, x.shape, axis), 0


@recorded("lsq")
class LSQ(Learned):
    of_gradient = LSQBackward
    masked = MaskedLSQ
    sharding = Sharding(parameters=1, axis=4, complete=_with_grad_scale)

    @staticmethod
    def forward(x: Tensor, scale: Tensor, *rest: Any) -> Tensor:
        return ops.lsq(x, scale, *rest[:3])


@recorded("lsq_plus")
class LSQPlus(Learned):
    of_gradient = LSQPlusBackward
    masked = MaskedLSQPlus
    sharding = Sharding(parameters=2, axis=5, complete=_with_grad_scale)

    @staticmethod
    def forward(x: Tensor, scale: Tensor, offset: Tensor, *rest: Any) -> Tensor:
        return ops.lsq_plus(x, scale, offset, *rest[:3])


def _grad_scale_of_batch(rest: tuple[Any, ...], x: Tensor, scale: Tensor) -> float:
    """`_grad_scale` of each tensor of a batch, which lies along dimension 0 of x and of scale."""
    return _grad_scale(rest, x[0], scale[0]) if x.shape[0] else 1.0


def _tangent(saved: tuple[Tensor, ...], rest: tuple[Any, ...], tangents: tuple[Tensor | None, ...]) -> Tensor | None:
    """The tangent of the output, by the same derivatives as the backward's: grad_scale too."""
    quant_min, quant_max, axis = rest[:3]
    x, scale = saved[:2]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    wide = x.detach().to(dtype)
    if len(saved) > 2:
        wide = wide - along(saved[2].detach().to(dtype), x, axis)
    v = wide * (1 / along(scale.detach().to(dtype), x, axis))
    inside = (v > quant_min) & (v < quant_max)
    of_x, of_scale = tangents[:2]
    tangent = None if of_x is None else torch.where(inside, of_x, 0.0)
    parts = []
    if of_scale is not None:
        slope = torch.where(v <= quant_min, quant_min, torch.where(v >= quant_max, quant_max, torch.round(v) - v))
        parts.append(slope * (along(of_scale.to(dtype), x, axis) * _grad_scale(rest, x, scale)))
    if len(saved) > 2 and tangents[2] is not None:
        moved = along(tangents[2].to(dtype), x, axis) * _grad_scale(rest, x, scale)
        parts.append(torch.where(inside, 0.0, moved))
    for part in parts:
        part = part.to(x.dtype)
        tangent = part if tangent is None else tangent + part
    return tangent
