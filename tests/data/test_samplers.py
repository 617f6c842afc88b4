"""The samplers under DataLoader, and the weights that balance a set."""

from __future__ import annotations

import copy
import tracemalloc
from itertools import islice

import pytest
import torch
from support.chi_square import fits
from support.samplers import seeded
from torch.utils.data import BatchSampler, DataLoader, Subset, TensorDataset
from torch.utils.data import WeightedRandomSampler as TorchSampler

from ste_ops.data import WeightedRandomSampler, class_weights


def test_imbalanced_labels_come_out_even(device: str) -> None:
    labels = torch.tensor([0] * 900 + [1] * 100)
    weights = class_weights(labels)[labels].to(device)
    drawn = labels[list(WeightedRandomSampler(weights, 20_000, generator=torch.Generator(device).manual_seed(1)))]
    assert fits(drawn, torch.tensor([0.5, 0.5]))
    unweighted = labels[list(WeightedRandomSampler([1.0] * 1000, 20_000, generator=seeded(1)))]
    assert not fits(unweighted, torch.tensor([0.5, 0.5]))


def test_draws_follow_weights(device: str) -> None:
    sampler = WeightedRandomSampler([0.1, 0.9, 0.4, 0.0, 3.0], 40_000)
    assert fits(torch.tensor(list(sampler)), torch.tensor([0.1, 0.9, 0.4, 0.0, 3.0]))


def test_an_epoch_is_fixed_by_its_generator() -> None:
    sampler = WeightedRandomSampler(torch.rand(100), 50_000, generator=seeded(4))
    first, second = list(sampler), list(sampler)
    assert len(first) == len(sampler) == 50_000
    assert all(type(i) is int for i in first[:3])
    assert first != second
    again = WeightedRandomSampler(sampler.weights, 50_000, generator=seeded(4))
    assert list(again) == first
    assert list(again) == second
    torch.manual_seed(7)
    default = list(WeightedRandomSampler(torch.rand(100), 10))
    torch.manual_seed(7)
    assert list(WeightedRandomSampler(torch.rand(100), 10)) == default


def test_chunks_do_not_show() -> None:
    sampler = WeightedRandomSampler(torch.rand(100), 40_000, generator=seeded(4))
    shorter = WeightedRandomSampler(sampler.weights, 17_000, generator=seeded(4))
    assert list(islice(sampler, 17_000)) == list(shorter)


def test_memory_does_not_grow_with_the_epoch() -> None:
    sampler = WeightedRandomSampler(torch.rand(10), 10**12, generator=seeded())
    iterator = iter(sampler)
    next(iterator)
    tracemalloc.start()
    for _ in islice(iterator, 100_000):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * 2**20


@pytest.mark.parametrize("workers", [0, 2])
def test_under_dataloader(workers: int) -> None:
    dataset = TensorDataset(torch.arange(1000))
    sampler = WeightedRandomSampler(torch.arange(1000.0), 640, generator=seeded(2))
    loader = DataLoader(dataset, batch_size=64, sampler=sampler, num_workers=workers, drop_last=True)
    drawn = torch.cat([batch for (batch,) in loader])
    expected = list(WeightedRandomSampler(torch.arange(1000.0), 640, generator=seeded(2)))
    assert drawn.tolist() == expected


def test_under_batch_sampler() -> None:
    dataset = Subset(TensorDataset(torch.arange(100)), range(50))
    sampler = WeightedRandomSampler(torch.ones(50), 95, generator=seeded(2))
    loader = DataLoader(dataset, batch_sampler=BatchSampler(sampler, 10, drop_last=False))
    assert [len(batch) for (batch,) in loader] == [10] * 9 + [5]


def test_sampler_is_copied_with_its_state() -> None:
    sampler = WeightedRandomSampler(torch.rand(20), 30, generator=seeded(3))
    assert list(copy.deepcopy(sampler)) == list(sampler)


@pytest.mark.parametrize(
    "arguments",
    [
        ([1.0], 0),
        ([1.0], -1),
        ([1.0], True),
        ([1.0], 1.5),
        ([1.0], 1, "yes"),
        ([[1.0]], 1),
    ],
)
def test_argument_errors_are_torchs(arguments: tuple) -> None:
    with pytest.raises(ValueError) as theirs:  # noqa: PT011  the message is compared below
        TorchSampler(*arguments)
    with pytest.raises(ValueError) as ours:  # noqa: PT011
        WeightedRandomSampler(*arguments)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("weights", [[1.0, -1.0], [float("nan")], [float("inf")], [0.0, 0.0], []])
def test_bad_weights_are_refused_when_made(device: str, weights: list[float]) -> None:
    with pytest.raises(ValueError, match="WeightedRandomSampler: weights must"):
        WeightedRandomSampler(weights, 1)


def test_without_replacement() -> None:
    weights = torch.rand(40_000)
    weights[::4] = 0
    sampler = WeightedRandomSampler(weights, 30_000, replacement=False, generator=seeded(1))
    drawn = list(sampler)
    assert sorted(drawn) == weights.nonzero().flatten().tolist()
    again = WeightedRandomSampler(weights, 30_000, replacement=False, generator=seeded(1))
    assert list(again) == drawn
    assert list(again) != drawn
    with pytest.raises(ValueError, match="num_samples must be at most 30000, the number of positive weights"):
        WeightedRandomSampler(weights, 30_001, replacement=False)


def test_class_weights() -> None:
    labels = torch.tensor([0, 0, 0, 2, 2, 2, 2, 2, 2])
    weights = class_weights(labels)
    torch.testing.assert_close(weights, torch.tensor([1.5, 0.0, 0.75], dtype=torch.float64))
    assert weights[labels].mean() == 1
    assert torch.equal(class_weights(labels.tolist()), weights)
    assert torch.equal(class_weights(labels.to(torch.uint8)), weights)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "not empty"),
        ([[1]], r"1-D and not empty, got shape \(1, 1\)"),
        ([0.5], "integers, got torch.float32"),
        ([1, -1], ">= 0, got -1"),
    ],
)
def test_bad_labels_are_refused(labels: list, message: str) -> None:
    with pytest.raises(ValueError, match="class_weights: labels must be .*" + message):
        class_weights(labels)
