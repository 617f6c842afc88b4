"""Quantized layers keep codes of their input and nothing of their quantized weight, and nothing changes for it."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from support.kept import INPUTS, LAYERS, WEIGHTS, assert_equal, kept_bytes, made, trained
from torch import nn
from torch.utils.checkpoint import checkpoint

import ste_ops
from ste_ops.functional.quantize._codes import pack
from ste_ops.nn import (
    LSQ,
    BitNetWeight,
    LSQPlus,
    QuantConv2d,
    QuantLinear,
    Sign,
    XNORWeight,
)

pytestmark = pytest.mark.usefixtures("of_any_size")


def pairs():
    """Every quantizer and every layer, each with several of the others."""
    weights, layers = itertools.cycle(WEIGHTS), itertools.cycle(LAYERS)
    for name in [*INPUTS] * 3:
        yield name, next(weights), next(layers)


@pytest.mark.parametrize(("of_input", "of_weight", "kind"), list(pairs()))
def test_gradients_of_two_orders(device, floats, of_input, of_weight, kind):
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        layer, x = made(kind, of_input, of_weight, dtype)
        layer, x = layer.to(device), x.to(device)
        for laid in (x, x.to(memory_format=torch.channels_last)) if x.dim() == 4 else (x,):
            again = dtype == torch.float64
            assert_equal(trained(layer, laid, again), floats(lambda: trained(layer, laid, again)))  # noqa: B023
            if x.numel() > 0:
                layer(laid)  # its scales are set: not the first batch any more


@pytest.mark.parametrize("of_input", INPUTS)
def test_what_is_kept(floats, of_input):
    quantizer, bits = INPUTS[of_input]
    if of_input.startswith("LSQ channels"):
        quantizer = lambda: LSQ(2, axis=1, channels=16).freeze() if bits else LSQ(2, axis=1, channels=16)  # noqa: E731
    layer = QuantConv2d(16, 16, 3, padding=1, input_quantizer=quantizer(), weight_quantizer=XNORWeight())
    x = torch.randn(4, 16, 32, 32, requires_grad=True)
    if of_input == "BitNet":
        layer = QuantLinear(512, 16, input_quantizer=quantizer(), weight_quantizer=BitNetWeight())
        x = torch.randn(128, 512, requires_grad=True)
    for _ in range(2):
        layer(x)
    saved, numel, weight = floats(lambda: kept_bytes(layer, x)), x.numel(), layer.weight.numel()
    now = kept_bytes(layer, x)
    # In the place of the quantized input and weight, and of the mean or mask of the weight.
    least, most = numel * 4 - numel * bits // 8 + weight * 4 - 2048, numel * 4 - numel * bits // 8 + weight * 4 + weight
    assert least <= saved - now <= most, (saved, now)


def test_a_frozen_weight_and_an_input_without_a_gradient_keep_no_codes():
    layer = QuantLinear(64, 64, bias=False, input_quantizer=ste_ops.sign, weight_quantizer=ste_ops.sign)
    x = torch.randn(128, 64)
    layer.weight.requires_grad_(False)
    assert kept_bytes(layer, x) == 0
    with torch.no_grad():
        assert kept_bytes(layer.requires_grad_(), x) == 0
    assert 0 < kept_bytes(layer, x) < 128 * 64 // 8 + 256


@pytest.mark.parametrize("of_weight", ["Sign", "LSQ frozen", "XNOR", "FakeQuantize"])
def test_a_weight_that_changes_before_the_backward_is_told(of_weight):
    layer = QuantLinear(4, 3, input_quantizer=Sign(), weight_quantizer=WEIGHTS[of_weight]())
    x = torch.randn(5, 4, requires_grad=True)
    layer(x).sum().backward()
    loss = layer(x).sum()
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(
        RuntimeError, match=r"changed in place between forward and backward.*shape \(3, 4\), version 2, expected 1"
    ):
        loss.backward()
    if of_weight in ("LSQ frozen", "FakeQuantize"):
        loss = layer(x).sum()
        with torch.no_grad():
            layer.weight_quantizer.scale.mul_(2)
        with pytest.raises(RuntimeError, match="changed in place between forward and backward"):
            loss.backward()


@pytest.mark.parametrize("quantizer", [LSQ, LSQPlus])
def test_what_a_learned_scale_made_comes_again_out_of_its_node(floats, quantizer):
    layer = QuantLinear(16, 8, input_quantizer=quantizer(4), weight_quantizer=quantizer(4))
    x = torch.randn(64, 16, requires_grad=True)
    layer(x)
    assert kept_bytes(layer, x) < 64  # the two steps

    def stepped():
        y = layer(x)
        with torch.no_grad():
            for scale in (layer.input_quantizer.scale, layer.weight_quantizer.scale):
                scale.mul_(2)
        gradients = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
        with torch.no_grad():
            for scale in (layer.input_quantizer.scale, layer.weight_quantizer.scale):
                scale.div_(2)
        return gradients

    assert_equal(stepped(), floats(stepped))
    for changed in (layer.weight, x):
        loss = layer(x).sum()
        with torch.no_grad():
            changed.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("of_input", INPUTS)
def test_what_is_not_finite_is_kept_as_it_is(floats, of_input, number):
    layer, x = made("conv2d", of_input, "Bi-Real")
    layer(x)
    x[0, 1, 2, 3] = number
    assert_equal(trained(layer, x), floats(lambda: trained(layer, x)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("of_input", INPUTS)
def test_under_autocast(floats, of_input, dtype):
    for kind, own in (("conv2d", torch.float32), ("linear of many", torch.float32), ("conv2d", torch.bfloat16)):
        layer, x = made(kind, of_input, "LSQ", own)
        layer(x)

        def call():
            with torch.autocast("cpu", dtype):
                return trained(layer, x)  # noqa: B023

        assert_equal(call(), floats(call))


def test_a_backward_may_run_twice(floats):
    layer, x = made("conv2d", "LSQ", "XNOR")
    x.requires_grad_()
    y = layer(x)
    first = torch.autograd.grad(y.sum(), [x, layer.weight], retain_graph=True)
    assert_equal(torch.autograd.grad(y.sum(), [x, layer.weight]), first)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y.sum(), [x, layer.weight])


def test_hooks_and_checkpoints_around_a_layer_see_all(floats):
    layer, x = made("conv2d", "LSQ", "XNOR")
    layer(x)
    expected = trained(layer, x)

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return checkpoint(self.layer, x, use_reentrant=False)

    assert_equal(trained(Checkpointed(), x), expected)
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t.shape) or t, lambda t: t):
        assert_equal(trained(layer, x), expected)
    assert x.shape in seen
    assert layer.weight.shape in seen
    with torch.autograd.graph.save_on_cpu():
        assert_equal(trained(layer, x), expected)
    with torch.autograd.graph.disable_saved_tensors_hooks("none here"):
        assert_equal(trained(layer, x), expected)


def test_quantizers_that_are_changed_by_others(floats):
    """By a hook, a subclass or a switch: what they give need not be of their grid."""
    shifted = LSQ(4)
    shifted.register_forward_hook(lambda module, args, out: out + 0.1)

    class Noisy(Sign):
        def forward(self, x):
            return super().forward(x) * torch.rand_like(x)

    def written(x):
        y = ste_ops.lsq(x, torch.full((1,), 0.3, requires_grad=True), -8, 7)
        with torch.no_grad():
            return y.mul_(2)

    def written_behind(x):
        y = ste_ops.lsq(x, torch.full((1,), 0.3, requires_grad=True), -8, 7)
        y.data.clamp_(min=0)
        return y

    def doubled(module, args, out):
        out.data.mul_(2)

    hooked = LSQ(4)
    hooked.register_forward_hook(doubled)

    for quantizer in (shifted, Noisy(), LSQ(4).disable(), lambda x: x, nn.Identity(), written, written_behind, hooked):
        for of_weight in (Noisy(), written_behind, None):
            layer = QuantLinear(6, 3, input_quantizer=quantizer, weight_quantizer=of_weight)
            x = torch.randn(5, 6)

            def call():
                torch.manual_seed(3)
                return trained(layer, x)  # noqa: B023

            assert_equal(call(), floats(call))


@pytest.mark.parametrize("of_input", [lambda: LSQ(4), Sign, lambda: ste_ops.sign])
@pytest.mark.parametrize("of_weight", [lambda: LSQ(4), XNORWeight, Sign])
def test_what_a_convolution_of_ones_own_changes_is_kept_as_it_was_changed(floats, of_input, of_weight):
    class Halves(QuantConv2d):
        def _conv_forward(self, input, weight, bias):
            return super()._conv_forward(input.mul_(0.5), weight.mul_(0.5), bias)

    torch.manual_seed(0)
    layer = Halves(4, 4, 3, padding=1, input_quantizer=of_input(), weight_quantizer=of_weight())
    x = torch.randn(3, 4, 8, 8)
    layer(x)
    assert_equal(trained(layer, x), floats(lambda: trained(layer, x)))


def test_other_memory_between_forward_and_backward_is_told():
    layer = QuantLinear(16, 8, input_quantizer=LSQ(4), weight_quantizer=LSQ(4))
    for swapped in ("x", "weight"):
        x = torch.randn(64, 16)
        y = layer(x)
        of = x if swapped == "x" else layer.weight
        of.data = of.data + 1
        with pytest.raises(RuntimeError, match="was given other memory since the forward"):
            y.sum().backward()


def test_transforms_and_graphs(floats):
    layer, x = made("conv2d", "LSQ", "XNOR")
    layer(x)
    parameters = dict(layer.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    for transform in (
        lambda f: torch.func.grad(f),
        lambda f: torch.func.vmap(torch.func.grad(f), (None, 0)),
        lambda f: lambda p, x: torch.func.jvp(functools.partial(f, p), (x,), (torch.ones_like(x),)),
    ):
        given = x[:, None] if "vmap" in repr(transform.__code__.co_names) else x
        received, expected = (call() for call in (lambda: transform(loss)(parameters, given), lambda: floats(  # noqa: B023
            lambda: transform(loss)(parameters, given))))  # noqa: B023  # fmt: skip
        torch.testing.assert_close(received, expected, rtol=0, atol=0)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x), rtol=0, atol=0)


def test_a_scale_that_is_found_in_the_first_forward(floats):
    """Its own weight is not kept either, and the versions are those of after it."""
    for of_weight in ("LSQ", "LSQPlus", "FakeQuantize"):
        layer, x = made("conv2d", "LSQ", of_weight)
        nn.init.normal_(layer.weight)  # after the quantizer was attached: the first forward confirms its scale
        assert_equal(trained(layer, x), floats(lambda: trained(layer, x)))  # noqa: B023


@pytest.mark.parametrize(
    ("rows", "outputs", "of_input", "of_weight"),
    [(64, 128, True, True), (63, 128, False, False), (64, 127, True, False), (63, 200, False, False)],
)
def test_what_is_small_is_kept_as_it_is(monkeypatch, rows, outputs, of_input, of_weight):
    monkeypatch.undo()
    layer = QuantLinear(256, outputs, bias=False, input_quantizer=ste_ops.sign, weight_quantizer=ste_ops.sign)
    x = torch.randn(rows, 256, requires_grad=True)
    kept = kept_bytes(layer, x) - x.numel() // 8  # the mask of the input
    numel, runs = x.numel(), x.numel() * 4 // 512
    kept -= numel // 8 + runs if of_input else numel * 4
    kept -= 0 if of_weight else 256 * outputs * 4 + 256 * outputs // 8
    assert 0 <= kept <= 64  # the values that codes stand for


@pytest.mark.parametrize("of_parameter", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("of_x", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("of_input", [name for name in INPUTS if name not in ("sign", "partial")])
def test_every_quantizer_puts_out_the_numbers_that_it_says(of_input, of_x, of_parameter):
    """On the CPU floats would be kept without a word where it did not; on CUDA they would become NaN."""
    quantizer = INPUTS[of_input][0]()
    x = torch.randn(6, 4, 5, 7).to(of_x)
    quantizer(x)
    quantizer.to(of_parameter)
    for bits in (1, 2, 3, 4, 5, 6, 7, 8) if of_input in ("PACT", "DoReFa") else (None,):
        quantizer.bits = bits or getattr(quantizer, "bits", None)
        with torch.no_grad():
            q = quantizer(x)
            codes = pack(q, quantizer._grid(x))
        assert codes is not None
        assert torch.equal(codes.unpack(), q)
