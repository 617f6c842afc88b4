"""Gradients on the CPU, past the dispatcher: what it takes to hand over a list is most of clipping many small ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ste_ops import _C  # type: ignore[attr-defined]
from ste_ops._library import ops
from ste_ops.functional.clip import distributed

_functorch_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_profiled = torch.autograd._profiler_enabled


def clip_grad_norm(parameters: Sequence[Any], max_norm: float, p: float, nonfinite: int) -> Tensor | None:
    """Clips the gradients of parameters as `ops.clip_grad_norm_`, or None where nothing was done and that must look.

    That is where someone watches the dispatcher (Dynamo, a mode, a transform, the profiler), where the kernels are
    others than the CPU's, and for every list whose gradients are not all plain dense tensors on the CPU.
    """
    if (
        torch.compiler.is_compiling()
        or ops.namespace != "ste_ops"
        or _dispatch_modes()
        or _function_modes()
        or _functorch_active()
        or _profiled()
    ):
        return None
    found = _C.clip_grad_norm_list(parameters, max_norm, p, nonfinite, not distributed.may_have_dtensor())
    if found is None:
        return None
    norm, has_float64, grads = found
    torch.autograd.graph.increment_version(grads)
    return torch.scalar_tensor(norm, dtype=torch.float64 if has_float64 else torch.float32, device="cpu")
