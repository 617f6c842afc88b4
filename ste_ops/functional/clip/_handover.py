"""What `fold_grad_clip_` hands to the step after it, and the hooks by which that step takes it."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.optim import Optimizer

_OPERATOR = "fold_grad_clip_"


class Pending:
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


class Hooks:
    """The hooks of one optimizer. They stay: hooks cannot remove themselves while they run."""

    def __init__(self, optimizer: Optimizer):
        self.pending: Pending | None = None
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


_hooks: weakref.WeakKeyDictionary[Any, Hooks] = weakref.WeakKeyDictionary()


def hooks_of(optimizer: Optimizer) -> Hooks:
    hooks = _hooks.get(optimizer)
    if hooks is None:
        hooks = _hooks[optimizer] = Hooks(optimizer)
    return hooks
