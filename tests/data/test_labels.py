"""Labels and counts of other kinds: taken where their meaning is plain, else refused with what to do."""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np
import pytest
import torch

from ste_ops.data import (
    ClassBalancedBatchSampler,
    DistributedWeightedSampler,
    MPerClassBatchSampler,
    WeightedBatchSampler,
    WeightedRandomSampler,
    class_weights,
)


class Animal(Enum):
    CAT = "cat"
    DOG = "dog"


PLAIN = [0, 1, 1, 0, 1]

INTEGERS = [
    PLAIN,
    tuple(PLAIN),
    np.array(PLAIN, dtype=object),
    np.array(PLAIN, dtype=np.uint16),
    np.array(PLAIN, dtype=np.uint64),
    np.array(PLAIN[::-1])[::-1],
    np.array(PLAIN, dtype=">i4"),
    np.array([PLAIN, PLAIN]).T[:, 0],
    [np.int64(label) for label in PLAIN],
    [torch.tensor(label) for label in PLAIN],
    torch.tensor(PLAIN, dtype=torch.uint16),
    torch.tensor(PLAIN, dtype=torch.uint64),
    torch.tensor(PLAIN, dtype=torch.bool),
]


@pytest.mark.parametrize("labels", INTEGERS, ids=lambda labels: type(labels).__name__)
def test_integers_of_every_kind(labels: Any) -> None:
    assert torch.equal(class_weights(labels), class_weights(torch.tensor(PLAIN)))
    assert classes_of(labels) == [{0, 3}, {1, 2, 4}]


def test_labels_may_come_from_a_generator() -> None:
    assert torch.equal(class_weights(label for label in PLAIN), class_weights(PLAIN))  # type: ignore[arg-type]


def classes_of(labels: Any) -> list[set[int]]:
    """The samples of each class, in the order of the classes."""
    batches = list(ClassBalancedBatchSampler(labels, 2, num_batches=100))
    together = MPerClassBatchSampler(labels, np.int64(1), num_batches=100)
    assert together.batch_size == 2
    batches += list(together)
    return [{batch[place] for batch in batches} for place in range(2)]


@pytest.mark.parametrize(
    "names",
    [
        (3, 10**12),
        (3, 2**63 + 5),
        (2**64, 3),
        ("cat", "dog"),
        ("dog", "cat"),
        (b"cat", b"dog"),
        (Animal.CAT, Animal.DOG),
        ((0, 1), (1, 0)),
        (1, "1"),
        ((0, 1), 1),
    ],
    ids=str,
)
def test_equal_labels_are_a_class(names: tuple) -> None:
    of_object = np.empty(5, dtype=object)
    of_object[:] = [names[label] for label in PLAIN]
    kinds = [of_object.tolist(), of_object]
    if isinstance(names[0], (str, bytes)):
        kinds.append(np.array(of_object.tolist()))
    for labels in kinds:
        assert classes_of(labels) == [{0, 3}, {1, 2, 4}]
    if names[1] == 2**63 + 5:
        assert classes_of(np.array(of_object.tolist(), dtype=np.uint64)) == [{0, 3}, {1, 2, 4}]
        assert classes_of(torch.tensor(of_object.tolist(), dtype=torch.uint64)) == [{0, 3}, {1, 2, 4}]


def test_a_state_does_not_depend_on_the_kind_of_labels() -> None:
    states = [MPerClassBatchSampler(labels, 1).state_dict() for labels in (PLAIN, np.array(["cat", "dog"])[PLAIN])]
    assert states[0] == states[1]


NUMBERED = r"; numpy.unique\(labels, return_inverse=True\)\[1\] numbers the classes"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat", "dog"], "must be class numbers from 0, got 'cat' at index 0" + NUMBERED),
        (np.array(["cat", "dog"]), "must be class numbers from 0, got 'cat' at index 0" + NUMBERED),
        (
            [(0, 1), (1, 0)],
            r"must be class numbers from 0, got \(0, 1\) at index 0; numpy.unique\(labels, axis=0, return",
        ),
        ([2**64], "must be class numbers from 0, got 18446744073709551616 at index 0" + NUMBERED),
        (
            [10**12, 3],
            r"must be below 16777216, as all up to the largest get a weight, got 1000000000000; torch.unique\(labels",
        ),
    ],
)
def test_a_weight_needs_a_number(labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match="^class_weights: labels " + message):
        class_weights(labels)


@pytest.mark.parametrize("make", [class_weights, lambda labels: MPerClassBatchSampler(labels, 1)])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, -1], "must be >= 0, got -1; where that says that a sample has no class, leave it out, with torch.utils"),
        (np.array([0, -1], dtype=object), "must be >= 0, got -1"),
        ([0, None], "must be integers, strings or other objects that can be compared, got None at index 1"),
        (np.array(["a", float("nan")], dtype=object), "must be integers, strings or .*, got nan at index 1"),
        ([[0], [1, 2]], r"must be integers, strings or .*, got \[0\] at index 0"),
        (["cat", -1], "must be >= 0, got -1; where that says that a sample has no class"),
        ([2**70, np.int64(-1)], "must be >= 0, got -1"),
        (np.array(["a", np.float32("nan")], dtype=object), "must be integers, strings or .*nan.* at index 1"),
        (np.array([0.5]), "must be integers, got float64"),
        (np.array([0.5], dtype=np.longdouble), "must be integers, got float128"),
        (np.array([0.5], dtype=">f4"), "must be integers, got >f4"),
        (np.array([1j]), "must be integers, got complex128"),
        (torch.tensor([0.5]), "must be integers, got torch.float32"),
        (np.ma.masked_array([0, 1], [True, False]), "must be a plain array, got a masked one"),
        (torch.eye(3).long(), r"must be 1-D and not empty, got shape \(3, 3\); argmax\(1\) makes them of one-hot rows"),
        (np.array([["a"]]), r"must be 1-D and not empty, got shape \(1, 1\); .* flatten\(\) of a column"),
        (np.array([], dtype=str), r"must be 1-D and not empty, got shape \(0,\)"),
        ("cat", "must be a sequence with the label of every sample, got str"),
        ({0: 1}, "must be a sequence with the label of every sample, got dict"),
        (3, "must be a sequence with the label of every sample, got int"),
    ],
)
def test_what_is_no_label_is_refused(make: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match="^(class_weights|MPerClassBatchSampler): labels " + message):
        make(labels)


@pytest.mark.parametrize("of", [np.int64, np.uint8, np.int32])
def test_numpy_scalars_count_as_ints(of: Any) -> None:
    weights = [1.0, 2.0, 3.0, 4.0]
    pairs = [
        (WeightedRandomSampler(weights, of(3)), WeightedRandomSampler(weights, 3)),
        (WeightedBatchSampler(weights, of(200), of(250)), WeightedBatchSampler(weights, 200, 250)),
        (MPerClassBatchSampler(PLAIN, of(100), of(200), of(2)), MPerClassBatchSampler(PLAIN, 100, 200, 2)),
        (ClassBalancedBatchSampler(PLAIN, of(3), of(2)), ClassBalancedBatchSampler(PLAIN, 3, 2)),
        (
            DistributedWeightedSampler(weights, of(200), of(3), of(1), seed=of(5)),
            DistributedWeightedSampler(weights, 200, 3, 1, seed=5),
        ),
    ]
    pairs[0][0].num_samples = of(4)
    pairs[0][1].num_samples = 4
    for given, expected in pairs[-1:]:
        given.set_epoch(of(2))
        expected.set_epoch(2)
    for given, expected in pairs:
        torch.manual_seed(0)
        drawn, state = list(given), given.state_dict()
        torch.manual_seed(0)
        assert drawn == list(expected)
        assert len(given) == len(expected)
        own = expected.state_dict()
        assert state == own
        assert [type(value) for value in state.values()] == [type(value) for value in own.values()]


def test_other_numbers_are_no_counts() -> None:
    for wrong in (np.float64(2), np.bool_(True), 2.0, np.int64(0)):
        with pytest.raises(ValueError, match="num_samples should be a positive integer value, but got num_samples="):
            WeightedRandomSampler([1.0], wrong)
    with pytest.raises(TypeError, match="DistributedWeightedSampler: rank must be an int, got float"):
        DistributedWeightedSampler([1.0], 1, 2, np.float64(1))
