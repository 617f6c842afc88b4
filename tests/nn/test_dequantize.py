"""`dequantize_`: quantizers off again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import ste_ops
from ste_ops.nn import LSQ, QuantLinear, Sign, XNORWeight, dequantize_, fold_batch_norm_, quantize_


class Block(nn.Conv2d):
    pass


def net():
    torch.manual_seed(0)
    convs = [nn.Conv2d(1, 4, 3), Block(4, 4, 3)]
    return nn.Sequential(
        *convs, nn.ConvTranspose2d(4, 2, 3), nn.Flatten(), parametrizations.weight_norm(nn.Linear(72, 3))
    )


def quantized(model):
    return quantize_(model, LSQ(4, axis=0), ste_ops.sign, also=[nn.ConvTranspose2d], skip=["0"])


X = torch.linspace(-1, 1, 2 * 64).reshape(2, 1, 8, 8)


def test_the_float_model_comes_back_on_the_same_parameters():
    model = net()
    plain = copy.deepcopy(model)
    before = [(type(m).__name__, id(m)) for m in model.modules()]
    parameters = {name: id(p) for name, p in model.named_parameters()}
    assert not torch.equal(quantized(model)(X), plain(X))
    assert dequantize_(model) is model
    assert [(type(m).__name__, id(m)) for m in model.modules()] == before
    assert {name: id(p) for name, p in model.named_parameters()} == parameters
    assert list(model.state_dict()) == list(plain.state_dict())
    assert repr(model) == repr(plain)
    assert torch.equal(model(X), plain(X))
    assert parametrize.is_parametrized(model[4], "weight")
    assert all(row.reason != "skip names '0'" for row in ste_ops.nn.summary(model))
    quantized(model)  # and once more
    assert torch.equal(model(X), quantized(plain)(X))


def test_baked_weights_are_those_that_the_layers_computed_with():
    model = quantize_(net()[:3], XNORWeight(), also=[nn.ConvTranspose2d])
    parameters, expected = {id(p) for p in model.parameters()}, model(X)
    weights = [model[0].quantized_weight().detach(), model[2].weight.detach()]
    dequantize_(model, bake=True)
    assert {id(p) for p in model.parameters()} == parameters
    assert [type(m) for m in model] == [nn.Conv2d, Block, nn.ConvTranspose2d]
    assert all(map(torch.equal, [model[0].weight, model[2].weight], weights))
    assert torch.equal(model(X), expected)


def test_torchs_fused_encoder_runs_again():
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
    before = encoder.activation_relu_or_gelu
    dequantize_(quantize_(encoder, Sign()))
    assert encoder.activation_relu_or_gelu == before == 2


class Own(QuantLinear):
    pass


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return quantize_(model, Sign(), skip=["0"])


def unset():
    layer = nn.Linear(4, 4)
    nn.init.zeros_(layer.weight)
    return quantize_(layer, LSQ(4))


def folded():
    model = quantize_(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), LSQ(4)).eval()
    return fold_batch_norm_(model, torch.randn(2, 4))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: dequantize_(net()), ValueError, "dequantize_: model must have a quantized layer, got none"),
        (lambda: dequantize_(3), TypeError, "dequantize_: model must be a module, got int"),
        (lambda: dequantize_(nn.Sequential(Own(2, 2, weight_quantizer=Sign()))), TypeError, "'0' is of the class Own"),
        (lambda: dequantize_(tied(), bake=True), ValueError, "weight of '1' is another module's too"),
        (lambda: dequantize_(quantized(net()), bake=True), ValueError, "the weight of '4' is computed"),
        (lambda: dequantize_(folded()), ValueError, "a norm was folded into the output of '0'"),
        (lambda: dequantize_(folded(), bake=True), ValueError, "call dequantize_ before fold_batch_norm_"),
        (lambda: dequantize_(unset(), bake=True), RuntimeError, "the scale of LSQ is not set yet"),
    ],
)
def test_what_cannot_be_taken_off_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_refused_model_is_unchanged():
    model = quantized(net())
    expected = model(X)
    with pytest.raises(ValueError, match="computed"):
        dequantize_(model, bake=True)
    assert torch.equal(model(X), expected)
