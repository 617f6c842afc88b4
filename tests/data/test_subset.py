"""Weights and labels of a whole dataset, given for a Subset of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Sampler, Subset, TensorDataset

from ste_ops.data import (
    ClassBalancedBatchSampler,
    DistributedWeightedSampler,
    MPerClassBatchSampler,
    WeightedBatchSampler,
    WeightedRandomSampler,
    class_weights,
)

LABELS = torch.arange(100) % 2
WEIGHTS = class_weights(LABELS)[LABELS]
WHOLE = TensorDataset(torch.arange(100))
PART = Subset(WHOLE, range(50, 80))

OVER_WEIGHTS = {
    "sampler": lambda w: {"sampler": WeightedRandomSampler(w, 500), "batch_size": 10},
    "without": lambda w: {"sampler": WeightedRandomSampler(w, 20, replacement=False)},
    "one by one": lambda w: {"sampler": WeightedRandomSampler(w, 500), "batch_size": None},
    "ranks": lambda w: {"sampler": DistributedWeightedSampler(w, 500, 2, 1)},
    "batches": lambda w: {"batch_sampler": WeightedBatchSampler(w, 10)},
    "batched": lambda w: {"batch_sampler": BatchSampler(WeightedRandomSampler(w, 500), 10, False)},
}
OVER_LABELS = {
    "m": lambda y: {"batch_sampler": MPerClassBatchSampler(y, 4)},
    "balanced": lambda y: {"batch_sampler": ClassBalancedBatchSampler(y, 10)},
}


@pytest.mark.parametrize("make", OVER_WEIGHTS.values(), ids=OVER_WEIGHTS)
def test_weights_of_the_whole_set(make: Any) -> None:
    message = r": weights must be as many as the Subset has samples, 30, got 100; .* take weights\[subset.indices\]$"
    loader = DataLoader(PART, **make(WEIGHTS))
    for _ in range(2):
        with pytest.raises(IndexError, match=message):
            next(iter(loader))
    weights = WEIGHTS[PART.indices]
    assert len(next(iter(DataLoader(PART, **make(weights))))) > 0
    # None of the part has an index beyond it, whatever the sampler was made for.
    assert len(next(iter(DataLoader(PART, **make(torch.cat([weights, torch.zeros(70)])))))) > 0


@pytest.mark.parametrize("make", OVER_LABELS.values(), ids=OVER_LABELS)
def test_labels_of_the_whole_set(make: Any) -> None:
    message = r": labels must be as many as the Subset has samples, 30, got 100; .* take labels\[subset.indices\]$"
    with pytest.raises(IndexError, match=message):
        next(iter(DataLoader(PART, **make(LABELS))))
    assert len(next(iter(DataLoader(PART, **make(LABELS[PART.indices]))))) > 0


def test_it_is_refused_before_a_worker_fails() -> None:
    loader = DataLoader(PART, 10, sampler=WeightedRandomSampler(WEIGHTS, 500), num_workers=1)
    with pytest.raises(IndexError, match=r"^WeightedRandomSampler: weights must be as many"):
        next(iter(loader))


class Halved(Sampler[int]):
    """Means something else by the indices than the dataset does."""

    def __init__(self, inner: Sampler[int]) -> None:
        self.inner = inner

    def __iter__(self) -> Iterator[int]:
        for index in self.inner:
            yield index // 4


class Around(Subset):
    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index % len(self))

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices]


def test_other_meanings_of_an_index_are_let_be() -> None:
    sampler = WeightedRandomSampler(WEIGHTS, 100)
    assert len(list(DataLoader(PART, sampler=Halved(sampler)))) == 100
    assert len(list(DataLoader(Around(WHOLE, range(50, 80)), sampler=sampler))) == 100
    assert len(list(DataLoader(WHOLE, sampler=sampler))) == 100
    assert len(list(sampler)) == 100
