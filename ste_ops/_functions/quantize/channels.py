"""Samples of a batch as groups of elements that share a parameter: one for each channel, or one a sample (axis -1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ste_ops._functions.mask import from_mask_rows, mask_rows


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


def mask_groups(x: Tensor, axis: int) -> Tensor:
    """`fold_channels` with samples of whole mask bytes: padded by elements of the one group, or by channels."""
    if axis < 0:
        return mask_rows(x)
    if math.prod(x.shape[1:]) % 8:
        x = torch.nn.functional.pad(x.movedim(axis + 1, -1), (0, -x.shape[axis + 1] % 8)).movedim(-1, axis + 1)
    return fold_channels(x, axis).contiguous()


def from_mask_groups(rows: Tensor, shape: torch.Size, axis: int) -> Tensor:
    """The inverse of `mask_groups`. The memory of a sample keeps the order that its mask has, the channels first."""
    if axis < 0:
        return from_mask_rows(rows, shape)
    padded = rows.reshape(shape[0], rows.shape[0] // max(shape[0], 1), rows.shape[1])
    return unfold_channels(padded[:, : shape[axis + 1]].flatten(0, 1), shape, axis)


def per_group(parameter: Tensor, groups: int) -> Tensor:
    """A batch of parameters, one element or one for each channel in a sample, as one for each of the batch's groups."""
    batch = parameter.shape[0]
    channels = groups // max(batch, 1)
    of_sample = parameter.reshape(batch, parameter.numel() // max(batch, 1))
    if of_sample.shape[1] == 1:
        return of_sample.expand(batch, channels).reshape(-1)
    # Channels that pad a sample have a valid scale.
    return torch.nn.functional.pad(of_sample, (0, channels - of_sample.shape[1]), value=1).reshape(-1)


def along(parameter: Tensor, x: Tensor, axis: int) -> Tensor:
    """A parameter of a tensor in a shape that is broadcast to the tensor's."""
    shape = [1] * x.dim()
    if axis >= 0:
        shape[axis] = x.shape[axis]
    return parameter.reshape(shape)
