"""Norm and scaling in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from ste_ops._checks import NonFinite, checked_nonfinite, checked_norm_type
from ste_ops._library import ops
from ste_ops.functional.clip import _direct
from ste_ops.functional.clip._bound import bound_of
from ste_ops.functional.clip._lists import Tensors, gradients_of, in_one_call, listed, written
from ste_ops.functional.clip.result import ClipResult
from ste_ops.functional.clip.total_norm import norms_of, norms_of_ranks, require_finite, spans_ranks
from ste_ops.functional.clip.with_norm import scale_gradients

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@overload
def clip_grad_norm_(
    parameters: Tensors,
    max_norm: float | Tensor,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    nonfinite: NonFinite = "propagate",
    return_result: Literal[False] = False,
    process_group: ProcessGroup | None = None,
) -> Tensor: ...


@overload
def clip_grad_norm_(
    parameters: Tensors,
    max_norm: float | Tensor,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    nonfinite: NonFinite = "propagate",
    return_result: Literal[True],
) -> ClipResult: ...


def clip_grad_norm_(
    parameters: Tensors,
    max_norm: float | Tensor,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    nonfinite: NonFinite = "propagate",
    return_result: bool = False,
    process_group: ProcessGroup | None = None,
) -> Tensor | ClipResult:
    """Clips the gradients' norm, taken over all of them together, in place, as `torch.nn.utils.clip_grad_norm_`.

    `get_total_norm` followed by `clip_grads_with_norm_`, in one native call: a step that needs no clipping reads each
    gradient once and writes nothing. The gradients' version counters move either way, since on CUDA only the device
    knows.

    Args:
        parameters: an iterable of parameters, or one; those without a gradient are passed over, and one that is listed
            twice counts once.
        max_norm: the bound, >= 0; a number, or a tensor of one element. One on a device is not read on the host, so
            that a schedule or an adaptive bound waits for nothing; where it is negative or NaN, the norm counts as NaN.
            Under ``torch.compile`` numbers that change and tensors keep one graph.
        norm_type: as in `get_total_norm`.
        error_if_nonfinite: raise where the norm is NaN or infinite, before anything is scaled. This waits for the
            device.
        foreach: taken for compatibility; there is one implementation.
        nonfinite: what happens where the norm is NaN or infinite, decided on the device. ``"propagate"`` multiplies by
            the coefficient as torch does: a NaN norm makes every gradient NaN. ``"skip"`` leaves every gradient as it
            is: for a step that is skipped anyway (``GradScaler``, ``found_inf``), with the evidence kept. ``"zero"``
            makes every gradient 0, those that were finite too: for a loop that steps without looking.
        return_result: give a `ClipResult`, which has the norm of each gradient too, from the same pass: over ranks
            that of each parameter, 0 where no rank has a gradient, the same on every rank of a `DTensor`'s mesh.
        process_group: as in `get_total_norm`. Each rank scales its own parts.

    Returns:
        The norm before clipping, as `get_total_norm` gives it. With ``return_result`` a `ClipResult`: this norm, that
        of each gradient, whether it clipped, and which gradient was the first that is not finite.

    Raises:
        As `get_total_norm` and `clip_grads_with_norm_`. ValueError for another ``nonfinite``, or one beside
        ``error_if_nonfinite``. No gradient has been written then.

    Example:
        >>> import torch, ste_ops
        >>> w = torch.zeros(2, requires_grad=True)
        >>> w.grad = torch.tensor([3.0, 4.0])
        >>> ste_ops.clip_grad_norm_([w], max_norm=1.0)
        tensor(5.)
        >>> w.grad
        tensor([0.6000, 0.8000])
        >>> w.grad[0] = torch.inf
        >>> ste_ops.clip_grad_norm_([w], max_norm=1.0, nonfinite="zero")
        tensor(inf)
        >>> w.grad
        tensor([0., 0.])
    """
    bound = bound_of("clip_grad_norm_", max_norm)
    p = checked_norm_type("clip_grad_norm_", norm_type)
    mode = checked_nonfinite(nonfinite, error_if_nonfinite)
    parameters = listed("clip_grad_norm_", "parameters", parameters)
    if isinstance(bound, float) and not (return_result or error_if_nonfinite or process_group is not None):
        known = _direct.clip_grad_norm(parameters, bound, p, mode)
        if known is not None:
            return known
    grads = gradients_of("clip_grad_norm_", parameters)
    over_ranks = spans_ranks(parameters, grads, process_group)
    norms = torch.zeros(0)
    if over_ranks:
        with torch.no_grad():
            held = [parameter.grad for parameter in parameters]
            arguments = ("clip_grad_norm_", parameters, held, p, process_group)
            total_norm, norms = norms_of_ranks(*arguments, each=return_result)
            if error_if_nonfinite:
                require_finite(total_norm, p)
            if grads:
                scale_gradients("clip_grad_norm_", grads, total_norm, bound, mode)
    elif not grads:
        total_norm = torch.tensor(0.0)
    else:
        with torch.no_grad():
            total_norm, norms = _clip_grad_norm(grads, bound, p, error_if_nonfinite, mode, return_result)
    if not return_result:
        return total_norm
    # Over ranks there is a norm for every parameter, as another rank may hold its gradient.
    places = range(len(parameters))
    positions = tuple(places if over_ranks else (i for i in places if parameters[i].grad is not None))
    return ClipResult(total_norm, norms, bound, positions)


def _clip_grad_norm(
    grads: list[Tensor], bound: float | Tensor, p: float, error_if_nonfinite: bool, nonfinite: int, each: bool
) -> tuple[Tensor, Tensor]:
    def at_once(grads: list[Tensor]) -> tuple[Tensor, Tensor]:
        norms = ops.clip_grad_norm_(grads, bound, p, nonfinite, each)
        written(grads)
        return norms

    def in_parts() -> tuple[Tensor, Tensor]:
        total_norm, norms = norms_of("clip_grad_norm_", grads, p, each=each)
        if error_if_nonfinite:
            require_finite(total_norm, p)
        scale_gradients("clip_grad_norm_", grads, total_norm, bound, nonfinite)
        return total_norm, norms

    if error_if_nonfinite or isinstance(bound, Tensor):
        return in_parts()
    return in_one_call("clip_grad_norm_", at_once, grads, in_parts=in_parts)
