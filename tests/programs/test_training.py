"""Networks of examples/quantized_digits.py learn as well on the native operators as on their reference."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

from examples import quantized_digits as example
from ste_ops import functional, reference
from ste_ops.demo import data
from ste_ops.nn import LSQ, QuantConv2d, QuantLinear, Sign

pytest.importorskip("sklearn")

EPOCHS = 6
QUANTIZED = ["binary", "lsq"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """The nets are too small to share; on a busy machine threads that wait for each other take ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dataset():
    return data.digits(seed=0)


def build(name, seed=0):
    torch.manual_seed(seed)
    return example.NETS[name]()


def trained(name, dataset, epochs=EPOCHS):
    net = build(name)
    losses = example.train(net, dataset, epochs, seed=0)
    return example.accuracy(net, dataset), losses, net


@pytest.fixture
def on_the_reference(monkeypatch):
    """Points the modules at the reference from the call on."""

    def patch():
        for name in [*reference.__all__, "round"]:
            monkeypatch.setattr(functional, name, getattr(reference, name))

    return patch


def test_float_net_learns(dataset):
    assert trained("float", dataset)[0] > 0.95


@pytest.mark.parametrize("name", QUANTIZED)
def test_native_trains_to_within_a_point_of_the_reference(dataset, name, on_the_reference):
    native, losses, _ = trained(name, dataset)
    on_the_reference()
    expected, reference_losses, _ = trained(name, dataset)
    assert native > 0.93
    assert abs(native - expected) <= 0.01
    # The first epoch has had little time to drift apart.
    assert losses[0] == pytest.approx(reference_losses[0], rel=0.02)


def test_the_binary_net_computes_with_signs(dataset):
    net = trained("binary", dataset, epochs=1)[2]
    for layer in net:
        if hasattr(layer, "quantized_weight"):
            assert layer.quantized_weight().unique().tolist() == [-1, 1]


def test_the_lsq_net_computes_with_four_levels_and_learns_their_steps(dataset):
    net = build("lsq")
    net(example.images(dataset.train_images))
    before = {name: p.detach().clone() for name, p in net.named_parameters() if name.endswith("scale")}
    example.train(net, dataset, 1, seed=0)
    for layer in (net.conv0, net.conv1):
        integers = (layer.quantized_weight() / layer.weight_quantizer.scale.view(-1, 1, 1, 1)).detach()
        torch.testing.assert_close(integers, integers.round(), atol=1e-5, rtol=0)
        assert integers.round().unique().tolist() == [-2, -1, 0, 1]
    assert len(before) == 4
    assert not any(torch.equal(net.get_parameter(name), old) for name, old in before.items())


@pytest.mark.parametrize("name", QUANTIZED)
def test_training_under_compile(dataset, name):
    torch._dynamo.reset()
    net = build(name)
    capture = functools.partial(torch.compile, fullgraph=True, backend="aot_eager")
    losses = example.train(net, dataset, 1, seed=0, transform=capture)
    _, expected, other = trained(name, dataset, epochs=1)
    assert losses == pytest.approx(expected, rel=0.02)
    assert all(m.scale.grad is not None for m in net.modules() if isinstance(m, LSQ))
    assert abs(example.accuracy(net, dataset) - example.accuracy(other, dataset)) <= 0.02


def test_training_through_inductor():
    """Small, and with its steps given, so that generating and compiling code takes seconds."""
    torch._dynamo.reset()
    conv = QuantConv2d(1, 4, 3, weight_quantizer=LSQ(2, scale=0.2), input_quantizer=Sign())
    last = QuantLinear(4 * 36, 10, weight_quantizer=Sign(), input_quantizer=LSQ(2, signed=False, scale=0.5))
    net = nn.Sequential(conv, nn.Flatten(), last)
    other, x = copy.deepcopy(net), torch.randn(16, 1, 8, 8)
    for call in (torch.compile(net, fullgraph=True), other):
        call(x).square().sum().backward()
    for p, expected in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, expected.grad, rtol=1e-4, atol=1e-3)


class Autocast(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.net(x).float()


@pytest.mark.parametrize("name", QUANTIZED)
def test_training_under_bfloat16_autocast(dataset, name):
    net = build(name)
    losses = example.train(net, dataset, 3, seed=0, transform=Autocast)
    assert losses[-1] < losses[0] / 2
    assert example.accuracy(net, dataset) > 0.9
    assert {p.dtype for p in net.parameters()} == {torch.float32}
