"""The binarizers as modules, each with its surrogate: `Sign`, `Heaviside` and `Ternary`."""

from __future__ import annotations

from torch import Tensor

from ste_ops import functional
from ste_ops._checks import checked_finite
from ste_ops.nn._first_batch import FirstBatch
from ste_ops.nn.quantizer import Quantizer
from ste_ops.surrogate import Clip, Surrogate
from ste_ops.surrogate.base import check_surrogate

_DEFAULT = Clip(1.0)


class _Binarizer(Quantizer):
    """A binarizer and its `surrogate`, which may be assigned anew while training."""

    surrogate: Surrogate

    def __init__(self, surrogate: Surrogate) -> None:
        super().__init__()
        check_surrogate(type(self).__name__, surrogate)
        self.surrogate = surrogate

    def extra_repr(self) -> str:
        return repr(self.surrogate)


class Sign(_Binarizer):
    """`ste_ops.sign`: +1 where x >= 0 and -1 elsewhere, never 0; the gradient is the surrogate's.

    A surrogate that changes while training is assigned: ``module.surrogate = Tanh(t, k)``.

    Of what is never negative, as behind a ReLU, the sign is 1 everywhere: the network trains on a constant. Where the
    first batch in training is such, a `UserWarning` says so, once; a compiled forward does not look.

    Args:
        surrogate: one of `ste_ops.surrogate`; default ``Clip(1.0)``.

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
        return functional.sign(x, self.surrogate)


def say_place(quantizer: object, place: str) -> None:
    """Names what a `Sign` stands in, for its warning."""
    if isinstance(quantizer, Sign):
        quantizer._first_batch.place = place


class Heaviside(_Binarizer):
    """`ste_ops.heaviside`: 1 where x > 0 and 0 elsewhere; the gradient is the surrogate's.

    A surrogate that changes while training is assigned, as with `Sign`.

    Args:
        surrogate: one of `ste_ops.surrogate`; default ``Clip(1.0)``.

    Source: Bengio et al., arXiv:1308.3432.

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.nn.Heaviside()(torch.tensor([-0.3, 0.0, 2.0]))
        tensor([0., 0., 1.])
    """

    def __init__(self, surrogate: Surrogate = _DEFAULT) -> None:
        super().__init__(surrogate)

    def _quantize(self, x: Tensor) -> Tensor:
        return functional.heaviside(x, self.surrogate)


class Ternary(_Binarizer):
    """`ste_ops.ternary`: +1 where x > threshold, -1 where x < -threshold, else 0; the gradient is the surrogate's.

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
        return functional.ternary(x, self.surrogate, self.threshold)

    def extra_repr(self) -> str:
        return f"{self.surrogate!r}, threshold={self.threshold}"
