"""A few draws on the CPU, past the dispatcher: to call an operator takes several times as long as they do."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import Generator, Tensor

from ste_ops._checks import FLOATING
from ste_ops._library import ops, watched
from ste_ops._random import seed_of_thread

_C: Any = import_module("ste_ops._C")  # compiled: a type checker finds no source

# Weights and draws, up to which other threads of Python need not run meanwhile.
_MOST = 4096


def with_replacement(weights: Tensor, num_samples: int, generator: Generator | None = None) -> Tensor | None:
    """What `multinomial` draws, or None where nothing was drawn.

    That is where someone watches the dispatcher, and of all but a few draws from a few floating weights on the CPU.
    """
    if type(weights) is not Tensor or type(num_samples) is not int or watched():
        return None
    if not weights.is_cpu or weights.is_nested or weights.dtype not in FLOATING or not 0 < weights.numel() <= _MOST:
        return None
    dims = weights.dim()
    rows = weights.size(0) if dims == 2 else 1
    if not 1 <= dims <= 2 or not 0 < num_samples * rows <= _MOST:
        return None
    seed = seed_of_thread("multinomial", generator)
    # The dtype is the seed's.
    out = seed.new_empty(num_samples) if dims == 1 else seed.new_empty(rows, num_samples)
    if _C.draw_with_replacement(weights, seed, out):
        return out
    # Which takes weights of any strides, and says what is wrong with them.
    return ops.multinomial_with_replacement(weights.detach(), seed, num_samples)
