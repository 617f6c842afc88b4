"""A loaded place waits for the iteration that is read, whatever looks at the sampler before."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.samplers import Indices, seeded
from torch.utils.data import DataLoader

from ste_ops.data import (
    ClassBalancedBatchSampler,
    DistributedWeightedSampler,
    MPerClassBatchSampler,
    WeightedBatchSampler,
    WeightedRandomSampler,
)

WEIGHTS = torch.rand(101, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(101) % 7


# Each with DataLoader's arguments for it; five batches are trained on before the state is saved.
LOADERS: dict[str, Callable[[], dict[str, Any]]] = {
    "random": lambda: {"batch_size": 8, "sampler": WeightedRandomSampler(WEIGHTS, 101, generator=seeded())},
    "ordered": lambda: {"batch_size": 8, "sampler": WeightedRandomSampler(WEIGHTS, 101, False, generator=seeded())},
    "one by one": lambda: {"batch_size": None, "sampler": WeightedRandomSampler(WEIGHTS, 30, generator=seeded())},
    "batch": lambda: {"batch_sampler": WeightedBatchSampler(WEIGHTS, 8, 101, generator=seeded())},
    "batch as sampler": lambda: {
        "batch_size": None,
        "sampler": WeightedBatchSampler(WEIGHTS, 8, 101, generator=seeded()),
    },
    "distributed": lambda: {"batch_size": 8, "sampler": DistributedWeightedSampler(WEIGHTS, 200, 2, 1)},
    "m-per-class": lambda: {"batch_sampler": MPerClassBatchSampler(LABELS, 2, 8, 13, generator=seeded())},
    "balanced": lambda: {"batch_sampler": ClassBalancedBatchSampler(LABELS, 8, 13, generator=seeded())},
}


def as_they_are(items: Any) -> Any:
    return items


def loader(arguments: dict[str, Any], workers: int, persistent: bool = False) -> DataLoader:
    options = {"num_workers": workers, "persistent_workers": persistent, "collate_fn": as_they_are}
    return DataLoader(Indices(), **options, **arguments)


def sampler_of(arguments: dict[str, Any]) -> Any:
    return arguments.get("batch_sampler") or arguments["sampler"]


def trained_on_five(name: str) -> tuple[dict[str, Any], list[Any], list[Any]]:
    """A state, what is left of its epoch, and the epoch after."""
    arguments = LOADERS[name]()
    items = 8 if arguments.get("batch_size") else 1
    epoch = loader(arguments, 0)
    batches = list(epoch)
    state = sampler_of(arguments).state_dict(consumed=5 * items)
    return state, batches[5:], list(epoch)


@pytest.mark.parametrize("name", LOADERS)
def test_an_iterator_that_nobody_reads_spends_nothing(name: str) -> None:
    state, rest, following = trained_on_five(name)
    arguments = LOADERS[name]()
    sampler = sampler_of(arguments)
    sampler.load_state_dict(state)
    iter(sampler)
    assert sampler.state_dict() == state
    assert sampler.state_dict(consumed=0) == state
    unread = iter(sampler)
    assert unread.state_dict().items() <= state.items()
    resumed = loader(arguments, 0)
    iter(resumed)
    assert list(resumed) == rest
    assert list(resumed) == following
    assert len(list(unread)) == len(sampler)  # it comes too late for the place


@pytest.mark.parametrize(
    ("name", "workers", "persistent"), [(name, 2, True) for name in LOADERS] + [("batch", 1, False)]
)
def test_workers_go_on(name: str, workers: int, persistent: bool) -> None:
    """A loader with workers makes two iterators and reads the second."""
    state, rest, following = trained_on_five(name)
    arguments = LOADERS[name]()
    sampler_of(arguments).load_state_dict(state)
    resumed = loader(arguments, workers, persistent)
    assert list(resumed) == rest
    if persistent:
        assert list(resumed) == following


def test_the_first_to_be_read_goes_on() -> None:
    state, rest, _ = trained_on_five("batch")
    sampler = sampler_of(LOADERS["batch"]())
    sampler.load_state_dict(state)
    first, second = iter(sampler), iter(sampler)
    assert next(first) == rest[0]
    assert sampler.state_dict()["position"] == state["position"] + 8
    with pytest.warns(UserWarning, match="starts an epoch anew"):
        next(second)
    assert sampler.state_dict()["position"] == 8
    assert list(first) == rest[1:]


def test_a_place_that_was_only_looked_at_is_named() -> None:
    state, rest, _ = trained_on_five("batch")
    sampler = sampler_of(LOADERS["batch"]())
    sampler.load_state_dict(state)
    assert next(iter(sampler)) == rest[0]
    with pytest.warns(UserWarning, match="WeightedBatchSampler: the iteration that went on .* left after 1 of 8 items"):
        assert len(list(sampler)) == 13
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(sampler)) == 13
        next(iter(sampler))  # from no loaded state: as torch's samplers do
        assert len(list(sampler)) == 13
        sampler.load_state_dict(state)
        next(iter(sampler))
        sampler.load_state_dict(state)
        assert list(sampler) == rest
        assert len(list(sampler)) == 13


def test_an_iterator_loads_before_it_is_read() -> None:
    state, rest, _ = trained_on_five("batch")
    sampler = sampler_of(LOADERS["batch"]())
    sampler.load_state_dict(state)
    iterator = iter(sampler)
    iterator.load_state_dict({**state, "position": 48})
    assert list(iterator) == rest[1:]
    assert len(list(sampler)) == 13  # the sampler's own place went with it
