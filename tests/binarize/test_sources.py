"""The gradient of every surrogate that cites a source, against numbers from the source's equation.

The equations stand here in Python's math, as their source writes them; nothing of ste_ops is used for them. Where the
authors published code, its place stands beside the equation; what differs from it stands in docs/peers.md.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from support.surrogate_table import DTYPES

import ste_ops
from ste_ops.surrogate import (
    ApproxSign,
    ATan,
    Clip,
    Erf,
    FastSigmoid,
    Identity,
    PiecewiseExp,
    PiecewiseQuadratic,
    Rect,
    ReSTE,
    Sigmoid,
    SoftSign,
    Surrogate,
    Swish,
    Tanh,
)


class Source(NamedTuple):
    surrogate: Surrogate
    equation: Callable[[float], float]


def clip(x: float, threshold: float) -> float:
    """BinaryNet (arXiv:1602.02830), eq. 4: g_r = g_q 1(|r| <= 1). Larq: larq/larq, larq/quantizers.py, ste_sign."""
    return 1.0 if abs(x) <= threshold else 0.0


def approx_sign(x: float) -> float:
    """Bi-Real Net (arXiv:1808.00278), section 3.3: the derivative of the polynomial that stands in for the sign.

    liuzechun/Bi-Real-net, pytorch_implementation/BiReal18_34/birealnet.py, BinaryActivation: x^2 + 2x on [-1, 0) and
    2x - x^2 on [0, 1). Larq: larq/larq, larq/quantizers.py, approx_sign.
    """
    if -1 <= x < 0:
        return 2 + 2 * x
    return 2 - 2 * x if 0 <= x < 1 else 0.0


def swish(x: float, beta: float) -> float:
    """BNN+ (arXiv:1812.11800): the derivative of SS(x) = 2 sigma(bx) (1 + bx (1 - sigma(bx))) - 1.

    larq/larq, larq/quantizers.py, swish_sign.
    """
    return beta * (2 - beta * x * math.tanh(beta * x / 2)) / (1 + math.cosh(beta * x))


def error_decay(x: float, t: float, k: float) -> float:
    """IR-Net (arXiv:1909.10788), EDE: g(x) = k tanh(tx), so g'(x) = kt (1 - tanh^2(tx)).

    htqin/IR-Net, ImageNet/ResNet18/1w1a/models/modules/binaryfunction.py, BinaryQuantize.
    """
    return k * t * (1 - math.tanh(t * x) ** 2)


def reste(x: float, o: float, t: float) -> float:
    """ReSTE (Wu et al., ICCV 2023): f(x) = sign(x) |x|^(1/o), so f'(x) = |x|^((1-o)/o) / o, 0 above t; up to 0.1 the
    slope of the chord from 0 to 0.1.

    DravenALG/ReSTE, model/binary_module/binarized_modules.py, Binary_ReSTE.
    """
    if abs(x) > t:
        return 0.0
    if abs(x) <= 0.1:
        return 0.1 ** (1 / o) / 0.1
    return abs(x) ** ((1 - o) / o) / o


# What SpikingJelly calls by these names: fangwei123456/spikingjelly, spikingjelly/activation_based/surrogate.py.


def sigmoid(x: float, alpha: float) -> float:
    """sigmoid_backward: the derivative of 1 / (1 + exp(-alpha x))."""
    s = 1 / (1 + math.exp(-alpha * x))
    return alpha * s * (1 - s)


def atan(x: float, alpha: float) -> float:
    """atan_backward; Fang et al. (arXiv:2007.05785): sigma(x) = atan(pi alpha x / 2) / pi + 1/2."""
    return alpha / 2 / (1 + (math.pi / 2 * alpha * x) ** 2)


def fast_sigmoid(x: float, slope: float) -> float:
    """SuperSpike (arXiv:1705.11146), section 3.3.2: sigma'(U) = (1 + |h|)^-2 with h = beta (U - threshold).

    snnTorch: jeshraghian/snntorch, snntorch/surrogate.py, FastSigmoid.
    """
    return (1 + abs(slope * x)) ** -2


def soft_sign(x: float, alpha: float) -> float:
    """soft_sign_backward: 1 / (2 alpha (1/alpha + |x|)^2), of (alpha x / (1 + |alpha x|) + 1) / 2."""
    return 1 / (2 * alpha * (1 / alpha + abs(x)) ** 2)


def piecewise_quadratic(x: float, alpha: float) -> float:
    """piecewise_quadratic_backward; Esser et al. (arXiv:1603.08270): max(0, 1 - |x|) at alpha = 1."""
    return -(alpha**2) * abs(x) + alpha if abs(x) <= 1 / alpha else 0.0


def piecewise_exp(x: float, alpha: float) -> float:
    """piecewise_exp_backward; SLAYER (arXiv:1810.08646), of area 1."""
    return alpha / 2 * math.exp(-alpha * abs(x))


def erf(x: float, alpha: float) -> float:
    """erf_backward: the derivative of erfc(-alpha x) / 2."""
    return alpha / math.sqrt(math.pi) * math.exp(-(alpha**2) * x**2)


def rect(x: float, alpha: float) -> float:
    """rect_backward; STBP (arXiv:1706.02609), h_1(u) = 1(|u - V_th| < a/2) / a with a = 1 / alpha."""
    return alpha if abs(x) < 0.5 / alpha else 0.0


SOURCES = [
    Source(Identity(), lambda x: 1.0),  # Bengio et al. (arXiv:1308.3432), section 4
    Source(Clip(), lambda x: clip(x, 1)),
    Source(Clip(0.75), lambda x: clip(x, 0.75)),
    Source(ApproxSign(), approx_sign),
    Source(Swish(), lambda x: swish(x, 5)),
    Source(Swish(1.5), lambda x: swish(x, 1.5)),
    # The ends and the middle of IR-Net's schedule: t from 0.1 to 10, k = max(1 / t, 1).
    Source(Tanh(0.1, 10.0), lambda x: error_decay(x, 0.1, 10)),
    Source(Tanh(), lambda x: error_decay(x, 1, 1)),
    Source(Tanh(10.0, 1.0), lambda x: error_decay(x, 10, 1)),
    Source(ReSTE(), lambda x: reste(x, 3, 1.5)),
    Source(ReSTE(1.0), lambda x: reste(x, 1, 1.5)),
    Source(ReSTE(2.0, 0.75), lambda x: reste(x, 2, 0.75)),
    Source(Sigmoid(), lambda x: sigmoid(x, 4)),
    Source(Sigmoid(1.0), lambda x: sigmoid(x, 1)),
    Source(ATan(), lambda x: atan(x, 2)),
    Source(ATan(0.5), lambda x: atan(x, 0.5)),
    Source(FastSigmoid(), lambda x: fast_sigmoid(x, 25)),
    Source(FastSigmoid(10.0), lambda x: fast_sigmoid(x, 10)),
    Source(SoftSign(), lambda x: soft_sign(x, 2)),
    Source(SoftSign(5.0), lambda x: soft_sign(x, 5)),
    Source(PiecewiseQuadratic(), lambda x: piecewise_quadratic(x, 1)),
    Source(PiecewiseQuadratic(2.0), lambda x: piecewise_quadratic(x, 2)),
    Source(PiecewiseExp(), lambda x: piecewise_exp(x, 1)),
    Source(PiecewiseExp(3.0), lambda x: piecewise_exp(x, 3)),
    Source(Erf(), lambda x: erf(x, 2)),
    Source(Erf(0.5), lambda x: erf(x, 0.5)),
    Source(Rect(), lambda x: rect(x, 1)),
    Source(Rect(2.0), lambda x: rect(x, 2)),
]

# Numbers that float16 and bfloat16 hold exactly, with every bound of the table and its neighbourhood.
POINTS = [0.0, 0.015625, 0.0625, 0.109375, 0.1875, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0, 1.25, 1.5, 1.75, 2.5, 4.0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: repr(source.surrogate))
def test_gradient_of_its_source(device, source, dtype):
    least = 0.1 if isinstance(source.surrogate, ReSTE) else -1.0  # below it test_reste_near_0
    points = [x * side for x in POINTS for side in (1, -1) if x > least]
    numbers = [source.equation(x) for x in points]
    x = torch.tensor(points, dtype=dtype, device=device, requires_grad=True)
    expected = torch.tensor(numbers, dtype=torch.float64, device=device)
    # As narrow as 2e-6 in float64 at t = 10, where 1 - tanh^2 cancels in the equation itself.
    tolerance = {"rtol": max(16 * torch.finfo(dtype).eps, 1e-12), "atol": 1e-12 if dtype == torch.float64 else 1e-7}
    steps = [ste_ops.heaviside, ste_ops.sign, lambda x, surrogate: ste_ops.ternary(x, surrogate, 0.0)]
    for step in steps:
        (gradient,) = torch.autograd.grad(step(x, source.surrogate).sum(), x)
        torch.testing.assert_close(gradient.double(), expected, **tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("power", "threshold"), [(1.0, 1.5), (1.5, 1.5), (2.0, 0.75), (3.0, 1.5)])
def test_reste_near_0(device, power, threshold, dtype):
    """The chord from 0 to 0.1, whose slope does not depend on x, and the curve where it ends."""
    points = [0.0, 1e-5, 0.001, 0.01, 0.02, 0.03, 0.05, 0.0625, 0.078125, 0.09375, 0.109375, 0.125]
    points = [*points, *(-x for x in points)]
    expected = torch.tensor([reste(x, power, threshold) for x in points], dtype=torch.float64, device=device)
    x = torch.tensor(points, dtype=dtype, device=device, requires_grad=True)
    (gradient,) = torch.autograd.grad(ste_ops.sign(x, ReSTE(power, threshold)).sum(), x)
    torch.testing.assert_close(gradient.double(), expected, rtol=max(16 * torch.finfo(dtype).eps, 1e-12), atol=0)


def test_every_surrogate_that_cites_a_source_is_in_the_table():
    cited = {name for name in ste_ops.surrogate.__all__ if "arXiv:" in (getattr(ste_ops.surrogate, name).__doc__ or "")}
    cited |= {"ReSTE", "Sigmoid", "SoftSign", "Erf", "Rect"}
    assert cited <= {type(source.surrogate).__name__ for source in SOURCES}
