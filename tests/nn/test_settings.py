"""Settings: numbers of NumPy, attributes that are assigned later, and functions in the place of modules."""

from __future__ import annotations

import copy
import functools
import io

import numpy as np
import pytest
import torch
from torch import nn

import ste_ops
from ste_ops.nn import (
    LSQ,
    PACT,
    BitNetActivation,
    ClipGradientNorm,
    DoReFaActivation,
    DoReFaWeight,
    FakeQuantize,
    QuantLinear,
    Sign,
    Ternary,
    XNORWeight,
    quantize_,
)
from ste_ops.surrogate import ATan, Clip, Rect

X = torch.linspace(-2, 2, 41)
NUMBERS = {
    "LSQ": lambda i, f: LSQ(i(4), scale=f(0.5), grad_scale=f(0.25))(X),
    "LSQ_axis": lambda i, f: LSQ(i(4), axis=i(0), channels=i(2), scale=f(0.5))(X[:40].reshape(2, 20)),
    "FakeQuantize": lambda i, f: FakeQuantize(i(4), scale=f(0.5), zero_point=i(2))(X),
    "PACT": lambda i, f: PACT(f(1.5), i(3))(X),
    "DoReFaWeight": lambda i, f: DoReFaWeight(i(3))(X),
    "Ternary": lambda i, f: Ternary(Clip(f(0.5)), f(0.25))(X),
    "ClipGradientNorm": lambda i, f: ClipGradientNorm(f(0.5), f(2.0), i(0))(X),
    "fake_quantize": lambda i, f: ste_ops.fake_quantize(X, f(0.5), i(1), i(-8), i(7)),
    "fake_quantize_axis": lambda i, f: ste_ops.fake_quantize(X, torch.ones(41), i(1), i(-8), i(7), i(0)),
    "lsq": lambda i, f: ste_ops.lsq(X, torch.tensor(0.5), i(-8), i(7), grad_scale=f(0.5)),
    "lsq_learned": lambda i, f: ste_ops.lsq(X, torch.tensor(0.5, requires_grad=True), i(-8), i(7), None, f(0.5)),
    "lsq_plus": lambda i, f: ste_ops.lsq_plus(X, torch.tensor(0.5), torch.tensor(0.1), i(-8), i(7), grad_scale=f(0.5)),
    "pact": lambda i, f: ste_ops.pact(X, torch.tensor(1.5), i(3)),
    "dorefa_activation": lambda i, f: ste_ops.dorefa_activation(X, i(3)),
    "dorefa_weight": lambda i, f: ste_ops.dorefa_weight(X, i(3)),
    "bitnet_activation": lambda i, f: ste_ops.bitnet_activation(X, i(3)),
    "sr_ste": lambda i, f: ste_ops.sr_ste(X[:40], i(2), i(4), f(0.5)),
    "clamp": lambda i, f: ste_ops.clamp(X, f(-0.5), f(0.5)),
    "ternary": lambda i, f: ste_ops.ternary(X, Rect(f(0.5)), f(0.25)),
    "sign": lambda i, f: ste_ops.sign(X, ATan(f(2.0))),
    "clip_gradient_norm": lambda i, f: ste_ops.clip_gradient_norm(X, f(0.5), f(2.0), i(0)),
    "categorical_ste": lambda i, f: ste_ops.categorical_ste(X, tau=f(0.5)),
    "subset_ste": lambda i, f: ste_ops.subset_ste(X, i(3), f(0.5)),
    "multinomial": lambda i, f: ste_ops.multinomial(X.abs(), i(3)),
}


@pytest.mark.parametrize("numpy", [(np.int64, np.float32), (np.int32, np.float64), (np.int8, np.float32)])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_numpy_are_numbers(name, numpy):
    torch.manual_seed(0)
    received = NUMBERS[name](*numpy)
    torch.manual_seed(0)
    assert torch.equal(received, NUMBERS[name](int, float))


def test_a_curve_with_a_number_of_numpy_has_its_gradient():
    x = X.clone().requires_grad_()
    received = torch.autograd.grad(ste_ops.sign(x, ATan(np.float32(2.0))).sum(), x)[0]
    assert torch.equal(received, torch.autograd.grad(ste_ops.sign(x, ATan(2.0)).sum(), x)[0])


@pytest.mark.parametrize(
    "make",
    [
        lambda b: LSQ(b),
        lambda b: LSQ(3, axis=b, channels=3),
        lambda b: PACT(bits=b),
        lambda b: FakeQuantize(8, scale=1.0, zero_point=b),
        lambda b: ste_ops.dorefa_weight(X, b),
        lambda b: ste_ops.surrogate.ATan(b),
        lambda b: ste_ops.fake_quantize(X, 1.0, 0, b, 7),
    ],
)
@pytest.mark.parametrize("bad", [True, np.bool_(True), "3"])
def test_a_bool_is_still_no_number(make, bad):
    with pytest.raises((TypeError, ValueError), match="got"):
        make(bad)


@pytest.mark.parametrize("make", [LSQ, FakeQuantize, PACT, DoReFaActivation, DoReFaWeight, BitNetActivation])
def test_more_bits_than_float32_has_are_refused(make):
    arguments = {"bits": 64}
    with pytest.raises(ValueError, match=rf"{make.__name__}: bits must be at most 24, .*float32.* got 64"):
        make(**arguments)
    make(bits=24)


@pytest.mark.parametrize("make", [LSQ, FakeQuantize])
def test_one_bit_names_what_may_be_meant(make):
    words = rf"{make.__name__}: bits must be an integer >= 2, got 1; .*signed=False"
    with pytest.raises(ValueError, match=words):
        make(1)
    assert make(1, signed=False).quant_max == 1
    module = make(1, signed=False)
    with pytest.raises(ValueError, match=words):
        module.signed = True
    assert module.signed is False


@pytest.mark.parametrize("make", [LSQ, FakeQuantize])
def test_bits_that_are_assigned_are_used(make):
    module = make(4, scale=0.25)
    module.bits = np.int64(2)
    assert (module.bits, module.quant_min, module.quant_max) == (2, -2, 1)
    assert "bits=2" in repr(module)
    assert torch.equal(module(X), make(2, scale=0.25)(X))
    module.signed = False
    assert torch.equal(module(X), make(2, False, scale=0.25)(X))
    with pytest.raises(ValueError, match="bits must be at most 24"):
        module.bits = 32
    with pytest.raises(TypeError, match="signed must be True or False, got 1"):
        module.signed = 1
    assert (module.bits, module.signed, module.quant_max) == (2, False, 3)
    for other in (copy.deepcopy(module), torch.load(_saved(module), weights_only=False)):
        assert torch.equal(other(X), module(X))


def _saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("first", [None, ste_ops.sign, Sign(), XNORWeight()], ids=["None", "sign", "Sign", "XNOR"])
@pytest.mark.parametrize("second", [None, ste_ops.sign, Sign()], ids=["None", "sign", "Sign"])
@pytest.mark.parametrize("key", ["weight_quantizer", "input_quantizer"])
def test_a_quantizer_is_assigned_as_at_construction(key, first, second):
    torch.manual_seed(0)
    layer = QuantLinear(3, 2, **{key: first})
    torch.manual_seed(0)
    expected = QuantLinear(3, 2, **{key: second})
    setattr(layer, key, second)
    x = torch.randn(4, 3)
    assert torch.equal(layer(x), expected(x))
    assert repr(layer) == repr(expected)
    assert getattr(layer, key) is second
    assert torch.equal(copy.deepcopy(layer)(x), expected(x))


def test_an_assigned_quantizer_takes_the_weights_channels():
    layer = QuantLinear(3, 2, weight_quantizer=ste_ops.sign)
    layer.weight_quantizer = LSQ(4, axis=0)
    assert layer.weight_quantizer.scale.shape == (2,)
    assert layer(torch.randn(4, 3)).shape == (4, 2)
    with pytest.raises(TypeError, match="QuantLinear: weight_quantizer must be a module, a function or None, got 3"):
        layer.weight_quantizer = 3
    with pytest.raises(TypeError, match=r"got the class Sign; an instance is expected, as Sign\(...\)"):
        layer.weight_quantizer = Sign
    assert isinstance(layer.weight_quantizer, LSQ)


@pytest.mark.parametrize(
    "quantizer",
    [ste_ops.sign, functools.partial(ste_ops.ternary, threshold=0.25), ATan(2.0)],
    ids=["f", "partial", "s"],
)
def test_quantize_takes_operators_as_layers_do(quantizer):
    float_model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model = quantize_(copy.deepcopy(float_model), weight=quantizer, input=quantizer)
    expected = [QuantLinear.from_float(layer, quantizer, quantizer) for layer in float_model]
    x = torch.randn(5, 3)
    assert torch.equal(model(x), expected[1](expected[0](x)))
    # A function of the user's is still asked for each layer's quantizer.
    model = quantize_(
        copy.deepcopy(float_model), weight=lambda layer: ste_ops.sign if layer.out_features == 4 else None
    )
    assert [layer.weight_quantizer for layer in model] == [ste_ops.sign, None]
