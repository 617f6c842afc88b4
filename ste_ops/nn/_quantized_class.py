"""The quantized class that a float layer gets: that of torch's class, or for a subclass one that is both."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

QUANTIZED: dict[type[nn.Module], type[nn.Module]] = {}
"""Of each of torch's layers the quantized one; `layers` fills it."""


def float_class(layer: nn.Module) -> type[nn.Module]:
    """The layer's class, below the one that a parametrization puts over it."""
    return type(layer).__bases__[0] if is_parametrized(layer) else type(layer)


def layer_of(cls: type[nn.Module]) -> type[nn.Module] | None:
    """The class with a quantized twin that it is, or derives from without a forward of its own."""
    base = next((found for found in cls.__mro__ if found in QUANTIZED), None)
    if base is None or cls.forward is not base.forward or issubclass(cls, (*QUANTIZED.values(), LazyModuleMixin)):
        return None  # what is lazy takes torch's class with its first batch
    return base


def quantized_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Of a subclass without a forward of its own one that is both: it keeps what else the subclass has."""
    base = layer_of(cls)
    if base is None:
        raise TypeError(f"{cls.__name__} has no quantized class")
    if cls is not base and cls not in _OF_SUBCLASSES:
        of_both = {"__reduce_ex__": _reduce, "__module__": cls.__module__, "_float": cls}
        _OF_SUBCLASSES[cls] = type(f"Quant{cls.__name__}", (QUANTIZED[base], cls), of_both)
    return QUANTIZED[base] if cls is base else _OF_SUBCLASSES[cls]


_OF_SUBCLASSES: weakref.WeakKeyDictionary[type[nn.Module], type[nn.Module]] = weakref.WeakKeyDictionary()


def _reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
    """No file could name a class that is made here."""
    reduced: Any = object.__reduce_ex__(self, protocol)
    return _blank, (self._float,), *reduced[2:]


def _blank(cls: type[nn.Module]) -> nn.Module:
    made = quantized_class(cls)
    return made.__new__(made)


def check_float(name: str, layer: nn.Module, quantized: type[nn.Module]) -> None:
    base = layer_of(float_class(layer))
    if base is None or QUANTIZED[base] is not quantized:
        expected = next(old.__name__ for old, new in QUANTIZED.items() if new is quantized)
        raise TypeError(f"{name}: layer must be a torch.nn.{expected}, got {float_class(layer).__name__}")
    check_own_forward(name, layer)


def check_own_forward(name: str, layer: nn.Module) -> None:
    if "forward" in vars(layer):
        raise TypeError(f"{name}: layer has a forward of its own, which would go on without the quantizers")


def unquantized_class(cls: type[nn.Module]) -> type[nn.Module] | None:
    """The float class of which a quantized one was made; None of a class that somebody derived from it."""
    own: type[nn.Module] | None = vars(cls).get("_float")
    return own or next((old for old, new in QUANTIZED.items() if new is cls), None)


def become_float(layer: nn.Module) -> None:
    """The inverse of `become`."""
    plain = unquantized_class(float_class(layer))
    if plain is None:
        raise TypeError(f"{float_class(layer).__name__} has no float class")
    _put(layer, plain)


def become(layer: nn.Module) -> None:
    """Gives the layer its quantized class in place, as torch's own parametrizations do: nothing else of it changes."""
    _put(layer, quantized_class(float_class(layer)))


def _put(layer: nn.Module, cls: type[nn.Module]) -> None:
    if is_parametrized(layer):
        # The class over the layer's own holds the properties that compute its tensors.
        own = {k: v for k, v in vars(type(layer)).items() if k not in ("__dict__", "__weakref__", "__doc__")}
        layer.__class__ = type(f"Parametrized{cls.__name__}", (cls,), own)
    else:
        layer.__class__ = cls
