"""Clipping inside the optimizer's step: the coefficient goes where torch's fused optimizers take the loss scale.

A fused optimizer divides each gradient by ``optimizer.grad_scale`` as it reads it, and does nothing where
``optimizer.found_inf`` is 1; `torch.amp.GradScaler` sets both and multiplies a grad_scale that is there already. The
reciprocal of the coefficient put there costs no pass over the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ste_ops._checks import checked_norm_type, checked_number
from ste_ops._dynamo import never_compiled
from ste_ops._library import ops
from ste_ops.functional.clip._handover import Pending, has_unscaled, hooks_of, parameters_of
from ste_ops.functional.clip._lists import gradients_of, in_one_call
from ste_ops.functional.clip._stepping import checked_optimizer
from ste_ops.functional.clip.total_norm import norm_of_ranks, norms_of, spans_ranks

if TYPE_CHECKING:
    from torch.amp import GradScaler
    from torch.distributed import ProcessGroup
    from torch.optim import Optimizer

_OPERATOR = "fold_grad_clip_"


def _norm(parameters: Sequence[Tensor], grads: list[Tensor], p: float, process_group: ProcessGroup | None) -> Tensor:
    if spans_ranks(parameters, grads, process_group):
        return norm_of_ranks(_OPERATOR, parameters, grads, p, process_group)

    def in_parts() -> tuple[Tensor, Tensor]:
        if any(grad.is_sparse for grad in grads):
            raise TypeError(f"{_OPERATOR}: gradients must be strided: fused optimizers take no sparse ones")
        return norms_of(_OPERATOR, grads, p, each=False)

    return in_one_call(_OPERATOR, ops.total_norm, grads, p, in_parts=in_parts)[0]


def _yet_to_unscale(scaler: GradScaler | None, optimizer: Optimizer) -> GradScaler | None:
    return scaler if scaler is not None and scaler.is_enabled() and not has_unscaled(scaler, optimizer) else None


def _known_to_host(norm: Tensor) -> bool:
    return norm.device.type == "cpu"


def _decided(norm: Tensor, max_norm: float) -> tuple[Tensor | None, Tensor | None]:
    """The reciprocal of the coefficient, at least 1, and whether to skip; None where the host knows of nothing to do.

    A fused step that is given a grad_scale writes every gradient back, divided.
    """
    if not _known_to_host(norm):
        grad_scale = ((norm.double() + 1e-6) / max_norm).clamp(min=1).float()
        return grad_scale, (~norm.isfinite()).float()
    value = norm.item()
    if not math.isfinite(value):
        return None, torch.ones(())
    reciprocal = (value + 1e-6) / max_norm if max_norm > 0 else math.inf
    return (torch.tensor(reciprocal, dtype=torch.float32) if reciprocal > 1 else None), None


@never_compiled
def fold_grad_clip_(
    optimizer: Optimizer,
    max_norm: float,
    norm_type: float = 2.0,
    *,
    grad_scaler: GradScaler | None = None,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Clips the norm of an optimizer's gradients in its next step, which reads them anyway: the call takes the norm.

    The step after the call does what `clip_grad_norm_` and a step would have done, up to a rounding: the optimizer
    divides by the reciprocal of the coefficient, in float32, where clipping multiplies. Where the norm is NaN or
    infinite that step changes nothing, neither parameters nor state, as under a `torch.amp.GradScaler`. Steps without
    a call are as ever; of two calls the later one counts. In a compiled function the call is a break between graphs.

    The call leaves ``.grad`` as it was. The step writes the clipped gradients there, because torch's fused kernels
    write back what they have divided; on the CPU, where the host knows the norm, only where there is something to clip.

    Args:
        optimizer: `torch.optim.SGD`, `Adam`, `AdamW` or `Adagrad` with ``fused=True`` in every parameter group. All its
            gradients make one norm; there is one bound. Of an optimizer with a step of its own the one that it holds as
            ``optimizer`` is taken, which steps: so do the wrappers of Lightning, Fabric and Accelerate.
        max_norm: the bound, >= 0.
        norm_type: as in `get_total_norm`. An infinite gradient does not show in the norms of order 0 and -inf.
        grad_scaler: the scaler of the loss, if there is one. Its ``unscale_`` may be called before, after or never;
            only where it was called before may the scaler be left out.
        process_group: as in `get_total_norm`. Scalers of several ranks must hold the same scale.

    Returns:
        The norm before clipping, of unscaled gradients, as `get_total_norm` gives it; 0 where there are none.

    Raises:
        TypeError: it is another optimizer, or one with a step of its own; a gradient is sparse, integer or complex.
        ValueError: a parameter group is not fused; max_norm or norm_type as in `clip_grad_norm_`.
        RuntimeError: ``optimizer.grad_scale`` or ``found_inf`` is set by someone else. From ``optimizer.step``: it
            finds other gradients than the call saw, which its closure may have taken or a hook changed, another
            ``grad_scale``, or a GradScaler that the call was not told of. From copying or pickling the optimizer
            before that step.

    Example:
        >>> import torch, ste_ops
        >>> w = torch.zeros(2, requires_grad=True)
        >>> optimizer = torch.optim.SGD([w], lr=1.0, fused=True)
        >>> w.grad = torch.tensor([3.0, 4.0])
        >>> ste_ops.fold_grad_clip_(optimizer, max_norm=1.0)
        tensor(5.)
        >>> optimizer.step()
        >>> w
        tensor([-0.6000, -0.8000], requires_grad=True)
    """
    optimizer = checked_optimizer(optimizer)
    max_norm = checked_number(_OPERATOR, "max_norm", max_norm)
    p = checked_norm_type(_OPERATOR, norm_type)
    hooks = hooks_of(optimizer)
    hooks.discard(optimizer)
    for name in ("grad_scale", "found_inf"):
        if getattr(optimizer, name, None) is not None:
            raise RuntimeError(f"{_OPERATOR}: optimizer.{name} must not be set, got {getattr(optimizer, name)}")
    parameters = parameters_of(optimizer)
    grads = gradients_of(_OPERATOR, parameters)
    if not grads and not spans_ranks(parameters, grads, process_group):
        return torch.tensor(0.0)
    with torch.no_grad():
        norm = _norm(parameters, grads, p, process_group)
        scaler = _yet_to_unscale(grad_scaler, optimizer)
        if scaler is not None:  # get_scale() would wait for the device
            norm = (norm.double() / scaler.scale(torch.ones((), device=norm.device))).to(norm.dtype)
        pending = Pending(optimizer, grads, *_decided(norm, max_norm), scaler)
    pending.install(optimizer)
    hooks.pending = pending
    return norm


__all__ = ["fold_grad_clip_"]
