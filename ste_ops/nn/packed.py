"""The layers that `pack_` makes: weights in 1, 2, 4 or 8 bits, from which they compute what the trained layers do."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ste_ops._fx import one_node
from ste_ops.functional.quantize._codes import bytes_for, numbers_of
from ste_ops.functional.quantize._law import Law
from ste_ops.nn._binary import Product, times_factor
from ste_ops.nn._counted import counted, may_count, panels_of
from ste_ops.nn._signs import reads
from ste_ops.nn.codes import name_of
from ste_ops.nn.layers import Quantize

VERSION = 1
# Of weights four times as large so many are unpacked at a time: memory of that size is new to the process in every
# forward, which takes three times as long, and rows in tiles of this size sum as in the whole (tests/nn/test_pack.py).
TILE = 1 << 20
_ROWS = 128


@dataclass(frozen=True)
class Form:
    """What of the weights is no tensor: the same for every model that one code makes."""

    shape: tuple[int, ...]
    low: int
    high: int
    stride: int = 1
    steps: int = 0
    span: int = 1
    axis: int | None = None
    group_size: int | None = None

    @property
    def bits(self) -> int:
        needed = ((self.high - self.low) // self.stride).bit_length()
        return next(bits for bits in (1, 2, 4, 8) if bits >= needed)

    def numbers(self) -> tuple[int, ...]:
        """As the state holds them: a version first."""
        rest = (self.low, self.high, self.stride, self.steps, self.span)
        return VERSION, self.bits, *rest, -1 if self.axis is None else self.axis, self.group_size or 0, *self.shape


class PackedLayer(nn.Module):
    """Base of the packed layers, which `pack_` makes; for inference alone.

    The `state_dict` holds plain tensors: ``codes``, bytes in which the weights lie in row-major order, the first in the
    lowest bits; ``scale``, and ``zero_point`` and ``offset`` where the quantizer has them; ``format``, integers that
    say version, bits and shape; ``bias``, and what the input quantizer has.
    """

    codes: Tensor
    format: Tensor
    panels: Tensor | None
    output_scale: Tensor
    output_bias: Tensor
    input_quantizer: Quantize | None
    _form: Form
    _of_signs: bool  # the weights, times a factor or not
    _folded: bool
    _names = ("scale", "zero_point", "offset")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError(f"{type(self).__name__}: pack_ makes it of a trained layer; it has no constructor of its own")

    def unpacked(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weights that the layer computes with, by default in the dtype of the scale."""
        held = self._held("scale")
        dtype = dtype or (torch.float32 if held is None else held.dtype)
        return self._rows(0, self._form.shape[0], dtype)

    def _count(self) -> None:
        """Makes of the codes what products of signs read, where the weights and the input are binary."""
        form, scale = self._form, self._held("scale")
        signs = (form.low, form.high, form.stride, form.group_size) == (-1, 1, 2, None) and form.axis in (0, None)
        signs = signs and (scale is None or scale.numel() in (1, form.shape[0]))
        self._of_signs = signs
        panels = None
        if signs and len(form.shape) < 5 and reads(self.input_quantizer) is not None and not self.codes.is_meta:
            panels = panels_of(self, self._integers())
        self.register_buffer("panels", panels, persistent=False)

    def _levels(self, wide: torch.dtype) -> Tensor:
        form = self._form
        return torch.arange(form.low, form.high + 1, form.stride, dtype=wide, device=self.codes.device)

    def _integers(self, dtype: torch.dtype = torch.float32) -> Tensor:
        form = self._form
        return numbers_of(self.codes, math.prod(form.shape), self._levels(dtype), form.bits, dtype).reshape(form.shape)

    def _held(self, name: str) -> Tensor | None:
        return self._buffers.get(name)

    def _rows(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        form, wide = self._form, torch.float64 if dtype == torch.float64 else torch.float32
        members = math.prod(form.shape[1:])
        codes, shape = self.codes, (end - begin, *form.shape[1:])
        if end - begin != form.shape[0]:
            codes = codes[bytes_for(begin * members, form.bits) : bytes_for(end * members, form.bits)]
        levels = self._levels(wide)
        law = self._law(begin, end, wide)
        held = [p for p in (law.scale, law.zero_point, law.offset) if p is not None]
        numel = (end - begin) * members
        if all(p.numel() == 1 for p in held):
            return numbers_of(codes, numel, law.numbers(levels), form.bits, dtype).reshape(shape)
        if law.scale is not None and law.zero_point is None and law.offset is None:
            inner = members if form.axis == 0 else math.prod(form.shape[(form.axis or -1) + 1 :])
            inner = form.group_size or (form.shape[-1] if form.axis is None else inner)
            return numbers_of(codes, numel, levels, form.bits, dtype, law.scale, inner).reshape(shape)
        rows = numbers_of(codes, numel, levels, form.bits, wide)
        rows = rows.reshape(shape if form.group_size is None else (-1, form.group_size))
        return law.numbers(rows).reshape(shape).to(dtype)

    def _law(self, begin: int, end: int, wide: torch.dtype) -> Law:
        form, held = self._form, {}
        for name in self._names:
            tensor = self._held(name)
            if tensor is not None and tensor.numel() > 1 and end - begin != form.shape[0] and form.axis in (0, None):
                tensor = tensor.reshape(form.shape[0], -1)[begin:end].reshape(-1)
            held[name] = None if tensor is None else tensor.to(wide)
        steps = form.steps or None
        axis = 0 if form.group_size is not None else form.axis
        return Law(form.low, form.high, axis=axis, steps=steps, span=form.span, stride=form.stride, **held)

    def _tiles(self) -> Iterator[tuple[int, int]]:
        """Of the output channels those that are computed together."""
        rows, members = self._form.shape[0], max(math.prod(self._form.shape[1:]), 1)
        each = max(TILE // members // _ROWS * _ROWS, _ROWS)
        count = rows // each if rows * members >= 4 * TILE and getattr(self, "groups", 1) == 1 else 1
        for i in range(max(count, 1)):
            yield i * each, rows if i + 1 >= count else (i + 1) * each

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _channels(self) -> int:
        """Their dimension in the output, from the end."""
        return -1 - len(getattr(self, "kernel_size", ()))

    @one_node
    def forward(self, input: Tensor) -> Tensor:
        quantizer, bias = self.input_quantizer, self._parameters.get("bias")
        if self.panels is not None and reads(quantizer) is not None and may_count(self, input):
            out = counted(self, input, self._held("scale"), bias)
            return self._scaled(out) if self._folded else out
        x, tiles = input if quantizer is None else quantizer(input), list(self._tiles())
        product: Product = self._product
        if self._of_signs and x.device.type == "cpu" and reads(quantizer) is not None:
            product = functools.partial(times_factor, self._product, factor=self._held("scale") is not None)
        if len(tiles) == 1:
            out = product(x, self._rows(*tiles[0], x.dtype), bias)
        else:
            parts = []
            for begin, end in tiles:
                part = None if bias is None else bias[begin:end]
                parts.append(product(x, self._rows(begin, end, x.dtype), part))
            out = torch.cat(parts, self._channels())
        return self._scaled(out) if self._folded else out

    def _scaled(self, out: Tensor) -> Tensor:
        shape = (-1, *[1] * (-1 - self._channels()))
        scale, bias = self.output_scale.reshape(shape), self.output_bias.reshape(shape)
        return torch.addcmul(bias, out, scale).to(out.dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        errors: list[str] = args[4]
        wrong = self._wrong(state_dict, prefix)
        if wrong is None:
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
            self._count()
        else:
            errors.append(f"{type(self).__name__} {prefix.rstrip('.')!r}: {wrong}")

    def _wrong(self, state_dict: dict[str, Any], prefix: str) -> str | None:
        """What of a state does not fit, in words."""
        found, codes, own = state_dict.get(prefix + "format"), state_dict.get(prefix + "codes"), self._form.numbers()
        if found is None or codes is None:
            return "the state must have the format and codes of a packed layer, got one of a layer that is not packed"
        numbers = tuple(found.tolist()) if found.device.type != "meta" else own
        if numbers[:1] != (VERSION,):
            return f"the state is of format version {numbers[0] if numbers else None}, this ste_ops reads {VERSION}"
        if numbers != own:
            words = "bits, low, high, stride, steps, span, axis, group_size, *shape"
            return f"the state must have ({words}) = {own[1:]}, got {numbers[1:]}"
        if codes.dtype != torch.uint8 or codes.numel() != bytes_for(math.prod(self._form.shape), self._form.bits):
            expected = bytes_for(math.prod(self._form.shape), self._form.bits)
            return f"codes must be {expected} bytes (uint8), got {codes.numel()} of {codes.dtype}"
        return None

    def extra_repr(self) -> str:
        parts = [super().extra_repr(), f"weight_bits={self._form.bits}"]
        quantizer = self.input_quantizer
        if quantizer is not None and not isinstance(quantizer, nn.Module):
            parts.append(f"input_quantizer={name_of(quantizer)}")
        return ", ".join(parts)


class PackedLinear(PackedLayer, nn.Linear):
    """`QuantLinear` with packed weights; see `PackedLayer`.

    Example:
        >>> import torch, ste_ops
        >>> layer = ste_ops.nn.QuantLinear(64, 32, weight_quantizer=ste_ops.nn.LSQ(4, axis=0)).eval()
        >>> x = torch.randn(3, 64)
        >>> expected = layer(x)
        >>> packed = ste_ops.nn.pack_(layer)
        >>> packed
        PackedLinear(in_features=64, out_features=32, bias=True, weight_bits=4)
        >>> torch.equal(packed(x), expected), packed.codes.numel()
        (True, 1024)
    """

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return nn.functional.linear(x, weight, bias)


class _PackedConv(PackedLayer):
    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer: Any = self
        return layer._conv_forward(x, weight, bias)  # type: ignore[no-any-return]


class PackedConv1d(_PackedConv, nn.Conv1d):
    """`QuantConv1d` with packed weights; see `PackedLayer`."""


class PackedConv2d(_PackedConv, nn.Conv2d):
    """`QuantConv2d` with packed weights; see `PackedLayer`."""


class PackedConv3d(_PackedConv, nn.Conv3d):
    """`QuantConv3d` with packed weights; see `PackedLayer`."""
