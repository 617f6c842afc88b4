"""Convolutions of the signs of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ste_ops._checks import is_integer
from ste_ops._functions.binary_products import BinaryConv2d
from ste_ops._fx import call_node
from ste_ops.functional.binarize.products import _check_operand, _numbers, _output_dtype, _summed

__all__ = ["binary_conv1d", "binary_conv2d"]

Sizes = int | Sequence[int]


def _sizes(operator: str, name: str, given: Any, dims: int, least: int) -> list[int]:
    sizes = [given] * dims if is_integer(given) else list(given) if isinstance(given, (tuple, list)) else []
    if len(sizes) == 1:
        sizes *= dims
    if len(sizes) != dims or not all(is_integer(size) and size >= least for size in sizes):
        raise ValueError(f"{operator}: {name} must be an integer >= {least} or {dims} of them, got {given!r}")
    return sizes


def sides_of(operator: str, padding: Any, kernel: Sequence[int], stride: list[int], dilation: list[int]) -> list[int]:
    """What is added before each dimension, then what is added after each."""
    if not isinstance(padding, str):
        return _sizes(operator, "padding", padding, len(kernel), 0) * 2
    if padding == "valid":
        return [0] * (2 * len(kernel))
    if padding != "same":
        raise ValueError(f"{operator}: padding must be 'valid', 'same' or integers, got {padding!r}")
    if any(s != 1 for s in stride):
        raise ValueError(f"{operator}: padding 'same' needs a stride of 1, got {stride}")
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    return [t // 2 for t in total] + [t - t // 2 for t in total]


def _channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _channels(operator: str, x: Tensor, weight: Tensor, groups: int, in_channels: int | None) -> int:
    of_x = None if x.dtype == torch.uint8 else x.shape[1]
    beside = in_channels if of_x is None else of_x
    of_weight = _summed(operator, "in_channels", weight, 1, None if beside is None else beside // groups, None)
    channels = of_weight * groups
    found = _summed(operator, "in_channels", x, 1, in_channels, channels)
    if found != channels or in_channels not in (None, channels):
        raise ValueError(
            f"{operator}: input, weight, groups and in_channels must agree, got {tuple(x.shape)}, "
            f"{tuple(weight.shape)}, {groups} and {in_channels}"
        )
    return channels


def _convolution(
    operator: str,
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    padding_value: int,
    scale: float | Tensor | None,
    in_channels: int | None,
    step: bool,
    dtype: torch.dtype | None,
) -> Tensor:
    if weight.dim() != dims + 2 or input.dim() not in (dims + 1, dims + 2):
        shapes = f"{tuple(input.shape)} and {tuple(weight.shape)}"
        raise ValueError(
            f"{operator}: input must have {dims + 2} dimensions, or {dims + 1} without a batch, and weight {dims + 2}, "
            f"got {shapes}"
        )
    if not is_integer(groups) or groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"{operator}: groups must be positive and divide {weight.shape[0]}, got {groups!r}")
    x = input.unsqueeze(0) if input.dim() == dims + 1 else input
    channels = _channels(operator, x, weight, groups, in_channels)
    strides, dilations = (
        _sizes(operator, name, given, dims, 1) for name, given in (("stride", stride), ("dilation", dilation))
    )
    kernel = weight.shape[2:]
    sides = sides_of(operator, padding, kernel, strides, dilations)
    if padding_value not in ((0, 1) if step else (-1, 0, 1)) or isinstance(padding_value, bool):
        allowed = "0 or 1 beside steps" if step else "-1, 0 or 1"
        raise ValueError(f"{operator}: padding_value must be {allowed}, got {padding_value!r}")
    if dims == 1:
        x, weight = x.unsqueeze(2), weight.unsqueeze(2)
        kernel, strides, dilations, sides = weight.shape[2:], [1, *strides], [1, *dilations], [0, sides[0], 0, sides[1]]
    geometry = (tuple(kernel), tuple(strides), tuple(sides), tuple(dilations), groups, padding_value)
    out = conv2d_by_sizes(operator, x, weight, bias, scale, channels, weight.shape[0], *geometry, step, dtype)
    out = out.squeeze(2) if dims == 1 else out
    return out.squeeze(0) if input.dim() == dims + 1 else out


def conv2d_by_sizes(
    operator: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: float | Tensor | None,
    in_channels: int,
    out_channels: int,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    sides: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int = 1,
    padding_value: int = 0,
    step: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`binary_conv2d`, of a weight that may be panels, which do not show their sizes."""
    dtype = _output_dtype(operator, x, dtype)
    if weight.device != x.device:
        raise ValueError(f"{operator}: weight must be on {x.device} as input is, got {weight.device}")
    scale, bias = (
        _numbers(operator, name, given, x, out_channels, dtype) for name, given in (("scale", scale), ("bias", bias))
    )
    last = _channels_last(x) or _channels_last(weight)
    sizes = (in_channels, out_channels, kernel, stride, sides, dilation, groups, padding_value)
    return BinaryConv2d.apply(x, weight, scale, bias, *sizes, bool(step), last, dtype)[0]


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
    """`torch.nn.functional.conv1d` at the signs of input and weight, times scale, plus bias; see `binary_conv2d`.

    Args:
        input: (N, C, L) or (C, L).
        weight: (out, C / groups, k), or (out, ceil(C / groups / 8), k) of bits.
        bias, stride, padding, dilation, groups, padding_value, scale, in_channels, step, dtype: as in `binary_conv2d`.

    Returns:
        (N, out, L') or (out, L').

    Raises:
        TypeError, ValueError: as `binary_conv2d`.

    Source: as `binary_conv2d`.

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.binary_conv1d(torch.tensor([[[1.0, -1.0, 1.0, 1.0]]]), torch.tensor([[[1.0, -1.0]]]), padding=1)
        tensor([[[-1.,  2., -2.,  0.,  1.]]])
    """
    if _check_operand("binary_conv1d", "input", input) | _check_operand("binary_conv1d", "weight", weight):
        return call_node(binary_conv1d, locals())
    return _convolution(
        "binary_conv1d", 1, input, weight, bias, stride, padding, dilation, groups, padding_value, scale, in_channels,
        step, dtype,
    )  # fmt: skip


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
    """`torch.nn.functional.conv2d` at the signs of input and weight, times scale, plus bias: counted bits, no products.

    Values, dtypes, gradients, transforms and instructions as in `binary_linear`: the sums are integers and equal those
    of floats. A convolution whose groups are of so few channels and features that words of bits would be empty, as a
    depthwise one, computes the float convolution of the signs, with the same result.

    Args:
        input: (N, C, H, W) or (C, H, W), floating, of which the sign counts, any strides; or uint8 of `pack_bits` along
            the channels, where groups are of whole bytes.
        weight: (out, C / groups, kH, kW), or (out, ceil(C / groups / 8), kH, kW) of bits.
        bias: (out,), or None.
        stride, padding, dilation, groups: as in `torch.nn.functional.conv2d`.
        padding_value: what is padded: 0, a third value beside -1 and +1, which is counted apart, or -1 or +1.
        scale: a number, one element or (out,), or None for 1.
        in_channels: C, needed where both are packed.
        step: reads input as `heaviside` does, 1 where it is > 0 and 0 elsewhere; padding_value is then 0 or 1.
        dtype: of the result; by default input's, float32 where that is packed.

    Returns:
        (N, out, H', W') or (out, H', W'), channels last in memory where input or weight is.

    Raises:
        TypeError: an operand is neither floating nor uint8, or scale, bias or dtype no floating one.
        ValueError: shapes or sizes do not fit, or in_channels is missing.

    Source: XNOR-Net (Rastegari et al., arXiv:1603.05279, section 3.2); padded -1 and +1 as Larq's ``pad_values``.

    Example:
        >>> import torch, ste_ops
        >>> x, w = torch.ones(1, 1, 3, 3), torch.tensor([[[[1.0, 1.0], [1.0, -1.0]]]])
        >>> ste_ops.binary_conv2d(x, w, padding=(1, 0), padding_value=-1)
        tensor([[[[-2., -2.],
                  [ 2.,  2.],
                  [ 2.,  2.],
                  [ 2.,  2.]]]])
    """
    if _check_operand("binary_conv2d", "input", input) | _check_operand("binary_conv2d", "weight", weight):
        return call_node(binary_conv2d, locals())
    return _convolution(
        "binary_conv2d", 2, input, weight, bias, stride, padding, dilation, groups, padding_value, scale, in_channels,
        step, dtype,
    )  # fmt: skip
