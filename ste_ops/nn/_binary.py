"""Layers whose input and weight are signs: on the CPU their forward counts bits, with the numbers of the float one.

A dot product of signs is an integer, which float32 holds exactly in whatever order it is summed. Of a weight that is a
sign times a factor the integer is multiplied by the factor once, where the float path rounds each of its sums.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from ste_ops import functional
from ste_ops._torch import convolves_as_torch, differentiated_around, dispatch_modes
from ste_ops.functional.binarize._of_layers import (
    convolution_of_signs,
    float_is_faster,
    linear_of_signs,
    recording,
)
from ste_ops.nn import _tape
from ste_ops.nn._kept import autocast, autocast_dtype
from ste_ops.nn.binarize import Heaviside, Sign
from ste_ops.nn.quantizer import Quantizer, function_of, is_as_written
from ste_ops.nn.scaled import MagnitudeAwareSign, XNORWeight

_FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_PLAIN = (Tensor, nn.Parameter)

# Whether an input is steps, 1 and 0, and not signs.
_STEP = {Sign: False, Heaviside: True, functional.sign: False, functional.heaviside: True}
# Whether a weight has a factor.
_FACTOR = {Sign: False, XNORWeight: True, MagnitudeAwareSign: True}
_FACTOR |= {functional.sign: False, functional.xnor_weight: True, functional.magnitude_aware_sign: True}  # type: ignore[dict-item]


def _among(kinds: dict[Any, bool], quantizer: Any) -> bool | None:
    """None also of a weight in groups, which have a factor each."""
    if not isinstance(quantizer, nn.Module):
        grouped = isinstance(quantizer, functools.partial) and (quantizer.args or "group_size" in quantizer.keywords)
        return None if grouped else kinds.get(function_of(quantizer))
    kind = kinds.get(type(quantizer))
    if kind is None or not isinstance(quantizer, Quantizer) or getattr(quantizer, "group_size", None) is not None:
        return None
    return kind if quantizer._enabled and is_as_written(quantizer) else None


def kinds_of(layer: Any) -> tuple[bool, bool] | None:
    """Whether the input of a layer of signs is steps, and its weight has a factor; None for other layers."""
    step = _among(_STEP, layer._quantizer("input_quantizer"))
    if step is None:
        return None
    factor = _among(_FACTOR, layer._quantizer("weight_quantizer"))
    own = factor is not None and layer._quantizes_by_quantizer and convolves_as_torch(layer)
    return (step, factor) if own and factor is not None else None


def counts(layer: Any, q: Tensor, w: Tensor) -> tuple[bool, bool] | None:
    """`kinds_of` a layer that counts bits of these; None where it computes in floats."""
    if not isinstance(q, Tensor) or q.device.type != "cpu" or q.dtype not in _FLOATING or w.numel() == 0:
        return None
    if autocast_dtype(q) != autocast_dtype(w):
        return None
    kinds = kinds_of(layer)
    if kinds is None or recording():
        return None
    if torch.compiler.is_compiling():
        return kinds
    if differentiated_around():
        return None
    plain = type(q) in _PLAIN and type(w) in _PLAIN and type(layer.bias) in (*_PLAIN, type(None))
    return kinds if plain and (_tape.current() is not None or not dispatch_modes()) else None


def linear(q: Tensor, w: Tensor, bias: Tensor | None, step: bool, factor: bool) -> Tensor:
    q, w, bias = autocast(q), autocast(w), None if bias is None else autocast(bias)
    return linear_of_signs(q, w, bias, factor, w.shape[1], w.shape[0], step, q.dtype)


def _last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def convolution(layer: Any, q: Tensor, w: Tensor, bias: Tensor | None, step: bool, factor: bool) -> Tensor | None:
    """None where it is left to torch: padding that differs by side, tiny groups, an input without a batch."""
    q, w, bias = autocast(q), autocast(w), None if bias is None else autocast(bias)
    dims, padding = w.dim() - 2, layer.padding
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
    return out.squeeze(2) if dims == 1 else out
