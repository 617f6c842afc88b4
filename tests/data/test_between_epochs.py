"""Saved at the end of an epoch, a sampler goes on with the next one; torchdata.nodes saves and loads every sampler."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from support.samplers import seeded

from ste_ops.data import (
    ClassBalancedBatchSampler,
    DistributedWeightedSampler,
    MPerClassBatchSampler,
    WeightedBatchSampler,
    WeightedRandomSampler,
)

WEIGHTS = torch.rand(50, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(50) % 7


# An epoch of each is eight items.
SAMPLERS: dict[str, Callable[[], Any]] = {
    "random": lambda: WeightedRandomSampler(WEIGHTS, 8, generator=seeded()),
    "ordered": lambda: WeightedRandomSampler(WEIGHTS, 8, False, generator=seeded()),
    "batch": lambda: WeightedBatchSampler(WEIGHTS, 4, 30, generator=seeded()),
    "batch, drop_last": lambda: WeightedBatchSampler(WEIGHTS, 4, 35, drop_last=True, generator=seeded()),
    "distributed": lambda: DistributedWeightedSampler(WEIGHTS, 15, 2, 1),
    "distributed, drop_last": lambda: DistributedWeightedSampler(WEIGHTS, 17, 2, 1, drop_last=True),
    "m-per-class": lambda: MPerClassBatchSampler(LABELS, 2, 4, 8, generator=seeded()),
    "balanced": lambda: ClassBalancedBatchSampler(LABELS, 4, 8, generator=seeded()),
}


def epochs_of(sampler: Any, count: int) -> list[list[Any]]:
    epochs = []
    for epoch in range(count):
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    return epochs


@pytest.mark.parametrize("consumed", [None, 8, np.int64(8), np.uint8(9)], ids=repr)
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_next_epoch_comes(name: str, consumed: int | None) -> None:
    _, second, third = epochs_of(SAMPLERS[name](), 3)
    sampler = SAMPLERS[name]()
    epochs_of(sampler, 1)
    state = sampler.state_dict(consumed)
    assert state["position"] == 0
    assert state.get("epoch", 1) == 1
    resumed = SAMPLERS[name]()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert list(resumed) == second
    if "epoch" in state:
        resumed.set_epoch(2)
    assert list(resumed) == third


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_item_ends_the_epoch(name: str) -> None:
    """A loop that counts its items does not ask for one more, and so never sees the end."""
    _, second, _ = epochs_of(SAMPLERS[name](), 3)
    sampler = SAMPLERS[name]()
    running = iter(sampler)
    items = [next(running) for _ in range(8)]
    assert len(items) == 8
    state = sampler.state_dict()
    assert state == sampler.state_dict(consumed=8)
    assert state["position"] == 0
    assert state.get("epoch", 1) == 1
    resumed = SAMPLERS[name]()
    resumed.load_state_dict(state)
    assert list(resumed) == second


@pytest.mark.parametrize("consumed", [3, np.int64(3), np.uint8(3)], ids=repr)
def test_a_count_may_be_numpys(consumed: Any) -> None:
    sampler = SAMPLERS["batch"]()
    next(iter(sampler))
    state = sampler.state_dict(consumed)
    assert type(state["position"]) is int
    assert state == sampler.state_dict(3)
    for wrong in (np.int64(-1), True, 1.0, np.float64(1)):
        with pytest.raises(ValueError, match="consumed must be an int >= 0, got"):
            sampler.state_dict(wrong)


def test_epochs_are_counted_from_the_state() -> None:
    """The loop of the documentation, saved in mid-epoch, with the last item of an epoch, and after its end."""
    expected = epochs_of(SAMPLERS["distributed"](), 4)
    for items in (8 + 3, 8 + 8, 8 + 9):
        sampler = SAMPLERS["distributed"]()
        seen: list[list[int]] = [list(sampler), []]
        sampler.set_epoch(1)
        seen[1] += islice(sampler, items - 8)
        state = sampler.state_dict()
        resumed = SAMPLERS["distributed"]()
        resumed.load_state_dict(state)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for epoch in range(resumed.epoch, 4):
                resumed.set_epoch(epoch)
                if len(seen) <= epoch:
                    seen.append([])
                seen[epoch] += list(resumed)
        assert seen == expected


def test_an_epoch_that_is_drawn_once_more_is_named() -> None:
    sampler = SAMPLERS["distributed"]()
    first, second = epochs_of(sampler, 2)
    state = {**sampler.state_dict(), "epoch": 1}
    sampler.load_state_dict(state)
    with pytest.warns(UserWarning, match="DistributedWeightedSampler: epoch 0 is drawn once more"):
        sampler.set_epoch(0)
    assert list(sampler) == first
    sampler.load_state_dict(state)
    assert list(sampler) == second
    with pytest.warns(UserWarning, match="epoch 1 is drawn once more"):
        sampler.set_epoch(1)
    assert sampler.state_dict() == state
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(sampler) == second
        sampler.set_epoch(1)
        sampler.load_state_dict(state)
        sampler.set_epoch(1)
        assert list(sampler) == second


def test_an_epoch_that_was_only_asked_for_is_not_named() -> None:
    sampler = SAMPLERS["distributed"]()
    sampler.set_epoch(1)
    iter(sampler)
    sampler.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler.set_epoch(0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_nodes_save_and_load(name: str) -> None:
    nodes = pytest.importorskip("torchdata.nodes", reason="torchdata is not installed")

    def loader() -> Any:
        sampler = SAMPLERS[name]()
        options = {"epoch_updater": lambda _: sampler.epoch + 1} if hasattr(sampler, "set_epoch") else {}
        return nodes.Loader(nodes.SamplerWrapper(sampler, **options))

    saved = loader()
    states = [saved.state_dict()]
    epochs = []
    for _ in range(2):
        items = []
        for item in saved:
            items.append(item)
            states.append(saved.state_dict())
        states.append(saved.state_dict())
        epochs += items
    epochs += list(saved)
    for place, state in enumerate(states):
        resumed = loader()
        resumed.load_state_dict(state)
        read = place - place // 9  # one state of nine is that of an end
        left = epochs[read:]
        assert [item for _ in range(4) for item in resumed][: len(left)] == left
