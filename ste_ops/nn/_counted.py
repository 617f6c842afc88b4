"""How packed layers of signs run as counts of differing bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ste_ops._dtensor import is_dtensor
from ste_ops.functional.binarize.convolutions import conv2d_by_sizes, sides_of
from ste_ops.functional.binarize.products import linear_by_sizes, weight_panels
from ste_ops.nn._signs import reads


def panels_of(layer: Any, signs: Tensor) -> Tensor:
    """The weights of a layer, -1 and 1, as products read them."""
    groups = getattr(layer, "groups", 1)
    signs = signs.unsqueeze(2) if signs.dim() == 3 else signs
    return weight_panels(signs, signs.shape[1], groups)


def may_count(layer: Any, x: Tensor) -> bool:
    """Not where a gradient is asked for, which goes through the float product."""
    if torch.is_grad_enabled() and x.requires_grad:
        return False
    return not is_dtensor(x) and x.is_floating_point() and x.device == layer.panels.device


def counted(layer: Any, x: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    """The layer's product of the signs of x, or of its steps, times scale, plus bias: rounded once each."""
    steps, after = reads(layer.input_quantizer) or (False, True)
    x = layer.input_quantizer(x) if after else x
    kind = x.device.type
    dtype = x.dtype
    if torch.is_autocast_enabled(kind) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
    x, name = x.detach(), type(layer).__name__
    scale = None if scale is None else scale.to(dtype)  # as in the weights
    bias = None if bias is None else bias.detach()
    if not hasattr(layer, "kernel_size"):
        sizes = layer.in_features, layer.out_features
        return linear_by_sizes(name, x, layer.panels, bias, scale, *sizes, steps, dtype)
    return _convolved(layer, x, scale, bias, steps, dtype)


def _convolved(
    layer: Any, x: Tensor, scale: Tensor | None, bias: Tensor | None, steps: bool, dtype: torch.dtype
) -> Tensor:
    dims, name = len(layer.kernel_size), type(layer).__name__
    batched = x.dim() == dims + 2
    x = x if batched else x.unsqueeze(0)
    if x.dim() != dims + 2 or x.shape[1] != layer.in_channels:
        raise ValueError(f"{name}: input must have {layer.in_channels} channels, got shape {tuple(x.shape)}")
    padding = layer.padding
    if layer.padding_mode != "zeros":  # which copies numbers, and so their signs
        x = nn.functional.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = 0
    kernel, stride, dilation = list(layer.kernel_size), list(layer.stride), list(layer.dilation)
    sides = sides_of(name, padding, kernel, stride, dilation)
    if dims == 1:
        x, kernel, stride, dilation = x.unsqueeze(2), [1, *kernel], [1, *stride], [1, *dilation]
        sides = [0, sides[0], 0, sides[1]]
    sizes: tuple[Any, ...] = layer.in_channels, layer.out_channels, tuple(kernel), tuple(stride), tuple(sides)
    sizes = (*sizes, tuple(dilation), layer.groups, 0, steps, dtype)
    out = conv2d_by_sizes(name, x, layer.panels, bias, scale, *sizes)
    out = out.squeeze(2) if dims == 1 else out
    return out if batched else out.squeeze(0)
