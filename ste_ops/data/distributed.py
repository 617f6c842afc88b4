"""Weighted draws that ranks share out among themselves without a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from ste_ops.data._state import Origin, Plan
from ste_ops.data._stream import Stream, epoch_seed
from ste_ops.data.weighted import CHUNK, WeightedSampler, check_bool


class DistributedWeightedSampler(WeightedSampler[int], DistributedSampler):
    """Draws dataset indices in proportion to weights, each rank its own part of one stream, without communication.

    (seed, epoch) names a stream of draws, the same for any number of ranks: of W ranks, rank r takes draws r, r + W,
    r + 2 W, ... of it, as `torch.utils.data.DistributedSampler` shares out a permutation. With replacement a rank
    computes its own draws alone. Without, draws depend on those before them, so every rank finds the whole order: one
    `ste_ops.multinomial` an epoch, and eight bytes for each of num_samples.

    All ranks get equally many: where W does not divide num_samples, the stream goes on with its own beginning
    (draw num_samples + i is draw i), or with `drop_last` the tail is left out.

    The state counts draws of the stream, not of a rank: it may be saved on any rank, as all stand at the same place,
    and loaded on every rank of another number of them. The remaining draws are then shared out anew: W' ranks that
    resume at draw S take S + r, S + r + W', ... So nothing is drawn twice and nothing is lost but for what padding
    repeats and drop_last leaves out at the end.

    Args:
        weights: as in `WeightedRandomSampler`; the same on every rank.
        num_samples: draws in an epoch, those of all ranks together; default: the number of weights.
        num_replicas: the number of ranks; default: that of the default process group.
        rank: default: that in the default process group.
        replacement: whether a sample may be drawn again within an epoch.
        seed: the same on every rank.
        drop_last: whether a tail that the ranks cannot share evenly is left out.

    The attributes are those of `DistributedSampler`: `num_samples` of this rank, `total_size` of all, `epoch`.

    Raises:
        ValueError: rank is not in [0, num_replicas), or as `WeightedRandomSampler`.
        RuntimeError: num_replicas or rank is not given and there is no process group.

    Example:
        >>> import ste_ops
        >>> weights = [1.0, 2.0, 3.0, 4.0]
        >>> def draws(rank, ranks):
        ...     return list(ste_ops.data.DistributedWeightedSampler(weights, 8, num_replicas=ranks, rank=rank))
        >>> [i for pair in zip(draws(0, 2), draws(1, 2)) for i in pair] == draws(0, 1)
        True
    """

    _fixed = (
        "replacement",
        "num_samples",
        "total_size",
        "num_replicas",
        "rank",
        "seed",
        "drop_last",
        "shuffle",
        "epoch",
    )

    def __init__(
        self,
        weights: Sequence[float] | Tensor,
        num_samples: int | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
        replacement: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        self.num_replicas = _of_group("num_replicas", dist.get_world_size) if num_replicas is None else num_replicas
        self.rank = _of_group("rank", dist.get_rank) if rank is None else rank
        for name, value, least in (
            ("num_replicas", self.num_replicas, 1),
            ("rank", self.rank, 0),
            ("seed", seed, -(2**63)),
        ):
            _check_int(name, value, least)
        if self.rank >= self.num_replicas:
            raise ValueError(
                f"DistributedWeightedSampler: rank must be from 0 to {self.num_replicas - 1} for num_replicas "
                f"{self.num_replicas}, got {self.rank}"
            )
        check_bool("drop_last", drop_last)
        self._take_weights(weights, num_samples, replacement)
        self.seed = seed
        self.epoch = 0
        self.drop_last = drop_last
        self.shuffle = True
        self.num_samples = self._share(0)
        self.total_size = self.num_samples * self.num_replicas

    def _share(self, position: int) -> int:
        """How many draws a rank has from `position` on."""
        left = max(self._total - position, 0)
        return left // self.num_replicas if self.drop_last else -(-left // self.num_replicas)

    def _coming(self) -> Origin:
        return {"seed": self.seed, "epoch": self.epoch}

    def _plan(self, position: int) -> Plan[int]:
        total, ranks, own = self._total, self.num_replicas, position + self.rank

        def draw(stream: Stream, first: int, count: int) -> list[int]:
            start = own + first * ranks
            inside = min(count, max(0, -(-(total - start) // ranks)))
            drawn = stream(start, inside, ranks).tolist() if inside else []
            for i in range(inside, count):
                drawn += stream((start + i * ranks) % total, 1, 1).tolist()
            return drawn

        opener = self._opener(lambda origin: epoch_seed(origin["seed"], origin["epoch"]))
        return Plan(position, self._share(position), ranks, total, CHUNK, opener, draw)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration draws; without it every iteration draws the same one.

        After `load_state_dict` the epoch of the state goes on from where it was, another one starts at its beginning.
        """
        _check_int("epoch", epoch, 0)
        if epoch != self.epoch:
            self._cursor, self._loaded = None, None
        vars(self)["epoch"] = epoch

    def _accept(self, loaded: tuple[Origin, int]) -> None:
        super()._accept(loaded)
        vars(self).update(loaded[0])

    def _read(self, state: Mapping[str, Any]) -> tuple[Origin, int]:
        origin, position = super()._read(state)
        for name in origin:
            _check_int(name, origin[name], 0 if name == "epoch" else -(2**63))
        return origin, position

    def __len__(self) -> int:
        return self.num_samples


def _check_int(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"DistributedWeightedSampler: {name} must be an int, got {type(value).__name__}")
    if not least <= value < 2**64:
        raise ValueError(f"DistributedWeightedSampler: {name} must be an int from {least} on, got {value}")


def _of_group(name: str, ask: Any) -> int:
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            f"DistributedWeightedSampler: {name} must be given, or torch.distributed be initialized; got neither"
        )
    return ask()
