"""The base of the surrogates: frozen dataclasses with a derivative in plain torch, each beside a C++ struct."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from ste_ops._checks import check_tensor, is_number
from ste_ops._functions.base import compiling, widen
from ste_ops._functions.binarize import BINARIZERS, SURROGATES, Saves, binarize
from ste_ops._functions.compiled.masked import transparent_step
from ste_ops._functions.learned_surrogate import FORMULAS
from ste_ops._fx import method_node

_NATIVE: dict[int, type[Surrogate]] = {}


def native_surrogates() -> list[type[Surrogate]]:
    """The surrogates that the library has kernels for, by number."""
    return [_NATIVE[number] for number in sorted(_NATIVE)]


@dataclass(frozen=True)
class Surrogate:
    """Base of the surrogates: a frozen dataclass whose fields are floats, or tensors of one element.

    A subclass has the name of its struct in `csrc/core/binarize`, which says what the backward needs of the forward. It
    defines `_derivative` and `primitive` in plain torch, where the derivative jumps `kinks`, and if it has fields
    `_by_parameters`: the reference of the native kernels.

    A surrogate is a function too: ``ATan(2.0)(x)`` is ``ste_ops.heaviside(x, ATan(2.0))``, so that it stands where
    snnTorch takes a ``spike_grad`` and SpikingJelly a ``surrogate_function``.

    Example:
        >>> import torch, ste_ops
        >>> spike = ste_ops.surrogate.ATan(2.0)
        >>> x = torch.tensor([-1.0, 0.0, 0.5], requires_grad=True)
        >>> y = spike(x)
        >>> y.detach()
        tensor([0., 0., 1.])
        >>> y.sum().backward()
        >>> x.grad
        tensor([0.0920, 1.0000, 0.2884])
    """

    number: ClassVar[int]
    saves: ClassVar[Saves]
    _holds_tensors: ClassVar[bool] = False  # of an instance where check_field saw one

    def __init_subclass__(cls, native: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if native:
            names = [name for name, _ in SURROGATES]
            if cls.__name__ not in names:
                raise ImportError(
                    f"ste_ops: the compiled library has no surrogate {cls.__name__}, only {', '.join(names)}: it is "
                    "not of these Python files. To mend it: make build in a clone, or install again"
                )
            cls.number = names.index(cls.__name__)
            cls.saves = SURROGATES[cls.number][1]
            _NATIVE[cls.number] = cls
            FORMULAS[cls.number] = cls._at

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor]:
        """The fields as the two numbers that the native operators take."""
        return 0.0, 0.0

    @property
    def factor(self) -> float | Tensor:
        """A mask multiplies the gradients that pass by this."""
        return 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """`ste_ops.heaviside` of x with this surrogate."""
        if check_tensor("heaviside", "x", x):
            return method_node(self, "__call__", x)
        return self._binarize("heaviside", x)

    @classmethod
    def _at(cls, *parameters: float | Tensor) -> Surrogate:
        """One with tensors of any shape as fields: its formulas then broadcast."""
        surrogate = object.__new__(cls)
        for field, value in zip(fields(cls), parameters, strict=False):
            object.__setattr__(surrogate, field.name, value)
        return surrogate

    def _in(self, x: Tensor) -> Surrogate:
        """With its tensors in the dtype of x, so that no formula rounds before it meets x."""
        if not self._holds_tensors:
            return self
        values = (getattr(self, field.name) for field in fields(self))
        return self._at(*(value.to(x.dtype).reshape(()) if isinstance(value, Tensor) else value for value in values))

    def _binarize(self, operator: str, x: Tensor, *threshold: float | Tensor) -> Tensor:
        a, b = self.parameters
        if compiling() and not self._holds_tensors and self.saves == "mask":
            return transparent_step(x, operator, self.number, a, b, self.factor, *threshold)
        if self._holds_tensors or torch.compiler.is_compiling():
            return binarize(x, operator, self.number, a, b, self.factor, *threshold)
        return BINARIZERS[operator].apply(x, self.number, a, b, self.factor, None, *threshold)[0]

    def _binarize_held(self, operator: str, x: Tensor, threshold: Tensor) -> Tensor:
        """With a threshold that is read where x lies."""
        return binarize(x, operator, self.number, *self.parameters, self.factor, threshold)

    def derivative(self, x: Tensor) -> Tensor:
        """s'(x), elementwise, in x's dtype; computed in float32 for float16 and bfloat16."""
        wide = widen(x)
        return self._in(wide)._derivative(wide).to(x.dtype)

    def _derivative(self, x: Tensor) -> Tensor:
        """s'(x) of a float32 or float64 x. A NaN gives NaN, but for the masks, which compare."""
        raise NotImplementedError

    def primitive(self, x: Tensor) -> Tensor:
        """A function whose derivative is s'; `ste_ops.testing.check_ste` differentiates it numerically."""
        raise NotImplementedError

    def by_parameters(self, x: Tensor) -> tuple[Tensor, ...]:
        """The derivatives of the primitive with respect to the fields, elementwise, one for each; as `derivative` else.

        A field that requires a gradient gets the sum of the incoming gradient times this.
        """
        wide = widen(x)
        return tuple(by.to(x.dtype) for by in self._in(wide)._by_parameters(wide))

    def _by_parameters(self, x: Tensor) -> tuple[Tensor, ...]:
        """The same of a float32 or float64 x. A NaN gives NaN, but for the masks, which compare."""
        return ()

    def kinks(self) -> list[float]:
        """Where the derivative jumps."""
        return []


def check_surrogate(operator: str, surrogate: object) -> None:
    if not isinstance(surrogate, Surrogate):
        raise TypeError(f"{operator}: surrogate must be one of ste_ops.surrogate, got {surrogate!r}")


def check_field(surrogate: Surrogate, field: str, least: float = 0.0) -> None:
    value = getattr(surrogate, field)
    name = type(surrogate).__name__
    expected = "a finite number > 0" if least == 0 else f"a finite number >= {least:g}"
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.dim() > 1 or not value.is_floating_point():
            got = f"a {value.dtype} tensor of shape {tuple(value.shape)}"
            raise ValueError(
                f"{name}: {field} must be {expected} or a floating tensor of one element, shared by all of x, got {got}"
            )
        object.__setattr__(surrogate, "_holds_tensors", True)
        return
    # Comparisons alone, which torch.compile takes of a number that changes; both are false for NaN.
    if not is_number(value) or not (value > 0 if least == 0 else value >= least) or not value < math.inf:
        raise ValueError(f"{name}: {field} must be {expected} or a tensor of one element, got {value!r}")


def exp_of_negative(x: Tensor) -> Tensor:
    """exp(x) for x <= 0, and 0 where that would soon be a denormal number, as in the kernels."""
    limit = -708.0 if x.dtype == torch.float64 else -87.0
    return torch.where(x < limit, torch.zeros_like(x), torch.exp(x.clamp(min=limit)))


def times_slope(x: Tensor, slope: Tensor) -> Tensor:
    """x times a slope that is 0 at infinity, where the product is 0 too."""
    largest = torch.finfo(x.dtype).max
    return torch.where(slope == 0, torch.zeros_like(slope), x.clamp(-largest, largest) * slope)


def logistic(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """u, capped where the next is 0 anyway, sigma(u) (1 - sigma(u)) and tanh(u / 2), for u >= 0, infinity included."""
    u = u.clamp(max=709.0 if u.dtype == torch.float64 else 88.0)
    e = exp_of_negative(-u)
    return u, e / (1 + e) ** 2, (1 - e) / (1 + e)
