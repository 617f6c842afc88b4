"""What a recomputed model keeps: cells, each of which gives a tensor of the forward back, bit for bit.

A cell keeps its tensor, or codes of it, or nothing: then the operation that made the tensor runs once more, on tensors
that come out of other cells.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ste_ops._torch import differentiated_around, never_compiled, without_transforms


class Packed(Protocol):
    """What a tensor was packed to."""

    @property
    def nbytes(self) -> int: ...

    def unpack(self) -> Tensor: ...


# How a tensor lies in its memory: sizes, strides and offset.
Layout = tuple[torch.Size, tuple[int, ...], int]


def layout_of(x: Tensor) -> Layout:
    return x.shape, x.stride(), x.storage_offset()  # type: ignore[return-value]


def view(base: Tensor, layout: Layout) -> Tensor:
    """The tensor that lies so in the memory of another one."""
    return base if layout_of(base) == layout else base.as_strided(*layout)


def copy_of(x: Tensor) -> Tensor:
    """x on a copy of its memory, which may be larger than x or, where x is expanded, smaller."""
    memory = x.detach().as_strided((x.untyped_storage().nbytes() // x.itemsize,), (1,), 0)
    return view(memory.clone(), layout_of(x))


class Input:
    """A tensor that an operation took, within what a cell gives back."""

    __slots__ = ("cell", "layout")

    def __init__(self, cell: Cell, x: Tensor) -> None:
        self.cell, self.layout = cell, layout_of(x)

    def get(self) -> Tensor:
        return view(self.cell.get() if self.cell.before is None else self.cell.before, self.layout)


class Held:
    """A parameter that an operation took, or a few numbers; what changed since is refused."""

    __slots__ = ("tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor, tensor._version

    def copy(self) -> None:
        """From here on what it is now, whatever is written to it."""
        self.tensor = copy_of(self.tensor)
        self.version = self.tensor._version

    def get(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(
                "ste_ops.nn.recompute_: a parameter or an activation that the backward computes with once more was "
                f"changed in place since the forward: shape {tuple(self.tensor.shape)}, version "
                f"{self.tensor._version}, expected {self.version}. Step the optimizer after the backward"
            )
        return self.tensor


@dataclass
class Recipe:
    """An operation and what it took; `output` is the place of the tensor among what it returns."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: int | None
    inputs: tuple[Input, ...]
    operation: Any
    beside: tuple[weakref.ref[Cell], ...] = ()  # the cells of all that it returns, where they are several

    def run(self) -> Any:
        return self.function(*[_got(arg) for arg in self.args], **self.kwargs)


def _got(arg: Any) -> Any:
    if isinstance(arg, (Input, Held)):
        return arg.get()
    return [_got(item) for item in arg] if isinstance(arg, list) else arg


class Cell:
    """A tensor of the forward, which is kept, or packed, or made anew when it is asked for.

    What is made anew stays for as long as others wait for the same, so that each operation runs about once.
    """

    __slots__ = (
        "__weakref__",
        "before",
        "bits",
        "debt",
        "dtype",
        "held",
        "layout",
        "nbytes",
        "of_parameters",
        "packed",
        "packer",
        "recipe",
        "steps",
        "storage",
        "taken",
        "value",
        "waiting",
    )

    def __init__(self, x: Tensor, recipe: Recipe | None = None) -> None:
        self.layout, self.dtype, self.nbytes = layout_of(x), x.dtype, x.numel() * x.itemsize
        self.recipe = recipe
        # Made of parameters alone, as a quantized weight.
        self.of_parameters: bool = recipe is not None and all(taken.cell.of_parameters for taken in recipe.inputs)
        # The operations that run for it; fewer once something between is kept.
        taken = () if recipe is None else recipe.inputs
        self.steps: int = 1 + sum(each.cell.steps for each in taken if each.cell.of_parameters or not each.cell.decided)
        self.held: Held | None = None
        self.packer: Callable[[Tensor], Packed | None] | None = None
        self.packed: Packed | None = None
        self.bits: int | None = None  # of its codes, where it is quantized
        self.debt: int | None = None  # bytes that come back with it, once it is decided that it is made anew
        self.value: Tensor | None = None
        self.waiting = 0  # for so many savers it is still made
        self.before: Tensor | None = None  # all of a memory that was written since
        self.taken = False  # by a recipe
        self.storage = 0  # by which the tape knows it

    @property
    def decided(self) -> bool:
        return self.held is not None or self.packed is not None or self.debt is not None

    def brings_back(self, most: int) -> int | None:
        """The bytes in memory once this is made anew; None where something for it is not kept, or they are too many."""
        if self.held is not None:
            return 0
        if self.packed is not None:
            return self.nbytes
        if self.debt is not None:
            return self.debt
        if self.recipe is None:
            return None
        if self.of_parameters:
            return 0
        total = self.nbytes
        for taken in self.recipe.inputs:
            more = taken.cell.brings_back(most - total) if total <= most else None
            if more is None:
                return None
            total += more
        return total if total <= most else None

    def keep_before(self) -> None:
        """What is made of it is made of the numbers that it has now; who saved it may see others."""
        if self.taken and self.held is not None and self.before is None:
            base = self.held.tensor
            self.before = copy_of(base.as_strided((base.untyped_storage().nbytes() // base.itemsize,), (1,), 0))

    def get(self) -> Tensor:
        if self.held is not None:
            return self.held.get()
        if self.value is not None:
            return self.value
        if self.packed is not None:
            made = self.packed.unpack()
        else:
            made = self._run()
        if self.waiting > 0:
            self.value = made
        return made

    def _run(self) -> Tensor:
        """What the operation gives once more; what it gives beside goes to those who wait for that."""
        assert self.recipe is not None
        out = self.recipe.run()
        for other, reference in zip(out, self.recipe.beside, strict=True) if self.recipe.beside else ():
            cell = reference()
            if cell is not None and cell is not self and cell.debt is not None and cell.waiting > 0:
                cell.value = cell._laid(other)
        return self._laid(out if self.recipe.output is None else out[self.recipe.output])

    def _laid(self, made: Tensor) -> Tensor:
        """As it lay the first time, where the operation in place and the one that returns a tensor differ in that."""
        if made.stride() == self.layout[1] and made.storage_offset() == 0:
            return made
        out = torch.empty_strided(*self.layout[:2], dtype=self.dtype, device=made.device)
        return out.copy_(made)


class Ticket:
    """What autograd gets in the place of a tensor that it saves."""

    __slots__ = ("asked", "cell", "layout", "shape_only", "tensor")

    def __init__(self, x: Tensor) -> None:
        self.tensor: Tensor | None = x  # until it is decided what becomes of it
        self.layout = layout_of(x)
        self.cell: Cell | None = None
        self.shape_only: tuple[torch.dtype, torch.device] | None = None
        self.asked = False

    def settle(self, cell: Cell) -> None:
        self.tensor, self.cell = None, cell
        cell.waiting += 1

    def settle_shape(self) -> None:
        """Of an operation whose backward asks for the sizes and strides of its input and reads no number."""
        assert self.tensor is not None
        self.shape_only, self.tensor = (self.tensor.dtype, self.tensor.device), None

    def get(self) -> Tensor:
        if self.tensor is not None:  # a backward within the forward
            return self.tensor
        if self.shape_only is not None:
            dtype, device = self.shape_only
            return torch.empty_strided(*self.layout[:2], dtype=dtype, device=device)
        assert self.cell is not None
        if is_as_in_forward():
            got = view(self.cell.get(), self.layout)
        else:
            with as_in_forward():
                got = view(self.cell.get(), self.layout)
        self._leave()
        return got

    def _leave(self) -> None:
        """What nobody waits for any more is let go; a second backward makes it anew."""
        if self.asked or self.cell is None:
            return
        self.asked = True
        self.cell.waiting -= 1
        if self.cell.waiting == 0:
            self.cell.value = None

    @never_compiled
    def __del__(self) -> None:
        self._leave()


def is_as_in_forward() -> bool:
    """Whether operations run as they did in the forward, below autograd and autocast: in most backwards they do."""
    free = not (torch.is_grad_enabled() or torch.is_inference_mode_enabled() or differentiated_around())
    return free and not (torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"))


@contextmanager
def as_in_forward() -> Iterator[None]:
    """So they do in others."""
    off = (torch.autocast(kind, enabled=False) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind))
    with torch.inference_mode(False), torch.no_grad(), without_transforms(), ExitStack() as stack:
        for each in off:
            stack.enter_context(each)
        yield
