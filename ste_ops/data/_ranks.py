"""Samplers whose ranks share out one stream: (seed, epoch) names it, and each takes its own part without a word."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch.distributed as dist
from torch import Generator

from ste_ops._checks import is_integer
from ste_ops.data._cursor import Origin
from ste_ops.data._state import ResumableSampler
from ste_ops.data._stream import epoch_seed

T = TypeVar("T")


def seed_of(origin: Origin) -> int:
    return origin["seed"]


def epoch_seed_of(origin: Origin) -> int:
    return epoch_seed(origin["seed"], origin["epoch"])


class RankedSampler(ResumableSampler[T]):
    """Base of what ranks share out: who they are, and the epoch."""

    num_replicas: int
    rank: int
    seed: int
    epoch: int
    _ranked = True  # or every rank draws the same, in epochs that have no number
    _unnamed = False  # whether a state was loaded and set_epoch not called since

    def _take_ranks(self, num_replicas: int | None, rank: int | None, seed: int) -> None:
        ranks = self._of_group("num_replicas", num_replicas, dist.get_world_size)
        self.num_replicas = self._checked_int("num_replicas", ranks, 1)
        self.rank = self._checked_int("rank", self._of_group("rank", rank, dist.get_rank), 0)
        if self.rank >= self.num_replicas:
            raise ValueError(
                f"{self._kind}: rank must be from 0 to {self.num_replicas - 1} for num_replicas "
                f"{self.num_replicas}, got {self.rank}"
            )
        self.seed = self._checked_int("seed", seed, -(2**63))
        self.epoch = 0

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "generator" and value is not None and self._ranked:
            raise AttributeError(
                f"{self._kind}: generator must be None, as seed names the draws and num_replicas and rank share them "
                "out. Accelerate, which sets one, would share them out once more: leave the loader out of prepare(), "
                "or prepare one whose sampler knows no ranks"
            )
        if name == "epoch" and name in vars(self):
            raise AttributeError(f"{self._kind}: epoch is set by set_epoch({value!r})")
        super().__setattr__(name, value)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration draws; without it every iteration draws the same one.

        After `load_state_dict` the epoch of the state, which is then `epoch`, goes on from where it was; another one
        starts at its beginning. A warning says where that is an epoch which the run has just behind it.
        """
        epoch = self._checked_int("epoch", epoch, 0)
        if not self._ranked:
            return
        ended = self._cursor if self._cursor is not None and self._cursor.finished else None
        drawn = ended is not None and self._unnamed and ended.named["epoch"] == epoch
        at_its_start = self._unnamed and self._loaded is not None and self._loaded[1] == 0
        saved_at_its_end = at_its_start and epoch == self.epoch - 1
        if drawn or saved_at_its_end:
            warnings.warn(
                f"{self._kind}: epoch {epoch} is drawn once more. A state that is saved at the end of an epoch is the "
                "start of the next: count on from sampler.epoch after load_state_dict.",
                stacklevel=2,
            )
        if ended is not None or epoch != self.epoch:
            self._cursor, self._resumed, self._loaded = None, None, None
        self._unnamed = False
        vars(self)["epoch"] = epoch

    def _coming(self) -> Origin:
        return {"seed": self.seed, "epoch": self.epoch} if self._ranked else super()._coming()

    def _following(self, origin: Origin) -> Origin:
        return {**origin, "epoch": origin["epoch"] + 1} if self._ranked else super()._following(origin)

    def _accept(self, loaded: tuple[Origin, int]) -> None:
        super()._accept(loaded)
        self._unnamed = True
        self._enter(loaded[0])

    def _enter(self, origin: Origin) -> None:
        if self._ranked:
            vars(self).update(origin)

    def _read(self, state: Mapping[str, Any]) -> tuple[Origin, int]:
        if isinstance(state, Mapping) and ("epoch" in state) != self._ranked:
            kind = "with num_replicas and rank" if self._ranked else "without num_replicas and rank"
            raise ValueError(f"{self._kind}.load_state_dict: the state must be that of a sampler {kind}, got another")
        origin, position = super()._read(state)
        for name in origin if self._ranked else ():
            self._checked_int(name, origin[name], 0 if name == "epoch" else -(2**63))
        return origin, position

    def _checked_int(self, name: str, value: Any, least: int) -> int:
        if not is_integer(value):
            raise TypeError(f"{self._kind}: {name} must be an int, got {type(value).__name__}")
        if not least <= value < 2**64:
            raise ValueError(f"{self._kind}: {name} must be an int from {least} on, got {value}")
        return int(value)

    def _of_group(self, name: str, value: int | None, ask: Any) -> int:
        if value is not None:
            return value
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(f"{self._kind}: {name} must be given, or torch.distributed be initialized; got neither")
        return ask()


class RankedBatchSampler(RankedSampler[T]):
    """Base of the batch samplers, which know of ranks where they are told."""

    def _take_ranks_if_named(
        self, num_replicas: int | None, rank: int | None, seed: int | None, generator: Generator | None
    ) -> None:
        self._ranked = num_replicas is not None or rank is not None
        if self._ranked:
            self._take_ranks(num_replicas, rank, 0 if seed is None else seed)
        elif seed is not None:
            raise ValueError(f"{self._kind}: seed goes with num_replicas and rank; without them give a generator")
        else:
            self.num_replicas, self.rank = 1, 0
            vars(self).update(seed=None, epoch=0)
        self.generator = generator

    @property
    def sampler(self) -> Inside[T]:
        """What trainers look for in a batch sampler: `set_epoch`, and the generator that Accelerate gives all ranks."""
        return Inside(self)

    def _own(self, left: int) -> int:
        """How many of so many batches a rank has, those included that repeat the first ones."""
        return -(-left // self.num_replicas)

    def _places(self, position: int, left: int, whole: int, unit: int) -> Callable[[int, int], list[int]]:
        """Where in the stream this rank's batches of such numbers begin; the epoch's first follow its last."""
        ranks, rank = self.num_replicas, self.rank

        def places(first: int, count: int) -> list[int]:
            numbers = range(rank + first * ranks, rank + (first + count) * ranks, ranks)
            return [position + n * unit if n < left else (n - left) % whole * unit for n in numbers]

        return places


class Inside(Generic[T]):
    """What a batch sampler shows as its sampler."""

    def __init__(self, batches: RankedBatchSampler[T]) -> None:
        self._batches = batches

    def set_epoch(self, epoch: int) -> None:
        self._batches.set_epoch(epoch)

    @property
    def generator(self) -> Generator | None:
        if getattr(self._batches, "as_tensors", False):
            raise TypeError(
                f"{self._batches._kind}: Accelerate shares out lists, not tensors; leave as_tensors=True out, or give "
                "num_replicas and rank and leave the loader out of prepare()"
            )
        return self._batches.generator

    @generator.setter
    def generator(self, generator: Generator | None) -> None:
        self._batches.generator = generator
