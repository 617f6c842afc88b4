"""The integers of a quantized weight: of each quantizer, which ones, and what makes its numbers of them again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Arguments = dict[str, Any]
"""Of an operator, by the names of its schema; tensors with their numbers."""


def range_of(bits: int, signed: bool) -> tuple[int, int]:
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def bits_for(low: int, high: int) -> int | None:
    """The narrowest integers that hold the range, signed if it begins below 0; None where none of up to 16 bits do."""
    for bits in (4, 8, 16):
        least, most = range_of(bits, low < 0)
        if least <= low and high <= most:
            return bits
    return None


@dataclass(frozen=True)
class Grid:
    """The integers from `low` to `high` that a weight consists of, and what they stand for.

    With `scale`: ``(integer - zero_point) * scale + offset``, each of one element or one for each index of `axis`.
    With `steps`: ``integer / steps``, and if `centred` ``2 * that - 1``.
    """

    low: int
    high: int
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    offset: Tensor | None = None
    axis: int | None = None
    steps: int = 0
    centred: bool = False


def along(values: Tensor, q: Tensor, axis: int | None) -> Tensor:
    if axis is None or values.numel() == 1:
        return values.reshape(())
    shape = [1] * q.dim()
    shape[axis] = -1
    return values.reshape(shape)


def _wide(q: Tensor) -> Tensor:
    return q if q.dtype == torch.float64 else q.float()


def integers_of(q: Tensor, grid: Grid) -> Tensor | None:
    """As int32; None where the grid's numbers are not q, to the last bit but for the sign of zeros."""
    wide = _wide(q)
    if grid.scale is None:
        unit = (wide + 1) / 2 if grid.centred else wide
        integers = (unit * grid.steps).round()
    else:
        step = along(grid.scale.to(wide), wide, grid.axis)
        rest = wide if grid.offset is None else wide - along(grid.offset.to(wide), wide, grid.axis)
        integers = torch.where(step == 0, 0.0, rest / step).round()
        if grid.zero_point is not None:
            integers = integers + along(grid.zero_point.to(wide), wide, grid.axis)
    integers = integers.clamp(grid.low, grid.high)
    return integers.to(torch.int32) if torch.equal(numbers_of(integers, grid).to(q.dtype), q) else None


def numbers_of(integers: Tensor, grid: Grid) -> Tensor:
    """Of whole numbers in the arithmetic of the kernels, rounded where these and DequantizeLinear round."""
    if grid.scale is None:
        unit = integers / grid.steps
        return unit * 2 - 1 if grid.centred else unit
    if grid.zero_point is not None:
        integers = integers - along(grid.zero_point.to(integers), integers, grid.axis)
    numbers = integers * along(grid.scale.to(integers), integers, grid.axis)
    return numbers if grid.offset is None else numbers + along(grid.offset.to(integers), integers, grid.axis)


# Of each operator its grid, from its result and arguments; None where there is none.


def _whole(low: int) -> Callable[[Tensor, Arguments], Grid | None]:
    return lambda q, arguments: Grid(low, 1, torch.ones(()))


def _step(q: Tensor, arguments: Arguments) -> Grid:
    return Grid(0 if arguments["step"].startswith("heaviside") else -1, 1, torch.ones(()))


def _scaled(low: int) -> Callable[[Tensor, Arguments], Grid | None]:
    """-1, 1 and perhaps 0, times a scale that is the largest magnitude there is."""

    def grid(q: Tensor, arguments: Arguments) -> Grid | None:
        others = list(range(1 if arguments["per_channel"] else 0, q.dim()))
        if q.numel() == 0:
            return None
        scale = _wide(q).abs()
        return Grid(low, 1, (scale.amax(others) if others else scale).reshape(-1), axis=0)

    return grid


def _fake_quantize(q: Tensor, arguments: Arguments) -> Grid | None:
    scale, zero_point = arguments["scale"], arguments["zero_point"]
    low, high, axis = _range(arguments)
    if scale is None:
        scale = torch.tensor(arguments["scale_number"], dtype=torch.float64)
    if zero_point is None:
        zero_point = torch.tensor(arguments["zero_point_number"], dtype=torch.float64)
    if not torch.equal(zero_point.round(), zero_point):
        return None
    return Grid(low, high, scale, zero_point if bool(zero_point.any()) else None, axis=axis)


def _lsq(q: Tensor, arguments: Arguments) -> Grid:
    low, high, axis = _range(arguments)
    return Grid(low, high, arguments["scale"], offset=arguments.get("offset"), axis=axis)


def _range(arguments: Arguments) -> tuple[int, int, int]:
    return arguments["quant_min"], arguments["quant_max"], arguments["axis"]


def _pact(q: Tensor, arguments: Arguments) -> Grid:
    alpha, steps = _wide(arguments["alpha"]), 2 ** arguments["bits"] - 1
    return Grid(0, steps, alpha.to(_wide(q)) / torch.full_like(alpha, steps).to(_wide(q)))


def _unit(centred: bool) -> Callable[[Tensor, Arguments], Grid | None]:
    def grid(q: Tensor, arguments: Arguments) -> Grid:
        steps = 2 ** arguments["bits"] - 1
        return Grid(0, steps, steps=steps, centred=centred)

    return grid


GRIDS: dict[str, Callable[[Tensor, Arguments], Grid | None]] = {
    "sign": _whole(-1),
    "heaviside": _whole(0),
    "heaviside_from_zero": _whole(0),
    "ternary": _whole(-1),
    "learned_step": _step,
    "sloped_step": _step,
    "fake_quantize": _fake_quantize,
    "lsq": _lsq,
    "lsq_plus": _lsq,
    "pact": _pact,
    "dorefa_activation": _unit(centred=False),
    "dorefa_weight": _unit(centred=True),
    "dorefa_sign": _scaled(-1),
    "xnor_weight": _scaled(-1),
    "magnitude_aware_sign": _scaled(-1),
    "scaled_sign": _scaled(-1),
    "bitnet_weight": _scaled(-1),
}
