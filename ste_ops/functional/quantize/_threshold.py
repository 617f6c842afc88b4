"""The step of a norm as one comparison for each channel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def beyond(x: Tensor, direction: Tensor, threshold: Tensor, low: int) -> Tensor:
    """1 where ``x * direction >= threshold`` of the channel (dimension 1), and `low` elsewhere and at NaN."""
    shape = (1, -1, *[1] * (x.dim() - 2))
    above = x * direction.reshape(shape) >= threshold.reshape(shape)
    return torch.where(above, 1.0, float(low)).to(x.dtype)


def found(holds: Callable[[Tensor], Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """Of a condition that is monotone in every channel: direction and threshold with which `beyond` is that condition.

    `holds` takes a number for each channel, of the dtype of `like`, which has a channel an element. Bisected over all
    floats, so that it is right for each of them, infinities too.
    """
    above, below = holds(like.new_full(like.shape, torch.inf)), holds(like.new_full(like.shape, -torch.inf))
    zero = holds(torch.zeros_like(like))
    one = torch.ones_like(like)
    # The same at both ends: constant, but that a norm with a factor of 0 makes NaN of an infinity, as 0 * x does.
    direction = torch.where(above == below, torch.where(above, one, 0.0), torch.where(above, one, -1.0))
    constant = torch.where(above, -torch.inf, torch.where(zero, 0.0, one))
    largest = _index(like.new_full((), torch.inf))
    low, high = (torch.full(like.shape, bound, dtype=torch.int64, device=like.device) for bound in (-largest, largest))
    for _ in range(like.element_size() * 8 + 1):  # it fails at low and holds at high
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        right = holds(_float(middle, like) * torch.where(direction == 0, one, direction))
        low, high = torch.where(right, low, middle), torch.where(right, middle, high)
    threshold = torch.where(above == below, constant.to(like.dtype), _float(high, like))
    return direction, threshold


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _index(x: Tensor) -> int:
    """Of a number >= 0 its place among the floats."""
    return int(x.view(_INTEGERS[x.element_size()]))


def _float(index: Tensor, like: Tensor) -> Tensor:
    """The floats at these places, in ascending order; 0 is both zeros."""
    size = index.abs().to(_INTEGERS[like.element_size()]).view(like.dtype)
    return torch.where(index < 0, -size, size)
