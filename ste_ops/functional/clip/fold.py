"""Clipping inside the optimizer's step: the coefficient goes where torch's fused optimizers take the loss scale.

A fused optimizer divides each gradient by ``optimizer.grad_scale`` as it reads it, and does nothing where
``optimizer.found_inf`` is 1; `torch.amp.GradScaler` sets both and multiplies a grad_scale that is there already. The
reciprocal of the coefficient put there costs no pass over the gradients.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState

from ste_ops._checks import checked_norm_type, checked_number
from ste_ops._library import ops
from ste_ops.functional.clip._lists import gradients_of, in_one_call
from ste_ops.functional.clip.total_norm import norm_of_ranks, norms_of, spans_ranks

if TYPE_CHECKING:
    from torch.amp import GradScaler
    from torch.distributed import ProcessGroup
    from torch.optim import Optimizer

_OPERATOR = "fold_grad_clip_"
_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)


class _Pending:
    """What one call hands to the step after it."""

    def __init__(self, grad_scale: Tensor | None, found_inf: Tensor | None, loss_scaled: bool):
        self.grad_scale = grad_scale
        self.found_inf = found_inf
        self.loss_scaled = loss_scaled  # the gradients were; who unscales them, and when, is the scaler's affair
        self.scaler_cleans_up = False
        self.samples: list[tuple[Tensor, Tensor, int]] = []  # a parameter of each group, its gradient and version
        self.without_momentum: list[Tensor] = []

    def install(self, optimizer: Any) -> None:
        if self.grad_scale is not None:
            optimizer.grad_scale = self.grad_scale
        if self.found_inf is not None:
            optimizer.found_inf = self.found_inf

    def remove(self, optimizer: Optimizer) -> None:
        for name in ("grad_scale", "found_inf"):
            ours = getattr(self, name)
            if ours is not None and vars(optimizer).get(name) is ours:
                delattr(optimizer, name)

    def check(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """What is wrong with the step that begins, or nothing."""
        if any(closure is not None for closure in (*args[1:], kwargs.get("closure"))):
            return "step() must be called without a closure, which takes new gradients after their norm was taken"
        grad_scale = getattr(optimizer, "grad_scale", None)
        if self.scaler_cleans_up and not self.loss_scaled and grad_scale is not self.grad_scale:
            return "the gradients are scaled by a GradScaler; give it as grad_scaler=, or call its unscale_() before"
        for parameter, grad, version in self.samples:
            if parameter.grad is not grad or not (self.loss_scaled or grad._version == version):
                return "the gradients are not those whose norm was taken; call it after backward(), right before step()"
        return ""


class _Fold:
    """The hooks of one optimizer. They stay: hooks cannot remove themselves while they run."""

    def __init__(self, optimizer: Optimizer):
        self.pending: _Pending | None = None
        optimizer.register_step_pre_hook(self.before_step)
        optimizer.register_step_post_hook(self.after_step)

    def discard(self, optimizer: Optimizer) -> None:
        if self.pending is not None:
            self.pending.remove(optimizer)
            self.pending = None

    def before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pending = self.pending
        if pending is None:
            return
        found_inf: Any = getattr(optimizer, "found_inf", None)
        pending.scaler_cleans_up = found_inf is not pending.found_inf
        wrong = pending.check(optimizer, args, kwargs)
        if wrong:
            self.discard(optimizer)
            if pending.scaler_cleans_up:  # which it does not when the step raises
                for name in ("grad_scale", "found_inf"):
                    vars(optimizer).pop(name, None)
            raise RuntimeError(f"{_OPERATOR}: {wrong}")
        if pending.scaler_cleans_up and pending.found_inf is not None:
            # A scaler looks at this rank's gradients alone. The norm is that of all ranks.
            ours = pending.found_inf.to(found_inf.device, non_blocking=True)
            optimizer.found_inf = torch.maximum(found_inf, ours).clamp(max=1)

    def after_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pending = self.pending
        if pending is None:
            return
        # A first step that is skipped leaves uninitialized memory for momentum in torch's fused SGD.
        found_inf = getattr(optimizer, "found_inf", None) if pending.without_momentum else None
        if found_inf is not None and found_inf.item():
            for parameter in pending.without_momentum:
                optimizer.state[parameter].pop("momentum_buffer", None)
        if pending.scaler_cleans_up:
            self.pending = None
        else:
            self.discard(optimizer)


_folds: weakref.WeakKeyDictionary[Any, _Fold] = weakref.WeakKeyDictionary()


def _checked_optimizer(optimizer: Any) -> Optimizer:
    if not isinstance(optimizer, _FUSED):
        wrapped = "; hand over the optimizer that it wraps" if hasattr(optimizer, "optimizer") else ""
        raise TypeError(
            f"{_OPERATOR}: optimizer must be torch's SGD, Adam, AdamW or Adagrad with fused=True, got "
            f"{type(optimizer).__name__}{wrapped}"
        )
    for index, group in enumerate(optimizer.param_groups):
        if not group.get("fused"):
            raise ValueError(
                f"{_OPERATOR}: optimizer must be fused, got {type(optimizer).__name__} with "
                f"fused={group.get('fused')} in the parameter group {index}; use clip_grad_norm_"
            )
    return optimizer


def _norm(parameters: Sequence[Tensor], grads: list[Tensor], p: float, process_group: ProcessGroup | None) -> Tensor:
    if spans_ranks(parameters, grads, process_group):
        return norm_of_ranks(_OPERATOR, parameters, grads, p, process_group)

    def in_parts() -> tuple[Tensor, Tensor]:
        if any(grad.is_sparse for grad in grads):
            raise TypeError(f"{_OPERATOR}: gradients must be strided: fused optimizers take no sparse ones")
        return norms_of(_OPERATOR, grads, p, each=False)

    return in_one_call(_OPERATOR, ops.total_norm, grads, p, in_parts=in_parts)[0]


def _loss_scale(scaler: GradScaler | None, optimizer: Optimizer, device: torch.device) -> Tensor | None:
    if scaler is None or not scaler.is_enabled():
        return None
    state = scaler._per_optimizer_states.get(id(optimizer))
    if state is not None and state["stage"] is not OptState.READY:  # unscale_() has been called
        return None
    return scaler.scale(torch.ones((), device=device))  # get_scale() would wait for the device


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


def _samples(pending: _Pending, optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        parameter = next((p for p in reversed(group["params"]) if p.grad is not None), None)
        if parameter is None:
            continue
        pending.samples.append((parameter, parameter.grad, parameter.grad._version))
        if group.get("momentum") and optimizer.state.get(parameter, {}).get("momentum_buffer") is None:
            pending.without_momentum += group["params"]


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
    a call are as ever; of two calls the later one counts.

    The call leaves ``.grad`` as it was. The step writes the clipped gradients there, because torch's fused kernels
    write back what they have divided; on the CPU, where the host knows the norm, only where there is something to clip.

    Args:
        optimizer: `torch.optim.SGD`, `Adam`, `AdamW` or `Adagrad` with ``fused=True`` in every parameter group. All its
            gradients make one norm; there is one bound.
        max_norm: the bound, >= 0.
        norm_type: as in `get_total_norm`. An infinite gradient does not show in the norms of order 0 and -inf.
        grad_scaler: the scaler of the loss, if there is one. Its ``unscale_`` may be called before, after or never;
            only where it was called before may the scaler be left out.
        process_group: as in `get_total_norm`. Scalers of several ranks must hold the same scale.

    Returns:
        The norm before clipping, of unscaled gradients, as `get_total_norm` gives it; 0 where there are none.

    Raises:
        TypeError: it is another optimizer; a gradient is sparse, integer or complex.
        ValueError: a parameter group is not fused; max_norm or norm_type as in `clip_grad_norm_`.
        RuntimeError: ``optimizer.grad_scale`` or ``found_inf`` is set by someone else. From ``optimizer.step``: it is
            called with a closure, after a GradScaler that the call was not told of, or with other gradients than the
            call saw.

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
    optimizer = _checked_optimizer(optimizer)
    max_norm = checked_number(_OPERATOR, "max_norm", max_norm)
    p = checked_norm_type(_OPERATOR, norm_type)
    fold = _folds.get(optimizer)
    if fold is None:
        fold = _folds[optimizer] = _Fold(optimizer)
    fold.discard(optimizer)
    for name in ("grad_scale", "found_inf"):
        if getattr(optimizer, name, None) is not None:
            raise RuntimeError(f"{_OPERATOR}: optimizer.{name} must not be set, got {getattr(optimizer, name)}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    grads = gradients_of(_OPERATOR, parameters)
    if not grads and not spans_ranks(parameters, grads, process_group):
        return torch.tensor(0.0)
    with torch.no_grad():
        norm = _norm(parameters, grads, p, process_group)
        loss_scale = _loss_scale(grad_scaler, optimizer, norm.device)
        if loss_scale is not None:
            norm = (norm.double() / loss_scale).to(norm.dtype)
        pending = _Pending(*_decided(norm, max_norm), loss_scale is not None)
        _samples(pending, optimizer)
    pending.install(optimizer)
    fold.pending = pending
    return norm


__all__ = ["fold_grad_clip_"]
