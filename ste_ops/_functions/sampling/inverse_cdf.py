"""Fake kernel of the draws by the inverse CDF."""

from __future__ import annotations

import torch
from torch import Tensor

from ste_ops._functions.base import fake


@fake("inverse_cdf_sample")
def _(weights: Tensor, seed: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    draws = weights.new_empty((*weights.shape[:-1], num_samples), dtype=torch.int64)
    return draws, weights.new_empty(weights.shape[:-1], dtype=torch.int64)
