"""References of resampling, on Python's integers."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ste_ops._random import MASK64, draw_seed, random_bits
from ste_ops.reference.sampling.weights import checked_rows, masses


def systematic_resample(weights: Tensor, num_samples: int, *, generator: Generator | None = None) -> Tensor:
    """Points (k + u) / N in the cumulative weights, one u for all k."""

    def ancestors(mass: list[int], seed: int, row: int) -> list[int]:
        u = random_bits(seed, row, 0)[0]
        return _at(mass, [(k << 64) + u for k in range(num_samples)])

    return _rows("systematic_resample", weights, num_samples, generator, ancestors)


def stratified_resample(weights: Tensor, num_samples: int, *, generator: Generator | None = None) -> Tensor:
    """Points (k + u) / N in the cumulative weights, every u drawn by itself."""

    def ancestors(mass: list[int], seed: int, row: int) -> list[int]:
        return _at(mass, [(k << 64) + random_bits(seed, row, k)[0] for k in range(num_samples)])

    return _rows("stratified_resample", weights, num_samples, generator, ancestors)


def residual_resample(weights: Tensor, num_samples: int, *, generator: Generator | None = None) -> Tensor:
    """floor(N p) copies, and draws from what is left of N p."""

    def ancestors(mass: list[int], seed: int, row: int) -> list[int]:
        total = sum(mass)
        copies = [num_samples * m // total for m in mass]
        residues = list(itertools.accumulate(num_samples * m % total for m in mass))
        rest = num_samples - sum(copies)
        drawn = []
        for k in range(rest):
            low, high = random_bits(seed, row, k)
            drawn.append(bisect_right(residues, (low * rest >> 64) * total + (high * total >> 64)))
        return [i for i, count in enumerate(copies) for _ in range(count)] + drawn

    return _rows("residual_resample", weights, num_samples, generator, ancestors)


def _at(mass: list[int], points: list[int]) -> list[int]:
    """The particles at points / (N 2^64) of the total, N the number of points."""
    up_to = list(itertools.accumulate(mass))
    return [bisect_right(up_to, (point * up_to[-1] // len(points)) >> 64) for point in points]


def _rows(
    operator: str,
    weights: Tensor,
    num_samples: int,
    generator: Generator | None,
    ancestors: Callable[[list[int], int, int], list[int]],
) -> Tensor:
    if num_samples < 1:
        raise ValueError(f"{operator}: num_samples must be >= 1, got {num_samples}")
    rows = checked_rows(weights, operator, ValueError)
    seed = int(draw_seed(operator, weights.device, generator)) & MASK64
    drawn = [ancestors(masses(w), seed, row) for row, w in enumerate(rows)]
    return torch.tensor(drawn, dtype=torch.int64, device=weights.device).reshape(*weights.shape[:-1], num_samples)
