"""Clamping each element."""

from __future__ import annotations

import torch
from torch import Tensor

from ste_ops._checks import checked_number
from ste_ops._library import ops
from ste_ops.functional.clip import distributed
from ste_ops.functional.clip._lists import (
    Tensors,
    by_device,
    check_gradient,
    check_writable,
    gradients_of,
    in_one_call,
    listed,
    written,
)


def clip_grad_value_(parameters: Tensors, clip_value: float, foreach: bool | None = None) -> None:
    """Clamps every element of the gradients to ``[-clip_value, clip_value]`` in place, as in `torch.nn.utils`.

    One pass that writes only where something changes. NaN stays.

    Args:
        parameters: an iterable of parameters, or one; those without a gradient are passed over.
        clip_value: the bound, >= 0.
        foreach: taken for compatibility; there is one implementation.

    Raises:
        ValueError: clip_value is negative or NaN.
        TypeError, RuntimeError: as `clip_grads_with_norm_`; a complex gradient is refused, as in torch.

    Example:
        >>> import torch, ste_ops
        >>> w = torch.zeros(3, requires_grad=True)
        >>> w.grad = torch.tensor([-2.0, 0.05, 0.5])
        >>> ste_ops.clip_grad_value_(w, 0.1)
        >>> w.grad
        tensor([-0.1000,  0.0500,  0.1000])
    """
    operator = "clip_grad_value_"
    clip_value = checked_number(operator, "clip_value", clip_value)
    grads = gradients_of(operator, listed(operator, "parameters", parameters))
    if not grads:
        return
    with torch.no_grad():
        in_one_call(
            operator, ops.clip_grad_value_, grads, clip_value, in_parts=lambda: _clamp_in_parts(grads, clip_value)
        )
        written(grads)


def _clamp_in_parts(grads: list[Tensor], clip_value: float) -> None:
    operator = "clip_grad_value_"
    distributed.refuse_partial(operator, grads)
    own = distributed.to_local(grads)
    for index, grad in enumerate(own):
        check_gradient(operator, index, grad)
        if grad.is_complex():
            raise TypeError(
                f"{operator}: gradients must be real, which torch clamps too, got {grad.dtype} at index {index}"
            )
    pairs = [(grad, grad.coalesce() if grad.is_sparse else grad) for grad in dict.fromkeys(own)]
    groups = by_device(operator, [c._values() if c.is_sparse else c for _, c in pairs])
    check_writable(operator, groups)
    for group in groups:
        ops.clip_grad_value_(group, clip_value)
    for grad, coalesced in pairs:
        if coalesced is not grad:
            grad.copy_(coalesced)
    if own is not grads:
        written(own)
