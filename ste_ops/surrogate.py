"""The surrogates that a user names: what stands in for a step's derivative in the backward.

`Identity` saves nothing for the backward, the masks `Clip` and `Rect` one bit an element, the curves and `Custom` x
itself, without a copy of it. A curve's own derivative comes in the second order; a third derivative with respect to x
raises. At NaN a curve's derivative is NaN, a mask decides by its comparison.

Fields that change while a net trains: under ``torch.compile`` a curve's new number costs one more graph the first time
it changes and none after that. A curve's field may also be a 0-d floating tensor on x's device, changed in place or
replaced at every step: it is read when the step runs, on its device and without a synchronization, and costs no graph
at all. Such a tensor gets no gradient, and its value is not checked. The fields of the masks are numbers, and each new
one is a new graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeAlias

from torch import Tensor

from ste_ops._library import ops
from ste_ops.reference import surrogate as _reference

Saves: TypeAlias = Literal["nothing", "mask", "input"]

_NAMES = ops.surrogates().split()
_CLASSES: dict[int, type[Surrogate]] = {}


@dataclass(frozen=True)
class Surrogate:
    """Base of the surrogates: a frozen dataclass whose fields are floats, or 0-d tensors in a curve.

    A subclass has the name of its struct in `csrc/core` and of its reference in `ste_ops/reference/surrogate.py`.
    """

    number: ClassVar[int]
    saves: ClassVar[Saves]

    def __init_subclass__(cls, native: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if native:
            if cls.__name__ not in _NAMES:
                raise ImportError(
                    f"ste_ops: the compiled library has no surrogate {cls.__name__}, only {', '.join(_NAMES)}: it is "
                    "not of these Python files. To mend it: make build in a clone, or install again"
                )
            cls.number = _NAMES.index(cls.__name__)
            _CLASSES[cls.number] = cls

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor]:
        """The fields as the two numbers that the native operators take."""
        return 0.0, 0.0

    @property
    def factor(self) -> float:
        """What a mask multiplies the gradients that pass by."""
        return 1.0

    def _fields(self) -> list[Any]:
        return [getattr(self, field.name) for field in fields(self)]

    def derivative(self, x: Tensor) -> Tensor:
        """s'(x), elementwise, in x's dtype; computed in float32 for float16 and bfloat16."""
        wide = x if x.dtype.itemsize >= 4 else x.float()
        return getattr(_reference, type(self).__name__).derivative(wide, *self._fields()).to(x.dtype)

    def primitive(self, x: Tensor) -> Tensor:
        """A function whose derivative is s'; `ste_ops.testing.check_ste` differentiates it numerically."""
        return getattr(_reference, type(self).__name__).primitive(x, *self._fields())

    def kinks(self) -> list[float]:
        """Where the derivative jumps."""
        return [float(kink) for kink in getattr(_reference, type(self).__name__).kinks(*self._fields())]


def saves(number: int) -> Saves:
    """What the surrogate of that number keeps for the backward."""
    # Under torch.compile(dynamic=True) the number is a SymInt, which no dict takes.
    return _CLASSES[int(number)].saves


def _check(surrogate: Surrogate, field: str, least: float = 0.0) -> None:
    value = getattr(surrogate, field)
    name, tensors = type(surrogate).__name__, surrogate.saves == "input"
    expected = "a finite number > 0" if least == 0 else f"a finite number >= {least:g}"
    if tensors and isinstance(value, Tensor):
        if value.dim() != 0 or not value.is_floating_point():
            got = f"a {value.dtype} tensor of shape {tuple(value.shape)}"
            raise ValueError(f"{name}: {field} must be {expected} or a 0-d floating tensor, got {got}")
        return
    # Comparisons alone, which torch.compile takes of a number that changes; both are false for NaN.
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (value > 0 if least == 0 else value >= least) or not value < math.inf:
        raise ValueError(f"{name}: {field} must be {expected}{' or a 0-d tensor' * tensors}, got {value!r}")


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

    saves: ClassVar[Saves] = "nothing"


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

    saves: ClassVar[Saves] = "mask"
    threshold: float = 1.0

    def __post_init__(self) -> None:
        _check(self, "threshold")

    @property
    def parameters(self) -> tuple[float, float]:
        return self.threshold, 0.0


@dataclass(frozen=True)
class Rect(Surrogate):
    """s'(x) = alpha where abs(x) < 1 / (2 alpha), else 0, at the bounds and at NaN too. Saves one bit an element.

    Source: SpikingJelly's ``Rect``, with its default; STBP (Wu et al., arXiv:1706.02609) with a = 1 / alpha.

    Args:
        alpha: height of the rectangle, whose area is 1, a finite number > 0; the bound is compared in float32 (float64
            for float64).

    Raises:
        ValueError: alpha is not a finite number > 0.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([-0.2, 0.25, 0.3], requires_grad=True)
        >>> ste_ops.heaviside(x, ste_ops.surrogate.Rect(2.0)).sum().backward()
        >>> x.grad
        tensor([2., 0., 0.])
    """

    saves: ClassVar[Saves] = "mask"
    alpha: float = 1.0

    def __post_init__(self) -> None:
        _check(self, "alpha")

    @property
    def parameters(self) -> tuple[float, float]:
        return self.alpha, 0.0

    @property
    def factor(self) -> float:
        return self.alpha


@dataclass(frozen=True)
class ApproxSign(Surrogate):
    """s'(x) = 2 - 2 abs(x) where abs(x) <= 1, else 0. Saves x.

    Source: Bi-Real Net (Liu et al., arXiv:1808.00278); Larq's ``approx_sign``.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([0.5, 1.5], requires_grad=True)
        >>> ste_ops.heaviside(x, ste_ops.surrogate.ApproxSign()).sum().backward()
        >>> x.grad
        tensor([1., 0.])
    """

    saves: ClassVar[Saves] = "input"


@dataclass(frozen=True)
class Swish(Surrogate):
    """s'(x) = beta (2 - beta x tanh(beta x / 2)) / (1 + cosh(beta x)), negative where abs(beta x) > 2.4. Saves x.

    Source: BNN+ (Darabi et al., arXiv:1812.11800); Larq's ``swish_sign``, with its default.

    Args:
        beta: how narrow the curve is; a finite number > 0, or a 0-d floating tensor.

    Raises:
        ValueError: the field is none of these.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([0.0, 1.0], requires_grad=True)
        >>> ste_ops.sign(x, ste_ops.surrogate.Swish()).sum().backward()
        >>> x.grad
        tensor([ 5.0000, -0.1950])
    """

    saves: ClassVar[Saves] = "input"
    beta: float | Tensor = 5.0

    def __post_init__(self) -> None:
        _check(self, "beta")

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor]:
        return self.beta, 0.0


@dataclass(frozen=True)
class Tanh(Surrogate):
    """s'(x) = k t (1 - tanh(t x)^2). Saves x.

    Source: the error decay estimator of IR-Net (Qin et al., arXiv:1909.10788). It goes from t = 0.1 to t = 10 over
    training, on a logarithmic scale, with k = max(1 / t, 1).

    Args:
        t: how narrow the curve is; a finite number > 0, or a 0-d floating tensor.
        k: its factor; a finite number > 0, or a 0-d floating tensor.

    Raises:
        ValueError: a field is none of these.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([0.0, 1.0], requires_grad=True)
        >>> ste_ops.sign(x, ste_ops.surrogate.Tanh()).sum().backward()
        >>> x.grad
        tensor([1.0000, 0.4200])
    """

    saves: ClassVar[Saves] = "input"
    t: float | Tensor = 1.0
    k: float | Tensor = 1.0

    def __post_init__(self) -> None:
        _check(self, "t")
        _check(self, "k")

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor]:
        return self.t, self.k


@dataclass(frozen=True)
class ReSTE(Surrogate):
    """s'(x) = abs(x)^((1 - power) / power) / power up to abs(x) = threshold, 0 above; below 0.1, where that has no
    bound, its value at 0.1. Saves x.

    Source: ReSTE (Wu et al., ICCV 2023), which raises power from 1 to 3 over training. Its authors' code takes the
    secant's slope below 0.1: power times what stands here, and a jump.

    Args:
        power: o in the paper, where 1 is ``Clip(threshold)``; a finite number >= 1, or a 0-d floating tensor.
        threshold: where the gradient stops; a finite number > 0, or a 0-d floating tensor.

    Raises:
        ValueError: a field is none of these.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([0.05, 1.0, 2.0], requires_grad=True)
        >>> ste_ops.sign(x, ste_ops.surrogate.ReSTE()).sum().backward()
        >>> x.grad
        tensor([1.5472, 0.3333, 0.0000])
    """

    saves: ClassVar[Saves] = "input"
    power: float | Tensor = 3.0
    threshold: float | Tensor = 1.5

    def __post_init__(self) -> None:
        _check(self, "power", least=1.0)
        _check(self, "threshold")

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor]:
        return self.power, self.threshold


@dataclass(frozen=True)
class Sigmoid(Surrogate):
    """s'(x) = alpha sigma(alpha x) (1 - sigma(alpha x)). Saves x.

    Source: SpikingJelly's ``Sigmoid``, with its default.

    Args:
        alpha: how narrow the curve is, whose area is 1; a finite number > 0, or a 0-d floating tensor.

    Raises:
        ValueError: the field is none of these.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([0.0, 1.0], requires_grad=True)
        >>> ste_ops.heaviside(x, ste_ops.surrogate.Sigmoid()).sum().backward()
        >>> x.grad
        tensor([1.0000, 0.0707])
    """

    saves: ClassVar[Saves] = "input"
    alpha: float | Tensor = 4.0

    def __post_init__(self) -> None:
        _check(self, "alpha")

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor]:
        return self.alpha, 0.0


@dataclass(frozen=True)
class ATan(Surrogate):
    """s'(x) = (alpha / 2) / (1 + (pi alpha x / 2)^2). Saves x.

    Source: Fang et al., arXiv:2007.05785; SpikingJelly's ``ATan`` and snnTorch's ``atan``, with their default.

    Args:
        alpha: how narrow the curve is, whose area is 1; a finite number > 0, or a 0-d floating tensor.

    Raises:
        ValueError: the field is none of these.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([0.0, 1.0], requires_grad=True)
        >>> ste_ops.heaviside(x, ste_ops.surrogate.ATan()).sum().backward()
        >>> x.grad
        tensor([1.0000, 0.0920])
    """

    saves: ClassVar[Saves] = "input"
    alpha: float | Tensor = 2.0

    def __post_init__(self) -> None:
        _check(self, "alpha")

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor]:
        return self.alpha, 0.0


@dataclass(frozen=True)
class FastSigmoid(Surrogate):
    """s'(x) = 1 / (1 + slope abs(x))^2. Saves x.

    Source: SuperSpike (Zenke and Ganguli, arXiv:1705.11146); snnTorch's ``fast_sigmoid``, with its default.

    Args:
        slope: how narrow the curve is; a finite number > 0, or a 0-d floating tensor.

    Raises:
        ValueError: the field is none of these.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([0.0, 0.04], requires_grad=True)
        >>> ste_ops.heaviside(x, ste_ops.surrogate.FastSigmoid()).sum().backward()
        >>> x.grad
        tensor([1.0000, 0.2500])
    """

    saves: ClassVar[Saves] = "input"
    slope: float | Tensor = 25.0

    def __post_init__(self) -> None:
        _check(self, "slope")

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor]:
        return self.slope, 0.0


@dataclass(frozen=True)
class SoftSign(Surrogate):
    """s'(x) = (alpha / 2) / (1 + alpha abs(x))^2. Saves x.

    Source: SpikingJelly's ``SoftSign``, with its default.

    Args:
        alpha: how narrow the curve is, whose area is 1; a finite number > 0, or a 0-d floating tensor.

    Raises:
        ValueError: the field is none of these.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([0.0, 0.5], requires_grad=True)
        >>> ste_ops.heaviside(x, ste_ops.surrogate.SoftSign()).sum().backward()
        >>> x.grad
        tensor([1.0000, 0.2500])
    """

    saves: ClassVar[Saves] = "input"
    alpha: float | Tensor = 2.0

    def __post_init__(self) -> None:
        _check(self, "alpha")

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor]:
        return self.alpha, 0.0


@dataclass(frozen=True)
class PiecewiseQuadratic(Surrogate):
    """s'(x) = alpha (1 - alpha abs(x)) where abs(x) <= 1 / alpha, else 0. Saves x.

    Source: Esser et al., arXiv:1603.08270; SpikingJelly's ``PiecewiseQuadratic``, with its default.

    Args:
        alpha: height of the triangle, whose area is 1; a finite number > 0, or a 0-d floating tensor.

    Raises:
        ValueError: the field is none of these.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([0.0, 0.5, 2.0], requires_grad=True)
        >>> ste_ops.heaviside(x, ste_ops.surrogate.PiecewiseQuadratic()).sum().backward()
        >>> x.grad
        tensor([1.0000, 0.5000, 0.0000])
    """

    saves: ClassVar[Saves] = "input"
    alpha: float | Tensor = 1.0

    def __post_init__(self) -> None:
        _check(self, "alpha")

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor]:
        return self.alpha, 0.0


@dataclass(frozen=True)
class PiecewiseExp(Surrogate):
    """s'(x) = (alpha / 2) exp(-alpha abs(x)). Saves x.

    Source: SLAYER (Shrestha and Orchard, arXiv:1810.08646); SpikingJelly's ``PiecewiseExp``, with its default.

    Args:
        alpha: how narrow the curve is, whose area is 1; a finite number > 0, or a 0-d floating tensor.

    Raises:
        ValueError: the field is none of these.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([0.0, 1.0], requires_grad=True)
        >>> ste_ops.heaviside(x, ste_ops.surrogate.PiecewiseExp()).sum().backward()
        >>> x.grad
        tensor([0.5000, 0.1839])
    """

    saves: ClassVar[Saves] = "input"
    alpha: float | Tensor = 1.0

    def __post_init__(self) -> None:
        _check(self, "alpha")

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor]:
        return self.alpha, 0.0


@dataclass(frozen=True)
class Erf(Surrogate):
    """s'(x) = (alpha / sqrt(pi)) exp(-(alpha x)^2). Saves x.

    Source: SpikingJelly's ``Erf``, with its default.

    Args:
        alpha: how narrow the curve is, whose area is 1; a finite number > 0, or a 0-d floating tensor.

    Raises:
        ValueError: the field is none of these.

    Example:
        >>> import torch, ste_ops
        >>> x = torch.tensor([0.0, 0.5], requires_grad=True)
        >>> ste_ops.heaviside(x, ste_ops.surrogate.Erf()).sum().backward()
        >>> x.grad
        tensor([1.1284, 0.4151])
    """

    saves: ClassVar[Saves] = "input"
    alpha: float | Tensor = 2.0

    def __post_init__(self) -> None:
        _check(self, "alpha")

    @property
    def parameters(self) -> tuple[float | Tensor, float | Tensor]:
        return self.alpha, 0.0


@dataclass(frozen=True, init=False, repr=False)
class Custom(Surrogate, native=False):
    """s'(x) = derivative(x), any elementwise function in plain torch. Saves x.

    It is called in the backward, with x in float32 where that is float16 or bfloat16, under the grad mode of the
    backward, so that under ``create_graph`` autograd differentiates it too, to any order. Under ``torch.compile`` it
    becomes part of the graph. It must be elementwise and give a tensor of its argument's shape.

    Args:
        derivative: s', from a tensor to a tensor.
        primitive: a function whose derivative is s'; `ste_ops.testing.check_ste` needs it.
        kinks: where s' jumps, for `ste_ops.testing.check_ste` too.

    Raises:
        TypeError: derivative or primitive is not callable.

    Example:
        >>> import torch, ste_ops
        >>> tent = ste_ops.surrogate.Custom(lambda x: (1 - x.abs()).clamp(min=0))
        >>> x = torch.tensor([-0.25, 3.0], requires_grad=True)
        >>> ste_ops.sign(x, tent).sum().backward()
        >>> x.grad
        tensor([0.7500, 0.0000])
    """

    saves: ClassVar[Saves] = "input"
    slope: Callable[[Tensor], Tensor]
    area: Callable[[Tensor], Tensor] | None
    jumps: tuple[float, ...]

    # The fields cannot have the names of the arguments, which are methods of every surrogate.
    def __init__(
        self,
        derivative: Callable[[Tensor], Tensor],
        primitive: Callable[[Tensor], Tensor] | None = None,
        kinks: Sequence[float] = (),
    ) -> None:
        if not callable(derivative) or not (primitive is None or callable(primitive)):
            wrong = ("primitive", primitive) if callable(derivative) else ("derivative", derivative)
            raise TypeError(f"Custom: {wrong[0]} must be callable, got {wrong[1]!r}")
        for field, value in (("slope", derivative), ("area", primitive), ("jumps", tuple(kinks))):
            object.__setattr__(self, field, value)

    def __repr__(self) -> str:
        return f"Custom({getattr(self.slope, '__name__', self.slope)})"

    def derivative(self, x: Tensor) -> Tensor:
        wide = x if x.dtype.itemsize >= 4 else x.float()
        return self.slope(wide).to(x.dtype)

    def primitive(self, x: Tensor) -> Tensor:
        if self.area is None:
            raise ValueError(f"{self!r}: primitive must be given where it is asked for, got None")
        return self.area(x)

    def kinks(self) -> list[float]:
        return list(self.jumps)
