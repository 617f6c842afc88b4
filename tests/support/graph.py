"""What autograd recorded."""

from __future__ import annotations

from torch import Tensor


def nodes(out: Tensor) -> int:
    """How many nodes lie between `out` and its leaves."""
    found, waiting = set(), [out.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found and type(node).__name__ != "AccumulateGrad":
            found.add(node)
            waiting += [before for before, _ in node.next_functions]
    return len(found)
