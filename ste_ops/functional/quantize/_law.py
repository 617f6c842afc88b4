"""The law of a quantizer: which integers it rounds to, and which number each of them stands for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ste_ops._functions.base import widen as widen
from ste_ops._library import ops
from ste_ops.functional import binarize
from ste_ops.functional.quantize import offset, rounding, scaled, uniform
from ste_ops.functional.quantize._codes import Grid, levels_of
from ste_ops.functional.quantize._threshold import beyond


@dataclass(slots=True, eq=False)  # not frozen, which takes 2 us of a layer that keeps codes
class Law:
    """Integers from `low` to `high`, `stride` apart; v is the number ``(v - zero_point) * scale + offset``.

    With `steps` it is ``v / steps * span + offset``, since a quotient is another number than the product with a rounded
    reciprocal. Every tensor has the dtype of the arithmetic, and one element, or one for each index of `axis`; scales
    with ``axis=None`` are those of the lines along the last dimension.
    """

    low: int
    high: int
    scale: Tensor | None = None
    axis: int | None = None
    zero_point: Tensor | None = None
    offset: Tensor | None = None
    steps: int | None = None
    span: int = 1
    stride: int = 1

    @property
    def bits(self) -> int:
        return max(((self.high - self.low) // self.stride).bit_length(), 1)

    def numbers(self, v: Tensor) -> Tensor:
        """Of integers in the dtype of the arithmetic."""
        if self.steps is not None:
            v = v / self.steps
            v = v * self.span if self.span != 1 else v
        else:
            v = v if self.zero_point is None else v - self.along(self.zero_point, v)
            v = v if self.scale is None else v * self.along(self.scale, v)
        return v if self.offset is None else v + self.along(self.offset, v)

    def integers(self, q: Tensor) -> Tensor:
        """Of the numbers that it stands for, in float64, rounded to whole ones."""
        v = q.double()
        v = v if self.offset is None else v - self.along(self.offset, v).double()
        if self.steps is not None:
            v = v / self.span * self.steps
        elif self.scale is not None:
            v = v / self.along(self.scale, v).double()
        v = v if self.zero_point is None else v + self.along(self.zero_point, v).double()
        near = torch.round((v - self.low) / self.stride) * self.stride + self.low
        return near.clamp(self.low, self.high)

    def along(self, parameter: Tensor, x: Tensor) -> Tensor:
        """It, in a shape that broadcasts with x."""
        if parameter.numel() == 1:
            return parameter if x.dim() else parameter.reshape(())
        if self.axis is None:
            return parameter.reshape(*x.shape[:-1], 1)
        shape = [1] * x.dim()
        shape[self.axis] = parameter.numel()
        return parameter.reshape(shape)

    def grid(self, x: Tensor) -> Grid | None:
        """The numbers as a table; None where they are too many, or another one for each channel."""
        levels = levels_of(x, self.low, self.high)
        if levels is None:
            return None
        levels = levels if self.stride == 1 else levels[:: self.stride].contiguous()
        held = [p for p in (self.scale, self.zero_point, self.offset) if p is not None]
        if all(p.numel() == 1 for p in held):
            return Grid(self.numbers(levels))
        if self.zero_point is not None or self.offset is not None or self.scale is None:
            return None
        return Grid(levels, self.scale.reshape(-1), self.axis)


def law_of(function: Any, x: Tensor, **arguments: Any) -> Law | None:
    """Of what an operator of ste_ops makes of x; None where that is not known to be integers times a scale."""
    of = _LAWS.get(function)
    return None if of is None else of(x, **arguments)


def _wide(value: Tensor | float, x: Tensor) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    held = value if isinstance(value, Tensor) else torch.tensor(value, device=x.device, dtype=dtype)
    held = held.detach() if held.requires_grad else held
    return (held if held.dim() == 1 else held.reshape(-1)).to(dtype)


def _rounding(function: Any) -> Callable[..., Law]:
    def of(x: Tensor, **_: Any) -> Law:
        # The integers are those of this x, as many as it has.
        whole = function(x.detach()) if x.numel() and not x.is_meta else x.new_zeros(1)
        return Law(int(whole.min()), max(int(whole.max()), int(whole.min()) + 1))

    return of


def _fake_quantize(
    x: Tensor, scale: Any, zero_point: Any, quant_min: int, quant_max: int, axis: int | None = None, **_: Any
) -> Law:
    zero = None if not isinstance(zero_point, Tensor) and zero_point == 0 else _wide(zero_point, x)
    return Law(quant_min, quant_max, _wide(scale, x), axis, zero)


def _lsq(x: Tensor, scale: Tensor, quant_min: int, quant_max: int, axis: int | None = None, **_: Any) -> Law:
    return Law(quant_min, quant_max, _wide(scale, x), axis)


def _lsq_plus(
    x: Tensor, scale: Tensor, offset: Tensor, quant_min: int, quant_max: int, axis: int | None = None, **_: Any
) -> Law:
    return Law(quant_min, quant_max, _wide(scale, x), axis, offset=_wide(offset, x))


def _pact(x: Tensor, alpha: Tensor, bits: int) -> Law:
    return Law(0, 2**bits - 1, _wide(alpha, x) / (2**bits - 1))


def _dorefa_activation(x: Tensor, bits: int) -> Law:
    return Law(0, 2**bits - 1, steps=2**bits - 1)


def _dorefa_weight(x: Tensor, bits: int, group_size: int | None = None) -> Law:
    if bits > 1:
        return Law(0, 2**bits - 1, offset=_wide(-1.0, x), steps=2**bits - 1, span=2)
    return Law(-1, 1, _mean(x, group_size is not None), 0, stride=2)


def _scaled_sign(x: Tensor, **_: Any) -> Law:
    return Law(-1, 1, _mean(x, x.dim() > 1), 0, stride=2)


def _bitnet_weight(x: Tensor, group_size: int | None = None) -> Law:
    return Law(-1, 1, _mean(x, group_size is not None).clamp(min=1e-5), 0)


def _bitnet_activation(x: Tensor, bits: int = 8) -> Law:
    levels = 2 ** (bits - 1) - 1
    if x.dim() == 0 or x.shape[-1] == 0:
        largest = widen(x.detach()).abs().reshape(-1).new_zeros(1) if x.numel() == 0 else widen(x.detach()).abs()
    else:
        # A twelfth of the time that torch takes for the maximum norm, and no copy of x as abs() would make.
        largest = torch.maximum(x.amax(-1), x.amin(-1).neg())
    return Law(-levels - 1, levels, (_wide(largest, x).clamp(min=1e-5) / levels))


def _mean(x: Tensor, per_channel: bool) -> Tensor:
    return ops.mean_magnitude(x.detach(), per_channel).reshape(-1)  # type: ignore[no-any-return]


_LAWS: dict[Any, Callable[..., Law]] = {
    binarize.sign: lambda x, **_: Law(-1, 1, stride=2),
    binarize.heaviside: lambda x, **_: Law(0, 1),
    binarize.ternary: lambda x, **_: Law(-1, 1),
    beyond: lambda x, low, **_: Law(-1, 1, stride=2) if low else Law(0, 1),
    **{function: _rounding(function) for function in (rounding.round, rounding.floor, rounding.ceil, rounding.trunc)},
    uniform.fake_quantize: _fake_quantize,
    uniform.lsq: _lsq,
    offset.lsq_plus: _lsq_plus,
    uniform.pact: _pact,
    uniform.dorefa_activation: _dorefa_activation,
    scaled.dorefa_weight: _dorefa_weight,
    scaled.xnor_weight: _scaled_sign,
    scaled.magnitude_aware_sign: _scaled_sign,
    scaled.bitnet_weight: _bitnet_weight,
    scaled.bitnet_activation: _bitnet_activation,
}


def bound(function: Any) -> tuple[Any, dict[str, Any]]:
    """A function, and the arguments that `functools.partial` set."""
    arguments: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        arguments = {**function.keywords, **arguments}
        function = function.func
    return function, arguments
