"""Layers with signs on both sides count bits on the CPU, with the numbers of the float path."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from support.kept import assert_equal

import ste_ops
from ste_ops.nn import (
    ChannelThreshold,
    DoReFaWeight,
    Heaviside,
    MagnitudeAwareSign,
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantLinear,
    Sign,
    XNORWeight,
    _binary,
    pack_,
)

GEOMETRY = [
    {"padding": 1},
    {"stride": 2, "padding": (2, 0), "bias": False},
    {"groups": 2, "dilation": 2, "padding": "same"},
    {"padding": 2, "padding_mode": "replicate"},
    {"padding": 1, "padding_mode": "circular"},
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def steps(layer, x):
    """Output and gradients of input and parameters."""
    x = x.detach().requires_grad_()
    out = layer(x)
    torch.manual_seed(5)
    return [out, *torch.autograd.grad(out, [x, *layer.parameters()], torch.randn_like(out))]


def counted(layer, x, monkeypatch):
    """The same, and of the float path; the first must have counted bits."""
    calls = []

    def spy(name):
        counted = getattr(_binary, name)

        def called(*args):
            calls.append(counted(*args))
            return calls[-1]

        return called

    with monkeypatch.context() as patch:
        patch.setattr(_binary, "LEAST_WORK", 0)
        for name in ("_linear", "_convolution"):
            patch.setattr(_binary, name, spy(name))
        received = steps(layer, x)
    assert calls
    assert not any(made is None for made in calls)
    with monkeypatch.context() as patch:
        patch.setattr(_binary, "_kinds_of", lambda *_: None)
        return received, steps(layer, x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", GEOMETRY, ids=str)
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_convolutions_equal_the_float_path(dtype, geometry, order, monkeypatch):
    torch.manual_seed(0)
    bias = geometry.get("bias", dtype.itemsize > 2)
    options = geometry | {"bias": bias, "input_quantizer": Sign(), "weight_quantizer": ste_ops.sign}
    layer = QuantConv2d(32, 24, 3, **options).to(dtype)
    if bias:
        layer.bias.data.mul_(64).round_()  # integers stay integers, in whatever order they are summed
    x = torch.randn(2, 32, 9, 10).to(dtype, memory_format=order)
    received, expected = counted(layer, x, monkeypatch)
    assert_equal(received, expected)
    assert received[0].stride() == expected[0].stride()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("of_input", [Sign, Heaviside, lambda: functools.partial(ste_ops.heaviside, at_zero=1)])
def test_linear_and_1d_equal_the_float_path(dtype, of_input, monkeypatch):
    torch.manual_seed(0)
    for layer, shape in (
        (QuantLinear(70, 24, bias=False, input_quantizer=of_input(), weight_quantizer=Sign()), (3, 5, 70)),
        (QuantConv1d(40, 17, 5, 2, 1, bias=False, input_quantizer=of_input(), weight_quantizer=Sign()), (2, 40, 31)),
    ):
        x = torch.randn(shape)
        x.view(-1)[::7] = 0
        assert_equal(*counted(layer.to(dtype), x.to(dtype), monkeypatch))


FACTORS = {
    "none": Sign,
    "XNOR": XNORWeight,
    "Bi-Real": MagnitudeAwareSign,
    "DoReFa": lambda: DoReFaWeight(1),
    "function": lambda: functools.partial(ste_ops.dorefa_weight, bits=1),
}
# What bits count, and what torch computes: padding that differs by side, tiny groups, three dimensions.
SHAPES = {
    "linear": (lambda **of: QuantLinear(64, 32, **of), (5, 64)),
    "conv1d": (lambda **of: QuantConv1d(64, 32, 3, padding=1, **of), (2, 64, 9)),
    "conv2d": (lambda **of: QuantConv2d(64, 32, 3, padding=1, **of), (2, 64, 8, 8)),
    "even": (lambda **of: QuantConv2d(64, 32, 2, padding="same", **of), (2, 64, 8, 8)),
    "depthwise": (lambda **of: QuantConv2d(16, 16, 3, groups=16, **of), (2, 16, 8, 8)),
    "conv3d": (lambda **of: QuantConv3d(16, 8, 2, **of), (2, 16, 4, 4, 4)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("factor", "least"), [*((name, 0) for name in FACTORS), ("none", 1 << 30)])
def test_factor_and_bias_are_rounded_once_whatever_computes(factor, least, shape, dtype, monkeypatch):
    torch.manual_seed(0)
    make, size = SHAPES[shape]
    monkeypatch.setattr(_binary, "LEAST_WORK", least)
    layer = make(input_quantizer=Sign(), weight_quantizer=FACTORS[factor]()).to(dtype)
    x, wide = torch.randn(size).to(dtype), torch.promote_types(dtype, torch.float32)
    weight = layer.quantized_weight().detach()
    signs = make(bias=False, weight_quantizer=ste_ops.sign).double()
    signs.weight.data.copy_(weight)
    factors = weight.flatten(1)[:, 0].abs().to(wide).reshape(-1, *[1] * (weight.dim() - 2))
    bias = layer.bias.detach().to(wide).reshape(factors.shape)
    expected = (signs(ste_ops.sign(x).double()).to(wide) * factors + bias).to(dtype)
    received = layer(x)
    assert torch.equal(received, expected)
    with torch.no_grad():
        assert torch.equal(layer(x), expected)
        assert torch.equal(torch.func.vmap(layer)(x[:, None]).squeeze(1), expected)
        assert torch.equal(layer(x[0]), expected[0])
        assert torch.equal(torch.jit.trace(layer, x)(x), expected)
        assert torch.equal(pack_(copy.deepcopy(layer).eval())(x), expected)


@pytest.mark.parametrize("low", [-1, 0])
def test_what_a_threshold_puts_out_is_counted(low, monkeypatch):
    torch.manual_seed(0)
    threshold = ChannelThreshold(torch.randn(64).sign(), torch.randn(64), low)
    layer, x = QuantLinear(64, 32, input_quantizer=threshold, weight_quantizer=Sign()), torch.randn(5, 64)
    monkeypatch.setattr(_binary, "LEAST_WORK", 0)
    expected = torch.nn.functional.linear(threshold(x), layer.quantized_weight()) + layer.bias
    assert torch.equal(layer(x), expected)
    with torch.no_grad():
        assert torch.equal(pack_(copy.deepcopy(layer).eval())(x), expected)


def test_input_and_weight_of_two_dtypes_are_refused_as_by_torch(monkeypatch):
    monkeypatch.setattr(_binary, "LEAST_WORK", 0)
    layer = QuantLinear(64, 8, input_quantizer=Sign(), weight_quantizer=Sign())
    with pytest.raises(RuntimeError, match="same dtype"):
        layer(torch.randn(4, 64).double())


@pytest.mark.parametrize("strict", [True, False])
def test_exported_with_a_quantizer_that_two_layers_hold(strict):
    torch.manual_seed(0)
    of = {"input_quantizer": Sign(), "weight_quantizer": XNORWeight()}
    model, x = torch.nn.Sequential(QuantLinear(64, 48, **of), QuantLinear(48, 32, **of)), torch.randn(5, 64)
    assert torch.equal(torch.export.export(model, (x,), strict=strict).module()(x), model(x))


def test_the_gradients_beside_a_factor_are_those_of_floats(monkeypatch):
    for factor, shape in (("XNOR", "conv2d"), ("Bi-Real", "conv1d"), ("DoReFa", "linear")):
        torch.manual_seed(0)
        make, size = SHAPES[shape]
        layer = make(bias=False, input_quantizer=Sign(), weight_quantizer=FACTORS[factor]())
        received, expected = counted(layer, torch.randn(size), monkeypatch)
        torch.testing.assert_close(received[0], expected[0])
        assert not torch.equal(received[0], expected[0])
        assert_equal(received[1:], expected[1:])


def test_torch_multiplies_by_a_factor_with_its_gradients(monkeypatch):
    torch.manual_seed(0)
    make, size = SHAPES["even"]
    layer, x = make(input_quantizer=Sign(), weight_quantizer=XNORWeight()), torch.randn(size)
    layer.weight.data[3] = 0
    received = steps(layer, x)
    monkeypatch.setattr(_binary, "_kinds_of", lambda *_: None)
    for r, e in zip(received, steps(layer, x), strict=True):
        torch.testing.assert_close(r, e)


def test_second_order_and_compiled(monkeypatch):
    torch.manual_seed(0)
    layer = QuantConv2d(32, 16, 3, padding=1, input_quantizer=Sign(), weight_quantizer=XNORWeight())
    x = torch.randn(2, 32, 6, 6, requires_grad=True)

    def second(layer):
        (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [x, layer.weight])

    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True)
    assert_equal(steps(compiled, x), steps(layer, x))
    received = second(layer)
    monkeypatch.setattr(_binary, "_kinds_of", lambda *_: None)
    for r, e in zip(received, second(layer), strict=True):
        torch.testing.assert_close(r, e)


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: setattr(layer, "weight_quantizer", XNORWeight(group_size=8)),
        lambda layer: setattr(layer, "weight_quantizer", functools.partial(ste_ops.xnor_weight, group_size=8)),
        lambda layer: layer.input_quantizer.disable(),
        lambda layer: setattr(layer, "input_quantizer", lambda x: ste_ops.sign(x) * 2),
        lambda layer: layer.weight_quantizer.register_forward_hook(lambda *args: args[-1] * 3),
        lambda layer: setattr(layer, "weight_quantizer", Heaviside()),
        lambda layer: setattr(layer, "weight_quantizer", DoReFaWeight(2)),
        lambda layer: setattr(layer, "weight_quantizer", functools.partial(ste_ops.dorefa_weight, bits=2)),
    ],
)
def test_what_is_no_sign_is_multiplied(change):
    torch.manual_seed(0)
    layer = QuantLinear(64, 8, bias=False, input_quantizer=Sign(), weight_quantizer=Sign())
    change(layer)
    x = torch.randn(4, 64)
    quantize = layer.input_quantizer
    assert torch.equal(layer(x), torch.nn.functional.linear(quantize(x), layer.quantized_weight()))


@pytest.mark.parametrize("rows", [4, 600])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(dtype, rows, monkeypatch):
    torch.manual_seed(0)
    layer = QuantLinear(64, 32, bias=False, input_quantizer=Sign(), weight_quantizer=XNORWeight())
    x = torch.randn(rows, 64)
    with torch.autocast("cpu", dtype):
        received, expected = counted(layer, x, monkeypatch)
        torch.testing.assert_close(received[0], expected[0])
        assert received[0].dtype == dtype
        with torch.no_grad():
            assert layer(x).dtype == dtype
        torch._dynamo.reset()
        assert torch.compile(layer, fullgraph=True, backend="aot_eager")(x).dtype == dtype
    layer(x).sum().backward()
    assert layer.weight.grad is not None


def test_a_convolution_of_ones_own_is_called():
    class Thrice(QuantConv2d):
        def _conv_forward(self, input, weight, bias):
            return 3 * super()._conv_forward(input, weight, bias)

    layer = Thrice(32, 32, 3, padding=1, input_quantizer=Sign(), weight_quantizer=Sign())
    x = torch.randn(2, 32, 5, 5)
    plain = torch.nn.functional.conv2d(ste_ops.sign(x), layer.quantized_weight(), layer.bias, padding=1)
    torch.testing.assert_close(layer(x), 3 * plain)
