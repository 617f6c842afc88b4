"""Codes: what a quantizer put out, in 1, 2, 4 or 8 bits an element, from which it comes back bit for bit."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from ste_ops._functions.quantize import codes as codes  # the fake kernels
from ste_ops._functions.tensor_list import is_dense
from ste_ops._library import ops

MOST_BITS = 8


@dataclass(frozen=True)
class Grid:
    """The numbers that a quantizer puts out: `values`, ascending, times the scale of an element's group.

    Groups are the coordinates along `axis`, or with ``axis=None`` the lines along the last dimension, the tokens; both
    need a scale. `values` and `scale` have the dtype of the arithmetic, float64 for float64 and float32 elsewhere.
    """

    values: Tensor
    scale: Tensor | None = None
    axis: int | None = None

    @property
    def bits(self) -> int:
        """The least of 1, 2, 4 and 8 that tells the values apart."""
        needed = (self.values.numel() - 1).bit_length()
        return next(bits for bits in (1, 2, 4, 8) if bits >= needed)

    def inner(self, q: Tensor) -> int | None:
        """The elements of a group that follow each other in q's memory; None where they lie otherwise."""
        if self.scale is None:
            return 1
        if self.axis is not None:
            return max(q.stride(self.axis), 1)
        return q.shape[-1] if q.is_contiguous() and q.dim() > 0 else None


@functools.lru_cache(64)
def _levels(low: int, high: int, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return torch.arange(low, high + 1, dtype=dtype)


def levels_of(x: Tensor, low: int, high: int) -> Tensor | None:
    """The whole numbers from low to high, in the arithmetic on x; None where they are more than codes tell apart."""
    if high - low >= 2**MOST_BITS:
        return None
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if x.device.type == "cpu":
        return _levels(low, high, dtype)
    # What is kept of a device would lie in the memory of the graph, or wait for the stream, that made it first.
    return torch.arange(low, high + 1, dtype=dtype, device=x.device)


def whole_grid(x: Tensor, low: int, high: int, step: int = 1) -> Grid | None:
    """Of the whole numbers from low to high that are a step apart."""
    values = levels_of(x, low, high)
    return None if values is None else Grid(values[::step].contiguous())


class Codes:
    """What `pack` made of a tensor."""

    __slots__ = ("_arguments", "_codes", "_like")

    def __init__(self, packed: Tensor, arguments: tuple[Tensor, Tensor | None, int, int], q: Tensor) -> None:
        self._codes, self._arguments = packed, arguments
        self._like = q.shape, q.stride(), q.dtype, q.device

    @property
    def nbytes(self) -> int:
        return self._codes.numel()

    def unpack(self) -> Tensor:
        shape, stride, dtype, device = self._like
        out = torch.empty_strided(shape, stride, dtype=dtype, device=device)
        ops.unpack_codes(self._codes, *self._arguments, _in_memory(out))
        return out


def pack(q: Tensor, grid: Grid) -> Codes | None:
    """The codes of q; None where an element is none of the grid's numbers, or q has gaps in memory.

    On CUDA, where the host would have to wait for it, such an element becomes NaN, with its neighbours in 512 bytes.
    """
    inner = grid.inner(q)
    if inner is None or q.numel() == 0 or not is_dense(q):
        return None
    arguments = grid.values, grid.scale, inner, grid.bits
    packed = ops.pack_codes(_in_memory(q), *arguments)
    return Codes(packed, arguments, q) if packed.numel() > 0 else None


def _in_memory(x: Tensor) -> Tensor:
    return x.as_strided((x.numel(),), (1,))


def bytes_of(q: Tensor, levels: Tensor, bits: int) -> Tensor:
    """Of numbers that are all among the levels, in row-major order: which ones, a code after the other."""
    codes = ops.pack_codes(q.reshape(-1), levels, None, 1, bits)
    return codes[: bytes_for(q.numel(), bits)].clone() if codes.numel() else codes


def bytes_for(numel: int, bits: int) -> int:
    return (numel * bits + 7) // 8


def numbers_of(
    codes: Tensor,
    numel: int,
    levels: Tensor,
    bits: int,
    dtype: torch.dtype,
    scale: Tensor | None = None,
    inner: int = 1,
) -> Tensor:
    """The levels of codes, times the scale of each `inner` neighbours, which take their turns."""
    out = torch.empty(numel, dtype=dtype, device=codes.device)
    if numel:
        good = codes.new_zeros(-(-numel * out.element_size() // 512))  # no run of them is none of the levels
        ops.unpack_codes(torch.cat([codes, good]), levels, scale, inner, bits, out)
    return out
