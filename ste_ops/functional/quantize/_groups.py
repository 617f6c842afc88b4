"""Weights in groups that have a scale each: neighbours within an output channel."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ste_ops._checks import checked_integer
from ste_ops._dtensor import is_dtensor
from ste_ops._functions.base import inverse, memory_order


def in_groups(operator: str, w: Tensor, group_size: int, quantize: Callable[[Tensor], Tensor]) -> Tensor:
    """What `quantize` makes of the rows (groups, group_size) of w, in w's shape and order in memory.

    A group is `group_size` neighbours of one output channel (dim 0; a vector is one channel) in row-major order: along
    the input dimension of a linear layer, along (in_channels, *kernel_size) of a convolution.
    """
    if is_dtensor(w):
        return _in_groups_of_ranks(operator, w, group_size, quantize)
    out = quantize(rows_of_groups(operator, w, group_size)).reshape(w.shape)
    order = memory_order(w)
    return out if order is None else out.permute(order).contiguous().permute(inverse(order))


def _in_groups_of_ranks(operator: str, w: Any, group_size: int, quantize: Callable[[Tensor], Tensor]) -> Tensor:
    """Of a DTensor: rows may lie otherwise than w, so the result and, in the backward, the gradient are put back."""
    rows = rows_of_groups(operator, w.redistribute(placements=w.placements), group_size)
    out: Any = quantize(rows).reshape(w.shape)
    return out.redistribute(placements=w.placements)  # type: ignore[no-any-return]


def rows_of_groups(operator: str, w: Tensor, group_size: int) -> Tensor:
    """One group in each row."""
    group_size = checked_integer(operator, "group_size", group_size, 1)
    members = math.prod(w.shape[1:]) if w.dim() > 1 else w.numel()
    if members % group_size:
        raise ValueError(
            f"{operator}: group_size must divide the weights of an output channel, got group_size={group_size} and "
            f"{members} of them in shape {tuple(w.shape)}"
        )
    return w.reshape(w.numel() // group_size, group_size)
