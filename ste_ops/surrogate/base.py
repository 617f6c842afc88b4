"""The base of the surrogates: frozen dataclasses with a derivative in plain torch, each beside a C++ struct."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ste_ops._checks import check_tensor, is_number
from ste_ops._functions.base import widen
from ste_ops._functions.binarize import BINARIZERS, SURROGATES, Saves
from ste_ops._fx import method_node

_NATIVE: dict[int, type[Surrogate]] = {}


def native_surrogates() -> list[type[Surrogate]]:
    """The surrogates that the library has kernels for, by number."""
    return [_NATIVE[number] for number in sorted(_NATIVE)]


@dataclass(frozen=True)
class Surrogate:
    """Base of the surrogates: a frozen dataclass whose fields are floats, or 0-d tensors in a curve.

    A subclass has the name of its struct in `csrc/core/binarize`, which says what the backward needs of the forward. It
    defines `_derivative` and `primitive` in plain torch, and where the derivative jumps `kinks`: the reference of the
    native kernels.

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

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor]:
        """The fields as the two numbers that the native operators take."""
        return 0.0, 0.0

    @property
    def factor(self) -> float:
        """A mask multiplies the gradients that pass by this."""
        return 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """`ste_ops.heaviside` of x with this surrogate."""
        if check_tensor("heaviside", "x", x):
            return method_node(self, "__call__", x)
        return self._binarize("heaviside", x)

    def _binarize(self, operator: str, x: Tensor, *threshold: float) -> Tensor:
        a, b = self.parameters
        parameters = None
        if self.saves == "input" and (isinstance(a, Tensor) or isinstance(b, Tensor) or torch.compiler.is_compiling()):
            a, b, parameters = 0.0, 0.0, _as_tensor(a, b, x.device)
        return BINARIZERS[operator].apply(x, self.number, a, b, self.factor, parameters, *threshold)[0]

    def derivative(self, x: Tensor) -> Tensor:
        """s'(x), elementwise, in x's dtype; computed in float32 for float16 and bfloat16."""
        return self._derivative(widen(x)).to(x.dtype)

    def _derivative(self, x: Tensor) -> Tensor:
        """s'(x) of a float32 or float64 x. A NaN gives NaN, but for the masks, which compare."""
        raise NotImplementedError

    def primitive(self, x: Tensor) -> Tensor:
        """A function whose derivative is s'; `ste_ops.testing.check_ste` differentiates it numerically."""
        raise NotImplementedError

    def kinks(self) -> list[float]:
        """Where the derivative jumps."""
        return []


def check_surrogate(operator: str, surrogate: object) -> None:
    if not isinstance(surrogate, Surrogate):
        raise TypeError(f"{operator}: surrogate must be one of ste_ops.surrogate, got {surrogate!r}")


def _as_tensor(a: float | Tensor, b: float | Tensor, device: torch.device) -> Tensor:
    """The parameters of a curve as a tensor.

    Under torch.compile numbers too: one that changes stays symbolic as a factor, while as an operator's argument Dynamo
    would make a new graph for each value.
    """
    one = torch.ones((), dtype=torch.float64, device=device)
    return torch.stack([p.detach().to(one) if isinstance(p, Tensor) else one * p for p in (a, b)])


def check_field(surrogate: Surrogate, field: str, least: float = 0.0) -> None:
    value = getattr(surrogate, field)
    name, tensors = type(surrogate).__name__, surrogate.saves == "input"
    expected = "a finite number > 0" if least == 0 else f"a finite number >= {least:g}"
    if tensors and isinstance(value, Tensor):
        if value.dim() != 0 or not value.is_floating_point():
            got = f"a {value.dtype} tensor of shape {tuple(value.shape)}"
            raise ValueError(f"{name}: {field} must be {expected} or a 0-d floating tensor, got {got}")
        return
    # Comparisons alone, which torch.compile takes of a number that changes; both are false for NaN.
    if not is_number(value) or not (value > 0 if least == 0 else value >= least) or not value < math.inf:
        raise ValueError(f"{name}: {field} must be {expected}{' or a 0-d tensor' * tensors}, got {value!r}")


def exp_of_negative(x: Tensor) -> Tensor:
    """exp(x) for x <= 0, and 0 where that would soon be a denormal number, as in the kernels."""
    limit = -708.0 if x.dtype == torch.float64 else -87.0
    return torch.where(x < limit, torch.zeros_like(x), torch.exp(x.clamp(min=limit)))


def logistic(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """u, capped where the next is 0 anyway, sigma(u) (1 - sigma(u)) and tanh(u / 2), for u >= 0, infinity included."""
    u = u.clamp(max=709.0 if u.dtype == torch.float64 else 88.0)
    e = exp_of_negative(-u)
    return u, e / (1 + e) ** 2, (1 - e) / (1 + e)
