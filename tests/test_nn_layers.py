"""`QuantLinear`, `QuantConv1d/2d/3d`, and float models made quantized by `quantize_`."""

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
    BitNetActivation,
    BitNetWeight,
    FakeQuantize,
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantLinear,
    Sign,
    XNORWeight,
    quantize_,
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


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.body = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU())
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.body(self.first(x)).mean((2, 3)))


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


def test_quantizers_are_made_on_the_layers_device():
    model = quantize_(Net().to("meta"), weight=FakeQuantize(4, axis=0), input=LSQ(4))
    assert {t.device.type for t in [*model.parameters(), *model.buffers()]} == {"meta"}
    model.load_state_dict(quantize_(Net(), weight=FakeQuantize(4, axis=0), input=LSQ(4)).state_dict(), assign=True)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 3)


def test_repr_says_what_is_quantized():
    text = repr(QuantConv2d(1, 2, 3, weight_quantizer=LSQ(2), input_quantizer=ste_ops.sign))
    assert "QuantConv2d(\n  1, 2, kernel_size=(3, 3), stride=(1, 1), input_quantizer=sign" in text
    assert "(weight_quantizer): LSQ(bits=2, signed=True)" in text


# quantize_


def test_quantize_keeps_everything_of_a_model_but_the_class():
    model = Net().double().eval()
    model.first.weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    layers, parameters = list(model.modules()), dict(model.named_parameters())
    calls = []
    model.body[1].register_forward_pre_hook(lambda *_: calls.append("body"))
    returned = quantize_(
        model, weight=LSQ(4, axis=0), input=lambda layer: PACT(4, alpha=1.0) if layer is model.last else None
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
    quantize_(net, weight=SRSTE(1, 3), input=lambda layer: ste_ops.sign, filter_fn=lambda layer, name: name == "last")
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


def test_bitnet_layers_take_tokens():
    layer = QuantLinear(8, 4, weight_quantizer=BitNetWeight(), input_quantizer=BitNetActivation())
    x = torch.randn(2, 3, 8, requires_grad=True)
    out = layer(x)
    assert out.shape == (2, 3, 4)
    assert torch.equal(layer(x[1:]), out[1:])  # a token's steps depend on no other token
