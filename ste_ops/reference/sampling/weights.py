"""What the references of the sampling family share."""

from __future__ import annotations

import math


def round_scaled(value: float, exponent: int) -> int:
    """round(value * 2**exponent), half to even, exactly."""
    numerator, denominator = value.as_integer_ratio()
    numerator, denominator = numerator << max(exponent, 0), denominator << max(-exponent, 0)
    down, rest = divmod(numerator, denominator)
    return down + (2 * rest > denominator or (2 * rest == denominator and down % 2 == 1))


def check_weights(row: list[float], where: str, operator: str, error: type[Exception]) -> None:
    for i, w in enumerate(row):
        if not 0 <= w < math.inf:
            kind = "non-negative" if -math.inf < w < 0 else "finite and non-negative"
            raise error(f"{operator}: weights must be {kind}, got {w} at index {where.format(i)}")
    if not any(row):
        raise error(f"{operator}: weights must have a positive sum, got only zeros")
