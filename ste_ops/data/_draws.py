"""The weights that draws come from, how they change, and the checks that all samplers share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from ste_ops._checks import MOST, as_weights, is_integer, refuse_invalid
from ste_ops.data._cursor import Origin
from ste_ops.data._state import ResumableSampler
from ste_ops.data._stream import Stream, endless, fingerprint, ordered
from ste_ops.data._subset_check import check_subset
from ste_ops.functional.sampling.alias import AliasTable

T = TypeVar("T")

# So many draws are made at a time: a call's cost is spread over them, the first index does not wait for many, and they
# are too few to share out to threads, which on a busy machine takes longer than to draw them.
CHUNK = 16384


def check_positive(name: str, value: Any) -> None:
    """Refuses in the words of torch's samplers, as `check_bool` does."""
    if not is_integer(value) or value <= 0:
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
        own = _as_doubles(kind, weights)
        if len(own.shape) != 1:
            raise ValueError(f"weights should be a 1d sequence but given weights have shape {tuple(own.shape)}")
        table = AliasTable._for(kind, own) if replacement else None
        return cls(kind, own, len(own), replacement, table).of_length(len(own) if total is None else int(total))

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


def _as_doubles(kind: str, weights: Any) -> Tensor:
    """In memory that nobody else holds."""
    if isinstance(weights, Tensor) and not weights.is_complex():
        return weights.detach().to(torch.double, copy=True)
    got = _unlike_numbers(weights)
    if got is None:
        try:
            if hasattr(weights, "__array__"):
                array = np.asarray(weights)
                # Of any order in memory and of its bytes. Among objects NumPy would read strings and None as numbers.
                given: Any = array.tolist() if array.dtype.kind == "O" else np.array(array, dtype=np.float64, order="C")
            else:
                given = weights if isinstance(weights, (list, tuple)) else list(weights)
            return torch.as_tensor(given, dtype=torch.double).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            got = f"{type(weights).__name__}: {error}"
    raise TypeError(f"{kind}: weights must be numbers, one for each sample, got {got}")


def _unlike_numbers(weights: Any) -> str | None:
    """What is given in the place of numbers; None where they may be some."""
    if isinstance(weights, Tensor):
        return str(weights.dtype)
    if isinstance(weights, (str, bytes, Mapping, Set)) or not isinstance(weights, Iterable):
        return type(weights).__name__
    if np.ma.isMaskedArray(weights):
        return "a masked array"
    dtype = np.asarray(weights).dtype if hasattr(weights, "__array__") else None
    return None if dtype is None or dtype.kind in "biufO" else f"an array of {dtype}"


class WeightedSampler(ResumableSampler[T]):
    """Base of the weighted samplers: weights that may be assigned, and an epoch's stream of draws from them."""

    replacement: bool
    _shown: Tensor | None = None

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
            with torch.inference_mode(False):
                self._shown = self._draws.weights.clone()
        return self._shown

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
        # By value: not everything that writes into a tensor counts as a version of it.
        if self._shown is not None and not torch.equal(self._shown, self._draws.weights):
            self.weights = self._shown
        return self._draws

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        kept, draws = self._loaded, self._draws
        self._loaded = None  # a place that is replaced does not keep weights from changing
        try:
            super().load_state_dict(state_dict)
        except BaseException:
            self._loaded = kept if self._draws is draws else None
            raise

    load_state_dict.__doc__ = ResumableSampler.load_state_dict.__doc__

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

    def _opener(self, seed: Callable[[Origin], int]) -> Callable[[Origin], Stream]:
        weights = self._source.weights
        check_subset(self._kind, "weights", len(weights), lambda: int(weights.nonzero()[-1]))
        return self._source.opener(seed)

    def __getstate__(self) -> dict[str, Any]:
        self._source  # noqa: B018  what was written into the tensor that a copy does not take along
        return {**super().__getstate__(), "_shown": None}


class AssignableLength(WeightedSampler[T]):
    """Where num_samples is the length of an epoch, and not a rank's part of it."""

    @property
    def num_samples(self) -> int:
        """Draws in an epoch. What is assigned holds from the next iteration on."""
        return self._total

    @num_samples.setter
    def num_samples(self, num_samples: int) -> None:
        check_positive("num_samples", num_samples)
        self._change(self._source.of_length(int(num_samples)))


def _count_positive(operator: str, weights: Tensor) -> int:
    """The number of positive weights; raises what a table of the weights would."""
    weights = as_weights(operator, weights, ValueError)
    valid = torch.isfinite(weights) & (weights >= 0)
    state = torch.where(valid.all(), torch.count_nonzero(weights), -1 - valid.to(torch.uint8).argmin())
    refuse_invalid(operator, weights, state, ValueError)
    return int(state)
