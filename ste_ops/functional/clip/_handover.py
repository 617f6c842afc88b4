"""What `fold_grad_clip_` hands to the step after it, and the hooks by which that step takes it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState

from ste_ops.functional.clip._stepping import alike, versions_of
from ste_ops.functional.clip.distributed import to_local
from ste_ops.functional.clip.with_norm import clip_grads_with_norm_

if TYPE_CHECKING:
    from torch.amp import GradScaler
    from torch.optim import Optimizer

_OPERATOR = "fold_grad_clip_"
_NAMES = ("grad_scale", "found_inf")


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def with_gradients(optimizer: Optimizer) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters that have a gradient, and the gradients."""
    parameters = parameters_of(optimizer)
    grads = [parameter.grad for parameter in parameters]
    held = [grad for grad in grads if grad is not None]
    if len(held) < len(grads):
        parameters = [parameter for parameter, grad in zip(parameters, grads, strict=True) if grad is not None]
    return parameters, held


def has_unscaled(scaler: GradScaler, optimizer: Optimizer) -> bool:
    """Whether the scaler's unscale_() or step() has divided the gradients since its update()."""
    state = scaler._per_optimizer_states.get(id(optimizer))
    return state is not None and state["stage"] is not OptState.READY


def _refuse_to_copy() -> None:
    raise RuntimeError(
        f"{_OPERATOR}: optimizer must not be copied or pickled between the call and step(), since the copy would step "
        "without clipping"
    )


class Pending:
    """What one call hands to the step after it.

    Args:
        optimizer: the one that steps.
        parameters: those of it that have a gradient.
        grads: their gradients, which are not kept alive: a step may be left out.
        grad_scale, found_inf: what the step is to find, None where that is nothing.
        excess: the norm of which the gradients are to be clipped to 1 before the step divides them, or None.
        scaler: the one that has yet to unscale the gradients; when, is its own affair.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Sequence[Tensor],
        grads: Sequence[Tensor],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
        excess: Tensor | None,
        scaler: GradScaler | None,
    ):
        self.grad_scale = grad_scale
        self.found_inf = found_inf
        self.excess = excess
        self.scaler = scaler
        self.scaler_cleans_up = False
        self.seen = [weakref.ref(grad) for grad in grads]
        self.versions = versions_of(grads)
        # Where .data is replaced there is no new version.
        self.places = [*map(Tensor.data_ptr, grads)]
        self.places_of_parameters = [*map(Tensor.data_ptr, parameters)]
        self.without_momentum = _without_momentum(optimizer)

    def install(self, optimizer: Any) -> None:
        for name in _NAMES:
            if getattr(self, name) is not None:
                setattr(optimizer, name, getattr(self, name))
                optimizer.__getstate__ = _refuse_to_copy  # where copy, deepcopy and pickle look

    def remove(self, optimizer: Optimizer) -> None:
        held = vars(optimizer)
        for name in () if self.scaler_cleans_up else _NAMES:
            if getattr(self, name) is not None and held.get(name) is getattr(self, name):
                del held[name]
        if held.get("__getstate__") is _refuse_to_copy:
            del held["__getstate__"]

    def check(self, optimizer: Any) -> str:
        """What is wrong with the step that begins, or nothing."""
        grad_scale, found_inf = (getattr(optimizer, name, None) for name in _NAMES)
        self.scaler_cleans_up = found_inf is not None and found_inf is not self.found_inf
        if self.scaler_cleans_up:
            if self.scaler is None and grad_scale is not self.grad_scale:
                return (
                    "the gradients are scaled by a GradScaler; give it as grad_scaler=, or call its unscale_() before"
                )
        elif grad_scale is not self.grad_scale or found_inf is not self.found_inf:
            return "optimizer.grad_scale and found_inf must stay until step() as the call has set them"
        elif self.scaler is not None and not has_unscaled(self.scaler, optimizer):
            return "the gradients are still scaled; call grad_scaler.step(optimizer), and outside of compiled functions"
        parameters, grads = with_gradients(optimizer)
        if not self._has_seen(grads):
            return "the gradients are not those whose norm was taken; call it after backward(), right before step()"
        replaced = [*map(Tensor.data_ptr, parameters)] != self.places_of_parameters
        if replaced and not all(map(alike, to_local(parameters), to_local(grads))):
            return "a parameter's data was replaced after the call by some that its gradient does not fit"
        return ""

    def _has_seen(self, grads: Sequence[Tensor]) -> bool:
        return (
            len(grads) == len(self.seen)
            and all(seen() is grad for grad, seen in zip(grads, self.seen, strict=True))
            and [grad._version for grad in grads] == self.versions
            and [*map(Tensor.data_ptr, grads)] == self.places
        )

    def give(self, optimizer: Any) -> None:
        """What the step needs besides: the scaler's found_inf is of this rank's gradients, ours of all ranks'."""
        if self.scaler_cleans_up and self.found_inf is not None:
            theirs = optimizer.found_inf
            ours = self.found_inf.to(theirs.device, non_blocking=True)
            # Theirs is a sum over devices, and fused kernels skip where it is 1, not where it is 2.
            optimizer.found_inf = torch.maximum(theirs, ours).clamp(max=1)
        if self.excess is not None:
            clip_grads_with_norm_(parameters_of(optimizer), 1.0, self.excess)


def _without_momentum(optimizer: Optimizer) -> list[Tensor]:
    return [
        parameter
        for group in optimizer.param_groups
        if group.get("momentum")
        for parameter in group["params"]
        if optimizer.state.get(parameter, {}).get("momentum_buffer") is None
    ]


class Hooks:
    """The hooks of one optimizer. They stay: hooks cannot remove themselves while they run.

    The step checks what it finds in its closure, which runs behind the hooks of all others and right before the
    gradients are read. Dynamo takes none of it into a graph, which would forget what is set on an optimizer.
    """

    def __init__(self, optimizer: Optimizer):
        self.pending: Pending | None = None
        self.optimizer = weakref.ref(optimizer)
        self.closure: Callable[[], Any] | None = None
        self.begin = torch.compiler.disable(self._begin)
        optimizer.register_step_pre_hook(torch.compiler.disable(self.before_step))
        optimizer.register_step_post_hook(torch.compiler.disable(self.after_step))

    def discard(self, optimizer: Optimizer) -> None:
        if self.pending is not None:
            self.pending.remove(optimizer)
            self.pending = None

    def before_step(
        self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is self.begin or (closure is None and self.pending is None):
            return None
        self.closure = closure
        return args[:1], {**kwargs, "closure": self.begin}

    def _begin(self) -> Any:
        closure, self.closure = self.closure, None
        loss = None if closure is None else closure()
        optimizer: Any = self.optimizer()
        pending = self.pending  # which the closure may have made
        if pending is not None:
            wrong = pending.check(optimizer)
            if wrong:
                self.discard(optimizer)
                if pending.scaler_cleans_up:  # which it does not when the step raises
                    for name in _NAMES:
                        vars(optimizer).pop(name, None)
                raise RuntimeError(f"{_OPERATOR}: {wrong}")
            with torch.no_grad():
                pending.give(optimizer)
        return loss

    def after_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pending = self.pending
        if pending is None:
            return
        # A first step that is skipped leaves uninitialized memory for momentum in torch's fused SGD.
        found_inf = getattr(optimizer, "found_inf", None) if pending.without_momentum else None
        if found_inf is not None and found_inf.item():
            for parameter in pending.without_momentum:
                optimizer.state[parameter].pop("momentum_buffer", None)
        self.discard(optimizer)


_hooks: weakref.WeakKeyDictionary[Any, Hooks] = weakref.WeakKeyDictionary()


def hooks_of(optimizer: Optimizer) -> Hooks:
    hooks = _hooks.get(optimizer)
    if hooks is None:
        hooks = _hooks[optimizer] = Hooks(optimizer)
    return hooks
