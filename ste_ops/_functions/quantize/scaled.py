"""Functions and fake kernels of the quantizers whose scale is a statistic of the tensor itself.

A backward that is itself recorded (under `create_graph`, forward mode or a functorch transform) is composed of plain
torch operations, so that its derivatives with respect to the incoming gradient and to w are right to every order; any
other is a kernel. Weights have one scale for each index of dimension 0, or one in all: `per_channel`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ste_ops._functions.base import NativeFunction, PassThrough, fake, needs_function, recorded, widen
from ste_ops._functions.binarize import Sign, surrogate_number
from ste_ops._functions.quantize.channels import fold_channels, unfold_channels
from ste_ops._functions.sharding import Sharding, last_dim
from ste_ops._library import ops

_CLIP = surrogate_number("Clip")
_LEAST_DOREFA_MAXIMUM = 2.0**-14  # kLeastDoReFaMaximum of csrc/core/quantize/scaled.h


def _statistic(w: Tensor, kinds: int, per_channel: bool) -> Tensor:
    dtype = torch.float64 if w.dtype == torch.float64 else torch.float32
    return w.new_empty(kinds * (w.shape[0] if per_channel else 1), dtype=dtype)


@fake("xnor_weight")
def _(w: Tensor, per_channel: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(w), _statistic(w, 1, per_channel)


@fake("dorefa_weight")
def _(w: Tensor, bits: int, per_channel: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(w), _statistic(w, 2, per_channel)


@fake("mean_magnitude")
def _(w: Tensor, per_channel: bool) -> Tensor:
    return _statistic(w, 1, per_channel)


@fake("xnor_weight_backward")
@fake("magnitude_aware_sign_backward")
@fake("dorefa_weight_backward")
def _(grad: Tensor, w: Tensor, statistic: Tensor, per_channel: bool) -> Tensor:
    return torch.empty_like(w)


@fake("bitnet_weight")
def _(w: Tensor, per_channel: bool) -> Tensor:
    return torch.empty_like(w)


@fake("bitnet_activation")
def _(x: Tensor, bits: int) -> Tensor:
    return torch.empty_like(x)


def _members(w: Tensor, *others: Any) -> list[int]:
    """The dimensions that a statistic runs over; the last argument is `per_channel`."""
    return list(range(1 if others[-1] else 0, w.dim()))


class _Grouped(PassThrough):
    """`forward(w, per_channel) -> out`; a group has one scale."""

    sharding = Sharding(whole=_members, passes=True)

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], w: Tensor, per_channel: bool) -> tuple[Tensor, int]:
        w, axis = w.movedim(in_dims[0], 0), 0 if per_channel else -1
        return unfold_channels(cls.apply(fold_channels(w, axis), True), w.shape, axis), 0


@recorded("bitnet_weight")
class BitNetWeight(_Grouped):
    @staticmethod
    def forward(w: Tensor, per_channel: bool) -> Tensor:
        return ops.bitnet_weight(w, per_channel)


@recorded("bitnet_activation")
class BitNetActivation(PassThrough):
    sharding = Sharding(whole=last_dim, passes=True)

    @staticmethod
    def forward(x: Tensor, bits: int) -> Tensor:
        return ops.bitnet_activation(x, bits)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, bits: int) -> tuple[Tensor, int]:
        batch = x.movedim(in_dims[0], 0)
        if batch.dim() == 1:  # a sample without a dimension is a token of its own
            return BitNetActivation.apply(batch.unsqueeze(1), bits).squeeze(1), 0
        return BitNetActivation.apply(batch, bits), 0


@recorded("dorefa_sign")
class DoReFaSign(_Grouped):
    """`dorefa_weight` of one bit."""

    @staticmethod
    def forward(w: Tensor, per_channel: bool) -> Tensor:
        return ops.xnor_weight(w, per_channel)[0]


class ScaledWeight(NativeFunction):
    """`forward(w, ..., per_channel) -> (out, statistic)`. Saves w itself, which is a parameter, and the statistic."""

    returns_more = True
    sharding = Sharding(whole=_members)
    native: str  # the operator that is the backward

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        w, *_, ctx.per_channel = inputs
        ctx.arguments = len(inputs) - 1
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(w, output[1])
        ctx.save_for_forward(w, output[1])
        ctx.set_materialize_grads(False)

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor | None, _: None = None) -> tuple[Tensor | None, ...]:
        none = (None,) * ctx.arguments
        if grad is None:
            return None, *none
        w, statistic = ctx.saved_tensors
        # The gradient is a function of w too, so that w alone may need it recorded.
        recorded = needs_function(grad) or needs_function(w)
        call = cls.gradient if recorded else getattr(ops, cls.native)
        return call(grad, w, statistic, ctx.per_channel), *none

    @classmethod
    def jvp(cls, ctx: Any, tangent: Tensor | None, *_: None) -> tuple[Tensor | None, None]:
        if tangent is None:
            return None, None
        w, statistic = ctx.saved_tensors
        return cls.tangent(tangent, w, statistic, ctx.per_channel), None

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], w: Tensor, *arguments: Any) -> Any:
        *others, per_channel = arguments
        w, axis = w.movedim(in_dims[0], 0), 0 if per_channel else -1
        rows = fold_channels(w, axis)
        out, statistic = cls.apply(rows, *others, True)
        # A group of every sample stands beside that of the others; here a sample owns its groups.
        kinds = statistic.numel() // rows.shape[0] if rows.shape[0] else 1
        of_all = -1 if rows.shape[0] else 0
        of_sample = statistic.view(kinds, info.batch_size, of_all).movedim(1, 0).reshape(info.batch_size, of_all)
        return (unfold_channels(out, w.shape, axis), of_sample), (0, 0)

    @staticmethod
    def gradient(grad: Tensor, w: Tensor, statistic: Tensor, per_channel: bool) -> Tensor:
        """The backward in differentiable operations."""
        raise NotImplementedError

    @staticmethod
    def tangent(tangent: Tensor, w: Tensor, statistic: Tensor, per_channel: bool) -> Tensor:
        """The same for forward mode."""
        raise NotImplementedError


def members(w: Tensor, per_channel: bool) -> list[int]:
    return list(range(1 if per_channel else 0, w.dim()))


def along_groups(statistic: Tensor, w: Tensor) -> Tensor:
    return statistic.reshape([-1, *[1] * (w.dim() - 1)] if w.dim() else [])


def mean_of_groups(x: Tensor, dims: list[int]) -> Tensor:
    """In float64. A group of one is its own mean: torch takes no dimensions for all of them."""
    return x.double().mean(dims, keepdim=True).to(x.dtype) if dims else x


def _sign(x: Tensor) -> Tensor:
    """Never 0, NaN at NaN; passes the gradient where abs(x) <= 1."""
    return torch.where(x.isnan(), x, Sign.apply(x, _CLIP, 1.0, 0.0, 1.0, None)[0])


def held_sign(x: Tensor) -> Tensor:
    """The same without a gradient: the derivative of abs(x), +1 at zeros too."""
    return _sign(x.detach())


def _passes(x: Tensor) -> Tensor:
    return ~(x.detach().abs() > 1)


@recorded("xnor_weight")
class XNORWeight(ScaledWeight):
    """sign(w) times the mean of abs(w), both of them differentiated."""

    native = "xnor_weight_backward"

    @staticmethod
    def forward(w: Tensor, per_channel: bool) -> tuple[Tensor, Tensor]:
        return ops.xnor_weight(w, per_channel)

    @staticmethod
    def gradient(grad: Tensor, w: Tensor, statistic: Tensor, per_channel: bool) -> Tensor:
        g, x, dims = widen(grad), widen(w), members(w, per_channel)
        slope = held_sign(x)
        through_sign = torch.where(_passes(x), g * mean_of_groups(x * slope, dims), 0.0)
        return (through_sign + slope * mean_of_groups(g * _sign(x), dims)).to(w.dtype)

    @staticmethod
    def tangent(tangent: Tensor, w: Tensor, statistic: Tensor, per_channel: bool) -> Tensor:
        t, x, dims = widen(tangent), widen(w), members(w, per_channel)
        slope = held_sign(x)
        through_sign = torch.where(_passes(x), t * mean_of_groups(x * slope, dims), 0.0)
        return (through_sign + _sign(x) * mean_of_groups(t * slope, dims)).to(w.dtype)


@recorded("magnitude_aware_sign")
class MagnitudeAwareSign(ScaledWeight):
    """The same with the mean held."""

    native = "magnitude_aware_sign_backward"

    @staticmethod
    def forward(w: Tensor, per_channel: bool) -> tuple[Tensor, Tensor]:
        return ops.xnor_weight(w, per_channel)

    @staticmethod
    def gradient(grad: Tensor, w: Tensor, statistic: Tensor, per_channel: bool) -> Tensor:
        g, x = widen(grad), widen(w)
        return torch.where(_passes(x), g * along_groups(statistic, w), 0.0).to(w.dtype)

    @staticmethod
    def tangent(tangent: Tensor, w: Tensor, statistic: Tensor, per_channel: bool) -> Tensor:
        return MagnitudeAwareSign.gradient(tangent, w, statistic, per_channel)


@recorded("dorefa_weight")
class DoReFaWeight(ScaledWeight):
    """Levels of tanh(w) / max(abs(tanh(w))), from two bits on. The rounding passes, the rest is differentiated."""

    native = "dorefa_weight_backward"

    @staticmethod
    def forward(w: Tensor, bits: int, per_channel: bool) -> tuple[Tensor, Tensor]:
        return ops.dorefa_weight(w, bits, per_channel)

    @staticmethod
    def gradient(grad: Tensor, w: Tensor, statistic: Tensor, per_channel: bool) -> Tensor:
        g, dims = widen(grad), members(w, per_channel)
        t, divisor, share = _dorefa_parts(widen(w), dims)
        total = (g * t).double()
        total = total.sum(dims, keepdim=True) if dims else total
        taken = (total / divisor.double() / divisor.double()).to(t.dtype)
        return ((1 - t * t) * (g / divisor - share * taken)).to(w.dtype)

    @staticmethod
    def tangent(tangent: Tensor, w: Tensor, statistic: Tensor, per_channel: bool) -> Tensor:
        dims = members(w, per_channel)
        t, divisor, share = _dorefa_parts(widen(w), dims)
        of_t = (1 - t * t) * widen(tangent)
        of_divisor = share * of_t
        of_divisor = of_divisor.sum(dims, keepdim=True) if dims else of_divisor
        return (of_t / divisor - t / divisor / divisor * of_divisor).to(w.dtype)


def _dorefa_parts(x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """tanh(x), what it is divided by, and the derivative of that: equal maxima share, too small a one has none."""
    t = torch.tanh(x)
    largest = t.abs().amax(dims, keepdim=True) if dims and t.numel() else t.abs()
    at_maximum = (t.abs() == largest).to(t.dtype)
    ties = at_maximum.sum(dims, keepdim=True) if dims else at_maximum
    small = largest < _LEAST_DOREFA_MAXIMUM
    share = torch.where(small, 0.0, t.sgn() * at_maximum / ties)
    return t, torch.where(small, 1.0, largest), share
