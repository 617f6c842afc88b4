"""What every autograd.Function of this package stands on, and the register of fake kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ste_ops._torch import differentiated_around, functorch_active, unwrap_if_dead

FAKES: dict[str, Callable[..., Any]] = {}


def fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers the shape, dtype and stride rule of operator `name`, for FakeTensor and meta tensors."""

    def register(rule: Callable[..., Any]) -> Callable[..., Any]:
        FAKES[name] = rule
        torch.library.register_fake(f"ste_ops::{name}", rule)
        return rule

    return register


class NativeFunction(torch.autograd.Function):
    """An autograd.Function over registered operators.

    `torch.autograd.Function.apply` binds a Python signature at every call as soon as `setup_context` is defined (about
    20 µs); outside functorch transforms nothing needs it. Dynamo takes the classes as opaque calls: they hold nothing
    but registered operators, and its own tracing of an autograd.Function drops the backward under a compiled
    `torch.func.grad` and refuses a custom `jvp` (docs/decisions/autograd-functions.md).
    """

    _apply: Callable[..., Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._apply = super(torch.autograd.Function, cls).apply  # type: ignore[misc]
        torch.compiler.allow_in_graph(cls)

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if functorch_active():
            return super().apply(*args)
        # A tensor that outlived its transform is unwrapped, as Function.apply does.
        return cls._apply(*[unwrap_if_dead(arg) if isinstance(arg, Tensor) else arg for arg in args])


def needs_function(tensor: Tensor) -> bool:
    """Whether a backward must itself be recorded: under create_graph, forward-mode AD or a functorch transform."""
    # A dual tensor need not require a gradient, and a registered operator without autograd would drop its tangent.
    return differentiated_around() or (torch.is_grad_enabled() and tensor.requires_grad)


def memory_order(x: Tensor) -> list[int] | None:
    """The permutation that makes a dense tensor row-major, or None where it already is."""
    if x.is_contiguous():
        return None
    strides = x.stride()
    return sorted(range(x.dim()), key=lambda d: strides[d], reverse=True)


def inverse(order: list[int]) -> list[int]:
    places = [0] * len(order)
    for place, dim in enumerate(order):
        places[dim] = place
    return places
