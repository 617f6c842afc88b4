"""References of convolutions of signs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ste_ops.reference.binarize.products import _dtype_of, _finished, _levels

__all__ = ["binary_conv1d", "binary_conv2d"]

Sizes = int | Sequence[int]


def _convolution(
    dims: int, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int,
    padding_value: int, scale: Any, in_channels: int | None, step: bool, dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    of_weight = None if weight.dtype == torch.uint8 else weight.shape[1] * groups
    channels = in_channels or of_weight or x.shape[-dims - 1]
    strides, dilations = ([n] * dims if isinstance(n, int) else list(n) for n in (stride, dilation))
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilations, weight.shape[2:], strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        each = 0 if padding == "valid" else padding
        sides = [(p, p) for p in ([each] * dims if isinstance(each, int) else each)]
    levels = _levels(x, step, channels, -dims - 1)
    padded = F.pad(levels, [n for side in reversed(sides) for n in side], value=float(padding_value))
    convolve = F.conv1d if dims == 1 else F.conv2d
    out = convolve(padded, _levels(weight, False, channels // groups, 1), None, strides, 0, dilations, groups)
    return _finished(out, scale, bias, dims, _dtype_of(x, dtype))


def binary_conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: str | Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    *,
    padding_value: int = 0,
    scale: float | Tensor | None = None,
    in_channels: int | None = None,
    step: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """As `binary_conv2d`, of one dimension."""
    return _convolution(
        1, input, weight, bias, stride, padding, dilation, groups, padding_value, scale, in_channels, step, dtype
    )


def binary_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: str | Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    *,
    padding_value: int = 0,
    scale: float | Tensor | None = None,
    in_channels: int | None = None,
    step: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The convolution of the signs, padded with padding_value, times scale, plus bias."""
    return _convolution(
        2, input, weight, bias, stride, padding, dilation, groups, padding_value, scale, in_channels, step, dtype
    )
