"""Gradients on the CPU, past the dispatcher: what it takes to hand over a list is most of clipping many small ones."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ste_ops._dtensor import may_have_dtensor
from ste_ops._library import watched

_C: Any = import_module("ste_ops._C")  # compiled: a type checker finds no source


def clip_grad_norm(parameters: Sequence[Any], max_norm: float, p: float, nonfinite: int) -> Tensor | None:
    """Clips the gradients of parameters as `ops.clip_grad_norm_`, or None where nothing was done and that must look.

    That is where someone watches the dispatcher, where the kernels are others than the CPU's, and for every list whose
    gradients are not all plain dense tensors on the CPU.
    """
    if watched():
        return None
    found = _C.clip_grad_norm_list(parameters, max_norm, p, nonfinite, not may_have_dtensor())
    if found is None:
        return None
    norm, has_float64, grads = found
    torch.autograd.graph.increment_version(grads)
    return torch.scalar_tensor(norm, dtype=torch.float64 if has_float64 else torch.float32, device="cpu")
