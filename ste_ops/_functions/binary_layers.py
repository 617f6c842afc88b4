"""Functions of layers whose input and weight are signs: forward counted bits, backward torch's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ste_ops._functions.base import NativeFunction
from ste_ops._library import ops
from ste_ops._torch import differentiated_around


class _OfLayer(NativeFunction):
    """`forward(q, w, scale, bias, ...) -> out`, for which q and w are saved as torch's operation saves them.

    q holds signs or, with `step`, steps; w holds signs times a factor, whose magnitudes are `scale`. Under a transform,
    as a compiled function may run one, all is torch's.
    """

    @classmethod
    def apply(cls, q: Tensor, w: Tensor, scale: Tensor | None, bias: Tensor | None, *rest: Any) -> Any:
        if differentiated_around():
            return cls.plainly(q, w, None if bias is None else bias.to(q.dtype), rest)
        if not torch.is_grad_enabled() or not any(x is not None and x.requires_grad for x in (q, w, bias)):
            return cls.forward(q, w, scale, bias, *rest)
        return super().apply(q, w, scale, bias, *rest)

    @classmethod
    def plainly(cls, q: Tensor, w: Tensor, bias: Tensor | None, rest: Any) -> Tensor:
        raise NotImplementedError

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        q, w, _, bias, *ctx.rest = inputs
        of_q, of_w, *_ = ctx.needs_input_grad
        # Sizes are read of both, numbers of the other one alone.
        ctx.shapes, ctx.bias_sizes = (q.shape, w.shape), None if bias is None else bias.shape
        ctx.save_for_backward(q if of_w else None, w if of_q else None)

    @classmethod
    def gradients(cls, ctx: Any, grad: Tensor, q: Tensor | None, w: Tensor | None) -> tuple[Tensor | None, ...]:
        """Of q, w and bias, where they are needed."""
        raise NotImplementedError

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        of_q, of_w, of_bias = cls.gradients(ctx, grad, *ctx.saved_tensors)
        return of_q, of_w, None, of_bias, *[None] * len(ctx.rest)


class LinearOfSigns(_OfLayer):
    """`rest` are those of the operator `binary_linear`."""

    @staticmethod
    def forward(q: Tensor, w: Tensor, scale: Tensor | None, bias: Tensor | None, *rest: Any) -> Tensor:
        return ops.binary_linear(q, w, scale, bias, *rest)

    @classmethod
    def plainly(cls, q: Tensor, w: Tensor, bias: Tensor | None, rest: Any) -> Tensor:
        return F.linear(q, w, bias)

    @classmethod
    def gradients(cls, ctx: Any, grad: Tensor, q: Tensor | None, w: Tensor | None) -> tuple[Tensor | None, ...]:
        (q_shape, w_shape), rows = ctx.shapes, grad.reshape(-1, grad.shape[-1])
        return (
            None if w is None else (rows @ w).reshape(q_shape),
            None if q is None else rows.t() @ q.reshape(-1, w_shape[1]),
            rows.sum(0) if ctx.needs_input_grad[3] else None,
        )


class ConvolutionOfSigns(_OfLayer):
    """`rest` are those of the operator `binary_conv2d`, padded alike on both sides with zeros."""

    @staticmethod
    def forward(q: Tensor, w: Tensor, scale: Tensor | None, bias: Tensor | None, *rest: Any) -> Tensor:
        return ops.binary_conv2d(q, w, scale, bias, *rest)

    @classmethod
    def plainly(cls, q: Tensor, w: Tensor, bias: Tensor | None, rest: Any) -> Tensor:
        _, _, _, stride, padding, dilation, groups, *_ = rest
        return F.conv2d(q, w, bias, stride, padding[:2], dilation, groups)

    @classmethod
    def gradients(cls, ctx: Any, grad: Tensor, q: Tensor | None, w: Tensor | None) -> tuple[Tensor | None, ...]:
        _, _, _, stride, padding, dilation, groups, *_ = ctx.rest
        given, beside = (
            grad.new_zeros(()).expand(shape) if x is None else x for x, shape in zip((q, w), ctx.shapes, strict=True)
        )
        gradients: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(
            grad, given, beside, ctx.bias_sizes, stride, padding[:2], dilation, False, [0, 0], groups,
            [w is not None, q is not None, ctx.needs_input_grad[3]],
        )  # fmt: skip
        return gradients
