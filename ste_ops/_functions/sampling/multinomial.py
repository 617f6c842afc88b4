"""Fake kernel of the keys that order draws without replacement."""

from __future__ import annotations

import torch
from torch import Tensor

from ste_ops._functions._base import fake


@fake("exponential_keys")
def _(weights: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    keys = weights.new_empty(weights.shape, dtype=torch.float64)
    return keys, weights.new_empty(weights.shape[:-1], dtype=torch.int64)
