"""Quantized weights as others hold them: signed integers of a few bits, and a scale and a zero point of each block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ste_ops.functional.quantize._law import Law


@dataclass(frozen=True)
class Affine:
    """Integers q of ``bits`` bits, signed: ``(q - zero_point) * scale`` are the weights.

    A block is the elements that share a scale and a zero point. These have one dimension for each of the weights, in
    which they are as long as the weights have blocks.
    """

    q: Tensor
    scale: Tensor
    zero_point: Tensor
    bits: int
    block: tuple[int, ...]


def affine(values: Tensor, law: Law, group_size: int | None, at_least: int = 1) -> Affine | str:
    """Of integers in the shape of the weights and of the law of their rows; or why not, in words.

    They have `at_least` so many bits; a zero point other than the law's only where they have no room without.
    """
    if law.steps is not None:
        return f"they are quotients by {law.steps}, which no product with a scale rounds alike"
    if law.offset is not None:
        return "they have an offset beside the scale, which is no whole zero point"
    one = torch.ones(1, dtype=torch.float32, device=values.device)
    rows = values if group_size is None else values.reshape(-1, group_size)
    scale = law.along(one if law.scale is None else law.scale, rows)
    zero = law.along(0 * one if law.zero_point is None else law.zero_point, rows)
    bits, shift = _bits_and_shift(law.low, law.high, at_least)
    if group_size is None:
        # A parameter of one element has one dimension, whatever the weights have.
        scale, zero = (p.reshape([1] * rows.dim()) if p.numel() == 1 else p for p in (scale, zero))
        sizes = zip(values.shape, scale.shape, zero.shape, strict=True)
        block: tuple[int, ...] | None = tuple(n if s == z == 1 else 1 for n, s, z in sizes)
    else:
        block = _block_of_group(tuple(values.shape), group_size)
    if block is None:
        return f"a group of {group_size} is no block of weights of shape {tuple(values.shape)}"
    blocks = [n // size for n, size in zip(values.shape, block, strict=True)]
    scale, zero = (_in_blocks(p, blocks) for p in (scale, zero - shift))
    return Affine((values.int() - shift).to(torch.int8), scale, zero, bits, block)


def _bits_and_shift(low: int, high: int, at_least: int) -> tuple[int, int]:
    """The fewest bits of signed integers that hold the range, and what is taken off an unsigned one for it."""
    signed = max(max(high, 0).bit_length() + 1, max(-low - 1, 0).bit_length() + 1, at_least)
    unsigned = max(high.bit_length() if low >= 0 else signed, at_least)
    return (unsigned, 1 << (unsigned - 1)) if unsigned < signed else (signed, 0)


def _block_of_group(shape: tuple[int, ...], group_size: int) -> tuple[int, ...] | None:
    """A group is neighbours in row-major order: of the last dimensions all, and a part of the one before them."""
    block, left = [], group_size
    for size in reversed(shape):
        if max(left, size) % min(left, size):
            return None
        block.append(min(left, size))
        left = max(left // size, 1)
    return tuple(reversed(block))


def _in_blocks(parameter: Tensor, blocks: list[int]) -> Tensor:
    if parameter.numel() != torch.Size(blocks).numel():
        parameter = parameter.expand(blocks)
    return parameter.reshape(blocks).contiguous()
