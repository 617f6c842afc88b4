"""Ranks share out one stream of weighted draws, and go on from a place of it in another number."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.chi_square import fits
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from ste_ops.data import DistributedWeightedSampler

WEIGHTS = torch.rand(100, generator=torch.Generator().manual_seed(1))


def ranks(world: int, count: int, **options: Any) -> list[DistributedWeightedSampler]:
    weights = options.pop("weights", WEIGHTS)
    return [DistributedWeightedSampler(weights, count, world, rank, **options) for rank in range(world)]


def union(parts: list[list[int]]) -> list[int]:
    assert len({len(part) for part in parts}) == 1
    return [i for together in zip(*parts, strict=True) for i in together]


@pytest.mark.parametrize("replacement", [True, False])
def test_the_union_is_one_stream(device: str, replacement: bool) -> None:
    weights = torch.rand(100, device=device)
    one = list(*ranks(1, 80, weights=weights, replacement=replacement))
    assert len(one) == 80
    for world in (2, 4, 8):
        assert union([list(s) for s in ranks(world, 80, weights=weights, replacement=replacement)]) == one


class Order(DistributedSampler):
    """torch's sharing out, of a given order."""

    def __init__(self, order: list[int], *arguments: Any, **options: Any) -> None:
        super().__init__(order, *arguments, shuffle=False, **options)  # type: ignore[arg-type]

    def __iter__(self) -> Any:
        return (self.dataset[i] for i in super().__iter__())


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("replacement", [True, False])
def test_padding_and_drop_last_are_torchs(replacement: bool, drop_last: bool) -> None:
    for count in (1, 3, 30, 32):
        one = list(*ranks(1, count, replacement=replacement))
        for world in (1, 2, 3, 7, 8):
            for rank, sampler in enumerate(ranks(world, count, replacement=replacement, drop_last=drop_last)):
                theirs = Order(one, world, rank, drop_last=drop_last)
                assert list(sampler) == list(theirs)
                assert len(sampler) == len(theirs)
                assert (sampler.num_samples, sampler.total_size) == (theirs.num_samples, theirs.total_size)


def test_chunks_do_not_show() -> None:
    one = list(*ranks(1, 40_001))
    assert union([list(sampler) for sampler in ranks(2, 40_001)]) == [*one, one[0]]


def test_draws_follow_weights_on_every_rank() -> None:
    weights = torch.tensor([0.1, 0.9, 0.4, 0.0, 3.0])
    for sampler in ranks(4, 80_000, weights=weights):
        assert fits(torch.tensor(list(sampler)), weights)


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("drop_last", [False, True])
def test_resumes_on_another_number_of_ranks(replacement: bool, drop_last: bool) -> None:
    """Four items on each of two ranks, three on each of three, the rest on four: the stream, in order."""
    options: dict[str, Any] = {"replacement": replacement, "drop_last": drop_last, "seed": 3}
    one = list(*ranks(1, 40, **options))
    state, seen = None, 0
    for world, each in ((2, 4), (3, 3), (4, None)):
        samplers = ranks(world, 40, **options)
        for sampler in samplers:
            sampler.set_epoch(0)
            if state is not None:
                sampler.load_state_dict(state)
                sampler.set_epoch(0)  # as a training loop does; the place is kept
        drawn = union([list(islice(sampler, each)) for sampler in samplers])
        states = [sampler.state_dict() for sampler in samplers]
        left = 40 - seen
        expected = left // world * world if drop_last else -(-left // world) * world
        assert drawn == [*one[seen:], *one][: expected if each is None else each * world]
        seen += len(drawn)
        state = states[0]
        if each is not None:
            assert all(other == state for other in states)
            assert state["position"] == seen
    assert seen == 17 + (20 if drop_last else 24)


def test_a_state_in_the_padding_is_the_end() -> None:
    sampler = ranks(4, 10)[3]
    epoch = iter(sampler)
    assert len(list(islice(epoch, 3))) == 3
    assert sampler.state_dict()["position"] == 0
    state = epoch.state_dict()  # as torchdata asks for it
    assert state["position"] == 10
    for world in (1, 3):
        for resumed in ranks(world, 10):
            resumed.load_state_dict(state)
            assert list(resumed) == []
            assert len(list(resumed)) == len(resumed)  # and then the epoch again


def test_epochs() -> None:
    first, second = ranks(2, 50, seed=4)
    epochs = []
    for epoch in (0, 1, 2):
        first.set_epoch(epoch)
        epochs.append(list(first))
        assert list(first) == epochs[-1]  # as torch's, without set_epoch
    assert epochs[0] != epochs[1] != epochs[2]
    second.set_epoch(1)
    other = ranks(2, 50, seed=5)[0]
    assert list(other) not in epochs  # seed 5, epoch 0 is not seed 4, epoch 1
    next(iter(first))
    state = first.state_dict()
    assert (state["seed"], state["epoch"], state["position"]) == (4, 2, 2)
    other.load_state_dict(state)
    assert (other.seed, other.epoch) == (4, 2)
    other.set_epoch(0)  # another epoch starts at its beginning
    assert other.state_dict()["position"] == 0
    assert list(other) == epochs[0]


def test_a_rank_draws_its_own_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = ranks(8, 8000)[5]
    asked = []
    inner = sampler._table.sample_at

    def counted(seed: Any, start: int, count: int, stride: int = 1) -> torch.Tensor:
        asked.append(count)
        return inner(seed, start, count, stride)

    monkeypatch.setattr(sampler._table, "sample_at", counted)
    list(sampler)
    assert sum(asked) == 1000


def test_under_dataloader() -> None:
    sampler = ranks(2, 90)[1]
    loader = DataLoader(TensorDataset(torch.arange(100)), batch_size=8, sampler=sampler)
    assert isinstance(sampler, DistributedSampler)  # what trainers look for before they put one of their own there
    assert torch.cat([batch for (batch,) in loader]).tolist() == list(sampler)


def test_rank_and_num_replicas_come_from_the_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="num_replicas must be given, or"):
        DistributedWeightedSampler(WEIGHTS)
    with pytest.raises(RuntimeError, match="rank must be given, or"):
        DistributedWeightedSampler(WEIGHTS, num_replicas=2)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(dist, "get_rank", lambda: 2)
    sampler = DistributedWeightedSampler(WEIGHTS)
    assert (sampler.num_replicas, sampler.rank, len(sampler), sampler.total_size) == (3, 2, 34, 102)
    assert list(sampler) == list(ranks(3, 100)[2])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rank": 2}, ValueError, "rank must be from 0 to 1 for num_replicas 2, got 2"),
        ({"rank": -1}, ValueError, "rank must be an int from 0 on, got -1"),
        ({"rank": 0.0}, TypeError, "rank must be an int, got float"),
        ({"num_replicas": 0}, ValueError, "num_replicas must be an int from 1 on, got 0"),
        ({"seed": "a"}, TypeError, "seed must be an int, got str"),
        ({"drop_last": 1}, ValueError, "drop_last should be a boolean value, but got drop_last=1"),
        ({"num_samples": 0}, ValueError, "num_samples should be a positive integer value, but got num_samples=0"),
        (
            {"weights": [-1.0]},
            ValueError,
            "Sampler: weights must be non-negative, got -1.0 at index 0",
        ),
        ({"weights": [1.0, 0.0], "replacement": False}, ValueError, "at most 1, the number of positive weights"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DistributedWeightedSampler(**{"weights": WEIGHTS, "num_replicas": 2, "rank": 0, **arguments})


def test_a_bad_epoch_is_refused() -> None:
    sampler = ranks(1, 5)[0]
    with pytest.raises(ValueError, match="epoch must be an int from 0 on, got -1"):
        sampler.set_epoch(-1)
    with pytest.raises(ValueError, match="epoch must be an int from 0 on, got -1"):
        sampler.load_state_dict({**sampler.state_dict(), "epoch": -1})
