"""Dataset indices drawn in proportion to weights, one by one or in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Generator, Tensor

from ste_ops.data._cursor import Plan
from ste_ops.data._draws import CHUNK, AssignableLength, check_bool, check_positive
from ste_ops.data._ranks import RankedBatchSampler, epoch_seed_of, seed_of
from ste_ops.data._stream import Stream


class WeightedRandomSampler(AssignableLength[int]):
    """Draws dataset indices in proportion to weights: a drop-in for `torch.utils.data.WeightedRandomSampler`.

    The table is built once, when the sampler is made, and draws come in chunks: an epoch of any length holds no list of
    its indices, there may be more than 2^24 weights, and wrong weights are refused here rather than in mid-epoch. Every
    iteration takes a fresh seed from `generator` with its first index, so a generator with a fixed seed fixes the
    epochs. Without replacement an epoch is one call of `ste_ops.multinomial`, and holds its order. `state_dict` and
    `load_state_dict` save a place in an epoch and go on from it.

    Weights are copied. `weights` and `num_samples` may be assigned, so that they follow the training: they are checked
    at once and hold from the next iteration on. Nothing else can be changed but `generator`.

    Args:
        weights: one non-negative number for each sample, a sequence or a 1-D tensor; read as float64.
        num_samples: draws in an epoch, > 0; without replacement at most the number of positive weights.
        replacement: whether a sample may be drawn again within an epoch.
        generator: default: torch's default generator.

    Raises:
        ValueError: num_samples is no positive int or too large, replacement no bool, weights are not 1-D, or are
            negative, NaN, infinite, all zero or empty.
        AttributeError: replacement is assigned.
        RuntimeError: weights or num_samples are assigned between `load_state_dict` and the iteration that goes on.

    Example:
        >>> import torch, ste_ops
        >>> labels = torch.tensor([0] * 900 + [1] * 100)
        >>> weights = ste_ops.data.class_weights(labels)[labels]
        >>> sampler = ste_ops.data.WeightedRandomSampler(weights, 4000, generator=torch.Generator().manual_seed(0))
        >>> round(labels[list(sampler)].float().mean().item(), 1)
        0.5
        >>> epoch = iter(sampler)
        >>> used = [next(epoch) for _ in range(1000)]
        >>> state = sampler.state_dict()
        >>> rest = list(epoch)
        >>> sampler.load_state_dict(state)
        >>> list(sampler) == rest
        True
    """

    _fixed = ("replacement",)

    def __init__(
        self,
        weights: Sequence[float] | Tensor,
        num_samples: int,
        replacement: bool = True,
        generator: Generator | None = None,
    ) -> None:
        check_positive("num_samples", num_samples)
        self._take_weights(weights, num_samples, replacement)
        self.generator = generator

    def _plan(self, position: int) -> Plan[int]:
        def draw(stream: Stream, first: int, count: int) -> list[int]:
            return stream(position + first, count, 1).tolist()

        return Plan(position, self._total - position, 1, self._total, CHUNK, self._opener(seed_of), draw)

    def __len__(self) -> int:
        return self._total


class WeightedBatchSampler(RankedBatchSampler[Any], AssignableLength[Any]):
    """Draws whole batches of dataset indices in proportion to weights, for the `batch_sampler` of a `DataLoader`.

    The batches of `torch.utils.data.BatchSampler` over a `WeightedRandomSampler`, drawn as such: no Python runs for
    each index. A dataset with `__getitems__` gets a batch in one call.

    Args:
        weights, replacement, generator: as in `WeightedRandomSampler`.
        batch_size: indices in a batch, > 0.
        num_samples: draws in an epoch; default: the number of weights.
        drop_last: whether the last batch of an epoch is left out where it is not full.
        as_tensors: whether a batch is an int64 tensor, on the device of weights, and not a list. Without workers a
            dataset whose `__getitems__` indexes a tensor gains from it; to send one to a worker costs more than a list.
        num_replicas, rank, seed: where one of the first two is given, ranks share out the batches of one stream, as
            `DistributedWeightedSampler` does its draws: rank r of W takes batches r, r + W, ... of (seed, epoch), and
            states resume on another number of ranks. num_samples is then that of all ranks together; the first batches
            follow the last where W does not divide their number, or with `drop_last` the tail is left out. Whichever is
            not given is that of the default process group. Without them every rank draws by its own generator.

    Yields:
        Lists of ints, or tensors.

    Raises:
        ValueError: as `WeightedRandomSampler` and `BatchSampler` do; rank is not in [0, num_replicas), or seed is given
            without them.
        AttributeError: a generator is given with them.
        RuntimeError: only one of num_replicas and rank is given and there is no process group.

    Example:
        >>> import torch, ste_ops
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> sampler = ste_ops.data.WeightedBatchSampler([0.0, 1.0, 2.0], batch_size=4, num_samples=10)
        >>> [len(batch) for batch in sampler]
        [4, 4, 2]
        >>> loader = DataLoader(TensorDataset(torch.arange(3)), batch_sampler=sampler)
        >>> sum(len(batch) for batch, in loader)
        10
    """

    _fixed = ("replacement", "batch_size", "drop_last", "as_tensors", "num_replicas", "rank", "seed")

    def __init__(
        self,
        weights: Sequence[float] | Tensor,
        batch_size: int,
        num_samples: int | None = None,
        replacement: bool = True,
        drop_last: bool = False,
        generator: Generator | None = None,
        *,
        as_tensors: bool = False,
        num_replicas: int | None = None,
        rank: int | None = None,
        seed: int | None = None,
    ) -> None:
        check_positive("batch_size", batch_size)
        check_bool("drop_last", drop_last)
        check_bool("as_tensors", as_tensors)
        self._take_weights(weights, num_samples, replacement)
        self.batch_size = int(batch_size)
        self.drop_last = drop_last
        self.as_tensors = as_tensors
        self._take_ranks_if_named(num_replicas, rank, seed, generator)

    def _plan(self, position: int) -> Plan[Any]:
        size, total, as_tensors = self.batch_size, self._total, self.as_tensors
        left = _batches(total - position, size, self.drop_last)
        places = self._places(position, left, _batches(total, size, self.drop_last), size)
        alone = self.num_replicas == 1

        def draw(stream: Stream, first: int, count: int) -> list[Any]:
            if not alone:
                own = [stream(start, min(size, total - start), 1) for start in places(first, count)]
                return [batch.clone() for batch in own] if as_tensors else [batch.tolist() for batch in own]
            start = position + first * size
            drawn = stream(start, min(count * size, total - start), 1)
            if as_tensors:  # each with memory of its own, or a worker is sent the whole chunk
                return [batch.clone() for batch in drawn.split(size)]
            full = len(drawn) // size * size
            batches = drawn[:full].view(-1, size).tolist()
            return [*batches, drawn[full:].tolist()] if full < len(drawn) else batches

        seed = epoch_seed_of if self._ranked else seed_of
        unit = size * self.num_replicas
        return Plan(position, self._own(left), unit, total, max(1, CHUNK // size), self._opener(seed), draw)

    def _own(self, left: int) -> int:
        return left // self.num_replicas if self.drop_last else super()._own(left)

    def __len__(self) -> int:
        return self._own(_batches(self._total, self.batch_size, self.drop_last))


def _batches(draws: int, size: int, drop_last: bool) -> int:
    return draws // size if drop_last else -(-draws // size)
