"""What Dynamo, the front end of `torch.compile`, must know of this package, and learns as soon as it is loaded.

Loading it takes longer than the rest of torch, and `torch.compiler.allow_in_graph` would do so at import, for those too
who compile nothing.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

import torch

from ste_ops._torch import skip_frames

_DYNAMO = "torch._dynamo"
_F = TypeVar("_F", bound=Callable[..., Any])

# What to tell, each with its subject.
_waiting: list[tuple[Callable[[Any], Any], Any]] = []


def allow_in_graph(function: _F) -> _F:
    """`torch.compiler.allow_in_graph`, as a decorator too: a call goes into the graph as it is."""
    _tell(torch.compiler.allow_in_graph, function)
    return function


def never_compiled(function: _F) -> _F:
    """`torch.compiler.disable`: the graph ends before a call, and nothing that it calls is compiled."""

    @functools.wraps(function)
    def outside(*args: Any, **kwargs: Any) -> Any:
        return _outside(function)(*args, **kwargs) if _DYNAMO in sys.modules else function(*args, **kwargs)

    _tell(skip_frames, outside)
    return outside  # type: ignore[return-value]


@functools.cache
def _outside(function: Callable[..., Any]) -> Callable[..., Any]:
    outside: Callable[..., Any] = torch.compiler.disable(function)
    return outside


def _tell(what: Callable[[Any], Any], subject: Any) -> None:
    _waiting.append((what, subject))
    if _DYNAMO in sys.modules:
        _tell_all()


def _tell_all() -> None:
    while _waiting:
        what, subject = _waiting.pop()
        what(subject)


class _DynamoFinder(MetaPathFinder):
    """Finds Dynamo as the finders behind it do, and has everything told when its module has run.

    It stays in its place, since other threads may go through the list of finders at the same time.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _DYNAMO:
            return None
        behind = sys.meta_path[sys.meta_path.index(self) + 1 :]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in behind)), None)
        if spec is not None and spec.loader is not None:
            _tell_behind(spec.loader)
        return spec


def _tell_behind(loader: Loader) -> None:
    """Each spec has a loader of its own, so this one alone runs differently, once."""
    run = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        vars(loader).pop("exec_module", None)
        run(module)
        _tell_all()

    loader.exec_module = exec_module  # type: ignore[method-assign]


if _DYNAMO not in sys.modules:
    sys.meta_path.insert(0, _DynamoFinder())
