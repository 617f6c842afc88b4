"""Every sampler resumes at any place of its epoch, from a state of a few numbers."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable
from itertools import islice
from typing import Any

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
from ste_ops.functional.sampling import AliasTable

WEIGHTS = torch.rand(60_000, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(3000) % 7


# Each with an epoch of several chunks and the places of it to resume at, in items.
SAMPLERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "random": (lambda: WeightedRandomSampler(WEIGHTS, 40_000, generator=seeded()), (0, 1, 16384, 20_001, 40_000)),
    "random-ordered": (
        lambda: WeightedRandomSampler(WEIGHTS, 40_000, replacement=False, generator=seeded()),
        (0, 1, 16384, 20_001, 40_000),
    ),
    "batch": (lambda: WeightedBatchSampler(WEIGHTS, 100, 40_050, generator=seeded()), (0, 1, 163, 200, 400, 401)),
    "batch-ordered": (
        lambda: WeightedBatchSampler(WEIGHTS, 100, 40_050, False, drop_last=True, generator=seeded()),
        (0, 1, 163, 200, 400),
    ),
    "distributed": (lambda: DistributedWeightedSampler(WEIGHTS, 40_001, 2, 1), (0, 1, 16384, 20_000, 20_001)),
    "distributed-ordered": (
        lambda: DistributedWeightedSampler(WEIGHTS, 40_001, 2, 1, replacement=False),
        (0, 1, 16384, 20_000, 20_001),
    ),
    "m-per-class": (lambda: MPerClassBatchSampler(LABELS, 3, 12, 3000, generator=seeded()), (0, 1, 1365, 1500, 3000)),
    "balanced": (lambda: ClassBalancedBatchSampler(LABELS, 10, 3000, generator=seeded()), (0, 1, 1638, 2000, 3000)),
}


def through_torch(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_rest_of_an_epoch_is_exact_from_any_place(name: str) -> None:
    make, places = SAMPLERS[name]
    sampler = make()
    epoch = list(sampler)
    assert len(epoch) == len(make())
    if name.startswith("distributed"):
        sampler.set_epoch(1)
    following = list(sampler)
    for place in places:
        sampler = make()
        assert list(islice(sampler, place)) == epoch[:place]
        state = sampler.state_dict()
        assert state == json.loads(json.dumps(state)) == through_torch(state)
        resumed = make()
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert list(resumed) == (epoch[place:] or following)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if not name.startswith("distributed")])
def test_the_epochs_after_are_those_of_the_generator(name: str) -> None:
    sampler = SAMPLERS[name][0]()
    iterator = iter(sampler)
    next(iterator)
    state = sampler.state_dict()
    list(iterator)
    following = list(sampler)
    resumed = SAMPLERS[name][0]()
    resumed.generator.manual_seed(77)
    resumed.load_state_dict(state)
    list(resumed)
    assert list(resumed) == following


def test_between_epochs_the_state_is_that_of_the_next() -> None:
    sampler = SAMPLERS["random"][0]()
    list(sampler)
    state = sampler.state_dict()
    assert (state["seed"], state["position"]) == (None, 0)
    second = list(sampler)
    resumed = SAMPLERS["random"][0]()
    resumed.load_state_dict(state)
    assert list(resumed) == second


def test_a_state_asked_for_before_the_first_draw_fixes_the_epoch() -> None:
    sampler = WeightedRandomSampler(WEIGHTS, 100)
    iterator = iter(sampler)
    state = sampler.state_dict()
    epoch = list(iterator)
    torch.manual_seed(99)
    sampler.load_state_dict(state)
    assert list(sampler) == epoch


def test_an_iterator_draws_no_seed_before_its_first_index() -> None:
    sampler = WeightedRandomSampler(WEIGHTS, 100)
    before = torch.get_rng_state()
    iterator = iter(sampler)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(3)
    first = list(iterator)
    torch.manual_seed(3)
    assert list(sampler) == first


def test_resuming_far_into_an_epoch_repeats_nothing() -> None:
    sampler = WeightedRandomSampler(WEIGHTS, 10**12, generator=seeded())
    next(iter(sampler))
    state = {**sampler.state_dict(), "position": 7 * 10**11 + 5}
    sampler.load_state_dict(state)
    expected = AliasTable(WEIGHTS.double()).sample_at(state["seed"], state["position"], 20_000)
    assert list(islice(sampler, 20_000)) == expected.tolist()
    assert sampler.state_dict()["position"] == state["position"] + 20_000


@pytest.mark.parametrize("name", SAMPLERS)
def test_consumed_items_where_a_loader_draws_ahead(name: str) -> None:
    make, places = SAMPLERS[name]
    sampler = make()
    with pytest.raises(ValueError, match="consumed must be None before the first iteration, got 3"):
        sampler.state_dict(consumed=3)
    epoch = list(sampler)  # drawn to its end, and not all of it used
    used = places[2]
    sampler.load_state_dict(sampler.state_dict(consumed=used))
    assert list(islice(sampler, 1)) == epoch[used : used + 1]
    state = sampler.state_dict(consumed=1)  # counted from where this iteration resumed
    sampler.load_state_dict(state)
    assert list(sampler) == epoch[used + 1 :]
    for wrong in (-1, True, 1.0):
        with pytest.raises(ValueError, match="consumed must be an int >= 0"):
            sampler.state_dict(consumed=wrong)


def test_iterators_have_states_of_their_own() -> None:
    sampler = SAMPLERS["random"][0]()
    first, second = iter(sampler), iter(sampler)
    ahead, other = list(islice(first, 20_000)), list(islice(second, 5))
    assert (first.state_dict()["position"], second.state_dict()["position"]) == (20_000, 5)
    assert sampler.state_dict()["position"] == 5  # the last one made
    state = first.state_dict()
    assert "generator" not in state
    second.load_state_dict(state)  # what is left of its chunk is dropped
    rest = list(first)
    assert list(second) == rest
    assert second.state_dict()["position"] == 40_000
    assert ahead[:5] != other
    with pytest.raises(RuntimeError, match="an iterator that has ended cannot load a state"):
        first.load_state_dict(state)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda sampler: pickle.loads(pickle.dumps(sampler))])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_copy_stands_where_the_sampler_stands(name: str, clone: Callable[[Any], Any]) -> None:
    sampler = SAMPLERS[name][0]()
    iterator = iter(sampler)
    next(iterator)
    twin = clone(sampler)
    assert twin.state_dict() == sampler.state_dict()
    assert list(twin) == list(sampler)  # a new epoch of each


def test_a_sampler_is_freed_with_its_last_name() -> None:
    import gc
    import weakref

    sampler = SAMPLERS["random"][0]()
    next(iter(sampler))
    gc.disable()
    try:
        gone = weakref.ref(sampler)
        del sampler
        assert gone() is None
    finally:
        gc.enable()


def changed(**values: Any) -> Callable[[dict], dict]:
    return lambda state: {**state, **values}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            changed(sampler="WeightedBatchSampler"),
            "that of sampler 'WeightedRandomSampler', got 'WeightedBatchSampler'",
        ),
        (changed(num_weights=3), "that of num_weights 60000, got 3"),
        (changed(num_samples=3), "that of num_samples 40000, got 3"),
        (changed(replacement=False), "that of replacement True, got False"),
        (changed(weights="0" * 16), "that of weights '[0-9a-f]{16}', got '0000000000000000'"),
        (changed(position=40_001), "position must be from 0 to 40000, got 40001"),
        (changed(position=-1), "position must be from 0 to 40000, got -1"),
        (changed(position="1"), "position must be an int, got '1'"),
        (changed(seed=1.5), "seed must be an int, got 1.5"),
        (changed(seed=None), "seed must be an int, got None"),
        (lambda state: {}, "that of sampler 'WeightedRandomSampler', got a state without it"),
    ],
)
def test_the_state_of_another_sampler_is_refused(change: Callable[[dict], dict], message: str) -> None:
    sampler = SAMPLERS["random"][0]()
    next(iter(sampler))
    state = sampler.state_dict()
    with pytest.raises(ValueError, match=message):
        sampler.load_state_dict(change(state))
    assert sampler.state_dict() == state
    with pytest.raises(
        TypeError, match=r"WeightedRandomSampler\.load_state_dict: the state must be a mapping, got list"
    ):
        sampler.load_state_dict([state])


def test_every_kind_refuses_the_others() -> None:
    states = {name: make().state_dict() for name, (make, _) in SAMPLERS.items()}
    for name, (make, _) in SAMPLERS.items():
        for other, state in states.items():
            if other != name:
                with pytest.raises(ValueError, match="load_state_dict: the state must be that of"):
                    make().load_state_dict(state)
        make().load_state_dict(states[name])


def test_a_generator_is_asked_for_where_the_state_has_one() -> None:
    state = SAMPLERS["random"][0]().state_dict()
    with pytest.raises(ValueError, match="the saved sampler had a generator, give this one too"):
        WeightedRandomSampler(WEIGHTS, 40_000).load_state_dict(state)
