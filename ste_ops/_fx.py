"""What torch.fx records of a call with its proxies: one node for a function, and one for a layer or a quantizer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from torch import Generator
from torch.fx import Proxy


def call_node(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """A call of a function of this package, to which some of the arguments are proxies."""
    tracer: Any = next(value.tracer for value in arguments.values() if isinstance(value, Proxy))
    # A surrogate of numbers becomes a node that makes it, which torch.fx does by itself.
    held = {name: _held(tracer, value) if _is_opaque(value) else value for name, value in arguments.items()}
    first, *others = held
    return tracer.create_proxy("call_function", function, (held[first],), {name: held[name] for name in others})


def method_node(of: Any, name: str, x: Any) -> Any:
    """A call of the method of an object of this package with a proxy."""
    return x.tracer.create_proxy("call_method", name, (_held(x.tracer, of) if _is_opaque(of) else of, x), {})


def _is_opaque(value: Any) -> bool:
    """Whether torch.fx cannot write the value down, as a callable in a surrogate or a generator."""
    if dataclasses.is_dataclass(value):
        return not getattr(value, "__dataclass_params__").init  # noqa: B009
    return isinstance(value, Generator)


def _held(tracer: Any, value: Any) -> Any:
    """The value as an attribute of what is traced."""
    name, count = "_ste_ops_argument", 0
    while hasattr(tracer.root, f"{name}{count}"):
        count += 1
    setattr(tracer.root, f"{name}{count}", value)
    return tracer.create_proxy("get_attr", f"{name}{count}", (), {})


def one_node(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A module's forward that torch.fx records as a call of the module, as it does with the layers of torch.nn.

    What is traced itself has no name that could be called; its forward is recorded.
    """

    @functools.wraps(forward)
    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        for x in args or kwargs.values():
            if isinstance(x, Proxy):
                tracer: Any = x.tracer
                if tracer.root is not self:
                    return tracer.create_proxy("call_module", tracer.path_of_module(self), args, kwargs)
        return forward(self, *args, **kwargs)

    return recorded
