"""What the Functions of the quantizers share: masks, also under vmap, and the batch rules of elementwise operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ste_ops._functions.base import inverse, memory_order
from ste_ops._functions.binarize import mask_gradient


def mask_bytes(numel: int) -> int:
    return (numel + 7) // 8


def new_mask(x: Tensor) -> Tensor:
    """For fake kernels: one bit an element."""
    return x.new_empty(mask_bytes(x.numel()), dtype=torch.uint8)


def unpacked(mask: Tensor, shape: torch.Size, order: list[int] | None) -> Tensor:
    """A packed mask as a bool tensor of that shape, `order` being the memory order that it was packed in; a bool mask
    as it is."""
    if mask.dtype == torch.bool:
        return mask
    places = torch.arange(8, dtype=torch.uint8, device=mask.device)
    flat = (mask.unsqueeze(-1) >> places).bitwise_and(1).bool().flatten()[: shape.numel()]
    if order is None:
        return flat.view(shape)
    return flat.view([shape[d] for d in order]).permute(inverse(order))


def as_bool(mask: Tensor, like: Tensor) -> Tensor:
    """A packed mask as a bool tensor of `like`'s shape, `like` being the tensor in whose memory order it was packed.

    What a vmap rule saves in the place of the packed mask, because a bool mask is batched, sliced and differentiated by
    torch itself. A mask that is bool already (the rule inside was batched too) stays.
    """
    return unpacked(mask, like.shape, memory_order(like))


def masked(grad: Tensor, mask: Tensor, order: list[int] | None) -> Tensor:
    """`grad` where the mask, packed in the memory order `order` or bool, has a one; 0 elsewhere."""
    if mask.dtype == torch.bool:
        return torch.where(mask, grad, 0.0)
    return mask_gradient(grad, mask, order)


def batch_first(x: Tensor, dim: int | None, size: int) -> Tensor:
    """A tensor of a vmap rule with its batch as dimension 0, whether it has one or not."""
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def fold_channels(x: Tensor, axis: int) -> Tensor:
    """A batch of tensors, the batch first, as (batch * channels, rest): one group in each row.

    `axis` is the channels' in a sample, or -1 where a sample is one group.
    """
    if axis < 0:
        return x.reshape(x.shape[0], x[0].numel() if x.shape[0] else 0)
    channels_first = x.movedim(axis + 1, 1)
    rows = x.shape[0] * channels_first.shape[1]
    return channels_first.reshape(rows, x.numel() // rows if rows else 0)


def unfold_channels(rows: Tensor, shape: torch.Size, axis: int) -> Tensor:
    """The inverse of `fold_channels`, `shape` being that of the batch."""
    if axis < 0:
        return rows.reshape(shape)
    channels_first = [shape[0], shape[axis + 1], *shape[1 : axis + 1], *shape[axis + 2 :]]
    return rows.reshape(channels_first).movedim(1, axis + 1)


def new_tangent(tangent: Tensor | None) -> Any:
    """Forward-mode AD does not take its input back as the tangent of another output."""
    return None if tangent is None else tangent.view_as(tangent)
