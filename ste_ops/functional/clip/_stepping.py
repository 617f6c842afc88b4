"""Which optimizer steps, and whether its fused step can clip."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.optim import Optimizer

_OPERATOR = "fold_grad_clip_"
_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)


def _steps_itself(optimizer: Any) -> bool:
    """Whether torch's own step runs, which reads grad_scale of this very object."""
    step = inspect.unwrap(type(optimizer).step)
    return any(step is inspect.unwrap(fused.step) for fused in _FUSED if isinstance(optimizer, fused))


def stepping(optimizer: Any) -> Any:
    """The optimizer that steps where this one is told to.

    A trainer's wrapper holds it as `optimizer`, and may be of its class to look like it: the class alone says nothing.
    """
    while isinstance(optimizer, Optimizer) and not _steps_itself(optimizer):
        inner = getattr(optimizer, "optimizer", None)
        if not isinstance(inner, Optimizer) or inner is optimizer:
            break
        optimizer = inner
    return optimizer


def checked_optimizer(given: Any) -> Optimizer:
    """The optimizer that steps."""
    optimizer = stepping(given)
    name = type(optimizer).__name__
    wanted = f"{_OPERATOR}: optimizer must be torch's SGD, Adam, AdamW or Adagrad with fused=True, got {name}"
    if not isinstance(optimizer, _FUSED):
        wrapped = "; hand over the optimizer that it wraps" if hasattr(optimizer, "optimizer") else ""
        raise TypeError(wanted + wrapped)
    if not _steps_itself(optimizer):
        raise TypeError(
            f"{wanted}, which steps in a way of its own and may not clip; hand over the optimizer that it steps, or "
            "use clip_grad_norm_"
        )
    for index, group in enumerate(optimizer.param_groups):
        if not group.get("fused"):
            raise ValueError(
                f"{_OPERATOR}: optimizer must be fused, got {name} with fused={group.get('fused')} in the parameter "
                f"group {index}; use clip_grad_norm_"
            )
    return optimizer
