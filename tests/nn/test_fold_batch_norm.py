"""`fold_batch_norm_`: norms in thresholds, scales and weights, and what is left."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import fusion

import ste_ops
from ste_ops.nn import (
    LSQ,
    ChannelThreshold,
    Heaviside,
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantLinear,
    Sign,
    XNORWeight,
    fold_batch_norm_,
    folded,
    quantize_,
)

CHANNELS = 12


def trained(norm):
    """Factors of both signs and 0, an offset of 0, a mean of 0, a tiny and a large variance."""
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.3, 3)
        norm.weight[:3] = torch.tensor([0.0, 0.0, -1e-30])
        norm.bias[:5] = torch.tensor([0.5, -0.5, 0.25, 0.0, 0.0])
        norm.running_mean[3] = 0
        norm.running_var[5:7] = torch.tensor([1e-12, 1e12])
    return norm.eval()


def floats(dtype, threshold):
    """Every float of 16 bits; of the others random bits and the neighbours of the thresholds."""
    if dtype.itemsize == 2:
        return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).reshape(-1, 1).expand(-1, CHANNELS)
    integer = torch.int32 if dtype == torch.float32 else torch.int64
    bits = torch.randint(torch.iinfo(integer).min, torch.iinfo(integer).max, (20000, CHANNELS), dtype=integer)
    near = threshold.view(integer) + torch.arange(-500, 501, dtype=integer).reshape(-1, 1)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 5e-324, -5e-324], dtype=dtype)
    near = near.view(dtype)
    return torch.cat([bits.view(dtype), near, -near, special.reshape(-1, 1).expand(-1, CHANNELS)])


STEPS = {
    "sign": (Sign(), ()),
    "heaviside": (Heaviside(), ()),
    "heaviside at 0": (Heaviside(at_zero=1), ()),
    "hardtanh": (Sign(), (nn.Hardtanh(),)),
    "clipped": (Heaviside(), (nn.Hardtanh(0.2, 1.0),)),
    "relu": (Sign(), (nn.ReLU(),)),
    "two": (Heaviside(), (nn.ReLU6(), nn.Hardtanh(-2.0, -0.1))),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_threshold_is_norm_and_step_on_every_float(name, dtype):
    torch.manual_seed(0)
    step, between = STEPS[name]
    model = nn.Sequential(trained(nn.BatchNorm1d(CHANNELS)), *copy.deepcopy(between), copy.deepcopy(step)).eval()
    model = model.to(torch.float64 if dtype == torch.float64 else None)  # a norm of float32 takes 16 bits too
    plain = copy.deepcopy(model)
    fold_batch_norm_(model, torch.randn(4, CHANNELS).to(dtype))
    assert [type(module) for module in model] == [nn.Identity] * (1 + len(between)) + [ChannelThreshold]
    x = floats(dtype, model[-1].threshold)
    assert torch.equal(model(x), plain(x))
    image = x[:200].reshape(2, 100, CHANNELS).transpose(1, 2).reshape(2, CHANNELS, 10, 10)
    of_images = nn.BatchNorm2d(CHANNELS).to(plain[0].weight.dtype).eval()
    of_images.load_state_dict(plain[0].state_dict())
    for layout in (torch.contiguous_format, torch.channels_last):
        given = image.contiguous(memory_format=layout)
        assert torch.equal(model(given), plain[1:](of_images(given)))


def test_a_planted_neighbour_would_be_seen():
    model = nn.Sequential(trained(nn.BatchNorm1d(CHANNELS)), Sign()).eval()
    plain = copy.deepcopy(model)
    fold_batch_norm_(model, torch.randn(4, CHANNELS))
    x = floats(torch.float32, model[1].threshold)
    model[1].threshold[9] = model[1].threshold[9].nextafter(torch.tensor(torch.inf))
    assert not torch.equal(model(x), plain(x))


class Residual(nn.Module):
    """Bi-Real: norm behind the convolution, and the sum is what the next step takes."""

    def __init__(self, last=False):
        super().__init__()
        self.conv = QuantConv2d(4, 4, 3, padding=1, bias=False, weight_quantizer=XNORWeight(), input_quantizer=Sign())
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x)) + x


def net():
    torch.manual_seed(0)
    binary = {"weight_quantizer": XNORWeight(), "input_quantizer": ste_ops.sign}
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), Residual(), Residual(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    layers += [nn.BatchNorm1d(16), nn.Hardtanh(), QuantLinear(16, 8, **binary), nn.BatchNorm1d(8), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(8, 3))
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            with torch.no_grad():
                for held in (module.weight, module.bias, module.running_mean):
                    held.normal_()
                module.running_var.uniform_(0.3, 3)
    return model.eval()


X = torch.randn(2, 1, 10, 10, generator=torch.Generator().manual_seed(1))


def test_a_net_gives_what_it_gave():
    model = net()
    expected, codes = model(X), model[2].conv.weight_codes().values
    parameters = {id(p) for p in model.parameters()}
    assert fold_batch_norm_(model, X) is model
    rows = [(row.name, row.into, row.places) for row in folded(model)]
    assert rows == [
        ("1", "weights", ("0",)),
        ("2.norm", "scale", ("2.conv",)),
        ("3.norm", "scale", ("3.conv",)),
        ("6", "threshold", ("8.input_quantizer",)),
        ("9", "scale", ("8",)),
    ]
    assert folded(model).left == ()
    assert not any(isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) for module in model.modules())
    torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(model[2].conv.weight_codes().values, codes)
    assert {id(p) for p in model.parameters()} <= parameters
    other = fold_batch_norm_(net(), X)
    with torch.no_grad():
        for held in other.state_dict().values():
            held.zero_()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(X), model(X))
    assert torch.equal(copy.deepcopy(model)(X), model(X))
    torch.testing.assert_close(model.train()(X), expected, rtol=1e-4, atol=1e-4)  # and layers that record do it too


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Linear(3, 6), nn.BatchNorm1d(6), (5, 3)),
        (nn.Conv1d(3, 6, 2, bias=False), nn.BatchNorm1d(6, affine=False), (5, 3, 7)),
        (nn.Conv3d(2, 6, 2, groups=2), nn.BatchNorm3d(6), (3, 2, 4, 4, 4)),
        (QuantLinear(3, 6, weight_quantizer=LSQ(4)), nn.BatchNorm1d(6), (5, 3)),
        (QuantConv1d(3, 6, 2, weight_quantizer=LSQ(4, axis=0)), nn.BatchNorm1d(6), (5, 3, 7)),
        (QuantConv3d(2, 6, 2, weight_quantizer=LSQ(4), bias=False), nn.SyncBatchNorm(6), (3, 2, 4, 4, 4)),
    ],
)
def test_every_layer_takes_a_norm(layer, norm, shape):
    torch.manual_seed(0)
    model, x = nn.Sequential(layer, norm).double(), torch.randn(shape, dtype=torch.float64)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.3, 3)
    expected = model.eval()(x)
    assert fold_batch_norm_(model, x) is model
    assert type(model[1]) is nn.Identity
    torch.testing.assert_close(model(x), expected)


class Elsewhere(nn.Module):
    """A layer's output and a norm's that others take too."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.shared = (nn.Linear(4, 4) for _ in range(4))
        self.of_a, self.of_b, self.twice, self.alone, self.batch = (nn.BatchNorm1d(4) for _ in range(5))
        self.batch.train()
        self.of_shared, self.unused, self.viewed = (nn.BatchNorm1d(4) for _ in range(3))
        self.none = nn.BatchNorm1d(4, track_running_stats=False)
        self.d, self.e = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        a = self.a(x)
        x = a + self.of_a(a)
        x = self.twice(self.b(x)) + self.twice(x)
        x = self.alone(x + 1)
        x = self.batch(self.c(x))
        x = self.of_shared(self.shared(self.shared(x)))
        x = self.none(self.d(x))
        return self.viewed(self.e(x).reshape(-1, 4)), self.of_b(x)


def test_what_does_not_fold_is_left_with_its_reason():
    model, x = Elsewhere().eval(), torch.randn(3, 4)
    model.batch.train()
    expected = copy.deepcopy(model)(x)
    reasons = {row.name: row.reason for row in folded(fold_batch_norm_(model, x)).left}
    assert reasons == {
        "of_a": "the output of its Linear goes to aten.add.Tensor in Elsewhere too",
        "of_b": "follows no Linear, Conv1d, Conv2d or Conv3d",
        "twice": "runs 2 times in a forward",
        "alone": "takes what no module made",
        "batch": "is in training mode",
        "of_shared": "its Linear runs 2 times in a forward",
        "unused": "does not run with these inputs",
        "none": "uses the statistics of each batch",
        "viewed": "the output of its Linear goes to aten.view in Elsewhere too",
    }
    assert repr(folded(model)).splitlines()[2].split() == ["of_a", "-", "-", *reasons["of_a"].split()]
    assert all(map(torch.equal, model(x), expected))


class Beside(nn.Module):
    def __init__(self, sign):
        super().__init__()
        self.norm, self.sign, self.act = nn.BatchNorm1d(4), sign, nn.Hardtanh()

    def forward(self, x):
        x = self.norm(x)
        return self.sign(self.act(x)), x.sum()


@pytest.mark.parametrize(
    "model",
    [
        Beside(Sign()),  # the sum takes it too
        nn.Sequential(nn.BatchNorm1d(4), nn.Tanh(), Sign()),
        nn.Sequential(nn.BatchNorm1d(4), nn.Hardtanh(inplace=True), Sign()),
        nn.Sequential(nn.BatchNorm1d(4), Sign().disable()),
        nn.Sequential(nn.BatchNorm1d(4)),
    ],
)
def test_what_is_more_than_a_step_makes_no_threshold(model):
    x = torch.randn(3, 4)
    expected = model.eval()(x)
    assert [row.into for row in folded(fold_batch_norm_(model, x))] == [None]
    assert all(map(torch.equal, model(x), expected))


def test_two_steps_may_take_one_norm():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            sign = Sign()
            self.norm = trained(nn.BatchNorm1d(CHANNELS))
            self.a = QuantLinear(CHANNELS, 3, input_quantizer=sign)
            self.b = QuantLinear(CHANNELS, 3, input_quantizer=sign)

        def forward(self, x):
            x = self.norm(x)
            return self.a(x) + self.b(x)

    model, x = Two().eval(), torch.randn(50, CHANNELS)
    expected = model(x)
    assert folded(fold_batch_norm_(model, x)).rows[0].places == ("a.input_quantizer", "b.input_quantizer")
    assert torch.equal(model(x), expected)


def test_torchs_fusion_is_refused_by_name():
    norm = nn.BatchNorm2d(4).eval()
    conv = QuantConv2d(2, 4, 3, weight_quantizer=Sign()).eval()
    with pytest.raises(TypeError, match=r"QuantConv2d: torch would multiply .*; ste_ops.nn.fold_batch_norm_"):
        fusion.fuse_conv_bn_eval(conv, norm)
    with pytest.raises(TypeError, match="QuantLinear: torch would multiply"):
        fusion.fuse_linear_bn_eval(QuantLinear(2, 4, weight_quantizer=Sign()).eval(), nn.BatchNorm1d(4).eval())
    with pytest.raises(AssertionError, match=r"did not find fuser method for.*QuantConv2d"):
        torch.ao.quantization.fuse_modules(nn.Sequential(conv, norm).eval(), [["0", "1"]])
    # Where the weights stay float, it is right.
    x, conv = torch.randn(2, 2, 5, 5), QuantConv2d(2, 4, 3, input_quantizer=Sign()).eval()
    torch.testing.assert_close(fusion.fuse_conv_bn_eval(conv, trained_small(norm))(x), norm(conv(x)))


def trained_small(norm):
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


def untrained():
    return quantize_(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), input=LSQ(4)).eval()


def threshold(*sizes, low=-1):
    return ChannelThreshold(*(torch.ones(size) for size in sizes), low)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: fold_batch_norm_(net().train(), X), RuntimeError, "must be in eval mode, got training mode"),
        (lambda: fold_batch_norm_(nn.Linear(2, 2).eval(), X), ValueError, "must have a batch norm, got none"),
        (lambda: fold_batch_norm_(net()), TypeError, "example_inputs must be what the model is called with, got none"),
        (lambda: fold_batch_norm_(3, X), TypeError, r"model must be a torch.nn.Module, got int"),
        (
            lambda: fold_batch_norm_(untrained(), X),
            RuntimeError,
            r"'0.input_quantizer': the scale of LSQ is not",
        ),
        (
            lambda: fold_batch_norm_(net().to("meta"), X),
            RuntimeError,
            "must hold numbers, since it runs, got one on the",
        ),
        (lambda: folded(net()), ValueError, "folded: fold_batch_norm_ must have been called on this Sequential"),
        (lambda: threshold(2, 3), ValueError, r"must be vectors of one size, got \(2,\) and \(3,\)"),
        (lambda: threshold(2, 2, low=1), ValueError, "low must be -1 or 0, got 1"),
        (lambda: threshold(2, 2)(torch.ones(5, 3)), ValueError, "x must have 2 channels in dimension 1, got"),
    ],
)
def test_what_cannot_be_folded_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
