"""The kernels' arithmetic on each element in torch's own operations, which give the same bits once they are compiled.

Everything is of float32 or float64 numbers, each operation rounded by itself, in the order of csrc/core. Where a
product meets a sum, and where each element is divided, this holds on the CPU alone: Triton fuses the one and
approximates the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ste_ops._library import ops

# From here on a whole number and 1 need not add up to their sum in float32.
LARGEST_WHOLE = 2**23


def clamped(x: Tensor, low: float | Tensor | None, high: float | Tensor | None) -> Tensor:
    """As `clamp` of csrc/core/quantize/uniform.h: x where it equals a bound, with the sign of its zero, and NaN."""
    if low is not None:
        x = torch.where(x < low, low, x)
    return x if high is None else torch.where(x > high, high, x)


def without_negative_zero(q: Tensor) -> Tensor:
    """q + 0 of whole numbers. A compiler that takes no heed of a zero's sign would drop the 0."""
    return q + 1 - 1


def beside(row: Tensor, x: Tensor, axis: int) -> Tensor:
    """A row of `checked_steps`, of one number or one for each channel, in a shape that is broadcast to x's."""
    shape = [1] * x.dim()
    if row.numel() != 1:
        shape[axis] = row.numel()
    return row.reshape(shape)


def is_whole(quant_min: int, quant_max: int) -> bool:
    return quant_min > -LARGEST_WHOLE and quant_max < LARGEST_WHOLE


def steps_of(op: str, x: Tensor, axis: int, scale: Tensor, offset: Tensor | None = None) -> list[Tensor]:
    """Scale, its reciprocal and an offset if there is one, as the kernels divide once and check."""
    rows = ops.checked_steps(scale, offset, x.dtype == torch.float64, op)
    return [beside(row, x, axis) for row in rows.unbind()]


def quantized(v: Tensor, scale: Tensor | float, quant_min: int, quant_max: int) -> Tensor:
    """The integer of v, which is x / scale, times scale."""
    return without_negative_zero(clamped(torch.round(v), quant_min, quant_max)) * scale


def strictly_inside(v: Tensor, quant_min: int, quant_max: int) -> Tensor:
    return (v > quant_min) & (v < quant_max)


def at_least(x: Tensor, least: float) -> Tensor:
    """A NaN stays."""
    return torch.where(x < least, least, x)
