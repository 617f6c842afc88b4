"""Fake kernels of the sum tree."""

from __future__ import annotations

import torch
from torch import Tensor

from ste_ops._functions.base import fake

FANOUT = 16


def tree_levels(n: int) -> list[int]:
    """The number of nodes of every level, from the one above n weights to the root."""
    counts = [-(-n // FANOUT)]
    while counts[-1] > 1:
        counts.append(-(-counts[-1] // FANOUT))
    return counts


@fake("sum_tree")
def _(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # As TreeShape of csrc/core/sampling/sum_tree.h: prefix sums and padded values.
    numel = sum(FANOUT * (count + -(-count // FANOUT)) for count in tree_levels(weights.shape[0]))
    nodes, verdict = weights.new_empty(numel, dtype=torch.int64), weights.new_empty((), dtype=torch.int64)
    return weights.new_empty(weights.shape[0]), nodes, verdict


@fake("sum_tree_update_")
def _(weights: Tensor, nodes: Tensor, indices: Tensor, values: Tensor) -> None:
    return None


@fake("sum_tree_sample")
def _(nodes: Tensor, n: int, seed: Tensor, start: int, num_samples: int) -> Tensor:
    return nodes.new_empty(num_samples)
