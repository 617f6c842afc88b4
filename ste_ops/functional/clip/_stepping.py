"""Which optimizer steps, and whether its fused step can clip these gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ste_ops._checks import FLOATING
from ste_ops._functions.tensor_list import is_dense, shares_memory, sharing
from ste_ops.functional.clip.distributed import to_local

_OPERATOR = "fold_grad_clip_"
_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)


def _steps_itself(optimizer: Any) -> bool:
    """Whether torch's own step runs, which reads grad_scale of this very object.

    Schedulers and profilers put a step of their own on the class or the object, which names the one that it calls.
    """

    def of_another(step: Any) -> bool:
        return getattr(step, "__self__", optimizer) is not optimizer

    step = inspect.unwrap(vars(optimizer).get("step", type(optimizer).step), stop=of_another)
    if of_another(step):
        return False
    step = getattr(step, "__func__", step)
    return any(step is inspect.unwrap(fused.step) for fused in _FUSED if isinstance(optimizer, fused))


def stepping(optimizer: Any) -> Any:
    """The optimizer that steps where this one is told to.

    A trainer's wrapper holds it as `optimizer`, and may be of its class to look like it: the class alone says nothing.
    """
    outer: list[Any] = []
    while isinstance(optimizer, Optimizer) and not _steps_itself(optimizer):
        outer.append(optimizer)
        inner = getattr(optimizer, "optimizer", None)
        if not isinstance(inner, Optimizer) or any(inner is one for one in outer):
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


def check_divisible(parameters: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
    """A step goes through parameter and gradient in the order of memory and divides the gradient where it lies.

    Every element must be a gradient's own then, stand where its parameter's does, and be what the memory says.
    """
    own, owners = to_local(grads), to_local(parameters)
    if any(grad.layout != torch.strided for grad in own):
        raise TypeError(f"{_OPERATOR}: gradients must be strided: fused optimizers take no sparse ones")
    if not {grad.dtype for grad in own} <= FLOATING:
        index, grad = next((i, grad) for i, grad in enumerate(own) if grad.dtype not in FLOATING)
        expected = "real gradients, float64, float32, bfloat16 or float16"
        raise TypeError(f"{_OPERATOR}: fused optimizers take {expected}, got {grad.dtype} at index {index}")
    if any(map(Tensor.is_neg, own)):
        why = "must lie in memory with its own sign, got torch's negative bit; resolve_neg() it"
        _refuse(own, Tensor.is_neg, why)
    contiguous = all(map(Tensor.is_contiguous, own))
    if not contiguous:
        why = (
            "cannot be written in place, because several of its elements share memory (an expanded tensor?); clone() it"
        )
        _refuse(own, lambda grad: shares_memory(grad.shape, grad.stride()), why)
    shared = sharing(own)
    if shared is not None:
        raise RuntimeError(
            f"{_OPERATOR}: gradients must not share memory, which the step would divide twice, got one place for those "
            f"at index {shared[0]} and {shared[1]}; clone() one, or use clip_grad_norm_"
        )
    if contiguous and all(map(Tensor.is_contiguous, owners)):
        return
    for index, (parameter, grad) in enumerate(zip(owners, own, strict=True)):
        if not alike(parameter, grad):
            raise RuntimeError(
                f"{_OPERATOR}: the gradient at index {index} must lie in memory as its parameter does, dense and in "
                f"one order, which fused optimizers do not look at, got the strides {grad.stride()} beside "
                f"{parameter.stride()}; copy it into torch.empty_like(parameter), or take an optimizer that is not "
                "fused"
            )


def versions_of(grads: Sequence[Tensor]) -> list[int]:
    """What counts the changes of each gradient."""
    try:
        return [grad._version for grad in grads]
    except RuntimeError:
        _refuse(grads, Tensor.is_inference, "must be no inference tensor, whose changes nobody counts; clone() it")
        raise


def _refuse(grads: Sequence[Tensor], refused: Callable[[Tensor], bool], why: str) -> None:
    for index, grad in enumerate(grads):
        if refused(grad):
            raise RuntimeError(f"{_OPERATOR}: the gradient at index {index} {why} first")


def alike(parameter: Tensor, grad: Tensor) -> bool:
    """Whether one place in memory holds what belongs together."""
    if parameter.shape != grad.shape or parameter.dtype != grad.dtype:
        return False
    if parameter.is_contiguous() and grad.is_contiguous():
        return True
    strides = zip(grad.shape, parameter.stride(), grad.stride(), strict=True)
    return is_dense(grad) and all(a == b for size, a, b in strides if size > 1)
