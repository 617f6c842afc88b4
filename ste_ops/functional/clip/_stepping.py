"""Which optimizer steps, and whether its fused step can clip these gradients."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ste_ops.functional.clip.distributed import to_local

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


def check_divisible(grads: Sequence[Tensor]) -> None:
    """A step divides each gradient where it lies: every element must be a gradient's own."""
    own = to_local(grads)
    if any(grad.layout != torch.strided for grad in own):
        raise TypeError(f"{_OPERATOR}: gradients must be strided: fused optimizers take no sparse ones")
    places = [grad.data_ptr() for grad in own]
    if len(set(places)) < len(places):
        first: dict[int, int] = {}
        for index, (grad, place) in enumerate(zip(own, places, strict=True)):
            if grad.numel() > 0 and place and first.setdefault(place, index) != index:
                raise RuntimeError(
                    f"{_OPERATOR}: gradients must not share memory, which the step would divide twice, got one place "
                    f"for those at index {first[place]} and {index}; clone() one, or use clip_grad_norm_"
                )
    for index, grad in enumerate(own):
        if not grad.is_contiguous() and _overlaps(grad):
            raise RuntimeError(
                f"{_OPERATOR}: the gradient at index {index} cannot be written in place, because several of its "
                "elements share memory (an expanded tensor?); clone() it first"
            )


def _overlaps(grad: Tensor) -> bool:
    reach = 0  # of the dimensions with smaller strides
    for stride, size in sorted(zip(grad.stride(), grad.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += stride * (size - 1)
    return False
