"""torchdata's own StatefulDataLoader resumes our samplers in mid-epoch, exactly and without replaying."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from support.samplers import Indices, seeded

from ste_ops.data import (
    ClassBalancedBatchSampler,
    DistributedWeightedSampler,
    MPerClassBatchSampler,
    WeightedBatchSampler,
    WeightedRandomSampler,
)

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # called by torchdata 0.11
loaders = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")

WEIGHTS = torch.rand(100, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(100) % 7

# An epoch of each is eight batches, where one is left over from seven whole ones; DataLoader's argument for it.
SAMPLERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "random": (lambda g: WeightedRandomSampler(WEIGHTS, 30, generator=g), "sampler"),
    "random, whole batches": (lambda g: WeightedRandomSampler(WEIGHTS, 32, generator=g), "sampler"),
    "ordered": (lambda g: WeightedRandomSampler(WEIGHTS, 30, replacement=False, generator=g), "sampler"),
    "batch": (lambda g: WeightedBatchSampler(WEIGHTS, 4, 30, generator=g), "batch_sampler"),
    "tensors": (lambda g: WeightedBatchSampler(WEIGHTS, 4, 30, generator=g, as_tensors=True), "batch_sampler"),
    "distributed": (lambda g: DistributedWeightedSampler(WEIGHTS, 59, 2, 0), "sampler"),
    "m-per-class": (lambda g: MPerClassBatchSampler(LABELS, 2, 4, 8, generator=g), "batch_sampler"),
    "balanced": (lambda g: ClassBalancedBatchSampler(LABELS, 4, 8, generator=g), "batch_sampler"),
}


def loader(name: str, workers: int, own_generator: bool = True, **options: Any) -> Any:
    make, argument = SAMPLERS[name]
    options[argument] = make(seeded() if own_generator else None)
    if argument == "sampler":
        options["batch_size"] = 4
    return loaders.StatefulDataLoader(Indices(), num_workers=workers, **options)


def drain(batches: Any) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


def of_epoch_one(loading: Any) -> Any:
    if hasattr(loading.sampler, "set_epoch"):
        loading.sampler.set_epoch(1)
    return loading


def check(name: str, workers: int, places: tuple[int, ...], **options: Any) -> None:
    """From each place the rest of the epoch comes, and where the sampler has a generator the next epoch too."""
    first = loader(name, workers, **options)
    states, epoch = [], []
    for batch in first:
        epoch.append(batch.tolist())
        states.append(first.state_dict())
    states.append(first.state_dict())  # after the end: what comes is the next epoch
    assert len(epoch) == 8
    following = drain(of_epoch_one(first))
    for place in places:
        torch.manual_seed(1000 + place)  # another process would have drawn other things
        second = loader(name, workers, **options)
        second.load_state_dict(states[place - 1])
        if place <= 8:
            rest = drain(second)
            assert rest == epoch[place:], place
            if options.get("own_generator", True):
                assert drain(of_epoch_one(second)) == following
        else:
            rest = drain(of_epoch_one(second))
            assert rest == following
        if workers == 0:
            assert second.dataset.read == sum(map(len, rest)) + (sum(map(len, following)) if place <= 8 else 0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_in_this_process(name: str) -> None:
    check(name, 0, (1, 3, 7, 8, 9))


@pytest.mark.parametrize("name", ["random", "batch", "distributed"])
def test_with_workers_that_are_fed_ahead(name: str) -> None:
    check(name, 2, (3, 8, 9))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_seed_of_torchs_default_generator_is_kept(workers: int) -> None:
    """Saved at step 1, between snapshots: the loader goes back to the start of the epoch and steps over one batch."""
    first = loader("random", workers, own_generator=False, snapshot_every_n_steps=3)
    iterator = iter(first)
    list(islice(iterator, 1))
    state = first.state_dict()
    rest = drain(iterator)
    torch.manual_seed(1000)
    second = loader("random", workers, own_generator=False, snapshot_every_n_steps=3)
    second.load_state_dict(state)
    assert drain(second) == rest


def test_ranks_resume_in_another_number() -> None:
    def rank(r: int, world: int) -> Any:
        sampler = DistributedWeightedSampler(WEIGHTS, 60, world, r)
        return loaders.StatefulDataLoader(Indices(), batch_size=2, sampler=sampler)

    one = list(DistributedWeightedSampler(WEIGHTS, 60, 1, 0))
    saved = rank(0, 2)
    iterator = iter(saved)
    seen = [i for batch in islice(iterator, 3) for i in batch.tolist()]
    assert seen == one[0:12:2]
    state = saved.state_dict()
    parts = []
    for r in range(3):
        resumed = rank(r, 3)
        resumed.load_state_dict(state)
        parts.append([i for batch in resumed for i in batch.tolist()])
    assert [i for together in zip(*parts, strict=True) for i in together] == one[12:]


def test_the_examples_of_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "resuming.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 5
    exec("".join(blocks), {})
