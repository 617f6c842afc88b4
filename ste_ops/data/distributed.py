"""Weighted draws that ranks share out among themselves without a word."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from ste_ops.data._cursor import Plan
from ste_ops.data._draws import CHUNK, WeightedSampler, check_bool
from ste_ops.data._ranks import RankedSampler, epoch_seed_of
from ste_ops.data._stream import Stream


class DistributedWeightedSampler(RankedSampler[int], WeightedSampler[int], DistributedSampler):
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
    repeats and drop_last leaves out at the end. After the end of an epoch the state is the start of the next one.

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
        self._take_ranks(num_replicas, rank, seed)
        check_bool("drop_last", drop_last)
        self._take_weights(weights, num_samples, replacement)
        self.drop_last = drop_last
        self.shuffle = True
        self.num_samples = self._share(0)
        self.total_size = self.num_samples * self.num_replicas

    def _share(self, position: int) -> int:
        """How many draws a rank has from `position` on."""
        left = max(self._total - position, 0)
        return left // self.num_replicas if self.drop_last else -(-left // self.num_replicas)

    def _plan(self, position: int) -> Plan[int]:
        total, ranks, own = self._total, self.num_replicas, position + self.rank

        def draw(stream: Stream, first: int, count: int) -> list[int]:
            start = own + first * ranks
            inside = min(count, max(0, -(-(total - start) // ranks)))
            drawn = stream(start, inside, ranks).tolist() if inside else []
            for i in range(inside, count):
                drawn += stream((start + i * ranks) % total, 1, 1).tolist()
            return drawn

        return Plan(position, self._share(position), ranks, total, CHUNK, self._opener(epoch_seed_of), draw)

    def __len__(self) -> int:
        return self.num_samples
