"""Fake kernels of resampling."""

from __future__ import annotations

import torch
from torch import Tensor

from ste_ops._functions.base import fake


def _resampled(weights: Tensor, seed: Tensor, num_samples: int) -> Tensor:
    return weights.new_empty((*weights.shape[:-1], num_samples), dtype=torch.int64)


for _name in ("systematic_resample", "stratified_resample", "residual_resample"):
    fake(_name)(_resampled)
