"""Fake kernels of the check of values that a device defers."""

from __future__ import annotations

import torch
from torch import Tensor

from ste_ops._functions.base import fake


@fake("refuse_states")
def _(weights: Tensor, states: Tensor, op: str) -> Tensor:
    return torch.empty_like(states)


@fake("raise_deferred")
def _(on: Tensor) -> None:
    return None
