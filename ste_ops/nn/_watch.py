"""A forward of a model that is watched: which module makes a tensor, and who takes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ste_ops._torch import DispatchMode, has_storage, is_traceable_wrapper_subclass, tree_leaves, tree_map


@dataclass
class Call:
    """One call of a module: what it was given and what it returned."""

    module: nn.Module
    given: Tensor
    made: Tensor | None = None
    takers: list[Taker] = field(default_factory=list)  # of what it made


@dataclass(frozen=True)
class Taker:
    """An operation that was given a tensor, and the modules that ran by then, the innermost last."""

    operation: str
    modules: tuple[nn.Module, ...]


class Watch(DispatchMode):
    """The calls of a forward, in their order; every tensor that they made is held, so that no two are in one place."""

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._inside: list[nn.Module] = []
        self._made: dict[int, list[Call]] = {}
        self._held: list[Tensor] = []
        self.outputs: set[int] = set()
        self._run(model, inputs)
        self._held.clear()
        self._made.clear()

    def _run(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        handles = []
        given = tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, inputs)
        devices = {x.device for x in (*model.parameters(), *tree_leaves(given)) if isinstance(x, Tensor) and x.is_cuda}
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(self._before))
            handles.append(module.register_forward_hook(self._after))
        with ExitStack() as stack:
            for handle in handles:
                stack.callback(handle.remove)
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.random.fork_rng(list(devices)))
            stack.enter_context(self)
            made = model(*given)
        self.outputs = {_memory(x) for x in tree_leaves(made) if isinstance(x, Tensor) and has_memory(x)}

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._inside.append(module)
        if args and type(args[0]) is Tensor and has_memory(args[0]):
            self._held.append(args[0])
            self.calls.append(Call(module, args[0]))

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._inside.pop()
        call = next((call for call in reversed(self.calls) if call.module is module and call.made is None), None)
        if call is not None and type(output) is Tensor and has_memory(output):
            call.made = output
            self._held.append(output)
            self._made.setdefault(_memory(output), []).append(call)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in tree_leaves((args, kwargs or {})):
            if isinstance(x, Tensor) and has_memory(x):
                for call in self._made.get(_memory(x), ()):
                    call.takers.append(Taker(str(func), tuple(self._inside)))
        return func(*args, **(kwargs or {}))

    def of(self, module: nn.Module) -> list[Call]:
        return [call for call in self.calls if call.module is module]

    def makers(self, x: Tensor) -> Iterator[Call]:
        """The calls that returned this tensor, the last one first."""
        for call in reversed(self.calls):
            if call.made is not None and _memory(call.made) == _memory(x) and call.made.shape == x.shape:
                yield call


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def has_memory(x: Tensor) -> bool:
    """Whether it has memory with an address. A tensor that wraps others, as torchao's, has a storage without one."""
    return has_storage(x) and not is_traceable_wrapper_subclass(x)
