"""What the parts of `torch.compile` must know of this package: its front end Dynamo and its back end Inductor.

Each learns it as soon as it is loaded. To load them takes longer than the rest of torch, and
`torch.compiler.allow_in_graph` would do so at import, for those too who compile nothing.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

import torch

from ste_ops._torch import (
    INDUCTOR_DECOMPOSITIONS,
    INDUCTOR_LOWERINGS,
    call_beside_decomposition,
    call_with_alike,
    decompose,
    forget_decompositions,
    skip_frames,
)

_DYNAMO = "torch._dynamo"
_F = TypeVar("_F", bound=Callable[..., Any])

# What to tell each module, with its subject.
_waiting: dict[str, list[tuple[Callable[[Any], Any], Any]]] = {
    _DYNAMO: [],
    INDUCTOR_DECOMPOSITIONS: [],
    INDUCTOR_LOWERINGS: [],
}


def allow_in_graph(function: _F) -> _F:
    """`torch.compiler.allow_in_graph`, as a decorator too: a call goes into the graph as it is."""
    _tell(_DYNAMO, torch.compiler.allow_in_graph, function)
    return function


def never_compiled(function: _F) -> _F:
    """`torch.compiler.disable`: the graph ends before a call, and nothing that it calls is compiled."""

    @functools.wraps(function)
    def outside(*args: Any, **kwargs: Any) -> Any:
        return _outside(function)(*args, **kwargs) if _DYNAMO in sys.modules else function(*args, **kwargs)

    _tell(_DYNAMO, skip_frames, outside)
    return outside  # type: ignore[return-value]


def decomposition(operator: Callable[..., Any]) -> Callable[[_F], _F]:
    """Inductor traces the decorated function in place of the operator, or calls it where that is NotImplemented."""

    def register(function: _F) -> _F:
        _tell(INDUCTOR_DECOMPOSITIONS, decompose, (operator, function))
        _tell(INDUCTOR_LOWERINGS, call_beside_decomposition, operator)
        return function

    return register


def takes_alike(operator: Callable[..., Any]) -> None:
    """Inductor gives the operator its first two tensors in one memory order, in which it has them."""
    _tell(INDUCTOR_LOWERINGS, call_with_alike, operator)


@functools.cache
def _outside(function: Callable[..., Any]) -> Callable[..., Any]:
    outside: Callable[..., Any] = torch.compiler.disable(function)
    return outside


def _tell(module: str, what: Callable[[Any], Any], subject: Any) -> None:
    _waiting[module].append((what, subject))
    if module in sys.modules:
        _tell_all(module)


def _tell_all(module: str) -> None:
    while _waiting[module]:
        what, subject = _waiting[module].pop()
        if module == _DYNAMO:
            what(subject)
            continue
        try:
            what(subject)
        except Exception as error:
            _leave_inductor_alone(error)


def _leave_inductor_alone(error: Exception) -> None:
    """An Inductor that has these tables otherwise calls the operators as they are, which is slower and right."""
    for module in (INDUCTOR_DECOMPOSITIONS, INDUCTOR_LOWERINGS):
        _waiting[module].clear()
    forget_decompositions("ste_ops")
    warnings.warn(
        f"ste_ops does not know the Inductor of torch {torch.__version__} ({type(error).__name__}: {error}): compiled "
        "code calls its operators as they are, instead of fusing their arithmetic",
        stacklevel=2,
    )


class _Finder(MetaPathFinder):
    """Finds those modules as the finders behind it do, and has everything told when a module has run.

    It stays in its place, since other threads may go through the list of finders at the same time.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _waiting:
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
        _tell_all(module.__name__)

    loader.exec_module = exec_module  # type: ignore[method-assign]


sys.meta_path.insert(0, _Finder())
