"""The surrogates that a user names: what stands in for a step's derivative in the backward."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from ste_ops._library import ops
from ste_ops.reference import surrogate as _reference

_NAMES = ops.surrogates().split()
_CLASSES: dict[int, type[Surrogate]] = {}


@dataclass(frozen=True)
class Surrogate:
    """Base of the surrogates: a frozen dataclass whose fields are floats.

    A subclass has the name of its struct in `csrc/core/surrogate.h` and of its reference in
    `ste_ops/reference/surrogate.py`.
    """

    number: ClassVar[int]
    saves: ClassVar[Literal["nothing", "mask"]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.number = _NAMES.index(cls.__name__)
        _CLASSES[cls.number] = cls

    @property
    def parameters(self) -> tuple[float, float]:
        """The fields as the two numbers that the native operators take."""
        return 0.0, 0.0

    def derivative(self, x: Tensor) -> Tensor:
        """s'(x), elementwise, in x's dtype; computed in float32 for float16 and bfloat16."""
        wide = x if x.dtype.itemsize >= 4 else x.float()
        return getattr(_reference, type(self).__name__).derivative(wide, *astuple(self)).to(x.dtype)

    def primitive(self, x: Tensor) -> Tensor:
        """A function whose derivative is s'; `ste_ops.testing.check_ste` differentiates it numerically."""
        return getattr(_reference, type(self).__name__).primitive(x, *astuple(self))

    def kinks(self) -> list[float]:
        """Where the derivative jumps."""
        return getattr(_reference, type(self).__name__).kinks(*astuple(self))


def saves(number: int) -> Literal["nothing", "mask"]:
    """What the surrogate of that number keeps for the backward."""
    # Under torch.compile(dynamic=True) the number is a SymInt, which no dict takes.
    return _CLASSES[int(number)].saves


def _check_positive(surrogate: Surrogate, field: str) -> None:
    value = getattr(surrogate, field)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{type(surrogate).__name__}: {field} must be a finite number > 0, got {value!r}")


@dataclass(frozen=True)
class Identity(Surrogate):
    """s'(x) = 1: the plain straight-through estimator (Bengio et al., arXiv:1308.3432). Saves nothing.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([-3.0, 0.5], requires_grad=True)
        >>> ste_ops.sign(x, ste_ops.surrogate.Identity()).sum().backward()
        >>> x.grad
        tensor([1., 1.])
    """

    saves: ClassVar[Literal["nothing", "mask"]] = "nothing"


@dataclass(frozen=True)
class Clip(Surrogate):
    """s'(x) = 1 unless abs(x) > threshold: the bounds pass, and so does NaN. Saves one bit an element.

    Source: BinaryNet (Courbariaux et al., arXiv:1602.02830, eq. 4); Larq's ``ste_sign``.

    Args:
        threshold: where the gradient stops, a finite number > 0; compared in float32 (float64 for float64).

    Raises:
        ValueError: threshold is not a finite number > 0.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([-0.5, 0.3, 1.2, -0.8], requires_grad=True)
        >>> ste_ops.heaviside(x, ste_ops.surrogate.Clip(0.6)).sum().backward()
        >>> x.grad
        tensor([1., 1., 0., 0.])
    """

    saves: ClassVar[Literal["nothing", "mask"]] = "mask"
    threshold: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(self, "threshold")

    @property
    def parameters(self) -> tuple[float, float]:
        return self.threshold, 0.0
