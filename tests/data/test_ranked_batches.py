"""Ranks share out the batches of one stream, and go on from a place of it in another number."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ste_ops.data import ClassBalancedBatchSampler, MPerClassBatchSampler, WeightedBatchSampler

WEIGHTS = torch.rand(100, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(100) % 7

# How each makes an epoch of ten batches of all ranks; the last batch of "short" has two of four indices.
KINDS: dict[str, Any] = {
    "weighted": lambda **ranks: WeightedBatchSampler(WEIGHTS, 4, 40, **ranks),
    "tensors": lambda **ranks: WeightedBatchSampler(WEIGHTS, 4, 40, as_tensors=True, **ranks),
    "short": lambda **ranks: WeightedBatchSampler(WEIGHTS, 4, 38, **ranks),
    "ordered": lambda **ranks: WeightedBatchSampler(WEIGHTS, 4, 40, False, **ranks),
    "drop_last": lambda **ranks: WeightedBatchSampler(WEIGHTS, 4, 43, drop_last=True, **ranks),
    "m-per-class": lambda **ranks: MPerClassBatchSampler(LABELS, 2, 4, 10, **ranks),
    "balanced": lambda **ranks: ClassBalancedBatchSampler(LABELS, 5, 10, **ranks),
}
each = pytest.mark.parametrize("name", KINDS)


def samplers(name: str, world: int, **options: Any) -> list[Any]:
    return [KINDS[name](num_replicas=world, rank=rank, **options) for rank in range(world)]


def plain(batches: Any) -> list[list[int]]:
    return [list(map(int, batch)) for batch in batches]


def union(parts: list[list[list[int]]]) -> list[list[int]]:
    assert len({len(part) for part in parts}) == 1
    return [batch for together in zip(*parts, strict=True) for batch in together]


@each
def test_the_union_is_one_stream(name: str) -> None:
    (one,) = samplers(name, 1, seed=3)
    epoch = plain(one)
    assert len(epoch) == len(one) == 10
    assert plain(one) == epoch  # as torch's, without set_epoch
    one.set_epoch(1)
    second = plain(one)
    assert second != epoch
    assert plain(samplers(name, 1, seed=4)[0]) not in (epoch, second)
    for world in (2, 3, 4, 12):
        parts = samplers(name, world, seed=3)
        length = 10 // world if name == "drop_last" else -(-10 // world)
        expected = (epoch * 2)[: length * world]
        assert {len(sampler) for sampler in parts} == {length}
        assert union([plain(sampler) for sampler in parts]) == expected
        for sampler in parts:
            sampler.set_epoch(1)
        assert union([plain(sampler) for sampler in parts]) == (second * 2)[: length * world]


@each
def test_resumes_on_another_number_of_ranks(name: str) -> None:
    """Two batches on each of two ranks, one on each of three, the rest on two."""
    epoch = plain(samplers(name, 1)[0])
    state, seen = None, 0
    for world, count in ((2, 2), (3, 1), (2, None)):
        parts = samplers(name, world)
        for sampler in parts:
            if state is not None:
                sampler.load_state_dict(state)
                sampler.set_epoch(0)  # as a training loop does; the place is kept
        drawn = union([plain(islice(sampler, count)) for sampler in parts])
        states = [sampler.state_dict() for sampler in parts]
        assert all(other == states[0] for other in states)
        state = states[0]
        left = 10 - seen
        if count is None:
            count = left // world if name == "drop_last" else -(-left // world)
        assert drawn == [*epoch[seen:], *epoch][: count * world]
        seen += len(drawn)
    assert (state["epoch"], state["position"]) == (1, 0)


@each
def test_states_with_and_without_ranks_are_told_apart(name: str) -> None:
    alone, shared = KINDS[name](), samplers(name, 1)[0]
    with pytest.raises(ValueError, match="must be that of a sampler with num_replicas and rank, got another"):
        shared.load_state_dict(alone.state_dict())
    with pytest.raises(ValueError, match="must be that of a sampler without num_replicas and rank, got another"):
        alone.load_state_dict(shared.state_dict())


@pytest.mark.parametrize("name", ["weighted", "m-per-class", "balanced"])
def test_without_ranks_the_generator_names_the_epochs(name: str) -> None:
    sampler = KINDS[name](generator=torch.Generator().manual_seed(3))
    epochs = [plain(sampler), plain(sampler)]
    again = KINDS[name](generator=torch.Generator().manual_seed(3))
    for epoch, expected in enumerate(epochs):
        again.set_epoch(epoch)  # a trainer may call it
        again.sampler.set_epoch(epoch)
        assert plain(again) == expected
    assert (again.num_replicas, again.rank) == (1, 0)


@pytest.mark.parametrize("name", ["weighted", "m-per-class", "balanced"])
def test_bad_arguments_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make = KINDS[name]
    with pytest.raises(ValueError, match="rank must be from 0 to 1 for num_replicas 2, got 2"):
        make(num_replicas=2, rank=2)
    with pytest.raises(ValueError, match="seed goes with num_replicas and rank; without them give a generator"):
        make(seed=1)
    with pytest.raises(AttributeError, match="generator must be None, as seed names the draws"):
        make(num_replicas=2, rank=0, generator=torch.Generator())
    with pytest.raises(RuntimeError, match="rank must be given, or torch"):
        make(num_replicas=2)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    assert make(rank=1).num_replicas == 2
    assert make().num_replicas == 1  # unasked, a group changes nothing


def test_a_batch_sampler_that_lightning_makes_anew_says_what_to_do() -> None:
    data = torch.utils.data.SequentialSampler(range(9))
    with pytest.raises(TypeError, match=r"weights must be numbers, got SequentialSampler\. Lightning .* num_replicas"):
        WeightedBatchSampler(data, batch_size=4, drop_last=False)  # type: ignore[arg-type]
