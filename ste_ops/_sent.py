"""What other processes are given a copy of."""

from __future__ import annotations

import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Any


class Sent:
    """Stands in a state for a tensor or a generator, and is that again where the state is loaded.

    To another process it goes as bytes. A tensor on its way there is shared, which is wrong for two kinds: where the
    sender goes on to change it, and where it is made for the sending alone, as the state of a `torch.Generator` is: its
    memory is closed before a process that is still starting has opened it.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return _as_it_is, (self.value,)


def _as_it_is(value: Any) -> Any:
    return value


def _as_bytes(sent: Sent) -> tuple[Any, ...]:
    return pickle.loads, (pickle.dumps(sent.value),)


ForkingPickler.register(Sent, _as_bytes)


def received(value: Any) -> Any:
    """A shallow copy takes a state that was never sent."""
    return value.value if isinstance(value, Sent) else value


class SendsGenerator:
    """Base of what has a `generator`."""

    generator: Any

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "generator": Sent(self.generator)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, generator=received(state.get("generator")))
