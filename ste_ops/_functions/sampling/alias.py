"""Fake kernels of the alias table."""

from __future__ import annotations

import torch
from torch import Tensor

from ste_ops._functions.base import fake


@fake("alias_table")
def _(weights: Tensor) -> tuple[Tensor, Tensor]:
    table = weights.new_empty(weights.shape, dtype=torch.int64)
    return table, weights.new_empty(weights.shape[:-1], dtype=torch.int64)


@fake("alias_sample")
def _(table: Tensor, capacity: Tensor, seed: Tensor, start: int, num_samples: int, stride: int = 1) -> Tensor:
    return table.new_empty((*table.shape[:-1], num_samples))
