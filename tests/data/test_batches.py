"""Batches of indices: whole, in proportion to weights, or with a fixed number of samples of a class."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, islice

import numpy as np
import pytest
import torch
from support.chi_square import fits
from support.samplers import seeded
from torch.utils.data import BatchSampler, DataLoader, Dataset

from ste_ops.data import (
    ClassBalancedBatchSampler,
    MPerClassBatchSampler,
    WeightedBatchSampler,
    WeightedRandomSampler,
)
from ste_ops.data._subsets import FEW, subsets


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("replacement", [True, False])
def test_batches_are_those_of_batch_sampler(device: str, replacement: bool, drop_last: bool) -> None:
    weights = torch.rand(1000, device=device)
    for size, count in ((7, 995), (5, 995), (2000, 995)):
        one_by_one = WeightedRandomSampler(
            weights, count, replacement, generator=torch.Generator(device).manual_seed(1)
        )
        expected = list(BatchSampler(one_by_one, size, drop_last))
        for as_tensors in (False, True):
            generator = torch.Generator(device).manual_seed(1)
            sampler = WeightedBatchSampler(
                weights, size, count, replacement, drop_last, generator, as_tensors=as_tensors
            )
            batches = list(sampler)
            assert all(type(batch) is (torch.Tensor if as_tensors else list) for batch in batches)
            assert [list(map(int, batch)) for batch in batches] == expected
            assert len(sampler) == len(batches)


def test_chunks_do_not_show() -> None:
    batches = list(WeightedBatchSampler(torch.rand(100), 100, 40_050, generator=seeded()))
    assert [len(batch) for batch in batches] == [100] * 400 + [50]


def test_a_tensor_batch_holds_no_more_memory_than_its_own() -> None:
    batch = next(iter(WeightedBatchSampler(torch.rand(100), 10, 1000, as_tensors=True)))
    assert batch.untyped_storage().nbytes() == 80


def test_an_epoch_is_as_long_as_the_weights() -> None:
    assert sum(map(len, WeightedBatchSampler(torch.rand(100), 30))) == 100


class Squares(Dataset):
    """Counts how it is asked."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __getitems__(self, indices: list[int]) -> list[int]:
        self.calls.append(len(indices))
        return [int(i) ** 2 for i in indices]


@pytest.mark.parametrize("as_tensors", [False, True])
def test_a_dataset_gets_a_batch_in_one_call(as_tensors: bool) -> None:
    dataset = Squares()
    sampler = WeightedBatchSampler(torch.rand(50), 8, 20, generator=seeded(), as_tensors=as_tensors)
    loaded = torch.cat(list(DataLoader(dataset, batch_sampler=sampler)))
    assert dataset.calls == [8, 8, 4]
    expected = WeightedRandomSampler(sampler.weights, 20, generator=seeded())
    assert loaded.tolist() == [i**2 for i in expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size should be a positive integer value, but got batch_size=0"),
        ({"batch_size": True}, "batch_size should be a positive integer value, but got batch_size=True"),
        ({"num_samples": 0}, "num_samples should be a positive integer value, but got num_samples=0"),
        ({"num_samples": 2**40 + 1}, r"WeightedBatchSampler: num_samples must be at most 2\*\*40, got 1099511627777"),
        ({"drop_last": 1}, "drop_last should be a boolean value, but got drop_last=1"),
        ({"as_tensors": 1}, "as_tensors should be a boolean value, but got as_tensors=1"),
        ({"replacement": False}, "WeightedBatchSampler: num_samples must be at most 2, the number of positive weights"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightedBatchSampler(**{"weights": [1.0, 0.0, 2.0], "batch_size": 2, **arguments})


@pytest.mark.parametrize("weights", [[1.0, -2.0], [1.0, float("nan")], [2.0, float("-inf")], [0.0, 0.0], []])
def test_weights_are_refused_alike_with_and_without_a_table(weights: list[float]) -> None:
    messages = []
    for replacement in (True, False):
        with pytest.raises(ValueError, match="WeightedBatchSampler: weights must ") as refused:
            WeightedBatchSampler(weights, 1, 1, replacement)
        messages.append(str(refused.value))
    assert messages[0] == messages[1]


# Samples of a class: 0 has two, 1 none, 2 five, 3 and 4 ten.
LABELS = torch.tensor([2] * 5 + [4] * 10 + [0] * 2 + [3] * 10)[torch.randperm(27, generator=seeded())]


def test_m_per_class() -> None:
    sampler = MPerClassBatchSampler(LABELS, m=3, batch_size=9, num_batches=4000, generator=seeded())
    batches = list(sampler)
    assert len(batches) == len(sampler) == 4000
    sets: Counter[tuple[int, ...]] = Counter()
    for batch in batches:
        classes = LABELS[batch].view(3, 3)
        assert bool((classes == classes[:, :1]).all())
        sets[tuple(sorted(classes[:, 0].tolist()))] += 1
        for of_class in torch.tensor(batch).view(3, 3):
            assert len(of_class.unique()) == 3 or LABELS[of_class[0]] == 0
    counts = torch.tensor([sets[of] for of in combinations([0, 2, 3, 4], 3)])
    assert fits(torch.repeat_interleave(torch.arange(4), counts), torch.ones(4))
    drawn = torch.tensor(batches).view(-1)
    # Every class as likely as another, every sample of it too.
    per_class = torch.bincount(LABELS).double()
    assert fits(drawn, 1 / per_class[LABELS])
    assert not fits(drawn, torch.ones(27))


def test_m_per_class_defaults() -> None:
    sampler = MPerClassBatchSampler(LABELS.tolist(), m=2)
    assert (sampler.batch_size, len(sampler)) == (8, 3)
    assert sorted(LABELS[next(iter(sampler))].tolist()) == [0, 0, 2, 2, 3, 3, 4, 4]
    assert len(MPerClassBatchSampler(LABELS, m=50)) == 1


@pytest.mark.parametrize("size", [4, 10, 3, 64])
def test_classes_are_balanced(size: int) -> None:
    sampler = ClassBalancedBatchSampler(LABELS, size, num_batches=500, generator=seeded())
    drawn = torch.zeros(5)
    for batch in sampler:
        assert len(batch) == size
        counts = torch.bincount(LABELS[batch], minlength=5)
        drawn += counts
        present = counts[torch.tensor([0, 2, 3, 4])]
        assert present.min() == size // 4
        assert present.max() == -(-size // 4)
        for label in (2, 3, 4):
            of_class = [i for i in batch if LABELS[i] == label]
            assert len(set(of_class)) == len(of_class) or len(of_class) > LABELS.tolist().count(label)
    assert drawn[1] == 0
    if size % 4:  # who has one more is drawn anew for each batch
        extra = (drawn - 500 * (size // 4))[torch.tensor([0, 2, 3, 4])].long()
        assert fits(torch.repeat_interleave(torch.arange(4), extra), torch.ones(4))


def test_subsets_are_uniform() -> None:
    """All ten pairs of five numbers are equally likely; half as many would not do."""
    random = np.random.default_rng(0)
    rows = 40_000
    taken = np.sort(subsets(random.random((rows, 2)), np.full(rows, 5), np.full(rows, 2)), axis=1)
    pairs = {pair: i for i, pair in enumerate(combinations(range(5), 2))}
    assert fits(torch.tensor([pairs[tuple(pair)] for pair in taken.tolist()]), torch.ones(10))
    # Rows of their own sizes: one of three, three of two, three of three.
    mixed = subsets(random.random((9, 3)), np.array([3, 2, 3] * 3), np.array([1, 3, 3] * 3))
    assert (mixed[0::3, 1:] == 0).all()
    assert ((mixed[1::3] >= 0) & (mixed[1::3] < 2)).all()
    assert np.sort(mixed[2::3], axis=1).tolist() == [[0, 1, 2]] * 3


def floyd(u: list[float], n: int, k: int) -> list[int]:
    """One set, place by place."""
    taken: list[int] = []
    for j in range(k):
        top = n - k + j if k <= n else n - 1
        number = int(u[j] * (top + 1))
        taken.append(top if k <= n and number in taken else number)
    return taken + [0] * (len(u) - k)


@pytest.mark.parametrize("most", [1, 3, FEW, FEW + 1, 60])
def test_subsets_are_those_of_the_algorithm(most: int) -> None:
    """Few and nearly all of the numbers, rows of their own sizes and of more places than numbers."""
    random = np.random.default_rng(most)
    for _ in range(30):
        k = random.integers(1, most + 1, 5)
        n = np.maximum(1, k + random.choice([-1, 0, 1, 10, 10**9], 5))
        u = np.floor(random.random((5, most)) * 2**48) / 2**48
        assert subsets(u, n, k).tolist() == [floyd(*row) for row in zip(u.tolist(), n, k, strict=True)]


@pytest.mark.parametrize("n", [10**5, 10**12])
def test_large_subsets_are_found_without_a_scan(n: int) -> None:
    """A comparison of each with all before it would take minutes here."""
    k = 10**5
    drawn = subsets(np.random.default_rng(0).random((1, k)), np.array([n]), np.array([k]))[0]
    assert len(np.unique(drawn)) == k
    assert 0 <= drawn.min() <= drawn.max() < n


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"m": 0}, "m should be a positive integer value, but got m=0"),
        ({"batch_size": 10}, "batch_size must be a multiple of m = 3 up to 12, m times the number of classes, got 10"),
        ({"batch_size": 15}, "batch_size must be a multiple of m = 3 up to 12, m times the number of classes, got 15"),
        ({"num_batches": 0}, "num_batches should be a positive integer value, but got num_batches=0"),
        ({"num_batches": 2**40}, "num_batches must be at most 7635497415 for batches of 12, got 1099511627776"),
        ({"labels": []}, "MPerClassBatchSampler: labels must be 1-D and not empty"),
        ({"labels": [0.5]}, "MPerClassBatchSampler: labels must be integers"),
        ({"labels": [-1]}, "MPerClassBatchSampler: labels must be >= 0, got -1"),
    ],
)
def test_bad_class_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MPerClassBatchSampler(**{"labels": LABELS, "m": 3, **arguments})


def test_labels_are_part_of_the_state() -> None:
    state = ClassBalancedBatchSampler(LABELS, 4).state_dict()
    with pytest.raises(ValueError, match="must be that of labels"):
        ClassBalancedBatchSampler(LABELS.flip(0), 4).load_state_dict(state)


def test_a_seed_fixes_the_batches() -> None:
    first = list(MPerClassBatchSampler(LABELS, 2, 4, generator=seeded(1)))
    assert list(MPerClassBatchSampler(LABELS, 2, 4, generator=seeded(1))) == first
    assert list(MPerClassBatchSampler(LABELS, 2, 4, generator=seeded(2))) != first
    # A batch does not depend on how many are drawn with it.
    longer = MPerClassBatchSampler(LABELS, 2, 4, num_batches=6000, generator=seeded(1))
    assert list(islice(longer, len(first))) == first
