"""The arguments that the clipping functions share."""

from __future__ import annotations

import math
from typing import Literal

NonFinite = Literal["propagate", "skip", "zero"]
_NONFINITE: dict[str, int] = {"propagate": 0, "skip": 1, "zero": 2}  # as csrc/core/clip/norm.h numbers them


def checked_number(operator: str, argument: str, value: float) -> float:
    number = float(value)
    if not number >= 0:
        raise ValueError(f"{operator}: {argument} must be a non-negative number, got {value}")
    return number


def checked_norm_type(operator: str, value: float) -> float:
    p = float(value)
    if not (p >= 0 or p == -math.inf):
        raise ValueError(f"{operator}: norm_type must be a non-negative number, inf or -inf, got {value}")
    return p


def checked_nonfinite(nonfinite: str, error_if_nonfinite: bool) -> int:
    if nonfinite not in _NONFINITE:
        raise ValueError(f'clip_grad_norm_: nonfinite must be "propagate", "skip" or "zero", got {nonfinite!r}')
    if error_if_nonfinite and nonfinite != "propagate":
        raise ValueError(
            f"clip_grad_norm_: error_if_nonfinite raises where nonfinite={nonfinite!r} would not; ask for one"
        )
    return _NONFINITE[nonfinite]
