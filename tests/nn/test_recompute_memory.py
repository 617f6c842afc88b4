"""A recomputed model keeps less for its gradients, brings little back at once and leaks nothing."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from support.kept import assert_equal, kept_bytes
from support.recomputed import NETS, Calls, alive, as_it_was, conv, images, peak
from torch import nn

from ste_ops.nn import (
    LSQ,
    BitNetActivation,
    BitNetWeight,
    QuantLinear,
    _kept,
    _tape,
    recompute_,
    recomputed,
)

pytestmark = pytest.mark.usefixtures("of_any_tensor")


SHARES = {"lsq_resnet": 0.62, "bireal": 0.35, "vgg": 0.35, "resnet": 0.62}


@pytest.mark.parametrize("name", SHARES)
def test_bytes_kept(floats, name):
    torch.manual_seed(0)
    net, (_, *shape) = NETS[name]()
    x = torch.randn(8, *shape)
    net(x)
    saved = floats(lambda: kept_bytes(net, x))
    assert kept_bytes(recompute_(net, x), x) <= SHARES[name] * saved


def test_a_backward_brings_back_little_at_once():
    """What is made anew stays until it was used, and a long chain of residual sums is kept at some of its links."""

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(40))

        def forward(self, x):
            for norm in self.norms:
                x = (norm(x * 2) + x).relu()
            return x

    net, x = Chain(), torch.randn(4, 8, 32, 32)
    peaks = []
    for one in (net, recompute_(copy.deepcopy(net), x)):
        peaks.append(peak(lambda: one(x).sum().backward()))  # noqa: B023
    assert peaks[1] < 0.75 * peaks[0]


def test_what_was_used_is_let_go_within_the_backward(monkeypatch):
    """Torch goes on to hold the hooks, from which nothing leads to what they packed."""
    monkeypatch.setattr(_kept, "LEAST_USES", 64)  # so few rows keep quantized weights
    layers = [QuantLinear(256, 256, input_quantizer=LSQ(4), weight_quantizer=LSQ(4)) for _ in range(8)]
    net, x = nn.Sequential(*layers), torch.randn(4, 256)
    net(x)
    peaks = []
    for one in (net, recompute_(copy.deepcopy(net), x)):
        peaks.append(peak(lambda: one(x).sum().backward()))  # noqa: B023
    assert peaks[1] <= 1.05 * peaks[0]


def test_a_gate_in_16_bits_keeps_its_two_factors_alone():
    layers = {"weight_quantizer": BitNetWeight(), "input_quantizer": BitNetActivation()}

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.down = nn.RMSNorm(32), QuantLinear(96, 32, bias=False, **layers)
            self.gate, self.up = (QuantLinear(32, 96, bias=False, **layers) for _ in range(2))

        def forward(self, x):
            h = self.norm(x)
            return x + self.down(nn.functional.silu(self.gate(h)) * self.up(h))

    net, x = Gated().bfloat16(), torch.randn(4, 64, 32, dtype=torch.bfloat16, requires_grad=True)
    recompute_(net, x)
    two = 2 * 4 * 64 * 96 * 2
    assert two <= kept_bytes(net, x) <= 1.05 * two
    assert {row.nbytes for row in recomputed(net).left} == {two // 2}


@pytest.mark.parametrize("act", [torch.sigmoid, lambda x: x.softmax(1), lambda x: x.relu_(), lambda x: x.mean().exp()])
def test_a_graph_without_a_backward_is_freed(act):
    """An operation that saves its own output must not hold the graph that it is in."""
    net = recompute_(Calls(lambda self, x: act(self.conv(x)), conv=conv()), images())
    y = net(images())
    output = weakref.ref(y)
    del y
    assert output() is None


def test_nothing_of_the_trial_or_of_a_dropped_forward_stays():
    """A tape that holds a tensor whose graph holds the tape would be a cycle that no collector sees."""
    x = torch.randn(2, 4, 23, 29)
    before = alive(x.shape)
    net = recompute_(Calls(lambda self, x: self.conv(x).relu().double(), conv=conv()), x)
    assert alive(x.shape) == before
    for _ in range(3):
        net(x)
    assert alive(x.shape) == before


def test_weights_that_few_outputs_use_are_listed(monkeypatch):
    monkeypatch.setattr(_kept, "LEAST_USES", 64)
    net, x = nn.Sequential(QuantLinear(64, 96, weight_quantizer=LSQ(4), input_quantizer=LSQ(4))), torch.randn(4, 64)
    net(x)
    x.requires_grad_()
    left = recomputed(recompute_(net, x)).left
    assert [row.reason for row in left if row.shape == (96, 64)] == ["is used for too few outputs to quantize it again"]


def test_what_the_forward_lets_go_is_not_held(floats):
    """Steps along a gradient within the forward, of which nothing is kept."""

    def forward(self, x):
        for _ in range(12):
            with torch.enable_grad():
                z = x.detach().requires_grad_()
                energy = (self.conv(z).sin() * self.other(z).tanh()).sum()
            x = x - 0.1 * torch.autograd.grad(energy, z)[0]
        return self.conv(x)

    net, x = Calls(forward, conv=conv(), other=conv()), torch.randn(8, 4, 32, 32)
    as_it_was(floats, copy.deepcopy(net), x)
    before = peak(lambda: net(x))
    recompute_(net, x)
    assert peak(lambda: net(x)) <= 1.5 * before


def test_a_long_chain_on_parameters_is_cut():
    def forward(self, x):
        weight = self.weight
        for _ in range(400):
            weight = weight * torch.tanh(weight)
        return x * weight

    net = Calls(forward)
    net.weight = nn.Parameter(images())
    twin = recompute_(copy.deepcopy(net), images())
    for one in (net, twin):
        y = one(images()).sum()
        for retain in (True, False):
            y.backward(retain_graph=retain)
    assert_equal([twin.weight.grad], [net.weight.grad])


@pytest.mark.parametrize("channels", [1024, 2048, 4096])
def test_frozen_norms_of_many_channels(monkeypatch, channels):
    monkeypatch.setattr(_tape, "LEAST", 1 << 14)
    x = torch.randn(2, 4, 8, 8)
    net = nn.Sequential(nn.Conv2d(4, channels, 1), nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 4, 1))
    saved = kept_bytes(net.eval(), x)
    assert kept_bytes(recompute_(net, x), x) <= 0.6 * saved
