"""Agreement with what other libraries call by the same names, where they are installed; docs/peers.md says it in words.

Where a peer differs on purpose or by accident, the test holds the difference fast, so that the page stays true.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from support.surrogate_table import DTYPES, assert_same_bits, first_instances

import ste_ops
from ste_ops import surrogate as s

INFINITY, NAN = math.inf, math.nan


def peer(module: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(module, reason=f"{module} is not installed", exc_type=ImportError)


def grid(dtype: torch.dtype, *points: float) -> torch.Tensor:
    """Dense across every kink, with the zeros; then far away, infinite, and NaN."""
    far = [-0.0, 100.0, -100.0, 1e4, -1e4, INFINITY, -INFINITY, NAN, *points]
    return torch.cat([torch.linspace(-4, 4, 8001, dtype=torch.float64), torch.tensor(far)]).to(dtype)


def both(fn: Callable[..., torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The values and the gradient, under an incoming gradient that every dtype holds exactly."""
    x = x.clone().requires_grad_()
    out = fn(x)
    grad = torch.linspace(-128, 128, x.numel()).round().div(64).view(x.shape).to(out.dtype)
    return out.detach(), torch.autograd.grad(out, x, grad)[0]


def places(dtype: torch.dtype, count: int = 8) -> dict[str, Any]:
    unit = count * torch.finfo(dtype).eps
    return {"rtol": unit, "atol": unit, "equal_nan": True}


# Surrogates of spiking networks.


class Pair(NamedTuple):
    name: str  # of the peer
    arguments: tuple[float, ...]
    ours: s.Surrogate


SNNTORCH = [
    Pair("straight_through_estimator", (), s.Identity()),
    Pair("atan", (2.0,), s.ATan(2.0)),
    Pair("fast_sigmoid", (25.0,), s.FastSigmoid(25.0)),
]

SPIKINGJELLY = [
    Pair("Sigmoid", (4.0,), s.Sigmoid(4.0)),
    Pair("ATan", (2.0,), s.ATan(2.0)),
    Pair("SoftSign", (2.0,), s.SoftSign(2.0)),
    Pair("PiecewiseQuadratic", (1.0,), s.PiecewiseQuadratic(1.0)),
    Pair("PiecewiseExp", (1.0,), s.PiecewiseExp(1.0)),
    Pair("Erf", (2.0,), s.Erf(2.0)),
    Pair("Rect", (1.0,), s.Rect(1.0)),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pair", SNNTORCH, ids=lambda pair: pair.name)
def test_snntorch(pair, dtype):
    theirs = getattr(peer("snntorch.surrogate"), pair.name)(*pair.arguments)
    x = grid(dtype)
    out, gradient = both(lambda x: ste_ops.heaviside(x, pair.ours), x)
    their_out, their_gradient = both(theirs, x)
    assert their_out.dtype == torch.float32  # whatever x is; ours has x's
    assert_same_bits(out, their_out.to(dtype))
    torch.testing.assert_close(gradient, their_gradient, **places(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_snntorch_sigmoid_overflows(dtype):
    """It is exp(-kx) / (exp(-kx) + 1)^2: the square overflows, then the exponential, and the gradient is NaN."""
    theirs = peer("snntorch.surrogate").sigmoid(25.0)
    x = grid(dtype)
    _, gradient = both(lambda x: ste_ops.heaviside(x, s.Sigmoid(25.0)), x)
    _, their_gradient = both(theirs, x)
    limit = math.log(torch.finfo(dtype).max) / 25
    safe = x > -0.4 * limit
    torch.testing.assert_close(gradient[safe], their_gradient[safe], **places(dtype))
    beyond = (x < -1.1 * limit) & x.isfinite()
    assert bool(beyond.any())
    assert bool(their_gradient[beyond].isnan().all())
    assert bool((gradient[beyond].abs() < 1e-4).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pair", SPIKINGJELLY, ids=lambda pair: pair.name)
def test_spikingjelly(pair, dtype):
    cls = getattr(peer("spikingjelly.activation_based.surrogate"), pair.name)
    theirs = cls(*pair.arguments)
    assert cls().alpha == theirs.alpha  # the defaults, here too
    assert pair.ours == type(pair.ours)()
    x = grid(dtype)
    out, gradient = both(lambda x: ste_ops.heaviside(x, pair.ours), x)
    their_out, their_gradient = both(theirs, x)
    assert_same_bits(out[x != 0], their_out[x != 0])
    assert bool((out[x == 0] == 0).all())  # as the tutorial's (x > 0)
    assert bool((their_out[x == 0] == 1).all())  # (x >= 0)
    for received, expected in zip(
        both(lambda x: ste_ops.heaviside(x, pair.ours, at_zero=1), x), (their_out, gradient), strict=True
    ):
        assert_same_bits(received, expected)
    torch.testing.assert_close(gradient, their_gradient, **places(dtype))
    if pair.ours == s.Rect(1.0):
        assert_same_bits(gradient + 0, their_gradient + 0)


def test_spikingjelly_super_spike_is_another_curve():
    """alpha / (1 + abs(x))^2, where `FastSigmoid` has the slope inside, as SuperSpike's paper and snnTorch."""
    theirs = peer("spikingjelly.activation_based.surrogate").SuperSpike(25.0)
    x = grid(torch.float64)[:8001]
    torch.testing.assert_close(both(theirs, x)[1], 25 * both(lambda x: ste_ops.heaviside(x, s.FastSigmoid(1.0)), x)[1])


# A surrogate in a neuron of theirs, which gets a current for some steps. Seen there, it is what heaviside with it is.


def spikes_of_snntorch(spike: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    neuron = peer("snntorch").Leaky(beta=0.9, spike_grad=spike)
    membrane, total = neuron.init_leaky(), torch.zeros_like(x)
    for _ in range(5):
        spikes, membrane = neuron(x, membrane)
        total = total + spikes
    return total


def spikes_of_spikingjelly(spike: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    neuron = peer("spikingjelly.activation_based.neuron").LIFNode(surrogate_function=spike)
    return torch.stack([neuron(x) for _ in range(5)]).sum(0)


@pytest.mark.parametrize("spikes", [spikes_of_snntorch, spikes_of_spikingjelly], ids=["snntorch", "spikingjelly"])
@pytest.mark.parametrize("surrogate", first_instances(), ids=lambda surrogate: type(surrogate).__name__)
def test_a_neuron_takes_a_surrogate(spikes, surrogate):
    x = 3 * torch.randn(4, 6)
    out, gradient = both(lambda x: spikes(surrogate, x), x)
    assert 0 < int((out > 0).sum()) < out.numel()
    assert bool(gradient.any())
    for received, expected in zip(
        (out, gradient), both(lambda x: spikes(lambda u: ste_ops.heaviside(u, surrogate), x), x), strict=True
    ):
        assert_same_bits(received, expected)


# Brevitas: rounding with the identity as gradient.

BREVITAS: dict[str, tuple[Callable[..., torch.Tensor], tuple[float, ...]]] = {
    "round_ste": (lambda x: ste_ops.round(x), ()),
    "floor_ste": (lambda x: ste_ops.floor(x), ()),
    "ceil_ste": (lambda x: ste_ops.ceil(x), ()),
    "round_to_zero_ste": (lambda x: ste_ops.trunc(x), ()),
    "scalar_clamp_ste": (lambda x: ste_ops.clamp(x, -1.0, 1.5), (-1.0, 1.5)),
    "binary_sign_ste": (lambda x: ste_ops.sign(x, s.Identity()), ()),
    "ternary_sign_ste": (lambda x: ste_ops.ternary(x, s.Identity(), 0.0), ()),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", BREVITAS)
def test_brevitas(name, dtype):
    ours, arguments = BREVITAS[name]
    theirs = getattr(peer("brevitas.function.ops_ste"), name)
    x = grid(dtype, 0.5, 1.5, 2.5, -0.5, -1.5)
    out, gradient = both(ours, x)
    their_out, their_gradient = both(lambda x: theirs(x, *arguments), x)
    if name == "ternary_sign_ste":  # torch.sign, which is 0 at NaN
        assert bool(out[x.isnan()].isnan().all())
        assert bool((their_out[x.isnan()] == 0).all())
        out = out.nan_to_num(0.0)
    assert bool(((out == their_out) | (out.isnan() & their_out.isnan())).all())  # -0 is 0 here
    assert_same_bits(gradient, their_gradient)


# Fake quantization of torch itself: needs no peer.

SCALE, LOW, HIGH = 0.3, -4, 3


def agree(ours: Callable[..., Any], theirs: Callable[..., Any], x: torch.Tensor, where: torch.Tensor) -> None:
    (out, gradient), (their_out, their_gradient) = both(ours, x), both(theirs, x)
    assert_same_bits(out[where] + 0, their_out[where] + 0)
    assert_same_bits(gradient[where] + 0, their_gradient[where] + 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("zero_point", [0, 1, -2])
@pytest.mark.parametrize("scale", [SCALE, 0.25])
def test_torch_fake_quantize(scale, zero_point, dtype):
    """Ties and bounds too; a NaN becomes quant_min there and stays a NaN here, without a gradient in both."""
    x = grid(dtype, *(scale * (k + 0.5) for k in range(-6, 6)))

    def theirs(x):
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, LOW, HIGH)

    agree(lambda x: ste_ops.fake_quantize(x, scale, zero_point, LOW, HIGH), theirs, x, ~x.isnan())
    nan = x.new_tensor([NAN])
    assert theirs(nan).isfinite()
    out, gradient = both(lambda x: ste_ops.fake_quantize(x, scale, zero_point, LOW, HIGH), nan)
    assert out.isnan()
    assert gradient == 0 == both(theirs, nan)[1]


def test_torch_fake_quantize_computes_in_float32():
    """So in float64 it agrees to 7 places, but for where x / scale is within as much of a tie."""
    x = torch.linspace(-4, 4, 8001, dtype=torch.float64) + 1e-4
    ours = both(lambda x: ste_ops.fake_quantize(x, SCALE, 2, LOW, HIGH), x)
    theirs = both(lambda x: torch.fake_quantize_per_tensor_affine(x, SCALE, 2, LOW, HIGH), x)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-6)
    assert bool((ours[0] != theirs[0]).any())
    torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_torch_fake_quantize_per_channel(axis, dtype):
    scale, zero = torch.tensor([0.3, 0.25, 0.1]), torch.tensor([0, 1, -2], dtype=torch.int32)
    x = torch.stack([grid(dtype)] * 3, axis)

    def theirs(x):
        return torch.fake_quantize_per_channel_affine(x, scale, zero, axis, LOW, HIGH)

    def ours(x):
        return ste_ops.fake_quantize(x, scale, zero, LOW, HIGH, axis=axis)

    agree(ours, theirs, x, x.isfinite())
    # Its integer overflows at infinity, and the largest becomes the least.
    far = torch.full([3, 3], INFINITY, dtype=dtype)
    bounds = [((bound - zero) * scale).to(dtype).view([3, 1] if axis == 0 else [1, 3]) for bound in (LOW, HIGH)]
    assert bool((theirs(far) == bounds[0]).all())
    assert bool((ours(far) == bounds[1]).all())


def masked_by_its_integer(v: torch.Tensor, low: int = LOW, high: int = HIGH) -> torch.Tensor:
    """Where the integer of v = x / scale is a bound, and v lies beyond it: LSQ's equation 3 stops the gradient."""
    beyond = ((v > high - 1e-4) & (v < high + 0.501)) | ((v < low + 1e-4) & (v > low - 0.501))
    assert beyond.any()
    return beyond


@pytest.mark.parametrize("axis", [None, 0])
def test_torch_learnable_fake_quantize(axis):
    """The gradient of its scale is a sum in float32, ours one in float64; and it masks on the rounded integer."""
    x = grid(torch.float32)[:8001]
    x = torch.stack([x, 2 * x]) if axis == 0 else x
    grad = torch.linspace(-1, 2, x.numel()).view(x.shape)
    v = x / (torch.tensor([[0.3], [0.25]]) if axis == 0 else 0.3)
    grad[masked_by_its_integer(v)] = 0
    count = 2 if axis == 0 else 1
    gradients = []
    for ours in (True, False):
        z, scale = x.clone().requires_grad_(), torch.tensor([0.3, 0.25][:count], requires_grad=True)
        zero = torch.zeros(count)
        if ours:
            out = ste_ops.lsq(z, scale, LOW, HIGH, axis=axis, grad_scale=0.5)
        elif axis is None:
            out = torch._fake_quantize_learnable_per_tensor_affine(z, scale, zero, LOW, HIGH, 0.5)
        else:
            out = torch._fake_quantize_learnable_per_channel_affine(z, scale, zero, axis, LOW, HIGH, 0.5)
        gradients.append((out.detach(), *torch.autograd.grad(out, (z, scale), grad)))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    for i in (0, 1):
        assert_same_bits(gradients[0][i] + 0, gradients[1][i] + 0)
    with pytest.raises(RuntimeError, match="Float"):  # float64 has no backward there
        both(
            lambda x: torch._fake_quantize_learnable_per_tensor_affine(
                x, torch.tensor([0.3]).double(), torch.zeros(1).double(), LOW, HIGH, 1.0
            ),
            torch.zeros(2, dtype=torch.float64),
        )


# torchao.


def agree_torchao(ours: Callable[..., Any], theirs: Callable[..., Any], x: torch.Tensor) -> None:
    (out, gradient), (their_out, their_gradient) = both(ours, x), both(theirs, x)
    assert_same_bits(out + 0, their_out + 0, any_nan=True)
    assert_same_bits((gradient == 0) + 0.0, (their_gradient == 0) + 0.0)
    # It multiplies the gradient by the scale and by its reciprocal.
    torch.testing.assert_close(gradient, their_gradient, rtol=2 * torch.finfo(x.dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_torchao(dtype):
    """NaN, infinities and ties too. It refuses float64."""
    qat = peer("torchao.quantization.qat")
    config = qat.IntxFakeQuantizeConfig(torch.int4, "per_channel", is_symmetric=True, is_dynamic=False)
    theirs = qat.IntxFakeQuantizer(config)
    scale = torch.tensor([0.3, 0.25])
    theirs.scale, theirs.zero_point = scale.view(2, 1), torch.zeros(2, 1, dtype=torch.int32)
    x = torch.stack([grid(dtype)] * 2)
    agree_torchao(lambda x: ste_ops.fake_quantize(x, scale, torch.zeros(2), -8, 7, axis=0), theirs, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_torchao_zero_point(dtype):
    primitives = peer("torchao.quantization.quant_primitives")
    x = grid(dtype)

    def theirs(x):
        block = (x.numel(),)
        return primitives._fake_quantize_affine(x, block, torch.tensor(0.3), torch.tensor(2), torch.int32, LOW, HIGH)

    agree_torchao(lambda x: ste_ops.fake_quantize(x, 0.3, 2, LOW, HIGH), theirs, x)


def test_torchao_range_learning():
    """The gradient of its scale, by autograd through a rounding with the identity as gradient, is LSQ's unscaled, but
    where the integer is a bound and x / scale lies beyond it."""
    qat = peer("torchao.quantization.qat")
    config = qat.IntxFakeQuantizeConfig(
        torch.int4, "per_channel", is_symmetric=True, is_dynamic=False, range_learning=True
    )
    theirs = qat.IntxFakeQuantizer(config)
    x = torch.stack([grid(torch.float32)[:8001]] * 2)
    theirs.scale = torch.nn.Parameter(torch.tensor([[0.3], [0.25]]))
    theirs.zero_point = torch.nn.Parameter(torch.zeros(2, 1))
    theirs._initialized = True
    grad = torch.linspace(-1, 2, x.numel()).view(x.shape)
    grad[masked_by_its_integer(x / theirs.scale.detach(), -8, 7)] = 0
    (expected,) = torch.autograd.grad(theirs(x), theirs.scale, grad)
    scale = torch.tensor([0.3, 0.25], requires_grad=True)
    (received,) = torch.autograd.grad(ste_ops.lsq(x, scale, -8, 7, axis=0, grad_scale=1.0), scale, grad)
    torch.testing.assert_close(received, expected.flatten(), rtol=1e-4, atol=1e-3)
