"""Reference of the Bernoulli draw."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from ste_ops._random import MASK64, draw_seed, random_bits
from ste_ops.reference._arithmetic import round_scaled


class _Bernoulli(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor, seed: Tensor) -> Tensor:
        out = torch.empty_like(p)
        dense = torch.empty_like(out).copy_(p)
        # Draws belong to places in memory.
        memory, values = out.as_strided((out.numel(),), (1,)), dense.as_strided((out.numel(),), (1,)).tolist()
        for i, value in enumerate(values):
            if not 0 <= value <= 1:
                raise RuntimeError(f"bernoulli_ste: p must be in [0, 1], got {value} at index {i}")
            threshold = max(round_scaled(value, 64), int(value > 0))
            memory[i] = float(random_bits(int(seed) & MASK64, 0, i)[0] < threshold)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def bernoulli_ste(p: Tensor, *, generator: Generator | None = None) -> Tensor:
    """1 with probability p, p read to 64 binary places; the gradient of p is the incoming one."""
    return _Bernoulli.apply(p, draw_seed("bernoulli_ste", p.device, generator))
