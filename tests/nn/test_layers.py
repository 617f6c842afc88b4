"""`QuantLinear` and `QuantConv1d/2d/3d`: torch's layers on what the quantizers return."""

from __future__ import annotations

import pytest
import torch
from support.graph import nodes
from torch import nn

import ste_ops
from ste_ops.nn import (
    LSQ,
    BitNetActivation,
    BitNetWeight,
    FakeQuantize,
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantLinear,
    Sign,
    XNORWeight,
)

LAYERS = {
    "linear": (nn.Linear, QuantLinear, (6, 5), {}, (2, 6)),
    "linear_without_bias": (nn.Linear, QuantLinear, (6, 5), {"bias": False}, (2, 3, 6)),
    "conv1d": (nn.Conv1d, QuantConv1d, (4, 6, 3), {"stride": 2, "groups": 2}, (2, 4, 9)),
    "conv2d": (nn.Conv2d, QuantConv2d, (3, 4, 3), {"padding": 1, "dilation": 2}, (2, 3, 7, 8)),
    "conv2d_same": (nn.Conv2d, QuantConv2d, (3, 4, (3, 1)), {"padding": "same", "bias": False}, (2, 3, 7, 8)),
    "conv2d_reflect": (nn.Conv2d, QuantConv2d, (3, 4, 3), {"padding": 1, "padding_mode": "reflect"}, (2, 3, 7, 8)),
    "conv3d": (nn.Conv3d, QuantConv3d, (2, 3, 2), {"padding": 1, "padding_mode": "circular"}, (1, 2, 4, 5, 6)),
}


def scaled_sign(w):
    return ste_ops.sign(w) * 0.25


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_on_what_the_quantizers_return(name):
    old, new, arguments, options, shape = LAYERS[name]
    layer = new(*arguments, **options, dtype=torch.float64, weight_quantizer=scaled_sign, input_quantizer=ste_ops.sign)
    plain = old(*arguments, **options, dtype=torch.float64)
    with torch.no_grad():
        plain.weight.copy_(scaled_sign(layer.weight))
        if plain.bias is not None:
            plain.bias.copy_(layer.bias)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    out = layer(x)
    assert torch.equal(out, plain(ste_ops.sign(x)))
    assert torch.equal(layer.quantized_weight(), plain.weight)
    out.square().sum().backward()
    z = ste_ops.sign(x.detach()).requires_grad_()
    plain(z).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, 0.25 * plain.weight.grad)  # all weights lie within [-1, 1]
    torch.testing.assert_close(x.grad, torch.where(x.abs() > 1, 0.0, z.grad))
    # Without quantizers it is the float layer.
    torch.manual_seed(1)
    bare = new(*arguments, **options)
    torch.manual_seed(1)
    assert torch.equal(bare(x.float()), old(*arguments, **options)(x.float()))


def test_zero_padding_comes_after_the_quantizer():
    seen = {}
    for mode in ("zeros", "replicate"):
        layer = QuantConv2d(1, 1, 1, padding=1, padding_mode=mode, bias=False, input_quantizer=ste_ops.sign)
        nn.init.ones_(layer.weight)
        seen[mode] = set(layer(torch.randn(1, 1, 9, 9)).flatten().tolist())
    assert seen == {"zeros": {-1.0, 0.0, 1.0}, "replicate": {-1.0, 1.0}}


@pytest.mark.parametrize("name", LAYERS)
def test_from_float_keeps_the_parameters(name):
    old, new, arguments, options, shape = LAYERS[name]
    layer = old(*arguments, **options).eval()
    calls = []
    layer.register_forward_hook(lambda module, *_: calls.append(module))
    layer.weight.requires_grad_(False)
    quantized = new.from_float(layer, weight_quantizer=XNORWeight(), input_quantizer=ste_ops.sign)
    assert type(layer) is old
    assert type(quantized) is new
    assert quantized.weight is layer.weight
    assert quantized.bias is layer.bias
    assert not quantized.training
    x = torch.randn(shape)
    quantized(x)
    layer(x)
    assert calls == [quantized, layer]
    assert list(layer.children()) == []
    quantized.register_forward_hook(lambda *_: calls.append(None))
    layer(x)
    assert None not in calls


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: QuantLinear(2, 3, weight_quantizer=Sign),
            "QuantLinear: weight_quantizer must be a module, .* class Sign",
        ),
        (lambda: QuantLinear(2, 3, input_quantizer="sign"), "QuantLinear: input_quantizer must be .* got 'sign'"),
        (
            lambda: QuantConv2d.from_float(nn.Conv1d(2, 2, 1)),
            "QuantConv2d: layer must be a torch.nn.Conv2d, got Conv1d",
        ),
        (lambda: QuantLinear.from_float(QuantLinear(2, 2)), "layer must be a torch.nn.Linear, got QuantLinear"),
    ],
)
def test_bad_arguments_of_layers_are_refused(make, words):
    with pytest.raises(TypeError, match=words):
        make()


def test_a_layer_gives_its_weights_channels_to_the_quantizer():
    layer = QuantConv2d(3, 5, 3, weight_quantizer=LSQ(4, axis=0))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scale = layer.weight_quantizer.scale
    assert scale.shape == (5,)
    layer(torch.randn(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    assert layer.weight_quantizer.scale is scale
    assert scale.grad.abs().min() > 0


def test_a_scale_that_is_given_spreads_over_the_channels():
    lsq, fake = LSQ(4, axis=0, scale=0.5), FakeQuantize(4, signed=False, axis=1, scale=0.5, zero_point=3)
    QuantLinear(4, 3, weight_quantizer=lsq, input_quantizer=Sign())
    QuantLinear(4, 3, weight_quantizer=fake)
    assert isinstance(lsq.scale, nn.Parameter)
    assert (lsq.scale.tolist(), fake.scale.tolist(), fake.zero_point.tolist()) == ([0.5] * 3, [0.5] * 4, [3] * 4)
    assert bool(lsq.initialized)


def test_repr_says_what_is_quantized():
    text = repr(QuantConv2d(1, 2, 3, weight_quantizer=LSQ(2), input_quantizer=ste_ops.sign))
    assert "QuantConv2d(\n  1, 2, kernel_size=(3, 3), stride=(1, 1), input_quantizer=sign" in text
    assert "(weight_quantizer): LSQ(bits=2, signed=True)" in text


def test_bitnet_layers_take_tokens():
    layer = QuantLinear(8, 4, weight_quantizer=BitNetWeight(), input_quantizer=BitNetActivation())
    x = torch.randn(2, 3, 8, requires_grad=True)
    out = layer(x)
    assert out.shape == (2, 3, 4)
    assert torch.equal(layer(x[1:]), out[1:])  # a token's steps depend on no other token


@pytest.mark.parametrize("of", ["float", "codes"])
def test_a_layer_records_what_its_operators_do(of, request):
    """Whether it keeps floats or codes of its input."""
    if of == "codes":
        request.getfixturevalue("of_any_size")
    x, scale = torch.rand(8, 16, requires_grad=True), torch.tensor([0.1], requires_grad=True)
    quantizers = {"weight_quantizer": LSQ(4, scale=0.1), "input_quantizer": LSQ(4, signed=False, scale=0.1)}
    for layer in (QuantLinear(16, 4, **quantizers), QuantLinear(16, 4, False, **quantizers)):
        w = layer.weight
        plain = nn.functional.linear(ste_ops.lsq(x, scale, 0, 15), ste_ops.lsq(w, scale, -8, 7), layer.bias)
        assert nodes(layer(x)) == nodes(plain)
