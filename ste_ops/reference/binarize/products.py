"""References of bits and of the products of signs: floats, in float64, whose sums are exact."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ste_ops.reference.quantize._through import through

__all__ = ["binary_linear", "pack_bits", "unpack_bits"]


def pack_bits(x: Tensor, dim: int = -1) -> Tensor:
    """Number i along `dim` is bit i % 8 of byte i // 8: 1 where x >= 0; spare bits are 0."""
    ones = (x >= 0).movedim(dim, -1).to(torch.int64)
    ones = F.pad(ones, (0, -ones.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (ones << torch.arange(8, device=x.device)).sum(-1).to(torch.uint8).movedim(-1, dim)


def unpack_bits(bits: Tensor, size: int, dim: int = -1, dtype: torch.dtype = torch.float32) -> Tensor:
    """+1 for a 1 and -1 for a 0."""
    ones = bits.movedim(dim, -1).unsqueeze(-1) >> torch.arange(8, device=bits.device) & 1
    return (2 * ones.flatten(-2)[..., :size].to(dtype) - 1).movedim(-1, dim)


def _levels(x: Tensor, step: bool, size: int | None, dim: int) -> Tensor:
    if x.dtype == torch.uint8:
        assert size is not None
        signs = unpack_bits(x, size, dim, torch.float64)
        return (signs + 1) / 2 if step else signs
    wide = x.double()
    return through((wide > 0).double() if step else torch.where(wide >= 0, 1.0, -1.0).double(), wide)


def _finished(out: Tensor, scale: Any, bias: Tensor | None, dims: int, dtype: torch.dtype) -> Tensor:
    """The integer times scale plus bias, rounded after each in float32, or float64 for a result of that."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    out = out.to(wide)
    for numbers, combine in ((scale, torch.mul), (bias, torch.add)):
        if numbers is not None:
            own = torch.as_tensor(numbers, dtype=wide, device=out.device)
            out = combine(out, own.reshape(-1, *[1] * dims) if own.dim() else own)
    return out.to(dtype)


def _dtype_of(x: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype or (torch.float32 if x.dtype == torch.uint8 else x.dtype)


def binary_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float | Tensor | None = None,
    in_features: int | None = None,
    step: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The product of the signs, times scale, plus bias; gradients pass straight through the signs."""
    size = in_features or (x if weight.dtype == torch.uint8 else weight).shape[-1]
    out = F.linear(_levels(x, step, size, -1), _levels(weight, False, size, -1))
    return _finished(out, scale, bias, 0, _dtype_of(x, dtype))
