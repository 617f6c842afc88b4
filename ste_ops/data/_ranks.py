"""Samplers whose ranks share out one stream: (seed, epoch) names it, and each takes its own part without a word."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import torch.distributed as dist

from ste_ops._checks import is_integer
from ste_ops.data._cursor import Origin
from ste_ops.data._state import ResumableSampler

T = TypeVar("T")


class RankedSampler(ResumableSampler[T]):
    """Base of what ranks share out: who they are, and the epoch."""

    num_replicas: int
    rank: int
    seed: int
    epoch: int
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

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration draws; without it every iteration draws the same one.

        After `load_state_dict` the epoch of the state, which is then `epoch`, goes on from where it was; another one
        starts at its beginning. A warning says where that is an epoch which the run has just behind it.
        """
        epoch = self._checked_int("epoch", epoch, 0)
        ended = self._cursor if self._cursor is not None and self._cursor.finished else None
        drawn = ended is not None and self._unnamed and ended.named["epoch"] == epoch
        saved_at_its_end = self._loaded is not None and self._loaded[1] == 0 and epoch == self.epoch - 1
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
        return {"seed": self.seed, "epoch": self.epoch}

    def _following(self, origin: Origin) -> Origin:
        return {**origin, "epoch": origin["epoch"] + 1}

    def _accept(self, loaded: tuple[Origin, int]) -> None:
        super()._accept(loaded)
        self._unnamed = True
        self._enter(loaded[0])

    def _enter(self, origin: Origin) -> None:
        vars(self).update(origin)

    def _read(self, state: Mapping[str, Any]) -> tuple[Origin, int]:
        origin, position = super()._read(state)
        for name in origin:
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
