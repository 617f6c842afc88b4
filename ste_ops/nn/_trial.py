"""A forward in which everything that would be made anew is compared with what it was, and listed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ste_ops._torch import tree_leaves, tree_map
from ste_ops.nn._budget import MOST
from ste_ops.nn._cells import Cell, as_in_forward, layout_of, view
from ste_ops.nn._recording import recording, recording_of
from ste_ops.nn._replay import written
from ste_ops.nn._tape import Tape
from ste_ops.nn._watch import has_memory
from ste_ops.nn.quantizer import Quantizer

_Row = tuple[str, str, tuple[int, ...], int, int, "str | None"]


class _Watched(Tape):
    """A tape that holds what it decides of, and knows which operation and which module it is of."""

    def __init__(self, model: nn.Module, inputs: list[Tensor], refused: frozenset[str]) -> None:
        super().__init__(refused)
        there = (parameter for parameter in model.parameters() if not is_lazy(parameter))
        self.parameters = {parameter.untyped_storage().data_ptr() for parameter in there if has_memory(parameter)}
        self.made_by: dict[int, tuple[Tensor, str]] = {
            x.untyped_storage().data_ptr(): (x, "") for x in inputs if has_memory(x)
        }
        self.inside: list[str] = [""]
        self.seen: list[tuple[str, Cell, Tensor, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = super().__torch_dispatch__(func, types, args, kwargs)
        for out in tree_leaves(made):
            # The tensor is held, so no other has its memory.
            if type(out) is not Tensor or not has_memory(out):
                continue
            memory = out.untyped_storage().data_ptr()
            if memory not in self.made_by or any(True for _ in written(func, args, kwargs or {})):
                self.made_by[memory] = out, str(func)
        return made

    def close(self) -> None:
        super().close()
        self.made_by.clear()

    def decided(self, cell: Cell, x: Tensor) -> None:
        if x.untyped_storage().data_ptr() not in self.parameters:
            maker = self.made_by.get(x.untyped_storage().data_ptr())
            made_by = "a buffer or a constant" if maker is None else maker[1]
            self.seen.append((self.inside[-1], cell, x.detach(), made_by))


class Trial:
    """Runs a copy of a model until everything that is made anew has its bits."""

    def __init__(self, model: nn.Module) -> None:
        attached = recording_of(model)
        if attached is not None:
            attached.detach(model)
        self._model = model
        self.refused: frozenset[str] = frozenset()
        self._seen: list[tuple[str, Cell, Tensor, str]] = []

    def run(self, inputs: tuple[Any, ...]) -> None:
        different: str | None = ""
        while different is not None:
            self._run(inputs)
            different = self._first_different()
            self.refused |= {different} if different is not None else set()

    def _run(self, inputs: tuple[Any, ...]) -> None:
        inputs = _copied(inputs)
        tensors = [x for x in tree_leaves(inputs) if isinstance(x, Tensor)]
        devices = {x.device for x in (*self._model.parameters(), *tensors) if x.is_cuda}
        tape = _Watched(self._model, tensors, self.refused)
        handles = []
        for name, module in self._model.named_modules():
            if isinstance(module, Quantizer):
                continue  # one with hooks is not ours any more
            handles.append(module.register_forward_pre_hook(_enter(tape, name)))
            handles.append(module.register_forward_hook(_leave(tape), always_call=True))
        state = random.getstate()
        try:
            with torch.random.fork_rng(list(devices)), recording(self._model, tape):
                output = self._model(*inputs)  # whose graph holds what was saved until all is settled
        finally:
            random.setstate(state)
            for handle in handles:
                handle.remove()
        self._seen = tape.seen
        del output

    def _first_different(self) -> str | None:
        """The operation that gave other bits; what follows it does so for that alone."""
        for _, cell, x, _ in self._seen:
            if cell.debt is not None and cell.recipe is not None and not _comes_back(cell, x):
                return str(cell.recipe.operation)
        return None

    def rows(self) -> Iterator[_Row]:
        for module, cell, x, made_by in self._seen:
            of = made_by.removesuffix(".default") or "an input"
            nbytes, reason = x.numel() * x.itemsize, self._reason(cell, made_by)
            codes = 0 if cell.packed is None else cell.packed.nbytes
            yield module, of, tuple(x.shape), nbytes, nbytes if reason else codes, reason

    def _reason(self, cell: Cell, made_by: str) -> str | None:
        if made_by in self.refused:
            return "does not give the same bits again"
        if cell.held is None:
            return None
        if not made_by:
            return "is an input"
        if cell.of_parameters:
            return "is used for too few outputs to quantize it again"
        if cell.recipe is None:
            return "runs once"
        if any(taken.cell.brings_back(1 << 62) is None for taken in cell.recipe.inputs):
            return "what it is made of is not kept"
        return f"would bring back more than {MOST} times its bytes"


def _copied(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs that the model may write to and draw from; one that is given twice stays one."""
    copies: dict[int, Any] = {}

    def copied(x: Any) -> Any:
        if isinstance(x, torch.Generator):
            return copies.setdefault(id(x), x.clone_state())
        if type(x) is not Tensor:
            return x
        if id(x) not in copies:
            copies[id(x)] = x.detach().clone().requires_grad_(x.requires_grad)
            if not x.is_leaf:
                copies[id(x)] = copies[id(x)].clone()  # a leaf would not be written to
        return copies[id(x)]

    made: tuple[Any, ...] = tree_map(copied, inputs)
    return made


def _comes_back(cell: Cell, x: Tensor) -> bool:
    """Whether it has the same bits; not where the model writes past autograd to what it is made of."""
    try:
        with as_in_forward():
            again = view(cell.get(), layout_of(x)).contiguous().flatten()
            return torch.equal(again.view(torch.uint8), x.contiguous().flatten().view(torch.uint8))
    except RuntimeError:
        return False


def _enter(tape: _Watched, name: str) -> Any:
    return lambda module, args: tape.inside.append(name)


def _leave(tape: _Watched) -> Any:
    return lambda module, args, output: None if len(tape.inside) == 1 else (tape.inside.pop(), None)[1]
