"""Packed layers as a file holds them: their integers, and nodes that make weights of these."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from ste_ops.nn._signs import reads
from ste_ops.nn.packed import PackedLayer
from ste_ops.onnx._codes import bits_for, range_of
from ste_ops.onnx._program import FOUR_BITS, STORED

_SCALE, _ZERO_POINT = "weight_scale", "weight_zero_point"


@contextlib.contextmanager
def in_file(model: nn.Module) -> Iterator[None]:
    """While it lasts packed layers compute with what a file can hold, and have their integers as buffers for it."""
    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, PackedLayer)]
    own = [layer for layer in layers if "forward" in layer.__dict__]
    if own:
        raise NotImplementedError(
            "export: packed layers must have the forward of their class, which a file is made of, got a "
            f"{type(own[0]).__name__} whose forward was set on the layer itself"
        )
    before = [set(layer._buffers) for layer in layers]
    try:
        for layer in layers:
            layer.forward = functools.partial(_forward, layer, _hold(layer))
        yield
    finally:
        for layer, names in zip(layers, before, strict=True):
            layer.__dict__.pop("forward", None)
            for name in layer._buffers.keys() - names:
                delattr(layer, name)


def _hold(layer: Any) -> str:
    """Makes the buffers; the name of the integers."""
    form = layer._form
    bits = bits_for(form.low, form.high)
    if bits is None:
        raise NotImplementedError(
            f"export: no integers of a file hold {form.low} to {form.high}, those of a packed layer"
        )
    name = "weight_codes" + (FOUR_BITS if bits == 4 else "")
    integers = _rows(layer, layer._integers()).to(STORED[bits, form.low < 0])
    layer.register_buffer(name, integers, persistent=False)
    scale, zero_point = layer._held("scale"), layer._held("zero_point")
    if not _of_signs(layer) and _is_affine(layer, range_of(bits, form.low < 0)):
        count = max(scale.numel(), 1 if zero_point is None else zero_point.numel())
        shape = (count,) if count > 1 else ()
        layer.register_buffer(_SCALE, scale.reshape(-1).expand(count).reshape(shape).clone(), persistent=False)
        if zero_point is not None and bool(zero_point.any()):
            whole = zero_point.reshape(-1).expand(count).reshape(shape)
            layer.register_buffer(_ZERO_POINT, whole.to(integers.dtype), persistent=False)
    return name


def _of_signs(layer: Any) -> bool:
    """Whether the layer multiplies the product of two signs, an integer, by its factor."""
    return bool(layer._of_signs) and reads(layer.input_quantizer) is not None


def _is_affine(layer: Any, held: tuple[int, int]) -> bool:
    """Whether DequantizeLinear makes the weights: in float32, with zero points among the integers."""
    scale, zero_point, form = layer._held("scale"), layer._held("zero_point"), layer._form
    if scale is None or scale.dtype != torch.float32 or form.steps or layer._held("offset") is not None:
        return False
    if scale.numel() > 1 and form.axis is None and form.group_size is None:
        return False
    whole = zero_point is None or torch.equal(zero_point, zero_point.round().clamp(*held))
    return bool(whole)


def _rows(layer: Any, x: Tensor) -> Tensor:
    return x if layer._form.group_size is None else x.reshape(-1, layer._form.group_size)


def _dequantized(layer: Any, codes: Tensor, as_weights: bool) -> Tensor:
    """In float32, as weights or as integers. No optimizer makes floats in the file of this node."""
    inputs = [codes, layer._held(_SCALE) if as_weights else torch.ones((), device=codes.device)]
    if as_weights and layer._held(_ZERO_POINT) is not None:
        inputs.append(layer._held(_ZERO_POINT))
    axis = 0 if layer._form.group_size is not None else layer._form.axis
    attributes: dict[str, Any] = {"axis": axis} if inputs[1].dim() else {}
    return symbolic("DequantizeLinear", inputs, attributes, dtype=torch.float32, shape=list(codes.shape), version=21)


def _weight(layer: Any, codes: Tensor, dtype: torch.dtype) -> Tensor:
    as_weights = layer._held(_SCALE) is not None and dtype != torch.float64
    made = _dequantized(layer, codes, as_weights)
    if not as_weights:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        made = layer._law(0, layer._form.shape[0], wide).numbers(made.to(wide))
    return made.reshape(layer._form.shape).to(dtype)


def _forward(layer: Any, name: str, input: Tensor) -> Tensor:
    codes, bias, quantizer = layer._held(name), layer._parameters.get("bias"), layer.input_quantizer
    x = input if quantizer is None else quantizer(input)
    if _of_signs(layer):
        out = _product_of_signs(layer, x, codes, bias)
    else:
        out = layer._product(x, _weight(layer, codes, x.dtype), bias)
    return layer._scaled(out) if layer._folded else out  # type: ignore[no-any-return]


def _product_of_signs(layer: Any, x: Tensor, codes: Tensor, bias: Tensor | None) -> Tensor:
    """As counted bits give it: an integer times the factor, plus the bias, each rounded in the arithmetic."""
    wide = torch.promote_types(x.dtype, torch.float32)
    signs = _dequantized(layer, codes, as_weights=False).to(wide)
    beside = (-1, *[1] * (signs.dim() - 2))
    out = layer._product(x.to(wide), signs, None)
    factor = layer._held("scale")
    if factor is not None:
        out = out * factor.to(x.dtype).to(wide).reshape(beside)
    if bias is not None:
        out = out + bias.to(wide).reshape(beside)
    return out.to(x.dtype)  # type: ignore[no-any-return]
