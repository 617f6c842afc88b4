"""Packed layers with signs on both sides, which run as counts of differing bits."""

from __future__ import annotations

import copy

import pytest
import torch

import ste_ops
from ste_ops import nn
from ste_ops.nn import pack_

INPUTS = {
    "Sign": nn.Sign,
    "sign": lambda: ste_ops.sign,
    "Heaviside": nn.Heaviside,
    "Heaviside at 0": lambda: nn.Heaviside(at_zero=1),
    "heaviside": lambda: ste_ops.heaviside,
    "threshold": lambda: nn.ChannelThreshold(torch.tensor([1.0, -1, 0] * 5), torch.linspace(-0.5, 0.5, 15)),
    "step": lambda: nn.ChannelThreshold(torch.tensor([1.0, -1, 0] * 5), torch.linspace(-0.5, 0.5, 15), low=0),
}
LAYERS = {
    "linear": (nn.QuantLinear, (15, 9), {}, (4, 15)),
    "conv1d": (nn.QuantConv1d, (15, 9, 3), {"padding": 2, "stride": 2}, (2, 15, 11)),
    "conv2d": (nn.QuantConv2d, (15, 9, 3), {"padding": "same", "dilation": 2}, (2, 15, 7, 6)),
    "odd groups": (nn.QuantConv2d, (15, 9, (2, 3)), {"groups": 3, "padding": (0, 2)}, (2, 15, 7, 6)),
    "padded": (nn.QuantConv2d, (15, 9, 3), {"padding": 1, "padding_mode": "reflect"}, (2, 15, 7, 6)),
    "conv3d": (nn.QuantConv3d, (15, 9, 2), {}, (2, 15, 3, 4, 3)),
}


def made(name, weight, of_input, **kwargs):
    torch.manual_seed(0)
    cls, sizes, settings, shape = LAYERS[name]
    layer = cls(*sizes, **settings, weight_quantizer=weight, input_quantizer=INPUTS[of_input](), **kwargs).eval()
    x = torch.randn(shape)
    x.view(-1)[:6] = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1e-45])
    return layer, x


@pytest.fixture
def counts(monkeypatch):
    """No weight may be unpacked."""

    def refused(*_):
        raise AssertionError("a binary layer unpacked its weights")

    monkeypatch.setattr(nn.PackedLayer, "_rows", refused)


@pytest.mark.parametrize("of_input", INPUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_signs_give_the_bits_of_the_trained_layer(name, of_input, request):
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        layer, x = made(name, nn.Sign(), of_input, bias=False)
        layer, x = layer.to(dtype), x.to(dtype)
        with torch.no_grad():
            expected = layer(x)
            if name != "conv3d" and "counts" not in request.fixturenames:
                request.getfixturevalue("counts")
            out = pack_(layer)(x)
        assert out.dtype == dtype
        assert torch.equal(out, expected)
        if x.dim() > 2 and "hreshold" not in of_input and of_input != "step":
            with torch.no_grad():
                assert torch.equal(layer(x[0]), expected[0])


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "conv3d"])
@pytest.mark.parametrize("weight", [nn.XNORWeight, nn.MagnitudeAwareSign, lambda: nn.DoReFaWeight(1)])
def test_an_integer_is_multiplied_once(name, weight, counts):
    """A float product rounds each of its sums instead."""
    layer, x = made(name, weight(), "Sign")
    codes = layer.weight_codes()
    with torch.no_grad():
        signs = copy.deepcopy(layer).double()
        signs.weight_quantizer, signs.bias = None, None
        signs.weight.copy_(codes.values)
        integers = signs(x.double())
        assert torch.equal(integers, integers.round())
        shape = (-1, *[1] * (x.dim() - 2))
        factor = codes.scale.expand(9, *codes.scale.shape[1:]).reshape(-1) if codes.scale.dim() else codes.scale
        factor = factor.expand(9).reshape(shape)
        trained = layer(x)
        out = pack_(layer)(x)
        assert torch.equal(out, integers.float() * factor + layer.bias.reshape(shape))
        torch.testing.assert_close(out, trained, rtol=1e-5, atol=1e-5)


def test_copies_and_moves_count_too(counts):
    layer, x = made("odd groups", nn.XNORWeight(), "Sign")
    expected = pack_(layer)(x)
    assert "panels" not in layer.state_dict()
    other, _ = made("odd groups", nn.XNORWeight(), "Sign")
    with torch.no_grad():
        other.weight.neg_()
    assert torch.equal(pack_(other, state_dict=layer.state_dict())(x), expected)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    assert torch.equal(layer(x.to(memory_format=torch.channels_last)), expected)
    torch.testing.assert_close(copy.deepcopy(layer).double()(x.double()), expected.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


@pytest.mark.parametrize("weight", [nn.Sign, nn.XNORWeight])
def test_a_norm_that_was_folded_is_applied(weight):
    torch.manual_seed(0)
    layer, x = made("conv2d", weight(), "Sign", bias=False)
    norm = torch.nn.BatchNorm2d(9).eval()
    norm.running_mean.normal_()
    model = nn.fold_batch_norm_(torch.nn.Sequential(layer, norm).eval(), x)
    with torch.no_grad():
        expected = model(x)
        assert type(model[1]) is torch.nn.Identity
        assert not torch.equal(expected, layer.output_bias.reshape(-1, 1, 1).expand_as(expected))
        assert torch.equal(pack_(model)(x), expected)


def test_what_is_not_binary_is_unpacked():
    """Also where a gradient is asked for, or the input quantizer is another one since."""
    layer, x = made("linear", nn.Sign(), "Sign")
    x = x.nan_to_num(0, 1, -1)
    layer.input_quantizer = nn.PACT(1.0, 2)
    expected = layer(x)
    assert pack_(layer).panels is None
    assert torch.equal(layer(x), expected)
    layer, _ = made("linear", nn.Sign(), "Sign")
    pack_(layer)
    given = x.clone().requires_grad_()
    layer(given).sum().backward()
    assert given.grad.abs().sum() > 0
    layer.input_quantizer = None
    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.unpacked(), layer.bias))
    with pytest.raises(ValueError, match=r"PackedConv2d: input must have 15 channels, got shape \(2, 7, 5, 5\)"):
        pack_(made("conv2d", nn.Sign(), "Sign")[0])(torch.randn(2, 7, 5, 5))


@pytest.mark.parametrize("weight", [nn.XNORWeight, lambda: nn.LSQ(4, axis=0)])
def test_an_exported_program_gives_the_same(weight):
    layer, x = made("conv2d", weight(), "Sign")
    expected = pack_(layer)(x)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert torch.equal(program.module()(x), expected)
    assert torch.equal(program.module()(torch.cat([x, x]))[2:], expected)
