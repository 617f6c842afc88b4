"""How far an iteration of a sampler has come, and what is left of its epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import length_hint
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ste_ops.data._stream import Stream

if TYPE_CHECKING:
    from ste_ops.data._state import ResumableSampler

T = TypeVar("T")
Origin = dict[str, Any]
"""The name of an epoch's stream: a seed, None until it is drawn, and what else the sampler makes one from."""


@dataclass(frozen=True)
class Plan(Generic[T]):
    """What is left of an epoch from draw number `position` on: so many items, each of them worth `unit` draws.

    Its functions know nothing of the sampler, so that a sampler is not kept alive by its own iterations.
    """

    position: int
    items: int
    unit: int
    total: int
    chunk: int
    open: Callable[[Origin], Stream]
    draw: Callable[[Stream, int, int], list[T]]

    def after(self, items: int) -> int:
        return min(self.position + self.unit * min(items, self.items), self.total)


class Cursor(Generic[T]):
    """How far an iteration has come. It has no place until it begins; the seed is drawn when it is first needed."""

    def __init__(self) -> None:
        self._active: Iterator[T] = iter(())
        self.begun = self.finished = False

    def begin(self, origin: Origin, plan: Plan[T], seed: Callable[[], int], source: Any) -> None:
        self._seed: Callable[[], int] | None = seed
        self.source = source
        self.begun = True
        self.restart(origin, plan)

    def restart(self, origin: Origin, plan: Plan[T]) -> None:
        # The rest of a chunk that is half handed out must not follow.
        for _ in self._active:
            pass
        self.named, self.plan, self._drawn = origin, plan, 0
        self._stream: Stream | None = None

    def origin(self) -> Origin:
        if self.named["seed"] is None and self._seed is not None:
            self.named = {**self.named, "seed": self._seed()}
        return self.named

    def ended(self, consumed: int | None) -> bool:
        return self.begun and (self.handed if consumed is None else consumed) >= self.plan.items

    @property
    def handed(self) -> int:
        # A list iterator says what it has left: nothing has to be counted item by item.
        return self._drawn - length_hint(self._active)

    def chunks(self, sampler: ResumableSampler[T]) -> Iterator[Iterator[T]]:
        if not self.begun:
            sampler._begin(self)
        while self._drawn < self.plan.items:
            plan = self.plan
            if self._stream is None:
                self._stream = plan.open(self.origin())
            count = min(plan.chunk, plan.items - self._drawn)
            self._active = iter(plan.draw(self._stream, self._drawn, count))
            self._drawn += count
            yield self._active
        self.finished = True
        self._stream = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy remembers how far the iteration was and does not go on with it."""
        state = {**vars(self), "_active": iter(())}
        if self.begun:
            plan = self.plan
            left = Plan(plan.position, plan.items, plan.unit, plan.total, plan.chunk, _closed, _closed)
            state.update(plan=left, _drawn=self.handed, _stream=None, _seed=None)
        return state


def _closed(*_: Any) -> Any:
    raise RuntimeError("a copy of a sampler does not go on with an iteration of the original")
