"""Calls of every registered operator on any device: operator_arguments.py's, moved with their layout in memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from ste_ops._library import ops
from support.operator_arguments import ARGUMENTS, LARGER

# "name" of ARGUMENTS, and "name, many blocks" of LARGER.
NAMES = sorted([*ARGUMENTS, *(f"{name}, many blocks" for name in LARGER)])
# An operator that reads them does arithmetic in which backends round in other places.
_TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-9}


class Call:
    """An operator and arguments in memory of their own, so that they can be overwritten and written to."""

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        self.operator, self.arguments = name.split(",")[0], arguments

    def __call__(self) -> list[Tensor]:
        """The results, and after them the arguments, some of which an operator writes to."""
        out = getattr(ops, self.operator)(*self.arguments)
        return [leaf for leaf in tree_leaves((out, self.arguments)) if isinstance(leaf, Tensor)]

    def on(self, device: str) -> Call:
        """A copy there; tensors that share memory still do, and strides and offsets are kept."""
        memories: dict[int, torch.UntypedStorage] = {}

        def moved(t: Tensor) -> Tensor:
            key = t.untyped_storage()._cdata
            if key not in memories:
                memories[key] = torch.empty(0, dtype=torch.uint8, device=device).untyped_storage()
                memories[key].resize_(t.untyped_storage().nbytes())
                memories[key].copy_(t.untyped_storage())
            empty = torch.empty(0, dtype=t.dtype, device=device)
            return empty.set_(memories[key], t.storage_offset(), t.shape, t.stride())

        return Call(self.operator, tree_map_only(Tensor, moved, self.arguments))

    def overwrite(self, other: Call) -> None:
        """Gives these tensors the values of another call of the same shapes, in the same memory."""
        for mine, theirs in zip(tree_leaves(self.arguments), tree_leaves(other.arguments), strict=True):
            if isinstance(mine, Tensor):
                assert (mine.shape, mine.stride(), mine.dtype) == (theirs.shape, theirs.stride(), theirs.dtype)
                mine.untyped_storage().copy_(theirs.untyped_storage())


def calls(name: str, seed: int) -> Iterator[Call]:
    """The sample calls of an operator on the CPU; another seed gives other values, and another seed to draw from."""
    torch.manual_seed(seed)
    table = LARGER if "," in name else ARGUMENTS
    operator = name.split(",")[0]
    places = [argument.name for argument in getattr(ops, operator)._schema.arguments]
    for arguments in table[operator]("cpu"):
        varied = [
            a + seed if place == "seed" else a for place, a in zip(places[: len(arguments)], arguments, strict=True)
        ]
        yield Call(name, tuple(varied))


def some(name: str, seed: int, device: str) -> list[Call]:
    """All on a GPU; elsewhere one, which shows that a test runs that can prove nothing there."""
    return [*islice(calls(name, seed), None if device == "cuda" else 1)]


def copies(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().cpu().clone() for t in tensors]


def assert_same(received: list[Tensor], expected: list[Tensor], message: str = "", exactly: bool = True) -> None:
    assert len(received) == len(expected), message
    for r, e in zip(copies(received), copies(expected), strict=True):
        places = 0.0 if exactly or not e.is_floating_point() else _TOLERANCES[e.dtype]
        torch.testing.assert_close(
            r, e, rtol=places, atol=places, equal_nan=True, msg=lambda what: f"{message}: {what}"
        )
