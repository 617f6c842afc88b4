"""Dataset indices drawn in proportion to weights, one by one or in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor
from torch.utils.data import Sampler

from ste_ops._checks import MOST, as_weights, refuse_invalid
from ste_ops.data._state import Origin, Plan, ResumableSampler
from ste_ops.data._stream import Stream, endless, fingerprint, ordered
from ste_ops.functional.sampling.alias import AliasTable

T = TypeVar("T")

# So many draws are made at a time: a call's cost is spread over them, the first index does not wait for many, and they
# are too few to share out to threads, which on a busy machine takes longer than to draw them.
CHUNK = 16384


def check_positive(name: str, value: Any) -> None:
    """Refuses in the words of torch's samplers, as `check_bool` does."""
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ValueError(f"{name} should be a positive integer value, but got {name}={value}")


def check_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} should be a boolean value, but got {name}={value}")


@dataclass(frozen=True)
class Draws:
    """What draws come from. Its weights are shared with nobody, so nothing can change under an iteration."""

    kind: str
    weights: Tensor
    total: int
    replacement: bool
    table: AliasTable | None

    @classmethod
    def of(cls, kind: str, weights: Sequence[float] | Tensor, total: int | None, replacement: bool) -> Draws:
        if isinstance(weights, Sampler):
            raise TypeError(
                f"{kind}: weights must be numbers, got {type(weights).__name__}. Lightning makes a batch sampler anew "
                "in this way to share it out: give num_replicas and rank, and Trainer(use_distributed_sampler=False)"
            )
        own = torch.as_tensor(weights, dtype=torch.double).detach()
        if not isinstance(weights, (list, tuple)):
            own = own.clone()
        if len(own.shape) != 1:
            raise ValueError(f"weights should be a 1d sequence but given weights have shape {tuple(own.shape)}")
        table = AliasTable._for(kind, own) if replacement else None
        return cls(kind, own, len(own), replacement, table).of_length(len(own) if total is None else total)

    def of_length(self, total: int) -> Draws:
        if total > MOST:
            raise ValueError(f"{self.kind}: num_samples must be at most 2**40, got {total}")
        positive = total if self.replacement else _count_positive(self.kind, self.weights)
        if total > positive:
            raise ValueError(
                f"{self.kind}: num_samples must be at most {positive}, the number of positive weights, "
                f"without replacement, got {total}"
            )
        return replace(self, total=total)

    @cached_property
    def description(self) -> dict[str, Any]:
        return {
            "num_weights": len(self.weights),
            "num_samples": self.total,
            "replacement": self.replacement,
            "weights": fingerprint(self.weights),
        }

    def opener(self, seed: Callable[[Origin], int]) -> Callable[[Origin], Stream]:
        table, weights, total = self.table, self.weights, self.total
        if table is not None:
            return lambda origin: endless(table, seed(origin))
        return lambda origin: ordered(weights, total, seed(origin))


class WeightedSampler(ResumableSampler[T]):
    """Base of the weighted samplers: weights that may be assigned, and an epoch's stream of draws from them."""

    replacement: bool
    _shown: tuple[Tensor, int] | None = None

    def _take_weights(self, weights: Sequence[float] | Tensor, num_samples: int | None, replacement: bool) -> None:
        if num_samples is not None:
            check_positive("num_samples", num_samples)
        check_bool("replacement", replacement)
        self._draws = Draws.of(self._kind, weights, num_samples, replacement)
        self.replacement = replacement

    @property
    def weights(self) -> Tensor:
        """float64. What is assigned, or written into this tensor, holds from the next iteration on."""
        if self._shown is None:
            shown = self._draws.weights.clone()
            self._shown = shown, shown._version
        return self._shown[0]

    @weights.setter
    def weights(self, weights: Sequence[float] | Tensor) -> None:
        self._change(Draws.of(self._kind, weights, self._total, self.replacement))
        self._shown = None

    def _change(self, draws: Draws) -> None:
        if self._loaded is not None and self._loaded[1] > 0:
            raise RuntimeError(
                f"{self._kind}: weights and num_samples must not change between load_state_dict and the iteration that "
                "goes on from there; assign before loading, or after its first item"
            )
        self._draws = draws

    @property
    def _source(self) -> Draws:
        if self._shown is not None and self._shown[0]._version != self._shown[1]:
            self.weights = self._shown[0]
        return self._draws

    @property
    def _total(self) -> int:
        return self._draws.total

    @property
    def _device(self) -> torch.device:
        return self._draws.weights.device

    @property
    def _table(self) -> AliasTable | None:
        return self._draws.table

    def _describe(self, source: Draws) -> dict[str, Any]:
        return source.description

    def _opener(self, seed: Callable[[Origin], int] = lambda origin: origin["seed"]) -> Callable[[Origin], Stream]:
        return self._source.opener(seed)

    def __getstate__(self) -> dict[str, Any]:
        self._source  # noqa: B018  what was written into the tensor that a copy does not take along
        return {**super().__getstate__(), "_shown": None}


class _AssignableLength(WeightedSampler[T]):
    @property
    def num_samples(self) -> int:
        """Draws in an epoch. What is assigned holds from the next iteration on."""
        return self._total

    @num_samples.setter
    def num_samples(self, num_samples: int) -> None:
        check_positive("num_samples", num_samples)
        self._change(self._source.of_length(num_samples))


def _count_positive(operator: str, weights: Tensor) -> int:
    """The number of positive weights; raises what a table of the weights would."""
    weights = as_weights(operator, weights, ValueError)
    valid = torch.isfinite(weights) & (weights >= 0)
    state = torch.where(valid.all(), torch.count_nonzero(weights), -1 - valid.to(torch.uint8).argmin())
    refuse_invalid(operator, weights, state, ValueError)
    return int(state)


class WeightedRandomSampler(_AssignableLength[int]):
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

        return Plan(position, self._total - position, 1, self._total, CHUNK, self._opener(), draw)

    def __len__(self) -> int:
        return self._total


class WeightedBatchSampler(_AssignableLength[Any]):
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

    Yields:
        Lists of ints, or tensors.

    Raises:
        ValueError: as `WeightedRandomSampler` and `BatchSampler` do.

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

    _fixed = ("replacement", "batch_size", "drop_last", "as_tensors")

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
    ) -> None:
        check_positive("batch_size", batch_size)
        check_bool("drop_last", drop_last)
        check_bool("as_tensors", as_tensors)
        self._take_weights(weights, num_samples, replacement)
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.as_tensors = as_tensors
        self.generator = generator

    def _plan(self, position: int) -> Plan[Any]:
        size, total, as_tensors = self.batch_size, self._total, self.as_tensors

        def draw(stream: Stream, first: int, count: int) -> list[Any]:
            start = position + first * size
            drawn = stream(start, min(count * size, total - start), 1)
            if as_tensors:  # each with memory of its own, or a worker is sent the whole chunk
                return [batch.clone() for batch in drawn.split(size)]
            full = len(drawn) // size * size
            batches = drawn[:full].view(-1, size).tolist()
            return [*batches, drawn[full:].tolist()] if full < len(drawn) else batches

        items = _batches(total - position, size, self.drop_last)
        return Plan(position, items, size, total, max(1, CHUNK // size), self._opener(), draw)

    def __len__(self) -> int:
        return _batches(self._total, self.batch_size, self.drop_last)


def _batches(draws: int, size: int, drop_last: bool) -> int:
    return draws // size if drop_last else -(-draws // size)
