"""Quantizers as modules: an operator of `ste_ops` with its settings."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn

from ste_ops import functional
from ste_ops.surrogate import Clip, Surrogate

_DEFAULT = Clip(1.0)

# What a learned step or bound is taken as where the optimizer pushed it lower; `eps` of torch's observers.
LEAST_STEP = 2.0**-23


class Quantizer(nn.Module):
    """Base of the quantizers here: from a tensor of any shape and strides to one of the same shape and dtype.

    What an operator does to NaN, zeros and ties, its gradient and what it keeps for the backward, is on the page of the
    operator, the function in `ste_ops` that a class names. Layers of `ste_ops.nn` take any module or function as a
    quantizer; nothing has to be derived from this class.
    """


def check_integer(name: str, argument: str, value: int, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: {argument} must be an integer >= {least}, got {value!r}")
    return value


def check_number(name: str, argument: str, value: float, zero: bool = False) -> float:
    """A finite number > 0, or >= 0 if `zero`."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name}: {argument} must be a finite number {'>=' if zero else '>'} 0, got {value!r}")
    return float(value)


class _Step(Quantizer):
    """A step with a surrogate. `surrogate` may be assigned anew while training."""

    surrogate: Surrogate

    def __init__(self, surrogate: Surrogate) -> None:
        super().__init__()
        if not isinstance(surrogate, Surrogate):
            raise TypeError(f"{type(self).__name__}: surrogate must be one of ste_ops.surrogate, got {surrogate!r}")
        self.surrogate = surrogate

    def extra_repr(self) -> str:
        return repr(self.surrogate)


class Sign(_Step):
    """`ste_ops.sign`: +1 where x >= 0 and -1 elsewhere, never 0; the gradient is the surrogate's.

    A surrogate that changes while training is assigned: ``module.surrogate = Tanh(t, k)``.

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

    def forward(self, x: Tensor) -> Tensor:
        return functional.sign(x, self.surrogate)


class Heaviside(_Step):
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

    def forward(self, x: Tensor) -> Tensor:
        return functional.heaviside(x, self.surrogate)


class Ternary(_Step):
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
        self.threshold = check_number("Ternary", "threshold", threshold, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        return functional.ternary(x, self.surrogate, self.threshold)

    def extra_repr(self) -> str:
        return f"{self.surrogate!r}, threshold={self.threshold}"


class StochasticRound(Quantizer):
    """`ste_ops.stochastic_round` while training, half to even (`ste_ops.round`) in evaluation; the gradient passes.

    Args:
        generator: what the seeds are drawn from; default: torch's own generator of x's device.

    Source: Gupta et al., arXiv:1502.02551.

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.nn.StochasticRound().eval()(torch.tensor([0.2, 1.5, -0.7]))
        tensor([ 0.,  2., -1.])
    """

    def __init__(self, generator: Generator | None = None) -> None:
        super().__init__()
        if generator is not None and not isinstance(generator, Generator):
            raise TypeError(f"StochasticRound: generator must be a torch.Generator, got {type(generator).__name__}")
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return functional.stochastic_round(x, generator=self.generator)
        return functional.round(x)


class PACT(Quantizer):
    """`ste_ops.pact`: x clipped to [0, alpha] in 2^bits - 1 steps, with alpha learned. It stands in a ReLU's place.

    Args:
        alpha: where `alpha` starts, a finite number > 0; default 10. Above most activations is the safe side: nothing
            is clipped at first, and the paper shrinks alpha with an L2 penalty, the optimizer's ``weight_decay``. Where
            it is pushed to 0 or below, it is taken as 2^-23, and its gradient still passes.
        bits: an integer >= 1, which must be given. The order is that of `ste_ops.pact`.

    Attributes:
        alpha: a parameter of shape ``()``.

    Source: PACT (Choi et al., arXiv:1805.06085).

    Example:
        >>> import torch, ste_ops
        >>> pact = ste_ops.nn.PACT(alpha=1.5, bits=2)
        >>> y = pact(torch.tensor([-1.0, 0.4, 2.0]))
        >>> y.detach()
        tensor([0.0000, 0.5000, 1.5000])
        >>> y.sum().backward()
        >>> pact.alpha.grad  # from the one element above alpha
        tensor(1.)
    """

    def __init__(self, alpha: float = 10.0, bits: int | None = None) -> None:
        super().__init__()
        if bits is None:
            raise TypeError(f"PACT: bits must be given, as in PACT(bits=4) or PACT(10.0, 4), got alpha={alpha!r} alone")
        self.bits = check_integer("PACT", "bits", bits, 1)
        self.alpha = nn.Parameter(torch.tensor(check_number("PACT", "alpha", alpha)))

    def forward(self, x: Tensor) -> Tensor:
        alpha = functional.clamp(self.alpha, LEAST_STEP, math.inf)
        return functional.pact(x, alpha, self.bits)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


class DoReFaActivation(Quantizer):
    """`ste_ops.dorefa_activation`: x clipped to [0, 1] in 2^bits - 1 steps; the gradient passes on [0, 1].

    Args:
        bits: an integer >= 1.

    Source: DoReFa-Net (Zhou et al., arXiv:1606.06160, eq. 11).

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.nn.DoReFaActivation(bits=1)(torch.tensor([-1.0, 0.4, 0.6, 3.0]))
        tensor([0., 0., 1., 1.])
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = check_integer("DoReFaActivation", "bits", bits, 1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.dorefa_activation(x, self.bits)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


class DoReFaWeight(Quantizer):
    """`ste_ops.dorefa_weight`: tanh(w) over its largest magnitude, in [-1, 1] in 2^bits - 1 steps; 1 bit: scaled signs.

    Args:
        bits: an integer >= 1.

    Source: DoReFa-Net (Zhou et al., arXiv:1606.06160, eq. 7 to 9).

    Example:
        >>> import torch, ste_ops
        >>> ste_ops.nn.DoReFaWeight(bits=1)(torch.tensor([-1.0, 0.5, 3.0]))
        tensor([-1.5000,  1.5000,  1.5000])
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = check_integer("DoReFaWeight", "bits", bits, 1)

    def forward(self, w: Tensor) -> Tensor:
        return functional.dorefa_weight(w, self.bits)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"
