"""Fake kernels of pack_codes and unpack_codes."""

from __future__ import annotations

import torch
from torch import Tensor

from ste_ops._functions.base import fake


@fake("pack_codes")
def _(q: Tensor, values: Tensor, scale: Tensor | None, inner: int, bits: int) -> Tensor:
    in_byte, in_run = 8 // bits, 512 // q.element_size()
    size = (q.numel() + in_byte - 1) // in_byte + (q.numel() + in_run - 1) // in_run
    return q.new_empty(size, dtype=torch.uint8)


@fake("unpack_codes")
def _(codes: Tensor, values: Tensor, scale: Tensor | None, inner: int, bits: int, out: Tensor) -> None:
    pass
