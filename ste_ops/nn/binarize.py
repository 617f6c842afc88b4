"""The binarizers as modules, each with its surrogate: `Sign`, `Heaviside` and `Ternary`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from ste_ops import functional
from ste_ops._checks import checked_at_zero, checked_finite
from ste_ops.nn._first_batch import FirstBatch
from ste_ops.nn.quantizer import Quantizer
from ste_ops.surrogate import Clip, Surrogate
from ste_ops.surrogate.base import check_surrogate

_DEFAULT = Clip(1.0)


_PREFIX = "surrogate_"


def _is_leaf(value: object) -> bool:
    """A Parameter, or what should have been one."""
    return isinstance(value, nn.Parameter) or (isinstance(value, Tensor) and value.requires_grad and value.is_leaf)


class _Binarizer(Quantizer):
    """A binarizer and its `surrogate`, which may be assigned anew while training.

    A Parameter in the surrogate is the module's too, as ``surrogate_`` and the name of its field; what is in the module
    counts, so that whatever replaces the parameters of a module replaces this one.
    """

    def __init__(self, surrogate: Surrogate) -> None:
        super().__init__()
        self.surrogate = surrogate

    @property
    def surrogate(self) -> Surrogate:
        return self._in_use() if self._parameters else self._surrogate

    @surrogate.setter
    def surrogate(self, surrogate: Surrogate) -> None:
        check_surrogate(type(self).__name__, surrogate)
        learned = {f.name: value for f in fields(surrogate) if _is_leaf(value := getattr(surrogate, f.name))}
        for name, value in learned.items():
            if not isinstance(value, nn.Parameter):
                raise TypeError(
                    f"{type(self).__name__}: {name} of {type(surrogate).__name__} must be an nn.Parameter where it "
                    "requires a gradient, or parameters() would miss it; got another tensor"
                )
        self._parameters.clear()
        for name, value in learned.items():
            self.register_parameter(_PREFIX + name, value)
        self._surrogate = surrogate

    def _in_use(self) -> Surrogate:
        held, learned = self._surrogate, self._parameters
        # A compiler would be told of one tensor in two places.
        if not torch.compiler.is_compiling():
            for key, value in learned.items():
                if getattr(held, key[len(_PREFIX) :]) is not value:
                    break
            else:
                return held
        names: tuple[str, ...] = type(held).__match_args__
        return type(held)(*[learned.get(_PREFIX + name, getattr(held, name)) for name in names])

    def _repeats(self) -> bool:
        return True

    def extra_repr(self) -> str:
        if not self._parameters:
            return repr(self.surrogate)
        learned = [key.removeprefix(_PREFIX) for key in self._parameters]
        return f"{type(self._surrogate).__name__}, learned: {', '.join(learned)}"


class Sign(_Binarizer):
    """`ste_ops.sign`: +1 where x >= 0 and -1 elsewhere, never 0; the gradient is the surrogate's.

    A surrogate that changes while training is assigned: ``module.surrogate = Tanh(t, k)``. A Parameter in it is the
    module's too, as ``surrogate_`` and the name of its field, and is learned: ``Sign(ATan(nn.Parameter(alpha)))``.

    Of what is never negative, as behind a ReLU, the sign is 1 everywhere: the network trains on a constant. Where the
    first batch in training is such, a `UserWarning` says so, once; a compiled forward does not look.

    Args:
        surrogate: one of `ste_ops.surrogate`; default ``Clip(1.0)``.

    Raises:
        TypeError: surrogate is none, or a field of it requires a gradient and is no Parameter, which ``parameters()``
            would miss.

    Source: BinaryNet (Courbariaux et al., arXiv:1602.02830).

    Example:
        >>> import torch, ste_ops
        >>> sign = ste_ops.nn.Sign()
        >>> sign(torch.tensor([-0.3, 0.0, 2.0]))
        tensor([-1.,  1.,  1.])
        >>> sign
        Sign(Clip(threshold=1.0))
    """

    def __init__(self, surrogate: Surrogate = _DEFAULT) -> None:
        super().__init__(surrogate)
        self._first_batch = FirstBatch()

    def _quantize(self, x: Tensor) -> Tensor:
        self._first_batch.look(self, x, self)
        return functional.sign(x, self._in_use() if self._parameters else self._surrogate)

    def _operator(self) -> tuple[Any, dict[str, Any]] | None:
        return functional.sign, {}


def say_place(quantizer: object, place: str) -> None:
    """Names what a `Sign` stands in, for its warning."""
    if isinstance(quantizer, Sign):
        quantizer._first_batch.place = place


class Heaviside(_Binarizer):
    """`ste_ops.heaviside`: 1 where x > 0 and 0 elsewhere, at 0 ``at_zero``; the gradient is the surrogate's.

    A surrogate that changes while training is assigned, and a Parameter in it is learned, as with `Sign`.

    Args:
        surrogate: one of `ste_ops.surrogate`; default ``Clip(1.0)``.
        at_zero: 0, or 1 as in SpikingJelly.

    Raises:
        TypeError: as `Sign`.
        ValueError: at_zero is neither 0 nor 1.

    Source: Bengio et al., arXiv:1308.3432.

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.nn.Heaviside()(torch.tensor([-0.3, 0.0, 2.0]))
        tensor([0., 0., 1.])
    """

    def __init__(self, surrogate: Surrogate = _DEFAULT, at_zero: int = 0) -> None:
        super().__init__(surrogate)
        self.at_zero = checked_at_zero("Heaviside", at_zero)

    def _quantize(self, x: Tensor) -> Tensor:
        return functional.heaviside(x, self._in_use() if self._parameters else self._surrogate, self.at_zero)

    def _operator(self) -> tuple[Any, dict[str, Any]] | None:
        return functional.heaviside, {"at_zero": self.at_zero}

    def extra_repr(self) -> str:
        return super().extra_repr() + ", at_zero=1" * (self.at_zero == 1)


class Ternary(_Binarizer):
    """`ste_ops.ternary`: +1 where x > threshold, -1 where x < -threshold, else 0; the gradient is the surrogate's.

    A surrogate that changes while training is assigned, and a Parameter in it is learned, as with `Sign`.

    Args:
        surrogate: one of `ste_ops.surrogate`; default ``Clip(1.0)``.
        threshold: half the width of the dead zone, a finite number >= 0; default 0.05.

    Source: Ternary Weight Networks (Li et al., arXiv:1605.04711); the fixed threshold is that of Larq's ``SteTern``.

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.nn.Ternary(threshold=0.5)(torch.tensor([-2.0, -0.5, 0.7]))
        tensor([-1.,  0.,  1.])
    """

    def __init__(self, surrogate: Surrogate = _DEFAULT, threshold: float = 0.05) -> None:
        super().__init__(surrogate)
        self.threshold = checked_finite("Ternary", "threshold", threshold, zero=True)

    def _quantize(self, x: Tensor) -> Tensor:
        return functional.ternary(x, self._in_use() if self._parameters else self._surrogate, self.threshold)

    def _operator(self) -> tuple[Any, dict[str, Any]] | None:
        return functional.ternary, {"threshold": self.threshold}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, threshold={self.threshold}"
