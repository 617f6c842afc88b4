"""Fake kernels of draws with and without replacement."""

from __future__ import annotations

import torch
from torch import Tensor

from ste_ops._functions.base import fake


@fake("multinomial_with_replacement")
def _(weights: Tensor, seed: Tensor, num_samples: int) -> Tensor:
    return weights.new_empty((*weights.shape[:-1], num_samples), dtype=torch.int64)


@fake("multinomial_without_replacement")
def _(weights: Tensor, seed: Tensor, num_samples: int, op: str) -> Tensor:
    return weights.new_empty((*weights.shape[:-1], num_samples), dtype=torch.int64)
