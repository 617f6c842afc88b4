"""The places of the largest in the windows of a max-pool: 4 bits of each, where torch keeps an index of 64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ste_ops.functional.quantize._codes import MOST_BITS, Codes, Grid, pack


def _pair(value: Any) -> tuple[int, int]:
    numbers = [value] if isinstance(value, int) else [*value]
    return int(numbers[0]), int(numbers[-1])


class Windows:
    """The windows of ``max_pool2d_with_indices(x, kernel_size, stride, padding, dilation, ceil_mode)``.

    An index counts the elements of an image before it; from that of the window's first element, which may lie in the
    padding, it is one of as many distances as the window has places.
    """

    def __init__(self, x: Tensor, kernel_size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, *_: Any):
        self._kernel, self._padding, self._dilation = _pair(kernel_size), _pair(padding), _pair(dilation)
        self._stride = _pair(stride or kernel_size)
        self._width = x.shape[-1]

    def pack(self, indices: Tensor) -> Places | None:
        """None where a window has more places than codes tell apart."""
        rows, columns = (torch.arange(n, device=indices.device) for n in self._kernel)
        rows, columns = rows * self._dilation[0], columns * self._dilation[1]
        distances = (rows[:, None] * self._width + columns).flatten()
        if distances.numel() > 2**MOST_BITS or self._width < self._kernel[1] * self._dilation[1]:
            return None  # of narrow images two places have one distance
        codes = pack((indices - self._firsts(indices)).to(torch.float32), Grid(distances.to(torch.float32)))
        return None if codes is None else Places(self, codes)

    def _firsts(self, indices: Tensor) -> Tensor:
        """The index of each window's first element."""
        rows, columns = (
            torch.arange(indices.shape[dim], device=indices.device) * self._stride[dim] - self._padding[dim]
            for dim in (-2, -1)
        )
        return rows[:, None] * self._width + columns


class Places:
    """What `Windows.pack` made of indices."""

    __slots__ = ("_codes", "_windows")

    def __init__(self, windows: Windows, codes: Codes) -> None:
        self._windows, self._codes = windows, codes

    @property
    def nbytes(self) -> int:
        return self._codes.nbytes

    def unpack(self) -> Tensor:
        distances = self._codes.unpack().to(torch.int64)
        return distances.add_(self._windows._firsts(distances))
