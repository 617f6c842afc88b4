"""The checks that the quantizers share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FLOATING = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})


def check_tensor(operator: str, argument: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{operator}: {argument} must be a tensor, got {type(x).__name__}")
    if x.dtype not in FLOATING:
        raise TypeError(f"{operator}: {argument} must be float64, float32, bfloat16 or float16, got {x.dtype}")


def checked_bits(operator: str, bits: int, least: int = 1) -> int:
    """Up to 24, the bits of float32's significand: beyond them float32 arithmetic has no level for each integer."""
    if not isinstance(bits, int) or isinstance(bits, bool):
        raise TypeError(f"{operator}: bits must be an integer, got {bits!r}")
    if not least <= bits <= 24:
        raise ValueError(f"{operator}: bits must be in [{least}, 24], got {bits}")
    return bits


def check_int(operator: str, name: str, value: int) -> None:
    if not isinstance(value, int | torch.SymInt) or isinstance(value, bool):
        raise TypeError(f"{operator}: {name} must be an int, got {value!r}")


def check_number(operator: str, name: str, value: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{operator}: {name} must be a number, got {value!r}")
    if math.isnan(value):
        raise ValueError(f"{operator}: {name} must not be NaN")


def check_range(operator: str, quant_min: int, quant_max: int) -> None:
    check_int(operator, "quant_min", quant_min)
    check_int(operator, "quant_max", quant_max)
    if quant_min >= quant_max:
        raise ValueError(f"{operator}: quant_min must be less than quant_max, got {quant_min} and {quant_max}")


def check_axis(operator: str, x: Tensor, axis: int | None) -> int:
    """The axis counted from the front; -1 for None, which is the whole tensor."""
    if axis is None:
        return -1
    check_int(operator, "axis", axis)
    if not -x.dim() <= axis < x.dim():
        expected = f"in [{-x.dim()}, {x.dim() - 1}]" if x.dim() else "None for a 0-d tensor"
        raise IndexError(f"{operator}: axis must be {expected}, got {axis}")
    return axis % x.dim()


def check_parameter(operator: str, name: str, value: Tensor, x: Tensor, axis: int) -> None:
    """A tensor of one element, or of one for each coordinate along the axis."""
    channels = 1 if axis < 0 else x.shape[axis]
    if value.dim() > 1 or value.numel() not in (1, channels):
        expected = "one element" if axis < 0 else f"one element or {channels}, as many as x along axis {axis}"
        raise ValueError(f"{operator}: {name} must be 0-d or 1-d with {expected}, got the shape {tuple(value.shape)}")
    if value.device != x.device:
        raise ValueError(f"{operator}: {name} must be on x's device, {x.device}, got {value.device}")


def check_scale(operator: str, scale: float, dtype: torch.dtype) -> None:
    """A number that is positive, and neither too large nor too small for the arithmetic of `dtype`."""
    check_number(operator, "scale", scale)
    largest = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).max
    if not 0 < scale <= largest or not 1 / scale <= largest:
        raise ValueError(f"{operator}: scale must be positive and finite, and its reciprocal too, got {scale}")
