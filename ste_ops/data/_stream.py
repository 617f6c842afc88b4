"""The streams that samplers read: any stretch of an epoch, from its seed alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from ste_ops._library import ops
from ste_ops._random import MASK64, random_bits
from ste_ops.functional.sampling.alias import AliasTable

Stream = Callable[[int, int, int], Tensor]
"""`stream(start, count, stride)` gives draws number start, start + stride, ... of it."""


def endless(table: AliasTable, seed: int) -> Stream:
    """Draws with replacement: O(count) wherever the stretch lies."""
    key = torch.full((1,), seed, dtype=torch.int64, device=table.device)
    return lambda start, count, stride: table.sample_at(key, start, count, stride)


def ordered(weights: Tensor, num_samples: int, seed: int) -> Stream:
    """Draws without replacement. Each depends on those before it, so the whole order is found at once."""
    key = torch.full((1,), seed, dtype=torch.int64, device=weights.device)
    order = ops.multinomial_without_replacement(weights, key, num_samples, "multinomial")
    return lambda start, count, stride: order[start : start + count * stride : stride]


@cache
def _sixteen_bits() -> AliasTable:
    return AliasTable(torch.ones(2**16, dtype=torch.float64))


def uniform(seed: int) -> Stream:
    """Multiples of 2^-48 in [0, 1), float64. Times an integer below 2^40 they stay below it when rounded."""
    table = _sixteen_bits()

    def stretch(start: int, count: int, stride: int) -> Tensor:
        assert stride == 1
        words = table.sample_at(seed, 3 * start, 3 * count).view(-1, 3).numpy()
        return torch.from_numpy((words[:, 0] << 32 | words[:, 1] << 16 | words[:, 2]) * 2.0**-48)

    return stretch


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for each epoch, such that no sum of the two gives the same epoch twice."""
    return random_bits(seed & MASK64, MASK64, epoch)[0] >> 1


def fingerprint(numbers: Tensor) -> str:
    """Equal where the numbers are, whatever device holds them."""
    return hashlib.blake2b(numbers.detach().cpu().contiguous().numpy().data, digest_size=8).hexdigest()
