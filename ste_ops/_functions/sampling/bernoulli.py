"""The Function of the Bernoulli draw."""

from __future__ import annotations

import torch
from torch import Tensor

from ste_ops._functions.base import SeededPassThrough, fake, recorded
from ste_ops._library import ops


@fake("bernoulli")
def _(p: Tensor, seed: Tensor) -> Tensor:
    return torch.empty_like(p)


@recorded("bernoulli")
class Bernoulli(SeededPassThrough):
    """0 or 1 forward, the identity backward. `forward(p, seed) -> out`; nothing is saved."""

    @staticmethod
    def forward(p: Tensor, seed: Tensor) -> Tensor:
        return ops.bernoulli(p, seed)
