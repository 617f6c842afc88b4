"""Epochs of dataset indices against torch's samplers, and what an epoch holds in memory."""

from __future__ import annotations

import tracemalloc
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np
import torch
from torch.utils.data import BatchSampler
from torch.utils.data import WeightedRandomSampler as TorchSampler

import ste_ops
from benchmarks.measure import Count, Row

BATCH = 256


def epoch(sampler: Iterable[object]) -> Callable[[], object]:
    """Reads all of it and keeps nothing."""
    return lambda: deque(sampler, maxlen=0)


def first(sampler: Iterable[object]) -> Callable[[], object]:
    return lambda: next(iter(sampler))


def growth(sampler: Iterable[object], few: int, many: int) -> float:
    """Peak bytes of Python objects while `many` items are read, over those while `few` are."""
    peaks = []
    for count in (few, many):
        tracemalloc.start()
        deque(islice(sampler, count), maxlen=0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return peaks[1] / peaks[0]


class ClassByClass:
    """What pytorch-metric-learning's MPerClassSampler does."""

    def __init__(self, labels: torch.Tensor, m: int, batch_size: int, num_batches: int) -> None:
        self.members = [(labels == label).nonzero().flatten().numpy() for label in labels.unique()]
        self.m, self.classes, self.num_batches = m, batch_size // m, num_batches
        self.random = np.random.default_rng(0)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(len(self.members)))
        for _ in range(self.num_batches):
            self.random.shuffle(order)
            chosen = (self.members[label] for label in order[: self.classes])
            yield np.concatenate([self.random.choice(of, self.m, replace=False) for of in chosen]).tolist()


def rows(device: str, quick: bool) -> Iterator[Row | Count]:
    count = 10**4 if quick else 10**6
    for categories in (count // 100, count):
        weights = torch.rand(categories, device=device)
        ours, theirs = ste_ops.data.WeightedRandomSampler(weights, count), TorchSampler(weights, count)
        work = f"an epoch of {count} indices, {categories} weights"
        yield Row(work, "torch's sampler", epoch(ours), epoch(theirs), 3, at_most=False, rounds=5)
        batches = BatchSampler(theirs, BATCH, drop_last=False)
        for as_tensors in (False, True):
            whole = ste_ops.data.WeightedBatchSampler(weights, BATCH, count, as_tensors=as_tensors)
            yield Row(
                f"{work}, in batches of {BATCH}{', as tensors' if as_tensors else ''}",
                "BatchSampler(torch's sampler)",
                epoch(whole),
                epoch(batches),
                10,
                at_most=False,
                rounds=5,
            )
    many = 10 * count
    weights = torch.rand(count, device=device)
    yield Row(
        f"first index of an epoch of {many}, {count} weights",
        "torch's sampler",
        first(ste_ops.data.WeightedRandomSampler(weights, many)),
        first(TorchSampler(weights, many)),
        10,
        at_most=False,
        rounds=3,
    )
    shares = [ste_ops.data.DistributedWeightedSampler(weights, count, ranks, 0) for ranks in (1, 4)]
    yield Row(
        f"a rank of 4, an epoch of {count} indices",
        "the only rank",
        epoch(shares[1]),
        epoch(shares[0]),
        3,
        at_most=False,
        rounds=5,
    )
    few = count // 10
    yield Count(
        f"peak of Python's memory, {count} indices of an epoch of 10^12",
        f"the first {few}",
        growth(ste_ops.data.WeightedRandomSampler(weights, 10**12), few, count),
        1.05,
    )
    labels, batches_of_classes = torch.arange(count) % 100, 64
    yield Row(
        f"{batches_of_classes} batches of 64 classes, 4 samples each, of {count} samples in 100 classes",
        "numpy, class by class",
        epoch(ste_ops.data.MPerClassBatchSampler(labels, 4, BATCH, batches_of_classes)),
        epoch(ClassByClass(labels, 4, BATCH, batches_of_classes)),
        10,
        at_most=False,
        rounds=5,
    )
