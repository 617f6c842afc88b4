"""What is assigned to a sampler holds from the next iteration on, or is refused."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections import deque
from collections.abc import Callable
from itertools import islice
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
)

SAMPLERS: dict[str, Callable[..., Any]] = {
    "random": lambda weights, replacement: WeightedRandomSampler(weights, 2, replacement),
    "batch": lambda weights, replacement: WeightedBatchSampler(weights, 1, 2, replacement),
    "distributed": lambda weights, replacement: DistributedWeightedSampler(weights, 2, 1, 0, replacement),
}
cases = pytest.mark.parametrize("replacement", [True, False])
each = pytest.mark.parametrize("name", SAMPLERS)


def drawn(sampler: Any, epochs: int = 12) -> set[int]:
    return {int(np.ravel(item)[0]) for _ in range(epochs) for item in sampler}


OTHERS = torch.tensor([0.0, 0.0, 2.0, 2.0], dtype=torch.float64)


def assign(sampler: Any) -> None:
    sampler.weights = OTHERS.tolist()


def write_array(sampler: Any) -> None:
    sampler.weights.numpy()[:] = OTHERS.numpy()


def write_data(sampler: Any) -> None:
    sampler.weights.data.copy_(OTHERS)


def write_in_inference(sampler: Any) -> None:
    with torch.inference_mode():
        sampler.weights.copy_(OTHERS)


EDITS = [assign, lambda sampler: sampler.weights.copy_(OTHERS), write_array, write_data, write_in_inference]


@each
@cases
@pytest.mark.parametrize("edit", EDITS, ids=["assign", "copy_", "numpy", "data", "inference_mode"])
def test_weights_follow(name: str, replacement: bool, edit: Callable[[Any], Any]) -> None:
    sampler = SAMPLERS[name]([1.0, 1.0, 0.0, 0.0], replacement)
    assert drawn(sampler) <= {0, 1}
    old = sampler.state_dict()["weights"]
    running = iter(sampler)
    next(running)
    edit(sampler)
    assert sampler.weights.tolist() == [0.0, 0.0, 2.0, 2.0]
    # The iteration that runs goes on with the weights of its start, and its state says so.
    assert running.state_dict()["weights"] == sampler.state_dict()["weights"] == old
    assert {int(np.ravel(item)[0]) for item in running} <= {0, 1}
    assert drawn(copy.deepcopy(sampler)) <= {2, 3}
    assert drawn(sampler) <= {2, 3}
    state = sampler.state_dict()
    assert state["weights"] != old
    SAMPLERS[name]([0.0, 0.0, 2.0, 2.0], replacement).load_state_dict(state)
    with pytest.raises(ValueError, match="the state must be that of weights"):
        sampler.load_state_dict({**state, "weights": old})


@each
@cases
def test_weights_that_are_assigned_are_checked(name: str, replacement: bool) -> None:
    sampler = SAMPLERS[name]([1.0, 1.0, 0.0, 0.0], replacement)
    for wrong, message in (([1.0, -1.0], "weights must be non-negative"), ([[1.0]], "weights should be a 1d sequence")):
        with pytest.raises(ValueError, match=message):
            sampler.weights = wrong
    assert sampler.weights.tolist() == [1.0, 1.0, 0.0, 0.0]
    if not replacement:
        with pytest.raises(ValueError, match="num_samples must be at most 1, the number of positive weights"):
            sampler.weights = [1.0, 0.0]
    assert drawn(sampler) <= {0, 1}


@each
@cases
@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_what_was_given_is_not_shared(name: str, replacement: bool, kind: Callable[..., Any]) -> None:
    weights = kind([1.0, 1.0, 0.0, 0.0], dtype=kind([0.0]).dtype if kind is np.array else torch.float64)
    sampler = SAMPLERS[name](weights, replacement)
    assigned = weights.copy() if kind is np.array else weights.clone()
    weights[:] = 7
    assert sampler.weights.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert drawn(sampler) <= {0, 1}
    sampler.weights = assigned
    assigned[:] = 7
    assert sampler.weights.tolist() == [1.0, 1.0, 0.0, 0.0]


@each
def test_arrays_in_any_memory(name: str) -> None:
    expected = [0.0, 1.0, 2.0, 4.0]
    array = np.array(expected)
    given: list[Any] = [
        array[::-1].copy()[::-1],
        array.astype(">f8"),
        array.astype(">f2"),
        array.astype(np.longdouble),
        array.astype(object),
        np.stack([array, array], 1)[:, 0],
        array.astype(np.uint16),
        (weight for weight in expected),
        dict(enumerate(expected)).values(),
        range(5),
        deque(expected),
        memoryview(array),
    ]
    for weights in given:
        sampler = SAMPLERS[name](weights, True)
        assert sampler.weights.tolist() == ([0, 1, 2, 3, 4] if isinstance(weights, range) else expected)
        array[:] = 7  # none of the memory given is drawn from
        assert sampler.weights.tolist() == ([0, 1, 2, 3, 4] if isinstance(weights, range) else expected)
        array[:] = expected


@each
@pytest.mark.parametrize(
    ("weights", "got"),
    [
        ("123", "str"),
        (3.0, "float"),
        ({0: 1.0}, "dict"),
        ({1.0, 2.0}, "set"),
        (torch.ones(3, dtype=torch.complex64), "torch.complex64"),
        (np.ones(3, dtype=complex), "an array of complex128"),
        (np.array(["1", "2"]), "an array of <U1"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), "a masked array"),
        ([1.0, "2"], "list: "),
        ([1.0, None], "list: "),
        (np.array([1.0, None]), "ndarray: "),
    ],
)
def test_what_is_no_number_is_refused(name: str, weights: Any, got: str) -> None:
    sampler = SAMPLERS[name]([1.0, 2.0], True)
    message = f"^{type(sampler).__name__}: weights must be numbers, one for each sample, got {got}"
    with pytest.raises(TypeError, match=message):
        SAMPLERS[name](weights, True)
    with pytest.raises(TypeError, match=message):
        sampler.weights = weights


def test_weights_that_are_shown_are_no_inference_tensor() -> None:
    sampler = WeightedRandomSampler([1.0, 2.0], 1)
    with torch.inference_mode():
        shown = sampler.weights
    shown.mul_(2)
    assert sampler.weights.tolist() == [2.0, 4.0]


@cases
def test_the_length_follows(replacement: bool) -> None:
    for sampler in (SAMPLERS["random"](torch.ones(9), replacement), SAMPLERS["batch"](torch.ones(9), replacement)):
        running = iter(sampler)
        next(running)
        sampler.num_samples = 3
        assert (len(list(running)), sampler.num_samples, len(sampler), len(list(sampler))) == (1, 3, 3, 3)
        for wrong in (0, True, 1.5):
            with pytest.raises(ValueError, match="num_samples should be a positive integer value"):
                sampler.num_samples = wrong
        if not replacement:
            with pytest.raises(ValueError, match="num_samples must be at most 9, the number of positive weights"):
                sampler.num_samples = 10
        assert len(list(sampler)) == 3


def test_a_loaded_place_is_not_carried_to_other_weights() -> None:
    sampler = WeightedRandomSampler(torch.ones(9), 9)
    list(islice(sampler, 4))
    state = sampler.state_dict()
    sampler.load_state_dict(state)
    for name, value in (("weights", torch.rand(9)), ("num_samples", 3)):
        with pytest.raises(RuntimeError, match="weights and num_samples must not change between load_state_dict and"):
            setattr(sampler, name, value)
    running = iter(sampler)
    next(running)
    sampler.num_samples = 3
    assert len(list(running)) == 4
    assert len(list(sampler)) == 3


@each
def test_a_place_that_is_replaced_does_not_hold_the_weights(name: str) -> None:
    sampler = SAMPLERS[name]([1.0, 1.0, 0.0, 0.0], True)
    next(iter(sampler))
    first = sampler.state_dict()
    sampler.weights = OTHERS
    next(iter(sampler))
    second = sampler.state_dict()
    sampler.load_state_dict(second)
    with pytest.raises(ValueError, match="the state must be that of"):
        sampler.load_state_dict(first)
    assert sampler.state_dict() == second  # the loaded place is still there
    sampler.weights.copy_(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    sampler.load_state_dict(first)
    assert sampler.state_dict() == first
    assert {int(np.ravel(item)[0]) for item in sampler} <= {0, 1}
    sampler.load_state_dict(first)
    sampler.weights.copy_(OTHERS)
    with pytest.raises(ValueError, match="the state must be that of"):
        sampler.load_state_dict(first)
    assert drawn(sampler, 1) <= {2, 3}  # the place was one of other weights


NOT_ASSIGNED: list[tuple[Any, str]] = [
    (WeightedRandomSampler([1.0], 1), "replacement"),
    (WeightedBatchSampler([1.0], 1), "replacement batch_size drop_last as_tensors num_replicas rank seed"),
    (WeightedBatchSampler([1.0], 1, rank=0, num_replicas=1), "as_tensors num_replicas rank seed"),
    (
        DistributedWeightedSampler([1.0], 1, 1, 0),
        "replacement num_samples total_size num_replicas rank seed drop_last shuffle",
    ),
    (MPerClassBatchSampler([0, 1], 1), "batch_size num_batches m num_replicas rank seed"),
    (ClassBalancedBatchSampler([0, 1], 1), "batch_size num_batches num_replicas rank seed"),
]


@pytest.mark.parametrize(("sampler", "names"), NOT_ASSIGNED, ids=lambda value: type(value).__name__)
def test_everything_else_is_fixed(sampler: Any, names: str) -> None:
    for name in names.split():
        before = getattr(sampler, name)
        with pytest.raises(AttributeError, match=f"{type(sampler).__name__}: {name} must stay"):
            setattr(sampler, name, before)
        assert getattr(sampler, name) == before
    arguments = set(inspect.signature(type(sampler)).parameters) - {"weights", "num_samples", "generator"}
    for name in arguments - set(names.split()):
        with pytest.raises(AttributeError, match=f"{type(sampler).__name__}: {name} (must stay|cannot be assigned)"):
            setattr(sampler, name, None)


@pytest.mark.parametrize("sampler", [sampler for sampler, _ in NOT_ASSIGNED[1:]], ids=lambda s: type(s).__name__)
def test_the_epoch_is_set_by_its_method(sampler: Any) -> None:
    for of_it in (sampler, copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        with pytest.raises(AttributeError, match=rf"^{type(sampler).__name__}: epoch is set by set_epoch\(3\)"):
            of_it.epoch = 3
        assert of_it.epoch == 0
        of_it.set_epoch(3)
        assert of_it.epoch == (3 if of_it._ranked else 0)
        of_it.load_state_dict({**of_it.state_dict(), **({"epoch": 0} if of_it._ranked else {})})
        assert of_it.epoch == 0
