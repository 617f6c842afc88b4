"""Weights in groups that have a scale each: neighbours within an output channel."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from ste_ops._checks import checked_integer
from ste_ops._functions.base import inverse, memory_order


def in_groups(operator: str, w: Tensor, group_size: int, quantize: Callable[[Tensor], Tensor]) -> Tensor:
    """What `quantize` makes of the rows (groups, group_size) of w, in w's shape and order in memory.

    A group is `group_size` neighbours of one output channel (dim 0; a vector is one channel) in row-major order: along
    the input dimension of a linear layer, along (in_channels, *kernel_size) of a convolution.
    """
    out = quantize(rows_of_groups(operator, w, group_size)).reshape(w.shape)
    order = memory_order(w)
    return out if order is None else out.permute(order).contiguous().permute(inverse(order))


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
