"""What a forward does, as far as its backward needs it: of each tensor that autograd saves, what is kept instead."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ste_ops._torch import DispatchMode, OpOverload, alias, has_storage, never_compiled
from ste_ops.functional.quantize._codes import Grid, pack
from ste_ops.nn import _kept
from ste_ops.nn._budget import MOST, MOST_STEPS, most_for
from ste_ops.nn._cells import Cell, Held, Input, Recipe, Ticket, copy_of
from ste_ops.nn._replay import Rule, known, written
from ste_ops.nn._windows import Windows

# What is smaller is kept as it is; of so few numbers beside an operation, as a scale or running statistics, a copy.
LEAST, FEW = 1 << 14, 1 << 12
# So many tensors may be known that are there no more.
MANY = 4

_PLAIN = (Tensor, nn.Parameter)
# What operations take beside tensors and lists of them.
_OTHERS = (int, float, bool, type(None), torch.dtype)
_running = threading.local()


def current() -> Tape | None:
    """The tape that this thread records."""
    return getattr(_running, "tape", None)


@contextmanager
def running(tape: Tape) -> Iterator[None]:
    _running.tape = tape
    try:
        yield
    finally:
        _running.tape = None


def _is_plain(x: Any) -> bool:
    return type(x) in _PLAIN and x.layout is torch.strided and not x.is_neg() and not x.is_conj()


def _is_whole(x: Tensor) -> bool:
    """Whether it is all that its memory holds."""
    return x.storage_offset() == 0 and x.untyped_storage().nbytes() == x.numel() * x.itemsize


def _is_small(x: Any) -> bool:
    return isinstance(x, Tensor) and x.numel() * x.itemsize < LEAST


def _returns_alike(args: tuple[Any, ...]) -> bool:
    """Whether an operation in place gives the dtype that the one that returns a tensor would give."""
    others = [x for x in args[1:] if isinstance(x, Tensor)]
    return all(x.dtype == args[0].dtype or x.dim() == 0 for x in others)


def _saves(x: Any, ticket: Ticket) -> bool:
    """Whether an operation that saves its input saves this one now; else what ran before it did."""
    own = torch.is_grad_enabled() and x.requires_grad
    return own and ticket.tensor is not None and x.data_ptr() == ticket.tensor.data_ptr()


class Tape(DispatchMode):  # type: ignore[misc]
    """Sees every operation of a forward, and every tensor that is saved for its backward.

    A tensor is known by its memory, which no other has while the tape knows it; what writes to it is seen too. The tape
    holds no tensor but parameters and a few numbers: what is made anew comes out of what autograd has kept anyway.
    """

    def __init__(self, refused: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self._refused = refused
        self._known: dict[int, tuple[StorageWeakRef, Callable[[], Cell | None]]] = {}
        self._room = MANY
        self._parameters: dict[int, dict[int, Held]] = {}  # by their memory
        self._saved: list[Ticket] = []  # since the last operation
        self._padded: tuple[Grid, Tensor, torch.Size] | None = None
        self._widened: tuple[Recipe, Tensor] | None = None  # by the last operation

    # What autograd saves.

    @never_compiled
    def pack(self, x: Tensor) -> Ticket | Held:
        if type(x) is nn.Parameter:
            return Held(x)
        kept = alias(x)  # an output that is kept with its graph would never be freed
        if not _is_plain(x) or x.nbytes < LEAST:
            return Held(kept)
        ticket = Ticket(kept)
        self._saved.append(ticket)
        return ticket

    def settle(self, of_shape_only: Tensor | None = None) -> None:
        """Decides of what was saved since the last operation. The one before which something is saved is its saver.

        Of the input of an operation whose backward reads sizes alone these are kept.
        """
        if not self._saved:
            return
        saved, self._saved = self._saved, []
        if of_shape_only is not None and len(saved) == 1 and _saves(of_shape_only, saved[0]):
            saved[0].settle_shape()
            return
        for ticket in saved:
            x = ticket.tensor
            if x is not None:
                cell = self._cell(x)
                self._decide(cell, x)
                ticket.settle(cell)

    def _decide(self, cell: Cell, x: Tensor) -> None:
        if cell.decided:
            return
        self._narrower(cell)
        if cell.recipe is not None:
            cell.debt = cell.brings_back(most_for(cell, cell.recipe))
        if cell.debt is None:
            packer = cell.packer or self._packer_of_padded(x)
            cell.packed = packer(x) if packer is not None and _is_whole(x) else None
            if cell.packed is None:
                self._hold(cell, x)
        self.decided(cell, x)

    def _hold(self, cell: Cell, x: Tensor) -> None:
        """The tape itself holds it no longer than others do."""
        cell.held = Held(x)
        if cell.storage in self._known:
            self._known[cell.storage] = self._known[cell.storage][0], weakref.ref(cell)

    def _narrower(self, cell: Cell) -> None:
        """What was just widened is kept as it was before: the one exception from keeping what autograd would keep."""
        if self._widened is not None and cell.recipe is self._widened[0]:
            recipe, x = self._widened
            source = recipe.inputs[0].cell
            if 2 * source.nbytes <= cell.nbytes and source.brings_back(MOST * source.nbytes) is None:
                self._hold(source, alias(x))

    def decided(self, cell: Cell, x: Tensor) -> None:
        if cell.debt is None:
            cell.recipe = None  # which holds what it was made of

    # Which tensor is which.

    def _cell(self, x: Tensor) -> Cell:
        known = self._known.get(x.untyped_storage()._cdata)
        cell = None if known is None else known[1]()
        if cell is None:
            return self._know(x, Cell(x))
        return cell if cell.dtype == x.dtype else Cell(x)  # of complex numbers the real ones

    def _know(self, x: Tensor, cell: Cell) -> Cell:
        """The tape holds a cell while its memory lives, one with a tensor only as long as others do."""
        storage = x.untyped_storage()
        cell.storage = storage._cdata
        self._known[storage._cdata] = StorageWeakRef(storage), lambda: cell
        if len(self._known) > self._room:
            self._known = {key: known for key, known in self._known.items() if not known[0].expired()}
            self._room = len(self._known) * 3 // 2 + MANY
        return cell

    def forget_all(self) -> None:
        """From here on everything of before is made by nobody: its parameters may go away."""
        self.settle()
        self._known.clear()

    def close(self) -> None:
        """The forward has ended. A tensor held here whose graph holds this tape, out of sight of Python, would stay."""
        self.forget_all()
        self._parameters.clear()
        self._widened = None

    # What operations do.

    @never_compiled
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, OpOverload):
            self.forget_all()  # of an operator that takes functions, as `torch.cond`, nothing within is seen
            return func(*args, **kwargs)
        _, rule, reads_shape_only, writes = known(func)
        if self._saved:
            self.settle(args[0] if reads_shape_only else None)
        self._widened = None
        recipe = None
        if rule is not None and not _is_small(args[0]) and not (self._refused and str(func) in self._refused):
            recipe = self._recipe(rule, func, args, kwargs)
        if writes:
            self._forget(func, args, kwargs)
        made = func(*args, **kwargs)
        if recipe is None or rule is None:
            return made
        self._learn(recipe, made)
        if rule.windows:
            self._learn_places(args, made[1])
        if rule.widens and recipe.inputs:
            self._widened = recipe, args[0]
        return made

    def _recipe(self, rule: Rule, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recipe | None:
        """What the operation takes, as cells; None where something of it is no plain tensor."""
        if kwargs and any(isinstance(value, Tensor) for value in kwargs.values()):
            return None
        if rule.inplace and (isinstance(args[0], nn.Parameter) or not _returns_alike(args)):
            return None
        inputs: list[Input] = []
        given = rule.arguments(args) if rule.arguments is not None else args
        taken = [value if type(value) in _OTHERS else self._taken(value, inputs) for value in given]
        if NotImplemented in taken:
            return None
        if rule.product and not any(taken.cell.bits == 1 for taken in inputs):
            return None
        if rule.inplace and any(taken.cell.held is not None for taken in inputs[:1]):
            return None  # it would need a copy of what is written
        for each in inputs:
            each.cell.taken = True
        return Recipe(rule.function, tuple(taken), kwargs, rule.output, tuple(inputs), func)

    def _taken(self, value: Any, inputs: list[Input]) -> Any:
        if isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
            items = [self._taken(item, inputs) for item in value]
            return NotImplemented if any(item is NotImplemented for item in items) else items
        if not isinstance(value, Tensor):
            return value
        if not _is_plain(value) or value.is_inference():
            return NotImplemented
        storage = value.untyped_storage()
        if type(value) is nn.Parameter:
            return self._parameters.setdefault(storage._cdata, {}).setdefault(id(value), Held(value))
        if storage._cdata not in self._known and storage.nbytes() <= max(FEW, LEAST):
            return Held(copy_of(value))
        inputs.append(Input(self._cell(value), value))
        return inputs[-1]

    def _learn(self, recipe: Recipe, made: Any) -> None:
        several = [*made] if recipe.output is not None and recipe.operation.namespace == "ste_ops" else []
        cells = [Cell(out, replace(recipe, output=place)) for place, out in enumerate(several)]
        references = tuple(weakref.ref(cell) for cell in cells)
        for cell, out in zip(cells, several, strict=True):
            cell.recipe.beside = references  # type: ignore[union-attr]
            if out.numel() > 0:
                self._know(out, cell)
        if not several:
            out = made if recipe.output is None else made[recipe.output]
            if _is_plain(out) and not out.is_inference() and _is_whole(out):
                cell = Cell(out, recipe)
                self._know(out, cell if cell.steps <= MOST_STEPS else Cell(out))

    def _learn_places(self, args: tuple[Any, ...], indices: Tensor) -> None:
        cell = Cell(indices)
        cell.packer = Windows(*args).pack
        self._know(indices, cell)

    def _forget(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What is written has other numbers from here on, also where its version does not tell (``.data``)."""
        for x in written(func, args, kwargs):
            key = x.untyped_storage()._cdata if has_storage(x) else 0
            for parameter in self._parameters.pop(key, {}).values():
                parameter.copy()
            known = self._known.pop(key, None)
            cell = None if known is None else known[1]()
            if cell is not None:
                cell.keep_before()

    # What layers tell.

    def layer(self, layer: Any, x: Tensor, compute: Callable[[Tensor, Tensor], Tensor], padded: bool) -> Tensor:
        """`compute` of the quantized input and weight of a layer, as `_kept.apply`."""
        q, w = layer._quantized_input(x), layer.quantized_weight()
        self.settle()
        if w.requires_grad:  # else nobody saves the input
            grid = _kept.grid_of(layer.input_quantizer, x, q)
            if grid is not None:
                self._quantized(q, grid)
                self._padded = (grid, q, w.shape) if padded else None
        if w is not layer.weight and layer._uses(x) < _kept.LEAST_USES:
            self._keep(alias(w))  # to quantize it again would take too long
        try:
            return compute(q, w)
        finally:
            self.settle()
            self._padded = None

    def _keep(self, w: Tensor) -> None:
        cell = self._cell(w)
        if not cell.decided:
            self._hold(cell, w)
            self.decided(cell, w)

    def _quantized(self, q: Tensor, grid: Grid) -> None:
        cell = self._cell(q)
        cell.bits, cell.packer = grid.bits, lambda x: pack(x, grid)
        self._decide(cell, alias(q))

    def _packer_of_padded(self, x: Tensor) -> Callable[[Tensor], Any] | None:
        """Of what a layer pads its quantized input to, with numbers of its own."""
        if self._padded is None:
            return None
        grid, q, weight = self._padded
        alike = x.dim() == q.dim() and x.dtype == q.dtype and x.shape[:2] == q.shape[:2] and x.shape != weight
        of_channels = grid.axis is not None and grid.axis % max(q.dim(), 1) == 1
        return (lambda x: pack(x, grid)) if alike and (grid.scale is None or of_channels) else None
