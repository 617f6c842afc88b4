"""Functions and fake kernels of products of signs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ste_ops._functions.base import NativeFunction, fake, recorded, recording, widen
from ste_ops._functions.binarize import BINARIZERS, IDENTITY
from ste_ops._functions.bits import UnpackBits, pack, packed_size
from ste_ops._library import ops
from ste_ops._torch import differentiated_around

PANEL_ROWS = 16


def _words(numbers: int) -> int:
    return (numbers + 31) // 32


@fake("binary_panels")
def _(weight: Tensor, channels: int, groups: int) -> Tensor:
    panels = groups * ((weight.shape[0] // groups + PANEL_ROWS - 1) // PANEL_ROWS)
    return weight.new_empty(panels, math.prod(weight.shape[2:]) * _words(channels), PANEL_ROWS, dtype=torch.int32)


@fake("binary_linear")
def _(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    in_features: int,
    out_features: int,
    step: bool,
    dtype: torch.dtype,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features), dtype=dtype)


@fake("binary_conv2d")
def _(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    in_channels: int,
    out_channels: int,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    padding_value: int,
    step: bool,
    channels_last: bool,
    dtype: torch.dtype,
) -> Tensor:
    size = [
        (x.shape[2 + d] + padding[d] + padding[2 + d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1
        for d in range(2)
    ]
    order = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(x.shape[0], out_channels, *size, dtype=dtype, device=x.device, memory_format=order)


def _levels(x: Tensor, step: bool, size: int, dim: int, dtype: torch.dtype) -> Tensor:
    """What a product computes with, with the identity as gradient: +1 and -1 or, of steps, 1 and 0."""
    if x.dtype == torch.uint8:
        signs = UnpackBits.apply(x, size, dim, dtype)
        return (signs + 1) / 2 if step else signs
    name = "heaviside" if step else "sign"
    return BINARIZERS[name].apply(x, IDENTITY, 0.0, 0.0, 1.0, None)[0].to(dtype)


def _kept_bits(x: Tensor, step: bool, dim: int) -> Tensor:
    """One bit a number, which `_levels` makes the same numbers of."""
    if x.dtype == torch.uint8:
        return x
    return pack((x > 0).to(x.dtype) - 0.5 if step else x, dim)


def _bits_of_panels(panels: Tensor, shape: tuple[int, ...], groups: int) -> Tensor:
    """Bits along dimension 1 of the weights of that shape."""
    features, channels, *kernel = shape
    taps, of_group = math.prod(kernel), features // groups
    rows = panels.transpose(1, 2).reshape(groups, -1, panels.shape[1])[:, :of_group].reshape(features, -1)
    by_tap = rows.contiguous().view(torch.uint8).reshape(features, taps, -1)[..., : packed_size(channels)]
    return by_tap.transpose(1, 2).reshape(features, packed_size(channels), *kernel)


def _added(gradient: Tensor, through_zeros: Tensor | None, dtype: torch.dtype) -> Tensor:
    gradient = gradient.to(dtype)
    return gradient if through_zeros is None else gradient + through_zeros


class _Product(NativeFunction):
    """`forward(x, weight, scale, bias, ..., step, dtype) -> (out, zeros of x, zeros of weight)`.

    The backward keeps a bit of each number of x and weight. What it computes is that of torch's own operation at the
    signs; where it must be differentiated itself, the zeros, which take no memory, lead on to x and weight. Under a
    transform of torch.func and in forward mode the product is torch's own, of signs whose gradient is the identity.
    """

    returns_more = True
    feature_dim = -1
    x_dim = -1

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if differentiated_around():
            return (cls.plainly(*args),)
        if recording() or (torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in args[:4])):
            return super().apply(*args)
        return (cls.product(*args),)

    @classmethod
    def run(cls, *args: Any) -> Tensor:
        args = tuple(tuple(arg) if isinstance(arg, list) else arg for arg in args)
        return cls.plainly(*args) if differentiated_around() else cls._apply(*args)[0]

    # What the two products differ in. `rest` are the arguments from the fifth on.

    @classmethod
    def product(cls, *args: Any) -> Tensor:
        raise NotImplementedError

    @classmethod
    def torchs(cls, x: Tensor, weight: Tensor, rest: Any) -> Tensor:
        raise NotImplementedError

    @classmethod
    def gradients(cls, grad: Tensor, x: Tensor | None, weight: Tensor | None, x_size: Any, rest: Any) -> Any:
        """Of x where the weight is given, and of the weight where x is."""
        raise NotImplementedError

    @classmethod
    def weight_shape(cls, rest: Any) -> tuple[int, ...]:
        raise NotImplementedError

    # What they have in common.

    @classmethod
    def groups(cls, rest: Any) -> int:
        return 1

    @classmethod
    def x_levels(cls, x: Tensor, rest: Any, dtype: torch.dtype) -> Tensor:
        return _levels(x, cls.step(rest), rest[0], cls.x_dim % x.dim(), dtype)

    @classmethod
    def weight_levels(cls, weight: Tensor, rest: Any, dtype: torch.dtype) -> Tensor:
        shape = cls.weight_shape(rest)
        if weight.dtype == torch.int32:
            weight = _bits_of_panels(weight, shape, cls.groups(rest))
        return _levels(weight, False, shape[1], 1, dtype)

    @classmethod
    def step(cls, rest: Any) -> bool:
        return bool(rest[2])

    @classmethod
    def beside_features(cls, numbers: Tensor) -> Tensor:
        return numbers

    @classmethod
    def of_features(cls, terms: Tensor) -> Tensor:
        return terms.movedim(cls.feature_dim, -1).reshape(-1, terms.shape[cls.feature_dim]).sum(0)

    @classmethod
    def plainly(cls, x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None, *rest: Any) -> Tensor:
        """In differentiable operations of torch: computed in float32, or float64, and rounded once."""
        dtype = rest[-1]
        wide = torch.promote_types(dtype, torch.float32)
        out = cls.torchs(cls.x_levels(x, rest, wide), cls.weight_levels(weight, rest, wide), rest)
        if scale is not None:
            out = out * cls.beside_features(scale)
        if bias is not None:
            out = out + cls.beside_features(bias)
        return out.to(dtype)

    @classmethod
    def forward(cls, *args: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:  # type: ignore[override]
        zeros = [x.new_zeros(()).expand(x.shape) if x.requires_grad else None for x in args[:2]]
        return cls.product(*args), *zeros  # type: ignore[return-value]

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:  # type: ignore[override]
        x, weight, scale, _, *ctx.rest = inputs
        ctx.set_materialize_grads(False)
        ctx.x_size, ctx.dtypes = x.shape, (x.dtype, weight.dtype)
        of_x, of_weight, of_scale = ctx.needs_input_grad[:3]
        if not (of_x or of_weight or of_scale):
            return
        kept_x = _kept_bits(x, cls.step(ctx.rest), cls.x_dim % x.dim()) if of_weight or of_scale else None
        if not (of_x or of_scale):
            kept_weight = None
        else:
            kept_weight = weight if weight.dtype == torch.int32 else _kept_bits(weight, False, 1)
        ctx.save_for_backward(kept_x, kept_weight, scale, *output[1:])

    @classmethod
    def backward(  # type: ignore[override]
        cls, ctx: Any, grad: Tensor | None, of_x: Tensor | None = None, of_weight: Tensor | None = None
    ) -> tuple[Any, ...]:
        rest, none = ctx.rest, (None,) * len(ctx.rest)
        if grad is None:
            return of_x, of_weight, None, None, *none
        needs_x, needs_weight, needs_scale, needs_bias = ctx.needs_input_grad[:4]
        of_bias = cls.of_features(widen(grad)) if needs_bias else None
        if not (needs_x or needs_weight or needs_scale):
            return None, None, None, of_bias, *none
        kept_x, kept_weight, scale, *zeros = ctx.saved_tensors
        x = None if kept_x is None else cls.x_levels(kept_x, rest, grad.dtype)
        weight = None if kept_weight is None else cls.weight_levels(kept_weight, rest, grad.dtype)
        if torch.is_grad_enabled():
            x, weight = _linked(x, zeros[0]), _linked(weight, zeros[1])
        scaled = grad if scale is None else (widen(grad) * cls.beside_features(scale)).to(grad.dtype)
        first, second = cls.gradients(
            scaled, x if needs_weight else None, weight if needs_x else None, ctx.x_size, rest
        )
        of_scale = None
        if needs_scale:
            terms = cls.of_features(widen(grad) * cls.torchs(x, weight, rest))  # type: ignore[arg-type]
            of_scale = (terms.sum() if scale.numel() == 1 else terms).reshape(scale.shape).to(scale.dtype)
        return (
            _added(first, of_x, ctx.dtypes[0]) if needs_x else None,
            _added(second, of_weight, ctx.dtypes[1]) if needs_weight else None,
            of_scale,
            of_bias,
            *none,
        )


def _linked(levels: Tensor | None, zeros: Tensor | None) -> Tensor | None:
    return levels if levels is None or zeros is None else levels + zeros.to(levels.dtype)


@recorded("binary_linear")
class BinaryLinear(_Product):
    """`rest` are in_features, out_features, step and dtype."""

    @classmethod
    def product(cls, *args: Any) -> Tensor:
        return ops.binary_linear(*args)

    @classmethod
    def torchs(cls, x: Tensor, weight: Tensor, rest: Any) -> Tensor:
        return F.linear(x, weight)

    @classmethod
    def weight_shape(cls, rest: Any) -> tuple[int, ...]:
        return rest[1], rest[0]

    @classmethod
    def gradients(cls, grad: Tensor, x: Tensor | None, weight: Tensor | None, x_size: Any, rest: Any) -> Any:
        of_x = None if weight is None else grad @ weight
        of_weight = None if x is None else grad.reshape(-1, rest[1]).t() @ x.reshape(-1, rest[0])
        return of_x, of_weight


@recorded("binary_conv2d")
class BinaryConv2d(_Product):
    """`rest` are in_channels, out_channels, kernel, stride, padding, dilation, groups, padding_value, step,
    channels_last and dtype; padding has what is added at the top, left, bottom and right."""

    feature_dim = 1
    x_dim = 1

    @classmethod
    def step(cls, rest: Any) -> bool:
        return bool(rest[8])

    @classmethod
    def groups(cls, rest: Any) -> int:
        return int(rest[6])

    @classmethod
    def beside_features(cls, numbers: Tensor) -> Tensor:
        return numbers.reshape(-1, 1, 1)

    @classmethod
    def weight_shape(cls, rest: Any) -> tuple[int, ...]:
        return rest[1], rest[0] // rest[6], *rest[2]

    @classmethod
    def product(cls, *args: Any) -> Tensor:
        if float_is_faster(*args[4:]):
            return cls.plainly(*args)
        return ops.binary_conv2d(*args)

    @classmethod
    def torchs(cls, x: Tensor, weight: Tensor, rest: Any) -> Tensor:
        _, _, _, stride, padding, dilation, groups, value, *_ = rest
        x, padding = _padded(x, padding, value)
        return F.conv2d(x, weight, None, stride, padding, dilation, groups)

    @classmethod
    def gradients(cls, grad: Tensor, x: Tensor | None, weight: Tensor | None, x_size: Any, rest: Any) -> Any:
        in_channels, _, _, stride, sides, dilation, groups, value, *_ = rest
        size = torch.Size((x_size[0], in_channels, *x_size[2:]))
        # Of what is not given only the shape is read.
        given = grad.new_zeros(()).expand(size) if x is None else x
        beside = grad.new_zeros(()).expand(cls.weight_shape(rest)) if weight is None else weight
        given, padding = _padded(given, sides, value)
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            grad, given, beside, None, stride, padding, dilation, False, [0, 0], groups,
            [weight is not None, x is not None, False],
        )  # fmt: skip
        if weight is not None and given.shape != size:
            of_x = of_x[:, :, sides[0] : sides[0] + size[2], sides[1] : sides[1] + size[3]]
        return of_x, of_weight


def _padded(x: Tensor, sides: Any, value: int) -> tuple[Tensor, list[int]]:
    """x, and what torch's convolution pads itself: zeros, as many before as after."""
    top, left, bottom, right = sides
    if (value == 0 and top == bottom and left == right) or not any(sides):
        return x, [top, left]
    return F.pad(x, [left, right, top, bottom], value=float(value)), [0, 0]


def float_is_faster(
    in_channels: int, out_channels: int, kernel: Any, stride: Any, padding: Any, dilation: Any, groups: int, *_: Any
) -> bool:
    """Whether a group is so small that words of 32 channels are mostly empty: depthwise convolutions and their like."""
    return (in_channels // groups) * (out_channels // groups) < LEAST_OF_GROUP


LEAST_OF_GROUP = 16
