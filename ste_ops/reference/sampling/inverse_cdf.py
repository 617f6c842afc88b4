"""Reference of the draws by the inverse CDF: Python integers, equal to the native draws seed for seed."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

import torch
from torch import Tensor

from ste_ops._random import MASK64, random_bits
from ste_ops.reference.sampling.weights import checked_rows, masses


def inverse_cdf_sample(weights: Tensor, seed: int | Tensor, num_samples: int) -> Tensor:
    """Draws from each row of weights: the masses are laid end to end, and 128 random bits choose a unit of them."""
    draws = []
    for row, values in enumerate(checked_rows(weights, "multinomial", RuntimeError)):
        ends = list(accumulate(masses(values)))
        for index in range(num_samples):
            draws.append(bisect_right(ends, uniform_below(*random_bits(int(seed) & MASK64, row, index), ends[-1])))
    return torch.tensor(draws, dtype=torch.int64, device=weights.device).reshape(*weights.shape[:-1], num_samples)


def uniform_below(low: int, high: int, total: int) -> int:
    """Two numbers of 64 random bits, the first the more significant, as a number below `total`."""
    return (low << 64 | high) * total >> 128
