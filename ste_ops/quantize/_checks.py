"""The checks that the quantizers share."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATING = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})


def check_tensor(operator: str, argument: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{operator}: {argument} must be a tensor, got {type(x).__name__}")
    if x.dtype not in FLOATING:
        raise TypeError(f"{operator}: {argument} must be float64, float32, bfloat16 or float16, got {x.dtype}")


def checked_bits(operator: str, bits: int, least: int = 1) -> int:
    """Up to 24, the bits of float32's significand: beyond them float32 arithmetic has no level for each integer."""
    if not isinstance(bits, int) or isinstance(bits, bool):
        raise TypeError(f"{operator}: bits must be an integer, got {bits!r}")
    if not least <= bits <= 24:
        raise ValueError(f"{operator}: bits must be in [{least}, 24], got {bits}")
    return bits
