"""Batches with a fixed number of samples of a class."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Generator

from ste_ops._checks import MOST
from ste_ops.data._cursor import Plan
from ste_ops.data._draws import CHUNK, check_positive
from ste_ops.data._ranks import RankedBatchSampler, epoch_seed_of, seed_of
from ste_ops.data._stream import Stream, fingerprint, uniform
from ste_ops.data._subset_check import check_subset
from ste_ops.data._subsets import subsets
from ste_ops.data.labels import Labels, as_classes


class _ClassBatchSampler(RankedBatchSampler[list[int]]):
    """Batch number b takes its random numbers from a place of its own in the stream, so any batch can be the first."""

    _read_once = ("labels",)
    _fixed = ("batch_size", "num_batches", "m", "num_replicas", "rank", "seed")
    batch_size: int
    num_batches: int

    def _take_labels(self, labels: Labels, batch_size: int | None, num_batches: int | None) -> int:
        """Returns the number of classes."""
        values = as_classes(self._kind, labels).cpu()
        self._by_class = torch.argsort(values, stable=True)
        self._counts = torch.unique_consecutive(values[self._by_class], return_counts=True)[1]
        self._first = self._counts.cumsum(0) - self._counts
        if batch_size is not None:
            check_positive("batch_size", batch_size)
        if num_batches is not None:
            check_positive("num_batches", num_batches)
        return len(self._counts)

    def _take_length(self, batch_size: int, num_batches: int | None) -> None:
        self.batch_size = batch_size = int(batch_size)
        self.num_batches = max(1, len(self._by_class) // batch_size) if num_batches is None else int(num_batches)
        # A sample takes at most four random numbers, and such a number three draws.
        if self.num_batches > MOST // (12 * batch_size):
            raise ValueError(
                f"{self._kind}: num_batches must be at most {MOST // (12 * batch_size)} for batches of {batch_size}, "
                f"got {self.num_batches}"
            )

    @cached_property
    def _labels(self) -> str:
        return fingerprint(torch.stack([self._first, self._counts])) + fingerprint(self._by_class)

    @property
    def _device(self) -> torch.device:
        return self._by_class.device

    @property
    def _total(self) -> int:
        return self.num_batches

    def _describe(self, source: None) -> dict[str, Any]:
        return {
            "num_samples": len(self._by_class),
            "num_batches": self.num_batches,
            "batch_size": self.batch_size,
            "labels": self._labels,
        }

    def _plan(self, position: int) -> Plan[list[int]]:
        check_subset(self._kind, "labels", len(self._by_class), lambda: len(self._by_class) - 1)
        counts, firsts, by_class = self._counts.numpy(), self._first.numpy(), self._by_class.numpy()
        classes, size = len(counts), self.batch_size
        chosen, least, more = self._shares()
        most = least + (more > 0)
        some = chosen if chosen < classes else 0
        # They choose the classes, then those that have one sample more, then the samples of each.
        numbers = some + more + chosen * most
        left, alone = self._total - position, self.num_replicas == 1
        batch_numbers = self._places(position, left, self._total, 1)
        seed = epoch_seed_of if self._ranked else seed_of

        def draw(stream: Stream, first: int, count: int) -> list[list[int]]:
            if alone:
                drawn = stream((position + first) * numbers, count * numbers, 1)
            else:
                drawn = torch.cat([stream(b * numbers, numbers, 1) for b in batch_numbers(first, count)])
            u = drawn.view(count, numbers).numpy()
            picked = np.broadcast_to(np.arange(classes), (count, classes))
            if some:
                picked = subsets(u[:, :some], np.full(count, classes), np.full(count, chosen))
            shares = np.full((count, chosen), least)
            if more:
                favoured = subsets(u[:, some : some + more], np.full(count, chosen), np.full(count, more))
                np.put_along_axis(shares, favoured, most, axis=1)
            rows, share = picked.reshape(-1), shares.reshape(-1)
            places = subsets(u[:, some + more :].reshape(count * chosen, most), counts[rows], share)
            samples = by_class[firsts[rows][:, None] + places]
            inside = np.arange(most) < share[:, None]
            return samples[inside].reshape(count, size).tolist()

        return Plan(
            position,
            self._own(left),
            self.num_replicas,
            self._total,
            max(1, 2 * CHUNK // (3 * numbers)),
            lambda origin: uniform(seed(origin)),
            draw,
        )

    def _shares(self) -> tuple[int, int, int]:
        """How many classes a batch has, how many samples each of them at least, and how many of them have one more."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self._own(self.num_batches)


class MPerClassBatchSampler(_ClassBatchSampler):
    """Batches of m samples of each of batch_size / m classes, for metric learning: every sample has its positives.

    Each batch takes its classes at random, all sets of them equally likely, then m different samples of each; of a
    class that has fewer than m, samples are drawn with replacement. A class is as likely as any other, however few
    samples it has. Classes without a sample do not count.

    Args:
        labels: that of every sample, a sequence or a 1-D array or tensor: integers from 0, however large, or strings or
            other objects, of which equal ones are a class.
        m: samples of a class in a batch, > 0.
        batch_size: a multiple of m, at most m times the number of classes; default: all of them.
        num_batches: batches in an epoch; default: as many as the samples fill, at least one.
        generator: default: torch's default generator.
        num_replicas, rank, seed: share out the batches among ranks, as in `WeightedBatchSampler`; num_batches is then
            that of all ranks together, and the first batches follow the last where they do not come out even.

    Yields:
        Lists of ints, class after class.

    Raises:
        ValueError: labels are empty, not 1-D, negative, floating or missing (None); or a number is not as said.

    Source: the PK batches of Hermans et al., arXiv:1703.07737; names as in pytorch-metric-learning's
    `MPerClassSampler`, which yields indices one by one.

    Example:
        >>> import torch, ste_ops
        >>> labels = torch.tensor([0] * 50 + [1] * 5 + [2] * 20)
        >>> sampler = ste_ops.data.MPerClassBatchSampler(labels, m=4, batch_size=8)
        >>> batch = next(iter(sampler))
        >>> labels[batch].unique(return_counts=True)[1]
        tensor([4, 4])
    """

    def __init__(
        self,
        labels: Labels,
        m: int,
        batch_size: int | None = None,
        num_batches: int | None = None,
        generator: Generator | None = None,
        *,
        num_replicas: int | None = None,
        rank: int | None = None,
        seed: int | None = None,
    ) -> None:
        check_positive("m", m)
        m = int(m)
        classes = self._take_labels(labels, batch_size, num_batches)
        batch_size = m * classes if batch_size is None else batch_size
        if batch_size % m != 0 or batch_size > m * classes:
            raise ValueError(
                f"MPerClassBatchSampler: batch_size must be a multiple of m = {m} up to {m * classes}, m times the "
                f"number of classes, got {batch_size}"
            )
        self.m = m
        self._take_length(batch_size, num_batches)
        self._take_ranks_if_named(num_replicas, rank, seed, generator)

    def _shares(self) -> tuple[int, int, int]:
        return self.batch_size // self.m, self.m, 0

    def _describe(self, source: None) -> dict[str, Any]:
        return {**super()._describe(source), "m": self.m}


class ClassBalancedBatchSampler(_ClassBatchSampler):
    """Batches that hold every class equally often, however rare it is.

    Each class has batch_size / classes samples in a batch. Where that is no whole number, classes drawn anew for each
    batch have one more than the others; with fewer places than classes, as many classes as there are places have one.
    `WeightedBatchSampler` with `class_weights(labels)[labels]` is balanced on average only.

    Args:
        labels, num_batches, generator, num_replicas, rank, seed: as in `MPerClassBatchSampler`.
        batch_size: > 0.

    Yields:
        Lists of ints, class after class. The samples of a class are different ones unless it has too few.

    Raises:
        ValueError: labels are empty, not 1-D, negative, floating or missing (None); or a number is not positive.

    Example:
        >>> import torch, ste_ops
        >>> labels = torch.tensor([0] * 50 + [1] * 5 + [2] * 20)
        >>> sampler = ste_ops.data.ClassBalancedBatchSampler(labels, batch_size=10)
        >>> sorted(torch.bincount(labels[next(iter(sampler))]).tolist())
        [3, 3, 4]
    """

    def __init__(
        self,
        labels: Labels,
        batch_size: int,
        num_batches: int | None = None,
        generator: Generator | None = None,
        *,
        num_replicas: int | None = None,
        rank: int | None = None,
        seed: int | None = None,
    ) -> None:
        check_positive("batch_size", batch_size)
        self._take_labels(labels, batch_size, num_batches)
        self._take_length(batch_size, num_batches)
        self._take_ranks_if_named(num_replicas, rank, seed, generator)

    def _shares(self) -> tuple[int, int, int]:
        classes = len(self._counts)
        if self.batch_size < classes:
            return self.batch_size, 1, 0
        least, more = divmod(self.batch_size, classes)
        return classes, least, more
