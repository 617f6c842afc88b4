"""The gradients of a call: asked for, checked, and divided into what one native call takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ste_ops._checks import FLOATING
from ste_ops._library import ops

Tensors = Tensor | Iterable[Tensor]


def listed(tensors: Tensors) -> list[Tensor]:
    if isinstance(tensors, Tensor):
        return [tensors]
    return tensors if isinstance(tensors, list) else list(tensors)


def gradients_of(operator: str, parameters: Tensors) -> list[Tensor]:
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    grads = []
    try:
        for parameter in parameters:  # each gradient is asked for once: the attribute is what this loop costs
            grad = parameter.grad
            if grad is not None:
                grads.append(grad)
    except AttributeError as error:
        raise TypeError(f"{operator}: parameters must be a tensor or an iterable of tensors, got {error}") from None
    return grads


def check_gradient(operator: str, index: int, grad: Tensor) -> None:
    if not isinstance(grad, Tensor):
        raise TypeError(
            f"{operator}: tensors must be an iterable of tensors, got {type(grad).__name__} at index {index}"
        )
    if grad.dtype not in FLOATING:
        raise TypeError(
            f"{operator}: gradients must be float64, float32, bfloat16 or float16, got {grad.dtype} at index {index}"
        )
    if grad.layout not in (torch.strided, torch.sparse_coo):
        raise TypeError(f"{operator}: gradients must be strided or sparse_coo, got {grad.layout} at index {index}")


def by_device(operator: str, grads: Sequence[Tensor]) -> list[list[Tensor]]:
    """The gradients of each device in the order of the list: what a call of one native operator takes.

    The way of lists that the native operators refuse as a whole. It explains what cannot be clipped, before anything is
    written.
    """
    groups: dict[torch.device, list[Tensor]] = {}
    for index, grad in enumerate(grads):
        check_gradient(operator, index, grad)
        groups.setdefault(grad.device, []).append(grad)
    return list(groups.values())


def coalesced(grads: Iterable[Tensor]) -> list[Tensor]:
    """Dense tensors with the values of the list; those of an uncoalesced sparse gradient are a copy."""
    return [grad.coalesce()._values() if grad.is_sparse else grad for grad in dict.fromkeys(grads)]


def written(grads: Sequence[Tensor]) -> None:
    # Compiled graphs do this for every input that they mutate.
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(grads)


def check_writable(operator: str, groups: list[list[Tensor]]) -> None:
    """Runs each operator's own checks of all groups before the first one is written."""
    for group in groups:
        ops.clip_grads_with_norm_(group, torch.zeros((), device=group[0].device), math.inf)
