"""The hooks by which a model records its forward on a tape."""

from __future__ import annotations

import sys
import threading
from contextlib import ExitStack
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from ste_ops._torch import (
    differentiated_around,
    dispatch_modes,
    jit_tracing,
    keeps_saved_tensors,
    never_compiled,
    own_mode,
)
from ste_ops.nn import _tape
from ste_ops.nn._cells import Held, Ticket
from ste_ops.nn._tape import Tape

_NAME = "_ste_ops_recording"


class _Calls(threading.local):
    """Of each call that runs in this thread its frame and what turns its tape off."""

    def __init__(self) -> None:
        self.stack: list[tuple[FrameType, ExitStack]] = []


_calls = _Calls()


class Recording:
    """Before and after the forward of a model: in between a tape is on."""

    def __init__(self) -> None:
        self.report: Any = None
        self.refused: frozenset[str] = frozenset()  # operations that did not give the same numbers again
        self._handles: list[Any] = []

    def attach(self, model: nn.Module) -> None:
        self._handles = [
            model.register_forward_pre_hook(self.before, prepend=True),
            model.register_forward_hook(self.after, always_call=True),
        ]
        vars(model)[_NAME] = self

    def detach(self, model: nn.Module) -> None:
        for handle in self._handles:
            handle.remove()
        vars(model).pop(_NAME, None)

    def before(self, model: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            return
        close_interrupted()
        stack = recording(model, Tape(self.refused)) if may_record() else ExitStack()
        _calls.stack.append((sys._getframe(1), stack))

    def after(self, model: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if _calls.stack and _calls.stack[-1][0] is sys._getframe(1):
            _calls.stack.pop()[1].close()
        else:  # after an error, maybe of a hook before `before`
            close_interrupted()


def recording_of(model: nn.Module) -> Recording | None:
    found: Recording | None = vars(model).get(_NAME)
    return found


def close_interrupted() -> None:
    """Turns off what a KeyboardInterrupt left on: for it torch calls no hook."""
    while _calls.stack and not _runs(_calls.stack[-1][0]):
        _calls.stack.pop()[1].close()


def _runs(frame: FrameType) -> bool:
    """Whether this thread is in a call."""
    now: FrameType | None = sys._getframe()
    while now is not None and now is not frame:
        now = now.f_back
    return now is not None


def may_record() -> bool:
    """As for the codes of a layer: not where something else sees or rules what is saved."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or jit_tracing():
        return False
    return not (dispatch_modes() or differentiated_around() or not keeps_saved_tensors())


def recording(model: nn.Module, tape: Tape) -> ExitStack:
    """The tape is on until this is closed."""
    stack = ExitStack()
    stack.enter_context(_tape.running(tape))
    stack.enter_context(torch.autograd.graph.saved_tensors_hooks(tape.pack, _unpack))
    stack.enter_context(own_mode(tape))
    stack.callback(tape.close)  # torch goes on to hold its hooks, and by them the tape
    for unit in _sharded_units(model):
        for register in (unit.register_forward_pre_hook, unit.register_forward_hook):
            stack.callback(register(lambda *_: tape.forget_all()).remove)
    return stack


@never_compiled
def _unpack(kept: Ticket | Held) -> Tensor:
    return kept.get()


def _sharded_units(model: nn.Module) -> list[nn.Module]:
    """What within the model `fully_shard` was applied to: the parameters of one are there while it runs."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    modules = [] if fsdp is None else [module for module in model.modules() if isinstance(module, fsdp.FSDPModule)]
    return [module for module in modules if module is not model]
