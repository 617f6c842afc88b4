"""Samplers that resume: their iterator, and the few numbers that say how far it has come."""

from __future__ import annotations

import base64
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any, TypeVar, cast

import torch
from torch import Generator
from torch.utils.data import Sampler

from ste_ops._checks import is_integer
from ste_ops._random import draw_seed
from ste_ops._sent import SendsGenerator
from ste_ops.data._cursor import Cursor, Origin, Plan

T = TypeVar("T")


class Iteration(chain):
    """The iterator of a sampler. Items come from `itertools.chain` at the speed of C; its state is exact all the same.

    It has the two methods that torchdata's `StatefulDataLoader` asks of a sampler's iterator.
    """

    _sampler: ResumableSampler[Any]
    _cursor: Cursor[Any]

    @classmethod
    def over(cls, sampler: ResumableSampler[Any], cursor: Cursor[Any]) -> Iteration:
        iteration = cast(Iteration, cls.from_iterable(cursor.chunks(sampler)))
        iteration._sampler, iteration._cursor = sampler, cursor
        return iteration

    def state_dict(self) -> dict[str, Any]:
        origin, position = self._sampler._place(self._cursor, None)
        return {**self._sampler._identity(self._cursor), **origin, "position": position}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        if self._cursor.finished:
            raise RuntimeError(f"{self._sampler._kind}: an iterator that has ended cannot load a state, make a new one")
        origin, position = self._sampler._read(state_dict)
        if not self._cursor.begun:
            self._sampler._begin(self._cursor)
        self._cursor.restart(origin, self._sampler._plan(position))
        self._sampler._resumed = self._cursor
        if self._cursor.plan.items > 0:
            self._sampler._enter(origin)


class ResumableSampler(SendsGenerator, Sampler[T]):
    """A sampler whose state is the seed of an epoch and a position in it, O(1) whatever the epoch is.

    A sampler says what it is (`_describe`), how many draws an epoch has (`_total`), and how an epoch goes on from a
    position (`_plan`). Attributes named in `_fixed` are set once; those in `_read_once`, of which it was made and which
    it does not keep, never.
    """

    generator: Generator | None = None
    _fixed: tuple[str, ...] = ()
    _read_once: tuple[str, ...] = ()
    _source: Any = None
    _cursor: Cursor[T] | None = None
    _resumed: Cursor[T] | None = None
    _loaded: tuple[Origin, int] | None = None

    @property
    def _total(self) -> int:
        raise NotImplementedError

    @property
    def _device(self) -> torch.device:
        raise NotImplementedError

    def _describe(self, source: Any) -> dict[str, Any]:
        raise NotImplementedError

    def _plan(self, position: int) -> Plan[T]:
        raise NotImplementedError

    @property
    def _kind(self) -> str:
        return type(self).__name__

    def _identity(self, cursor: Cursor[T] | None = None) -> dict[str, Any]:
        """A state must agree in these: an iteration has those of what it draws from, whatever was assigned since."""
        source = cursor.source if cursor is not None and cursor.begun else self._source
        return {"sampler": self._kind, **self._describe(source)}

    def _coming(self) -> Origin:
        """What is known of the next epoch."""
        return {"seed": None}

    def _following(self, origin: Origin) -> Origin:
        """What is known of the epoch after that one."""
        return {"seed": None}

    def _enter(self, origin: Origin) -> None:
        """An iterator was told to go on with the epoch of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._fixed and name in vars(self):
            raise AttributeError(
                f"{self._kind}: {name} must stay {vars(self)[name]!r}, got {value!r}; make a new sampler instead"
            )
        if name in self._read_once:
            raise AttributeError(f"{self._kind}: {name} cannot be assigned; make a new sampler instead")
        super().__setattr__(name, value)

    def __iter__(self) -> Iterator[T]:
        # A loader may make an iterator that it never reads, so nothing is spent on one here.
        self._cursor = Cursor()
        return Iteration.over(self, self._cursor)

    def _begin(self, cursor: Cursor[T]) -> None:
        """The first item is asked for: the iteration takes the place that was loaded, or starts an epoch."""
        origin, position = self._loaded or (self._coming(), 0)
        plan = self._plan(position)
        if self._loaded is None:
            self._warn_of_left(self._resumed)
        self._resumed = cursor if position > 0 else None
        self._cursor, self._loaded = cursor, None
        cursor.begin(origin, plan, self._seed(), self._source)

    def _seed(self) -> Callable[[], int]:
        return partial(_draw, self._kind, self._device, self.generator)

    def _warn_of_left(self, resumed: Cursor[T] | None) -> None:
        if resumed is not None and resumed.handed < resumed.plan.items:
            warnings.warn(
                f"{self._kind}: the iteration that went on from a loaded state was left after {resumed.handed} of "
                f"{resumed.plan.items} items, and this one starts an epoch anew. Where it was but a look at the first "
                "batch, call load_state_dict again after it.",
                stacklevel=3,
            )

    def _place(self, cursor: Cursor[T] | None, consumed: int | None) -> tuple[Origin, int]:
        """Where an iteration stands. To ask one that has not begun settles the seed of the epoch that it will begin."""
        if cursor is None:
            return self._loaded or (self._coming(), 0)
        if cursor.begun:
            origin, plan = cursor.origin(), cursor.plan
            return origin, plan.after(cursor.handed if consumed is None else consumed)
        origin, position = self._loaded or (self._coming(), 0)
        if origin["seed"] is None:
            origin = {**origin, "seed": self._seed()()}
        self._loaded = origin, position
        return origin, self._plan(position).after(consumed or 0)

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """Where the last iteration stands, in numbers and strings: fit for json and ``torch.load(weights_only=True)``.

        The time it takes does not depend on the position; the first call also hashes the weights. After the last item
        of an epoch, also by `consumed`, and before the first, it is the start of the next one. The state of
        `generator`, where one was given, is part of it, so that later epochs come out the same too; torch's default
        generator is yours to save.

        Args:
            consumed: how many items of this iteration training has used, where something draws ahead: a `DataLoader`
                with workers hands out batches later than it draws them. An item is what the sampler yields: under
                ``DataLoader(sampler=..., batch_size=b)`` that is ``batches * b``, under ``batch_sampler=`` it is
                ``batches``. Counted from the start of this iteration, also where that resumed. Default: every item that
                the sampler has handed out. `torchdata.stateful_dataloader.StatefulDataLoader` needs none of this.

        Raises:
            ValueError: consumed is negative, or there was no iteration yet.
        """
        cursor = self._cursor
        if consumed is not None and (cursor is None or not _is_count(consumed)):
            expected = "an int >= 0" if cursor is not None else "None before the first iteration"
            raise ValueError(f"{self._kind}.state_dict: consumed must be {expected}, got {consumed!r}")
        consumed = None if consumed is None else int(consumed)
        if cursor is not None and cursor.ended(consumed):
            origin, position = self._following(cursor.named), 0
            cursor = None
        else:
            origin, position = self._place(cursor, consumed)
        state = {**self._identity(cursor), **origin, "position": position}
        if self.generator is not None:
            state["generator"] = base64.b64encode(self.generator.get_state().numpy().tobytes()).decode()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The next iteration goes on from there, without repeating what came before. `generator` is set back as well.

        It is the first iterator that is read which goes on, and the place is then spent: one that is made and not read,
        as a `DataLoader` with workers does, leaves it. Where the iteration is left before its end, the next one warns
        that it starts an epoch.

        Raises:
            ValueError: it is the state of another sampler: another kind, other weights, another number of draws.
            TypeError: it is no mapping.
        """
        loaded = self._read(state_dict)
        saved = state_dict.get("generator")
        if saved is not None:
            if self.generator is None:
                raise ValueError(f"{self._kind}.load_state_dict: the saved sampler had a generator, give this one too")
            self.generator.set_state(torch.frombuffer(bytearray(base64.b64decode(saved)), dtype=torch.uint8))
        self._accept(loaded)

    def _accept(self, loaded: tuple[Origin, int]) -> None:
        self._cursor, self._resumed, self._loaded = None, None, loaded

    def _read(self, state: Mapping[str, Any]) -> tuple[Origin, int]:
        operator = f"{self._kind}.load_state_dict"
        if not isinstance(state, Mapping):
            raise TypeError(f"{operator}: the state must be a mapping, got {type(state).__name__}")
        for key, mine in self._identity().items():
            if key not in state or state[key] != mine:
                got = repr(state[key]) if key in state else "a state without it"
                raise ValueError(f"{operator}: the state must be that of {key} {mine!r}, got {got}")
        for key in ("position", *self._coming()):
            value = state.get(key)
            if value is None and key == "seed" and state["position"] == 0:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{operator}: {key} must be an int, got {value!r}")
        position = state["position"]
        if not 0 <= position <= self._total:
            raise ValueError(f"{operator}: position must be from 0 to {self._total}, got {position}")
        return {key: state[key] for key in self._coming()}, position


def _is_count(value: Any) -> bool:
    return is_integer(value) and value >= 0


def _draw(operator: str, device: torch.device, generator: Generator | None) -> int:
    return int(draw_seed(operator, device, generator))
