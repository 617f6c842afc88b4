"""Functions and fake kernels of pack_bits and unpack_bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ste_ops._functions.base import NativeFunction, fake, inverse, memory_order
from ste_ops._library import ops


def packed_size(numbers: int) -> int:
    return (numbers + 7) // 8


@fake("pack_bits")
def _(x: Tensor, dim: int) -> Tensor:
    sizes = list(x.shape)
    sizes[dim] = packed_size(sizes[dim])
    return x.new_empty(sizes, dtype=torch.uint8)


@fake("unpack_bits")
def _(bits: Tensor, dim: int, out: Tensor) -> None:
    pass


def pack(x: Tensor, dim: int) -> Tensor:
    order = memory_order(x)
    if order is None:
        return ops.pack_bits(x, dim)
    return ops.pack_bits(x.permute(order).contiguous(), order.index(dim)).permute(inverse(order))


def unpack(bits: Tensor, size: int, dim: int, dtype: torch.dtype) -> Tensor:
    order = memory_order(bits) or list(range(bits.dim()))
    bits = bits.permute(order).contiguous()
    sizes = list(bits.shape)
    sizes[order.index(dim)] = size
    out = bits.new_empty(sizes, dtype=dtype)
    ops.unpack_bits(bits, order.index(dim), out)
    return out.permute(inverse(order))


class PackBits(NativeFunction):
    """`forward(x, dim) -> bits`, in x's order of dimensions in memory."""

    @staticmethod
    def forward(x: Tensor, dim: int) -> Tensor:
        return pack(x, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[None, None]:
        return None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], x: Tensor, dim: int) -> tuple[Tensor, int]:
        return PackBits.apply(x.movedim(in_dims[0], 0), dim + 1), 0


class UnpackBits(NativeFunction):
    """`forward(bits, size, dim, dtype) -> x` of +1 and -1, in the bits' order of dimensions in memory."""

    @staticmethod
    def forward(bits: Tensor, size: int, dim: int, dtype: torch.dtype) -> Tensor:
        return unpack(bits, size, dim, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[None, ...]:
        return None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, bits: Tensor, size: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, int]:
        return UnpackBits.apply(bits.movedim(in_dims[0], 0), size, dim + 1, dtype), 0
