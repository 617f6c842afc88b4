"""Clipping inside the optimizer's step: the coefficient goes where torch's fused optimizers take the loss scale.

A fused optimizer divides each gradient by ``optimizer.grad_scale`` as it reads it, and does nothing where
``optimizer.found_inf`` is 1; `torch.amp.GradScaler` sets both and multiplies a grad_scale that is there already. The
reciprocal of the coefficient put there costs no pass over the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ste_ops._checks import checked_norm_type, checked_number
from ste_ops._dynamo import never_compiled
from ste_ops.functional.clip._bound import number_on
from ste_ops.functional.clip._handover import Pending, has_unscaled, hooks_of, parameters_of, with_gradients
from ste_ops.functional.clip._lists import gradients_of
from ste_ops.functional.clip._stepping import check_divisible, checked_optimizer
from ste_ops.functional.clip.total_norm import norm_of_ranks, norms_of, spans_ranks
from ste_ops.functional.clip.with_norm import checked_total_norm

if TYPE_CHECKING:
    from torch.amp import GradScaler
    from torch.distributed import ProcessGroup
    from torch.optim import Optimizer

_OPERATOR = "fold_grad_clip_"


def _norm(parameters: Sequence[Tensor], grads: list[Tensor], p: float, process_group: ProcessGroup | None) -> Tensor:
    if spans_ranks(parameters, grads, process_group):
        return norm_of_ranks(_OPERATOR, parameters, grads, p, process_group)
    return norms_of(_OPERATOR, grads, p, each=False)[0]


def _given_norm(total_norm: Tensor, process_group: ProcessGroup | None) -> Tensor:
    """A norm that the caller knows. A negative one that the host cannot see skips the step, as a NaN does."""
    total_norm = checked_total_norm(_OPERATOR, total_norm)
    if process_group is not None:
        raise ValueError(f"{_OPERATOR}: total_norm is the norm over all ranks already, got a process_group beside it")
    if _known_to_host(total_norm) and total_norm < 0:
        raise ValueError(f"{_OPERATOR}: total_norm must be a norm, >= 0 or NaN, got {total_norm.item()}")
    return total_norm


def _yet_to_unscale(scaler: GradScaler | None, optimizer: Optimizer) -> GradScaler | None:
    return scaler if scaler is not None and scaler.is_enabled() and not has_unscaled(scaler, optimizer) else None


def _known_to_host(norm: Tensor) -> bool:
    return norm.device.type == "cpu"


class _Decision(NamedTuple):
    """What is handed to the step: the reciprocal of the coefficient, at least 1, and whether to skip.

    None where the host knows of nothing to do: a fused step that is given a grad_scale writes every gradient back,
    divided. `excess` is by how much the reciprocal exceeds what a grad_scale holds, which is a float32 even for float64
    gradients, as a norm to be clipped to 1.
    """

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None
    excess: Tensor | None = None


# The largest grad_scale. The rounding of a reciprocal, and its product with a loss scale, must not leave float32.
_LARGEST = torch.finfo(torch.float32).max * (1 - 2**-20)


def _decided(norm: Tensor, max_norm: float, skip_above: float, loss_scale: Tensor | None) -> _Decision:
    if _known_to_host(norm):
        limit = _LARGEST / max(1.0, 1.0 if loss_scale is None else loss_scale.item())
        return _decided_by_host(norm.item(), max_norm, skip_above, limit)
    skip = ~(norm.isfinite() & (norm >= 0) & (norm <= skip_above))
    reciprocal = ((norm.double() + 1e-6) / max_norm).clamp(min=1)
    if norm.dtype != torch.float64 and not 0 < max_norm < 1:  # no norm in float32 is too large for such a bound
        return _Decision(reciprocal.float(), skip.float())
    scale = torch.ones_like(reciprocal) if loss_scale is None else loss_scale.double().clamp(min=1)
    excess = reciprocal * scale / _LARGEST
    exceeds = (excess > 1) & ~skip
    grad_scale = torch.where(exceeds, _LARGEST / scale, reciprocal)
    return _Decision(grad_scale.float(), skip.float(), torch.where(exceeds, excess - 1e-6, 0.0))


def _decided_by_host(norm: float, max_norm: float, skip_above: float, limit: float) -> _Decision:
    if not math.isfinite(norm) or norm > skip_above:
        return _Decision(found_inf=torch.ones(()))
    reciprocal = (norm + 1e-6) / max_norm if max_norm > 0 else math.inf
    if reciprocal <= 1:
        return _Decision()
    if limit < reciprocal < math.inf:
        excess = torch.tensor(reciprocal / limit - 1e-6, dtype=torch.float64)
        return _Decision(torch.tensor(limit, dtype=torch.float32), excess=excess)
    return _Decision(torch.tensor(reciprocal, dtype=torch.float32))


@never_compiled
def fold_grad_clip_(
    optimizer: Optimizer,
    max_norm: float,
    norm_type: float = 2.0,
    *,
    total_norm: Tensor | None = None,
    skip_above: float = math.inf,
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
    What divides is a float32: where it would be more than 3.4e38, the step scales the gradients before. On other
    devices it looks whether it must for float64 gradients and bounds below 1, which is one launch more.

    Args:
        optimizer: `torch.optim.SGD`, `Adam`, `AdamW` or `Adagrad` with ``fused=True`` in every parameter group. All its
            gradients make one norm; there is one bound. Of an optimizer with a step of its own the one that it holds as
            ``optimizer`` is taken, which steps: so do the wrappers of Lightning, Fabric and Accelerate.
        max_norm: the bound, >= 0.
        norm_type: as in `get_total_norm`. An infinite gradient does not show in the norms of order 0 and -inf.
        total_norm: the norm where it is known, 0-d, such as that of the gradients of several optimizers, each of which
            is folded with it; of gradients as they lie, scaled where they are. norm_type says nothing then.
        skip_above: a step whose norm exceeds it changes nothing, decided on the device. A GradScaler's scale stays.
        grad_scaler: the scaler of the loss, if there is one. Its ``unscale_`` may be called before, after or never;
            only where it was called before may the scaler be left out.
        process_group: as in `get_total_norm`. Scalers of several ranks must hold the same scale.

    Returns:
        The norm before clipping, of unscaled gradients, as `get_total_norm` gives it; 0 where there are none.

    Raises:
        TypeError: it is another optimizer, or one with a step of its own; a gradient is sparse, integer or complex;
            total_norm is no tensor, or complex.
        ValueError: a parameter group is not fused; max_norm or norm_type as in `clip_grad_norm_`; skip_above is
            negative or NaN; total_norm is not 0-d, negative, or stands beside a process_group.
        RuntimeError: gradients, or the elements of one (an expanded tensor), share memory; one does not lie in memory
            as its parameter does, or has torch's negative bit; also where nothing would be clipped.
            ``optimizer.grad_scale`` or ``found_inf`` is set by someone else. From ``optimizer.step``: it finds other
            gradients than the call saw, which its closure may have taken or a hook changed, another ``grad_scale``, or
            a GradScaler that the call was not told of. From copying or pickling the optimizer before that step.

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
    skip_above = checked_number(_OPERATOR, "skip_above", skip_above)
    known = None if total_norm is None else _given_norm(total_norm, process_group)
    hooks = hooks_of(optimizer)
    hooks.discard(optimizer)
    for name in ("grad_scale", "found_inf"):
        if getattr(optimizer, name, None) is not None:
            raise RuntimeError(f"{_OPERATOR}: optimizer.{name} must not be set, got {getattr(optimizer, name)}")
    parameters = parameters_of(optimizer)
    grads = gradients_of(_OPERATOR, parameters, of_optimizer=True)
    if not grads and known is None and not spans_ranks(parameters, grads, process_group):
        return torch.tensor(0.0)
    with torch.no_grad():
        norm = _norm(parameters, grads, p, process_group) if known is None else known
        if grads:
            norm = number_on(_OPERATOR, "total_norm", norm, grads[0].device)
        owners = parameters if len(grads) == len(parameters) else with_gradients(optimizer)[0]
        check_divisible(owners, grads)
        scaler, loss_scale = _yet_to_unscale(grad_scaler, optimizer), None
        if scaler is not None:
            loss_scale = scaler.scale(torch.ones((), device=norm.device))  # get_scale() would wait for the device
            norm = (norm.double() / loss_scale).to(norm.dtype)
        pending = Pending(optimizer, owners, grads, *_decided(norm, max_norm, skip_above, loss_scale), scaler)
    pending.install(optimizer)
    hooks.pending = pending
    return norm


__all__ = ["fold_grad_clip_"]
