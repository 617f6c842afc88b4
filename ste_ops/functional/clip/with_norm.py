"""Scaling by a norm that is known."""

from __future__ import annotations

import torch
from torch import Tensor

from ste_ops._dtensor import is_dtensor
from ste_ops._library import ops
from ste_ops.functional.clip import _lists, distributed
from ste_ops.functional.clip._bound import against_one, bound_of, number_on
from ste_ops.functional.clip._lists import (
    Tensors,
    as_stored,
    check_writable,
    gradients_of,
    in_one_call,
    listed,
    written,
)


def clip_grads_with_norm_(
    parameters: Tensors, max_norm: float | Tensor, total_norm: Tensor, foreach: bool | None = None
) -> None:
    """Scales gradients by ``min(1, max_norm / (total_norm + 1e-6))``, as `torch.nn.utils.clip_grads_with_norm_`.

    The coefficient is taken on the gradients' device, in float64, and nothing is written where it is 1: no host sync,
    and a CUDA graph can capture it. A NaN norm makes every gradient NaN, an infinite one makes them 0 and their
    infinite elements NaN, as in torch.

    Args:
        parameters: an iterable of parameters, or one; those without a gradient are passed over.
        max_norm: the bound, as in `clip_grad_norm_`.
        total_norm: a 0-d tensor, from `get_total_norm`.
        foreach: taken for compatibility; there is one implementation.

    Raises:
        ValueError: max_norm is negative or NaN.
        TypeError: total_norm is no tensor; a gradient is integer or of a sparse layout other than COO.
        RuntimeError: a gradient's elements share memory (an expanded tensor), also where nothing would be clipped.
            Nothing has been written then.

    Example:
        >>> import torch, ste_ops
        >>> w = torch.zeros(2, requires_grad=True)
        >>> w.grad = torch.tensor([3.0, 4.0])
        >>> ste_ops.clip_grads_with_norm_(w, 1.0, torch.tensor(5.0))
        >>> w.grad
        tensor([0.6000, 0.8000])
    """
    max_norm = bound_of("clip_grads_with_norm_", max_norm)
    total_norm = checked_total_norm("clip_grads_with_norm_", total_norm)
    parameters = listed("clip_grads_with_norm_", "parameters", parameters)
    grads = gradients_of("clip_grads_with_norm_", parameters)
    if not grads:
        return
    device = next((grad.device for grad in grads if not grad.is_meta), grads[0].device)
    with torch.no_grad():
        total_norm = number_on("clip_grads_with_norm_", "total_norm", total_norm, device)
        scale_gradients("clip_grads_with_norm_", grads, total_norm, max_norm)


def checked_total_norm(operator: str, total_norm: Tensor) -> Tensor:
    """The norm as a float32 or float64 number."""
    if not isinstance(total_norm, Tensor):
        raise TypeError(f"{operator}: total_norm must be a tensor, got {type(total_norm).__name__}")
    if total_norm.dim() != 0:
        raise ValueError(f"{operator}: total_norm must be 0-d, got the shape {tuple(total_norm.shape)}")
    if total_norm.is_complex():
        raise TypeError(f"{operator}: total_norm must be real, got {total_norm.dtype}")
    if is_dtensor(total_norm):  # torch's own norm of DTensors is one, and not yet reduced
        total_norm = total_norm.full_tensor()  # type: ignore[attr-defined]
    return total_norm.detach() if total_norm.dtype == torch.float64 else total_norm.detach().float()


def scale_gradients(
    operator: str, grads: list[Tensor], total_norm: Tensor, max_norm: float | Tensor, nonfinite: int = 0
) -> None:
    if isinstance(max_norm, Tensor):
        max_norm = number_on(operator, "max_norm", max_norm, total_norm.device)
        total_norm, max_norm = against_one(total_norm, max_norm, nonfinite), 1.0

    def in_parts() -> None:
        _scale_in_parts(operator, grads, total_norm, max_norm, nonfinite)

    in_one_call(operator, ops.clip_grads_with_norm_, grads, total_norm, max_norm, nonfinite, in_parts=in_parts)
    written(grads)


def _scale_in_parts(operator: str, grads: list[Tensor], total_norm: Tensor, max_norm: float, nonfinite: int) -> None:
    own = distributed.to_local(grads)
    groups = _lists.by_device(operator, own)
    # Scaling is linear, so it does not matter whether a sparse gradient is coalesced, or a DTensor reduced.
    values = [
        [as_stored(grad._values()) if grad.is_sparse else grad for grad in dict.fromkeys(group)] for group in groups
    ]
    check_writable(operator, values)
    for group in values:
        ops.clip_grads_with_norm_(group, total_norm.to(group[0].device), max_norm, nonfinite)
    if own is not grads:
        written(own)
