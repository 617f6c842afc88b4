"""The arithmetic of the references: 16-bit inputs in float32, and products that are rounded exactly."""

from __future__ import annotations

from torch import Tensor


def widen(x: Tensor) -> Tensor:
    return x if x.dtype.itemsize >= 4 else x.float()


def round_scaled(value: float, exponent: int) -> int:
    """round(value * 2**exponent), half to even, exactly."""
    numerator, denominator = value.as_integer_ratio()
    numerator, denominator = numerator << max(exponent, 0), denominator << max(-exponent, 0)
    down, rest = divmod(numerator, denominator)
    return down + (2 * rest > denominator or (2 * rest == denominator and down % 2 == 1))
