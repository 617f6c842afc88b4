"""Layers whose input and weight are signs: on the CPU their forward counts bits, with the numbers of the float one.

A dot product of signs is an integer, which float32 holds exactly in whatever order it is summed. Of a weight that is a
sign times a factor the integer is multiplied by the factor once, wherever on the CPU and by whatever it is computed;
torch's product of such weights rounds each of its sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ste_ops._torch import convolves_as_torch, differentiated_around, dispatch_modes, is_fake
from ste_ops.functional.binarize._of_layers import (
    compiling,
    convolution_of_signs,
    float_is_faster,
    linear_of_signs,
    recording,
)
from ste_ops.nn import _signs, _tape
from ste_ops.nn._kept import autocast, autocast_dtype

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""What torch computes of the quantized input, the quantized weight and the bias."""

_FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_PLAIN = (Tensor, nn.Parameter)


# Of fewer products of two numbers to call takes longer than to count, where torch's own sum has the same bits.
LEAST_WORK = 1 << 21


def product(layer: Any, q: Tensor, w: Tensor, torchs: Product) -> Tensor:
    """The layer's product of what its quantizers made."""
    bias = layer.bias
    kinds = _kinds_of(layer, q, w)
    if kinds is None:
        return torchs(q, w, bias)
    if torch.is_autocast_enabled("cpu"):
        q, w, bias = autocast(q), autocast(w), None if bias is None else autocast(bias)
    step, factor = kinds
    compiled = compiling()
    if bias is None and not factor and not compiled and layer._uses(q) * w.numel() < LEAST_WORK:
        return torchs(q, w, None)
    if compiled or _counts():
        counted = _linear if w.dim() == 2 else _convolution
        out = counted(layer, q, w, bias, step, factor)
        if out is not None:
            return out
    return times_factor(torchs, q, w, bias, factor)


def _kinds_of(layer: Any, q: Tensor, w: Tensor) -> tuple[bool, bool] | None:
    """Whether the input of a layer of signs is steps, and its weight has a factor; None for others, and off the CPU."""
    reads = _signs.reads(layer._quantizer("input_quantizer"))
    if reads is None or not isinstance(q, Tensor) or q.device.type != "cpu" or q.dtype not in _FLOATING:
        return None
    factor = _signs.has_factor(layer._quantizer("weight_quantizer"))
    if factor is None or not layer._quantizes_by_quantizer or not convolves_as_torch(layer) or w.numel() == 0:
        return None
    if q.dtype is not w.dtype and autocast_dtype(q) != autocast_dtype(w):
        return None
    plain = (type(q) in _PLAIN or is_fake(q)) and (type(w) in _PLAIN or is_fake(w))
    return (reads[0], factor) if plain else None


def _counts() -> bool:
    """What records a program, transforms a function or sees each operation gets torch's own."""
    return not recording() and not differentiated_around() and (_tape.current() is not None or not dispatch_modes())


def times_factor(torchs: Product, q: Tensor, w: Tensor, bias: Tensor | None, factor: bool = True) -> Tensor:
    """As counted bits give it: an integer times the factor, plus the bias, each rounded in the arithmetic."""
    dtype = autocast_dtype(q)
    q, w, bias = autocast(q), autocast(w), None if bias is None else autocast(bias)
    if not factor and bias is None:
        return torchs(q, w, None)
    wide, beside = torch.promote_types(dtype, torch.float32), (-1, *[1] * (w.dim() - 2))
    q, w = q.to(wide), w.to(wide)
    size = w.detach().flatten(1)[:, :1].abs().reshape(-1, *[1] * (w.dim() - 1))
    size = torch.where(size == 0, 1.0, size)
    with torch.autocast("cpu", enabled=False):
        out = torchs(q, w / size, None) * size.reshape(beside) if factor else torchs(q, w, None)
    return (out if bias is None else out + bias.to(wide).reshape(beside)).to(dtype)


def _linear(layer: Any, q: Tensor, w: Tensor, bias: Tensor | None, step: bool, factor: bool) -> Tensor:
    return linear_of_signs(q, w, bias, factor, w.shape[1], w.shape[0], step, q.dtype)


def _last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _convolution(layer: Any, q: Tensor, w: Tensor, bias: Tensor | None, step: bool, factor: bool) -> Tensor | None:
    """None where it is left to torch: three dimensions, padding that differs by side, tiny groups."""
    dims, padding = w.dim() - 2, layer.padding
    batched = q.dim() == w.dim()
    q = q if batched else q.unsqueeze(0)
    if dims > 2 or q.dim() != w.dim():
        return None
    if layer.padding_mode != "zeros":
        q, padding = nn.functional.pad(q, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), (0,) * dims
    elif padding == "valid":
        padding = (0,) * dims
    elif padding == "same":
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        if any(t % 2 for t in total):
            return None
        padding = tuple(t // 2 for t in total)
    kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    if dims == 1:
        q, w = q.unsqueeze(2), w.unsqueeze(2)
        kernel, stride, dilation, padding = (1, *kernel), (1, *stride), (1, *dilation), (0, *padding)
    sizes = (layer.in_channels, layer.out_channels, kernel, stride, (*padding, *padding), dilation, layer.groups)
    if float_is_faster(*sizes):
        return None
    rest = (*sizes, 0, step, dims == 2 and (_last(q) or _last(w)), q.dtype)
    out = convolution_of_signs(q, w, bias, factor, *rest)
    out = out.squeeze(2) if dims == 1 else out
    return out if batched else out.squeeze(0)
