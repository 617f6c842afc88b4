"""`quantize_`: what it keeps of a float model, what it refuses, and what the quantized model goes through."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import ste_ops
from ste_ops.nn import (
    LSQ,
    PACT,
    SRSTE,
    FakeQuantize,
    QuantConv2d,
    QuantLinear,
    Sign,
    XNORWeight,
    quantize_,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.body = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU())
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.body(self.first(x)).mean((2, 3)))


def test_quantizers_are_made_on_the_layers_device():
    model = quantize_(Net().to("meta"), weight=FakeQuantize(4, axis=0), input=LSQ(4))
    assert {t.device.type for t in [*model.parameters(), *model.buffers()]} == {"meta"}
    model.load_state_dict(quantize_(Net(), weight=FakeQuantize(4, axis=0), input=LSQ(4)).state_dict(), assign=True)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 3)


def test_quantize_keeps_everything_of_a_model_but_the_class():
    model = Net().double().eval()
    model.first.weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    layers, parameters = list(model.modules()), dict(model.named_parameters())
    calls = []
    model.body[1].register_forward_pre_hook(lambda *_: calls.append("body"))
    returned = quantize_(
        model, weight=LSQ(4, axis=0), input=lambda layer: PACT(1.0, 4) if layer is model.last else None
    )
    assert returned is model
    assert [type(m).__name__ for m in (model.first, model.body[1], model.last)] == ["QuantConv2d"] * 2 + ["QuantLinear"]
    assert all(layer in set(model.modules()) for layer in layers)
    assert all(dict(model.named_parameters())[name] is parameter for name, parameter in parameters.items())
    assert not any(module.training for module in model.modules())
    assert model.last.input_quantizer.alpha.dtype == torch.float64
    assert [model.first.input_quantizer, model.body[1].input_quantizer] == [None, None]
    assert model.body[1].weight_quantizer is not model.first.weight_quantizer
    assert model.body[1].weight_quantizer.scale.shape == (6,)
    assert model.body[1].weight_quantizer.scale.dtype == torch.float64
    before = model.last.weight.detach().clone()
    model(torch.randn(2, 1, 8, 8, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    assert calls == ["body"]
    assert not torch.equal(model.last.weight, before)


@pytest.mark.parametrize(
    "choice",
    [
        {"skip": ("first", "last")},
        {"filter_fn": lambda layer, name: isinstance(layer, nn.Conv2d) and name.startswith("body.")},
        {"skip": ["first"], "filter_fn": lambda layer, name: name != "last"},
    ],
)
def test_layers_can_be_left_alone(choice):
    model = quantize_(Net(), weight=Sign(), **choice)
    assert [type(m) for m in (model.first, model.body[1], model.last)] == [nn.Conv2d, QuantConv2d, nn.Linear]
    # What was left can be quantized otherwise; what was not is refused.
    with pytest.raises(ValueError, match=r"'body.1' is quantized already \(QuantConv2d\); leave it out by skip"):
        quantize_(model, weight=LSQ(8))
    assert type(model.first) is nn.Conv2d
    quantize_(model, weight=LSQ(8), skip=["body"])
    assert isinstance(model.last.weight_quantizer, LSQ)
    assert isinstance(model.body[1].weight_quantizer, Sign)


def test_a_model_may_be_a_layer_and_a_layer_may_have_two_names():
    layer = nn.Linear(3, 3)
    assert quantize_(layer, weight=XNORWeight()) is layer
    shared = nn.Linear(3, 3)
    model = quantize_(nn.Sequential(shared, nn.ReLU(), shared), weight=lambda layer: XNORWeight())
    assert model[0] is model[2]
    assert isinstance(shared, QuantLinear)
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.Linear(3, 3), shared)
    quantize_(model, weight=XNORWeight(), skip=["2"])
    assert [type(m) for m in model] == [nn.Linear, QuantLinear, nn.Linear]


class OwnLinear(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def _with_own_forward():
    layer = nn.Linear(2, 2)
    layer.forward = lambda x: x
    return nn.Sequential(nn.Linear(2, 2), layer)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: quantize_(Net()), ValueError, "weight or input must be given"),
        (
            lambda: quantize_(Net(), weight=Sign),
            TypeError,
            r"got the class Sign; an instance is expected, as Sign\(...\)",
        ),
        (lambda: quantize_(Net(), input=3), TypeError, "input must be a module, a function or None, got 3"),
        (
            lambda: quantize_(Net(), weight=lambda layer: 3),
            TypeError,
            "weight must be a module, a function or None, got 3",
        ),
        (
            lambda: quantize_(Net(), weight=Sign(), skip="first"),
            TypeError,
            "collection of names, got the string 'first'",
        ),
        (lambda: quantize_(Net(), weight=Sign(), skip=["frist"]), ValueError, r"got \['frist'\]; it has \['first', "),
        (lambda: quantize_(Net(), weight=Sign(), filter_fn=lambda *_: False), ValueError, "got none"),
        (lambda: quantize_(nn.Sequential(OwnLinear(2, 2)), weight=Sign()), ValueError, "got none"),
        (lambda: quantize_(_with_own_forward(), weight=Sign()), TypeError, "'1': layer has a forward of its own"),
    ],
)
def test_what_cannot_be_quantized_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_refused_model_is_unchanged():
    model = _with_own_forward()
    with pytest.raises(TypeError):
        quantize_(model, weight=Sign())
    assert type(model[0]) is nn.Linear


def test_parametrizations_and_weight_norm_stay():
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(3, 4)), parametrizations.spectral_norm(nn.Linear(4, 2))
    )
    float_weight = model[0].weight.detach()
    other = copy.deepcopy(model)
    x = torch.randn(5, 3)
    expected = other(x)
    quantize_(model, weight=LSQ(8, axis=0))
    assert parametrize.is_parametrized(model[0], "weight")
    assert isinstance(model[0], QuantLinear)
    assert type(model[0]).__name__ == "ParametrizedQuantLinear"
    torch.testing.assert_close(model(x), expected, atol=0.05, rtol=0.05)
    assert not torch.equal(model(x), expected)
    model(x).square().sum().backward()
    assert model[0].parametrizations.weight.original0.grad.abs().sum() > 0
    copied = copy.deepcopy(model).eval()
    assert torch.equal(copied(x), model.eval()(x))
    assert type(other[0]).__name__ == "ParametrizedLinear"  # a deep copy shares the class that is made for it
    assert torch.equal(other.eval()[0](x), torch.nn.functional.linear(x, float_weight, other[0].bias))
    parametrize.remove_parametrizations(model[0], "weight")
    assert type(model[0]) is QuantLinear


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_the_older_weight_norm_stays():
    layer = torch.nn.utils.weight_norm(nn.Linear(3, 4))
    quantize_(layer, weight=XNORWeight())
    before = layer(torch.ones(1, 3)).detach()
    with torch.no_grad():
        layer.weight_g.mul_(2)
        layer.bias.mul_(2)
    torch.testing.assert_close(layer(torch.ones(1, 3)).detach(), 2 * before)


def test_torchs_fused_encoder_does_not_pass_the_quantizers_by():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        plain = encoder(x)
        quantize_(encoder, weight=Sign())
        fused = encoder(x)
    assert isinstance(encoder.linear1, QuantLinear)
    assert type(encoder.self_attn.out_proj).__name__ == "NonDynamicallyQuantizableLinear"
    torch.testing.assert_close(fused, encoder(x).detach())
    assert not torch.allclose(fused, plain, atol=0.1)


# What a model goes through.


def quantized_net():
    torch.manual_seed(0)
    net = quantize_(Net(), weight=LSQ(3, axis=0), input=FakeQuantize(8, signed=False), skip=["first", "last"])
    quantize_(net, weight=SRSTE(1, 3), input=ste_ops.heaviside, filter_fn=lambda layer, name: name == "last")
    return net


def test_state_dicts_round_trip_and_a_float_checkpoint_loads():
    x = torch.randn(4, 1, 8, 8)
    net = quantized_net()
    expected = net(x)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other = quantized_net()
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(other.train()(x), expected)
    # A quantizer without state adds no keys.
    plain = Net()
    binary = quantize_(Net(), weight=XNORWeight(), input=Sign(), skip=["first"])
    binary.load_state_dict(plain.state_dict())
    learned = quantized_net()
    missing, unexpected = learned.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert {key.rsplit(".", 2)[-2] for key in missing} == {"weight_quantizer", "input_quantizer"}
    assert torch.equal(learned.last.weight, plain.last.weight)


def test_copies_and_files_of_a_whole_model():
    net, x = quantized_net(), torch.randn(4, 1, 8, 8)
    net(x)
    net.eval()
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for other in (copy.deepcopy(net), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), net(x))
        assert repr(other) == repr(net)
        assert {id(p) for p in other.parameters()}.isdisjoint({id(p) for p in net.parameters()})


@pytest.mark.parametrize("strict", [True, False])
def test_export_runs_the_same_program(strict):
    net, x = quantized_net(), torch.randn(4, 1, 8, 8)
    net(x)
    net.eval()
    program = torch.export.export(net, (x,), strict=strict, dynamic_shapes=({0: torch.export.Dim("batch")},))
    for size in (4, 7):
        x = torch.randn(size, 1, 8, 8)
        torch.testing.assert_close(program.module()(x), net(x))


def test_training_compiles_whole_and_runs_under_autocast():
    torch._dynamo.reset()
    net = quantized_net()
    other = copy.deepcopy(net)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        x = torch.randn(4, 1, 8, 8)
        for model, call in ((net, compiled), (other, other)):
            call(x).square().sum().backward()
            torch.optim.SGD(model.parameters(), lr=0.01).step()
            model.zero_grad()
    torch.testing.assert_close(net.state_dict(), other.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        out = net(torch.randn(4, 1, 8, 8))
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert all(p.grad.dtype == p.dtype and bool(p.grad.isfinite().all()) for p in net.parameters())
