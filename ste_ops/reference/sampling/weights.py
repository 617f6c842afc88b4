"""The weights of the references: checked row by row, and as integer masses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ste_ops.reference._arithmetic import round_scaled


def check_row(row: list[float], place: str, operator: str, error: type[Exception]) -> None:
    """Raises the operator's error where a weight is invalid or all are zero; `place` is a format of an index."""
    for i, w in enumerate(row):
        if not 0 <= w < math.inf:
            kind = "non-negative" if -math.inf < w < 0 else "finite and non-negative"
            raise error(f"{operator}: weights must be {kind}, got {w} at index {place.format(i)}")
    if not any(row):
        raise error(f"{operator}: weights must have a positive sum, got only zeros")


def checked_rows(weights: Tensor, operator: str, error: type[Exception]) -> list[list[float]]:
    """1-D or 2-D weights as rows of floats."""
    if weights.dim() not in (1, 2):
        raise error(f"{operator}: weights must be 1-D or 2-D, got shape {tuple(weights.shape)}")
    if weights.shape[-1] == 0:
        raise error(f"{operator}: weights must not be empty, got shape {tuple(weights.shape)}")
    rows = weights.detach().to(torch.float64).reshape(-1, weights.shape[-1]).tolist()
    for r, row in enumerate(rows):
        check_row(row, "{}" if weights.dim() == 1 else f"({r}, {{}})", operator, error)
    return rows


def masses(weights: list[float]) -> list[int]:
    """Weights as integers: times a power of two, half to even, at least 1 if positive (csrc/core/sampling/mass.h)."""
    n = len(weights)
    largest = max(weights)
    if largest == 0:
        return [0] * n
    # 2**(binary_exponent - 1) <= largest < 2**binary_exponent
    binary_exponent = math.frexp(largest)[1]
    coarse_exponent = 62 - (n - 1).bit_length() - binary_exponent
    coarse_total = sum(round_scaled(w, coarse_exponent) for w in weights)
    exponent = coarse_exponent + 61 - (coarse_total + n).bit_length()
    return [max(round_scaled(w, exponent), int(w > 0)) for w in weights]
