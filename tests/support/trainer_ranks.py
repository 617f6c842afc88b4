"""Loops of docs/trainers.md, and what Accelerate makes of samplers, for two ranks that hold a process group."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import BatchSampler, DataLoader

import ste_ops
from support.samplers import Indices

PAGE = (Path(__file__).parents[2] / "docs" / "trainers.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
BLOCKS = {name: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for name, text in SECTIONS.items()}
SHARED_OUT = "would share them out once more: leave the loader out"


def recipe(name: str, rank: int, world: int) -> None:
    # What a launcher sets; the group itself is there.
    own, all_ranks = str(rank), str(world)
    os.environ.update(RANK=own, LOCAL_RANK=own, WORLD_SIZE=all_ranks, LOCAL_WORLD_SIZE=all_ranks)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    epochs: list[list[int]] = [[], []]

    def train(epoch: int, batch: torch.Tensor) -> None:
        torch.rand(rank)  # the generators of the ranks go apart
        epochs[epoch] += batch.tolist()

    (block,) = BLOCKS[name]
    names = {"dataset": Indices(), "weights": torch.ones(64), "train": train}
    exec(PAGE.split("```python\n")[1].split("```")[0] + block, names)
    parts: list[Any] = [None] * world
    dist.all_gather_object(parts, epochs)
    for ours, theirs in zip(*parts, strict=True):
        assert len(ours) == len(theirs) == 32
        assert set(ours) | set(theirs) == set(range(64))
    assert parts[0][0] != parts[0][1]


def own_loop(rank: int, world: int) -> None:
    recipe("Your own loop", rank, world)


def lightning(rank: int, world: int) -> None:
    recipe("Lightning", rank, world)


def accelerate(rank: int, world: int) -> None:
    recipe("Accelerate, and the Trainer of transformers", rank, world)


def generators(rank: int, world: int) -> None:
    """One stream on both ranks, batch by batch in turn."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    labels = torch.arange(64) % 8
    for sampler in (
        ste_ops.data.WeightedBatchSampler(torch.ones(64), 4, replacement=False, generator=torch.Generator()),
        ste_ops.data.MPerClassBatchSampler(labels, 2, 8),
        ste_ops.data.ClassBalancedBatchSampler(labels, 8),
    ):
        torch.rand(rank)
        loader = accelerator.prepare(DataLoader(Indices(), batch_sampler=sampler))
        parts: list[Any] = [None, None]
        dist.all_gather_object(parts, [batch.tolist() for batch in loader])
        expected = list(seeded_like(sampler))
        assert [batch for pair in zip(*parts, strict=True) for batch in pair] == expected


def seeded_like(sampler: Any) -> Any:
    """The epoch that the sampler has just drawn, from its beginning."""
    state = sampler.state_dict(consumed=0)
    sampler.load_state_dict({key: value for key, value in state.items() if key != "generator"})
    return sampler


def refused(rank: int, world: int) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    weights = torch.ones(64)
    distributed = ste_ops.data.DistributedWeightedSampler(weights)
    ranked = ste_ops.data.WeightedBatchSampler(weights, 4, rank=rank)
    tensors = ste_ops.data.WeightedBatchSampler(weights, 4, as_tensors=True)
    for batches, error, message in (
        (BatchSampler(distributed, 4, False), AttributeError, SHARED_OUT),
        (ranked, AttributeError, SHARED_OUT),
        (tensors, TypeError, "Accelerate shares out lists, not tensors; leave as_tensors=True out"),
    ):
        with pytest.raises(error, match=message):
            accelerator.prepare(DataLoader(Indices(), batch_sampler=batches))


CASES = {"": [own_loop], "pytorch_lightning": [lightning], "accelerate": [accelerate, generators, refused]}
